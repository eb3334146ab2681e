//! Accounts between which money moves: every read finds the same sum, whoever serves it.

use serde::{Deserialize, Serialize};

use crate::operation::{History, Operation, Outcome, Server};
use crate::report::{Anomaly, Report};

/// One operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Moves money, where there is enough.
    Transfer {
        /// From this account.
        from: i64,
        /// To this one.
        to: i64,
        /// So much.
        amount: i64,
    },
    /// All balances at one moment.
    Balances {
        /// Of account 0, 1, and so on.
        balances: Vec<i64>,
        /// Who answered.
        by: Server,
        /// Whether everything else had ended.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        last: bool,
    },
}

/// What must hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promise {
    /// Balances at the beginning, of account 0, 1, and so on.
    pub accounts: Vec<i64>,
}

/// Judges a history.
pub fn check(history: &History<Action>, promise: &Promise) -> Report {
    let mut report = Report::of(history.tally());
    let total: i64 = promise.accounts.iter().sum();
    let mut looked = false;
    for (index, operation) in history.done() {
        let Action::Balances { balances, by, last } = &operation.action else { continue };
        let sum: i64 = balances.iter().sum();
        if sum != total || balances.len() != promise.accounts.len() {
            let words = format!("{by} answered {balances:?}: {sum}, not {total}");
            report.broken(Anomaly::WrongSum, vec![index], words);
        }
        if balances.iter().any(|b| *b < 0) {
            let words = format!("{by} answered {balances:?}");
            report.broken(Anomaly::NegativeBalance, vec![index], words);
        }
        if *last {
            looked = true;
            explained(history, promise, index, balances, &mut report);
        }
    }
    if !looked {
        report.inconclusive("nobody looked what is there at the end".to_owned());
    }
    report
}

/// Whether transfers explain what is there at the end: all that were acknowledged, and any of those
/// whose outcome is not known.
fn explained(
    history: &History<Action>,
    promise: &Promise,
    index: usize,
    balances: &[i64],
    report: &mut Report,
) {
    for (account, (found, begun)) in balances.iter().zip(&promise.accounts).enumerate() {
        let is = |one: &i64| usize::try_from(*one) == Ok(account);
        let (mut least, mut most) = (*begun, *begun);
        for Operation { action, outcome, .. } in &history.operations {
            let Action::Transfer { from, to, amount } = action else { continue };
            let moved = i64::from(is(to)) * amount - i64::from(is(from)) * amount;
            match outcome {
                Outcome::Ok => (least, most) = (least + moved, most + moved),
                Outcome::Unknown => (least, most) = (least + moved.min(0), most + moved.max(0)),
                Outcome::Failed => {}
            }
        }
        if *found < least || *found > most {
            let words = format!(
                "account {account} holds {found} at the end; its transfers allow {least} to {most}"
            );
            report.broken(Anomaly::WrongCount, vec![index], words);
        }
    }
}
