//! One peer's beats to us: hear, answer, until it hangs up, falls silent or is replaced.

use std::io;
use std::time::Duration;

use quorate_core::NodeId;

use super::Pulse;
use super::channel::Channel;
use super::wake::Wake;
use crate::{Kind, Outage, clock, limits};

pub(super) fn run(
    mut channel: Channel,
    from: (NodeId, &Outage),
    pulse: &dyn Pulse,
    wake: &Wake,
    interval: Duration,
) {
    // A broken connection is the caller's to replace, and nothing to act on here.
    let _ = converse(&mut channel, from, pulse, wake, interval);
    channel.close();
}

fn converse(
    channel: &mut Channel,
    (from, outage): (NodeId, &Outage),
    pulse: &dyn Pulse,
    wake: &Wake,
    interval: Duration,
) -> io::Result<()> {
    let idle_max = limits::BEAT_IDLE_MAX.max(interval * 10);
    let mut heard = clock::now();
    channel.take_plaintext()?;
    while !wake.stopped() {
        // A peer that does not read its answers is not listened to either.
        while !channel.backlogged()
            && let Some((sequence, beat)) = channel.take_message()?
        {
            heard = clock::now();
            if outage.holds(Kind::Heartbeat) {
                continue;
            }
            let answer = pulse.heard(from, &beat);
            channel.send(sequence, &answer)?;
        }
        if channel.ended() || clock::now().since(heard) >= idle_max {
            break;
        }
        let deaf = channel.backlogged();
        channel.turn(wake, heard + idle_max, deaf)?;
    }
    Ok(())
}
