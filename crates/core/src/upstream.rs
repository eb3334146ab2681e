//! Where a standby gets the log from: the writer, or the node that the document names for it.
//!
//! A cascaded standby is in no commit rule and reports in no election, so that nothing of authority
//! depends on this. Wishes form no circle ([`circle`]), and who does not follow its wish follows the
//! writer, which follows nobody: so neither do the feeds.

use crate::document::Document;
use crate::limits::{UPSTREAM_REFUSED, UPSTREAM_SETTLES};
use crate::status::{Doing, NodeStatus};
use crate::{Moment, NodeId, Term};

/// Which of the two a standby follows.
#[derive(Debug, Default)]
pub struct Upstream {
    /// Since when the wish can be followed.
    usable: Option<Moment>,
    /// When it refused.
    refused: Option<Moment>,
}

impl Upstream {
    /// The node to follow instead of the writer, `None` for the writer itself. `usable`: whether the
    /// wished node follows the writer now. At the first look nothing is waited for, later a node that
    /// has come back is trusted after a while.
    pub fn choose(
        &mut self,
        wish: Option<NodeId>,
        usable: bool,
        first: bool,
        now: Moment,
    ) -> Option<NodeId> {
        let Some(wish) = wish.filter(|_| usable) else {
            self.usable = None;
            return None;
        };
        let since = *self.usable.get_or_insert(now);
        let settled = first || now.since(since) >= UPSTREAM_SETTLES;
        let refused = self.refused.is_some_and(|at| now.since(at) < UPSTREAM_REFUSED);
        if first {
            // It counts as settled from now on.
            self.usable = Some(Moment(now.0.saturating_sub(UPSTREAM_SETTLES.as_nanos() as u64)));
        }
        (settled && !refused).then_some(wish)
    }

    /// The wished node does not feed this one: it lacks what is needed, or does not follow itself.
    pub fn refuse(&mut self, now: Moment) {
        self.refused = Some(now);
    }
}

/// Whether a node can feed others in a term: it follows the writer, by its own word.
pub fn feeds(status: &NodeStatus, term: Term) -> bool {
    status.doing == Doing::Following && status.term == term
}

/// A circle of wishes that a node is part of, as its names in order; `None` when there is none.
pub fn circle(document: &Document, node: NodeId) -> Option<Vec<NodeId>> {
    let mut path = vec![node];
    loop {
        let next = document.nodes.get(path.last()?)?.follow?;
        if next == node {
            return Some(path);
        }
        if path.contains(&next) {
            // The circle is further up, and told of there.
            return None;
        }
        path.push(next);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::document::NodeSpec;
    use crate::role::Role;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn at(ms: u64) -> Moment {
        Moment(Duration::from_millis(ms).as_nanos() as u64 + (1 << 50))
    }

    #[test]
    fn a_node_that_comes_back_is_followed_after_a_while() {
        let (mut upstream, n3) = (Upstream::default(), Some(node("n3")));
        assert_eq!(upstream.choose(n3, true, true, at(0)), n3, "nothing is lost by it at first");
        assert_eq!(upstream.choose(n3, true, false, at(1)), n3);
        assert_eq!(upstream.choose(n3, false, false, at(2)), None, "it is gone");
        assert_eq!(upstream.choose(n3, true, false, at(3)), None);
        assert_eq!(upstream.choose(n3, false, false, at(900)), None);
        assert_eq!(upstream.choose(n3, true, false, at(1000)), None);
        let settles = UPSTREAM_SETTLES.as_millis() as u64;
        assert_eq!(upstream.choose(n3, true, false, at(999 + settles)), None);
        assert_eq!(upstream.choose(n3, true, false, at(1000 + settles)), n3);
        assert_eq!(upstream.choose(None, true, false, at(5000 + settles)), None, "no wish");
    }

    #[test]
    fn a_node_that_refuses_is_asked_again_later() {
        let (mut upstream, n3) = (Upstream::default(), Some(node("n3")));
        assert_eq!(upstream.choose(n3, true, true, at(0)), n3);
        upstream.refuse(at(10));
        assert_eq!(upstream.choose(n3, true, false, at(11)), None);
        let refused = UPSTREAM_REFUSED.as_millis() as u64;
        assert_eq!(upstream.choose(n3, true, false, at(10 + refused)), n3);
    }

    #[test]
    fn circles_are_found() {
        let follows = |wishes: &[(&str, &str)]| {
            let spec = |of: &str| NodeSpec {
                role: Role::Reporting,
                follow: Some(node(of)),
                ..NodeSpec::default()
            };
            let nodes = wishes.iter().map(|(name, of)| (node(name), spec(of))).collect();
            Document { nodes, ..Document::default() }
        };
        let chain = follows(&[("n5", "n4"), ("n4", "n3")]);
        assert_eq!(circle(&chain, node("n5")), None);
        let two = follows(&[("n5", "n4"), ("n4", "n5")]);
        assert_eq!(circle(&two, node("n4")), Some(vec![node("n4"), node("n5")]));
        assert_eq!(circle(&follows(&[("n4", "n4")]), node("n4")), Some(vec![node("n4")]));
        let behind = follows(&[("n6", "n5"), ("n5", "n4"), ("n4", "n5")]);
        assert_eq!(circle(&behind, node("n6")), None);
    }
}
