//! What a session saw on a replica, it is to see on the writer.
//!
//! A replica shows a commit as soon as it has replayed it. The writer shows it later: its backend waits
//! until enough copies hold the commit, wakes up, and only then leaves the list of transactions under
//! way, which snapshots are made of. That a commit is acknowledged is therefore not enough. The writer
//! tells who is on its list, and not who of these has committed already; a replica that has replayed
//! as much as the session saw can tell that.

use std::rc::Rc;

use quorate_core::gateway::Consistency;
use quorate_core::{Lsn, NodeId};
use quorate_wire::backend::Report;

use crate::acquire::{Acquired, present, present_writer, replica};
use crate::client::Client;
use crate::group::Group;
use crate::limits;
use crate::server::{Answer, Gone, Server};
use crate::worker::Worker;
use crate::world::{Token, View};

/// The id of a transaction, with its epoch.
pub(crate) type Xid = u64;

/// What a replica has shown at a moment.
pub(crate) struct Shown {
    /// Nothing that was logged behind this.
    pub(crate) lsn: Lsn,
    /// No transaction with this id, nor a later one.
    pub(crate) below: Xid,
}

/// What a replica shows now; `None` when the question failed.
pub(crate) async fn shown(server: &mut Server) -> Result<Option<Shown>, Gone> {
    let sql = b"SELECT pg_catalog.pg_last_wal_replay_lsn(), \
                pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())";
    let answer = server.ask(sql).await?;
    let lsn = answer.column(0, 0).and_then(|v| std::str::from_utf8(v).ok());
    let lsn = lsn.and_then(|v| v.parse().ok());
    Ok(lsn.zip(xid(&answer, 0, 1)).map(|(lsn, below)| Shown { lsn, below }))
}

fn xid(answer: &Answer, row: usize, column: usize) -> Option<Xid> {
    std::str::from_utf8(answer.column(row, column)?).ok()?.parse().ok()
}

/// A connection to the writer, once it shows whatever the session has seen.
pub(crate) async fn writer(worker: &Rc<Worker>, client: &Client, group: &Group) -> Acquired {
    let mut since = None;
    // Those that a replica shows as committed, once one was asked.
    let mut committed: Option<Vec<Xid>> = None;
    let mut tries = 0;
    // What asks for another level, or gives a token up, reads nothing.
    let held = (!group.ours || group.many)
        && !matches!(client.asked.consistency, Consistency::Eventual | Consistency::Bounded);
    while let Some(below) = client.ahead.get().filter(|_| held) {
        let view = worker.view();
        let Some(token) = client.token.map(|token| present(token, &view)).transpose()? else {
            break;
        };
        // Without a writer there is nothing to wait for: the next one has all that is not lost.
        if view.writer.is_none() || view.acknowledged >= Some(token.lsn) {
            let mut server = present_writer(worker, client, group).await?;
            match under_way(&mut server, below).await {
                Ok(mut left) => {
                    if let Some(committed) = &committed {
                        left.retain(|xid| committed.contains(xid));
                    }
                    if left.is_empty() {
                        client.ahead.set(None);
                        return Ok(server);
                    }
                    // It serves others meanwhile: they may be who is waited for.
                    client.account.put(server);
                    if committed.is_none() && left.len() < limits::HIDDEN_MAX {
                        committed = told(worker, client, token, &left).await;
                    }
                    if committed.as_ref().is_some_and(Vec::is_empty) {
                        continue;
                    }
                }
                Err(gone) => tracing::debug!("the writer does not tell: {}", gone.sentence()),
            }
        }
        if worker.now() >= *since.get_or_insert_with(|| worker.now()) + view.wanted.hold_ms {
            let detail = match committed {
                Some(_) => "A replica has shown a commit that not enough copies hold.",
                None => {
                    "A replica may have shown the commit of a transaction that is under way on the \
                     writer, and no replica can tell now."
                }
            };
            return Err(Box::new(
                Report::error("57P03", "the writer does not show yet what this session has seen")
                    .detail(detail)
                    .hint("Nothing was executed. Try again in a moment."),
            ));
        }
        worker.changed(worker.pause(tries).min(limits::LOOK_AGAIN)).await;
        tries += 1;
    }
    present_writer(worker, client, group).await
}

/// Transactions below this id that the writer does not show.
async fn under_way(server: &mut Server, below: Xid) -> Result<Vec<Xid>, Gone> {
    let answer = server.ask(b"SELECT pg_catalog.pg_current_snapshot()").await?;
    let text = answer.column(0, 0).and_then(|text| std::str::from_utf8(text).ok());
    let hidden = text.and_then(|text| hidden(text, below));
    hidden.ok_or_else(|| {
        Gone::Lost(answer.failed().unwrap_or_else(|| "it tells no snapshot".to_owned()))
    })
}

/// Transactions below this id that a snapshot does not show, as text `xmin:xmax:under,way`. All from
/// `xmax` on are among them. No more than [`limits::HIDDEN_MAX`].
fn hidden(snapshot: &str, below: Xid) -> Option<Vec<Xid>> {
    let (_, rest) = snapshot.split_once(':')?;
    let (xmax, listed) = rest.split_once(':')?;
    let xmax: Xid = xmax.parse().ok()?;
    let listed = listed.split(',').filter(|xid| !xid.is_empty());
    let listed: Vec<Xid> = listed.map(|xid| xid.parse().ok()).collect::<Option<_>>()?;
    let all = listed.into_iter().filter(|xid| *xid < below).chain(xmax..below);
    Some(all.take(limits::HIDDEN_MAX).collect())
}

/// Which of these a replica that has replayed up to a token shows as committed; `None` when there is
/// no such replica now. Whatever it shows as under way, nobody has seen who saw no more than the token.
async fn told(
    worker: &Rc<Worker>,
    client: &Client,
    token: Token,
    xids: &[Xid],
) -> Option<Vec<Xid>> {
    let view = worker.view();
    for which in by_progress(&view) {
        let of = (&client.account, &client.settings);
        let Some(mut server) = replica(worker, of, &view, which).await else { continue };
        match committed(&mut server, token.lsn, xids).await {
            Ok(committed) => {
                client.account.put(server);
                if committed.is_some() {
                    return committed;
                }
            }
            Err(gone) => tracing::debug!("{} does not tell: {}", which.0, gone.sentence()),
        }
    }
    None
}

/// Replicas, those first that had replayed most when they told so last.
fn by_progress(view: &View) -> Vec<(NodeId, u64)> {
    let mut replicas: Vec<_> = view.replicas.iter().collect();
    replicas.sort_by_key(|r| std::cmp::Reverse(r.replayed));
    replicas.into_iter().map(|r| (r.node, r.incarnation)).collect()
}

/// `None` when the replica has not replayed so much.
async fn committed(server: &mut Server, lsn: Lsn, xids: &[Xid]) -> Result<Option<Vec<Xid>>, Gone> {
    // In this order: when it tells what it shows, it is as far or further.
    let Some(shown) = shown(server).await?.filter(|shown| shown.lsn >= lsn) else {
        return Ok(None);
    };
    // It cannot be asked about what it has not heard of.
    let known = xids.iter().filter(|xid| **xid < shown.below);
    let known: Vec<String> = known.map(Xid::to_string).collect();
    let sql = format!(
        "SELECT x, pg_catalog.pg_xact_status(x) \
         FROM pg_catalog.unnest('{{{}}}'::pg_catalog.xid8[]) x",
        known.join(",")
    );
    let answer = server.ask(sql.as_bytes()).await?;
    if let Some(why) = answer.failed() {
        return Err(Gone::Lost(why));
    }
    let rows = (0..answer.rows.len()).filter(|row| answer.column(*row, 1) == Some(b"committed"));
    Ok(Some(rows.filter_map(|row| xid(&answer, row, 0)).collect()))
}

/// A token as a client is given it. While it may be of something that the writer does not show yet, it
/// says so.
pub(crate) fn token_text(client: &Client, cluster: &str) -> String {
    let Some(token) = client.token else { return String::new() };
    let text = token.text(cluster);
    match client.ahead.get() {
        Some(below) => format!("{text}.{below:X}"),
        None => text,
    }
}

/// From such a text.
pub(crate) fn token_from(text: &str, cluster: &str) -> Option<(Token, Option<Xid>)> {
    if let Some(token) = Token::from_text(text, cluster) {
        return Some((token, None));
    }
    let (text, below) = text.rsplit_once('.')?;
    let below = Xid::from_str_radix(below, 16).ok()?;
    Some((Token::from_text(text, cluster)?, Some(below)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_core::Term;

    #[test]
    fn a_snapshot_tells_what_it_does_not_show() {
        assert_eq!(hidden("730:740:730,735,739", 740), Some(vec![730, 735, 739]));
        assert_eq!(hidden("730:740:730,735,739", 739), Some(vec![730, 735]));
        // What came behind the last one that is over is under way, too.
        assert_eq!(hidden("740:740:", 743), Some(vec![740, 741, 742]));
        assert_eq!(hidden("740:740:", 740), Some(vec![]));
        assert_eq!(hidden("740:740:", 7), Some(vec![]));
        assert_eq!(hidden("1:2:", Xid::MAX).map(|all| all.len()), Some(limits::HIDDEN_MAX));
        for wrong in ["", "740", "740:740", "a:b:c", "1:2:x"] {
            assert_eq!(hidden(wrong, 10), None, "{wrong}");
        }
    }

    #[test]
    fn a_token_tells_what_it_may_be_ahead_of() {
        let token = Token { term: Term(3), lsn: Lsn(0x16B_3748) };
        assert_eq!(token_from("c.3.16B3748", "c"), Some((token, None)));
        assert_eq!(token_from("c.3.16B3748.2DA", "c"), Some((token, Some(0x2DA))));
        for wrong in ["", "d.3.16B3748", "c.3", "c.3.16B3748.", "c.3.16B3748.2DA.1", "c.3.X.2DA"] {
            assert_eq!(token_from(wrong, "c"), None, "{wrong}");
        }
    }
}
