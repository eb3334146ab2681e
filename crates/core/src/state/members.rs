//! Who belongs to the cluster: joining by token, leaving, removal.

use super::{Applied, Node, State, WallMillis};
use crate::NodeId;
use crate::because::Because;
use crate::document::Timing;
use crate::limits::{NODES_MAX, TOKENS_MAX};

impl State {
    pub(super) fn put_node(&mut self, name: NodeId, node: &Node) -> Applied {
        match self.nodes.get(&name) {
            None => Err(format!("{name} is not a member")),
            Some(known) if known.kind != node.kind => {
                Err(format!("{name} cannot change between data node and witness: remove it first"))
            }
            Some(_) => {
                self.nodes.insert(name, node.clone());
                Ok(())
            }
        }
    }

    pub(super) fn admit(
        &mut self,
        at: WallMillis,
        name: NodeId,
        node: &Node,
        token: &str,
    ) -> Applied {
        match self.tokens.get(token) {
            None => {
                return Err("the token is not known: it was used before, or another cluster made \
                            it; make a new one with `quorate token`"
                    .to_owned());
            }
            Some(expires) if *expires < at => {
                return Err("the token has expired: make a new one with `quorate token`".to_owned());
            }
            Some(_) => {}
        }
        if self.nodes.contains_key(&name) {
            return Err(format!(
                "the cluster has a node named {name} already: choose another name, or remove that \
                 node first with `quorate remove {name}`"
            ));
        }
        if self.nodes.len() >= NODES_MAX {
            return Err(format!("a cluster has at most {NODES_MAX} nodes"));
        }
        self.tokens.remove(token);
        self.nodes.insert(name, node.clone());
        self.note(at, "node-joined", Because::new("op-join", format!("{name} joined the cluster")));
        Ok(())
    }

    pub(super) fn leave(&mut self, name: NodeId) -> Applied {
        if !self.nodes.contains_key(&name) {
            return Err(format!("{name} is not a member"));
        }
        if self.authority.writer == Some(name) {
            return Err(format!("{name} is the writer: switch over first (`quorate switchover`)"));
        }
        let document = self.document();
        if document.timing == Timing::Sync && document.sync_nodes.contains(&name) {
            return Err(format!(
                "commits wait for {name} by name: take it out of `sync_nodes` first"
            ));
        }
        self.leaving.insert(name);
        Ok(())
    }

    pub(super) fn remove_node(&mut self, at: WallMillis, name: NodeId) -> Applied {
        if !self.nodes.contains_key(&name) {
            return Err(format!("{name} is not a member"));
        }
        if self.authority.writer == Some(name) {
            return Err(format!("{name} is the writer: switch over first (`quorate switchover`)"));
        }
        if self.authority.cohort().contains(&name) {
            return Err(format!("{name} is still in the commit rule"));
        }
        self.nodes.remove(&name);
        self.leaving.remove(&name);
        self.note(at, "node-removed", Because::new("op-remove", format!("{name} was removed")));
        Ok(())
    }

    pub(super) fn add_token(&mut self, at: WallMillis, hash: &str, expires: WallMillis) -> Applied {
        self.tokens.retain(|_, e| *e >= at);
        if self.tokens.len() >= TOKENS_MAX {
            return Err(format!("{TOKENS_MAX} tokens are outstanding: wait until some expire"));
        }
        self.tokens.insert(hash.to_owned(), expires);
        Ok(())
    }
}
