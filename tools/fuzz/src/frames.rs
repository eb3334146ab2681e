//! Message boundaries, and everything that reads what is inside of messages.

use bytes::{BufMut, Bytes, BytesMut};
use quorate_gateway::Token;
use quorate_wire::backend::{Fields, Report, Status};
use quorate_wire::binding::Binding;
use quorate_wire::frame::{self, HEADER, put, put_cstr, take_cstr};
use quorate_wire::replication::{FromServer, StatusUpdate, SystemIdentity, text_columns};
use quorate_wire::scram::Exchange;
use quorate_wire::startup;
use quorate_wire::verifier::Verifier;
use quorate_wire::{CancelKey, Error, Event, FirstPacket, Splitter, auth, limits};

use crate::knob;
use crate::memory::peak;

const APP: &str = "SCRAM-SHA-256$4096:DAxE/Ykp4p7N+YWaiW19rA==$cZtBpicSm6RhppoV+u38WgagKbW2u05jGl0QUyy13BQ=:comUIfInZ7PIomvLpXKGbKS+dnwm2uNruLAGeGgyQrg=";
const OLD: &str = "md504a6e9cad70986782b90718777cf1414";

/// `chunk size, see, max, bytes`.
pub fn check(mut data: &[u8]) {
    let chunk = usize::from(knob(&mut data)).max(1);
    let see = usize::from(knob(&mut data));
    let max = usize::from(knob(&mut data)) * 16;
    // Any decoder may hold its input a few times over, and what it makes of small pieces of it.
    let ((), held) = peak(|| {
        boundaries(data, chunk, see);
        messages(data, chunk, max);
        first_packets(data);
        bodies(data);
    });
    assert!(held <= 64 * 1024 + 128 * data.len(), "{held} bytes for {}", data.len());
}

/// What began and what ended: tag, length, what was seen, whether it ended.
type Found = (u8, usize, Vec<u8>, bool);

fn split(stream: &[u8], chunk: usize, see: usize) -> (Vec<Found>, Option<Error>, bool) {
    // What is asked for differs between kinds of messages.
    let see = |tag: u8| if tag % 3 == 0 { 0 } else { see };
    let mut splitter = Splitter::new();
    let mut found = Vec::new();
    for mut part in stream.chunks(chunk) {
        loop {
            match splitter.step(part, see) {
                Err(error) => return (found, Some(error), false),
                Ok(step) => {
                    part = &part[step.used..];
                    let (part, ended) = match step.event {
                        None => break,
                        Some(Event::Head(part)) => (part, false),
                        Some(Event::End(part)) => (part, true),
                    };
                    assert!(part.seen.len() <= see(part.tag).min(part.len));
                    found.push((part.tag, part.len, part.seen.to_vec(), ended));
                }
            }
        }
        assert!(part.is_empty(), "a chunk is not used up");
    }
    (found, None, splitter.at_boundary())
}

/// Chunks make no difference.
fn boundaries(stream: &[u8], chunk: usize, see: usize) {
    let whole = split(stream, stream.len().max(1), see);
    assert_eq!(whole, split(stream, chunk, see), "in chunks of {chunk}");
    assert_eq!(whole, split(stream, 1, see), "byte by byte");
}

/// Whole messages are the same however they come, fit into their limit, and are put together again.
fn messages(stream: &[u8], chunk: usize, max: usize) {
    let (mut whole, mut at) = (BytesMut::from(stream), 0);
    let (mut grown, mut rest) = (BytesMut::new(), stream);
    loop {
        let at_once = frame::take(&mut whole, max);
        let in_chunks = loop {
            let taken = frame::take(&mut grown, max);
            match taken {
                Ok(None) if !rest.is_empty() => {
                    assert!(grown.len() < HEADER + max, "more is kept than the limit");
                    let (more, behind) = rest.split_at(chunk.min(rest.len()));
                    grown.put_slice(more);
                    rest = behind;
                }
                taken => break taken,
            }
        };
        assert_eq!(at_once, in_chunks);
        let Ok(Some(message)) = at_once else { return };
        assert!(message.body.len() <= max);
        let mut again = BytesMut::new();
        put(&mut again, message.tag, |out| out.put_slice(&message.body));
        assert_eq!(again, stream[at..at + again.len()]);
        at += again.len();
    }
}

/// First packets: nothing is said before all of it is there, and the same whatever follows.
fn first_packets(stream: &[u8]) {
    let found = startup::parse(stream);
    for cut in 0..stream.len().min(300) {
        match (startup::parse(&stream[..cut]), &found) {
            (Ok(None), _) => {}
            (Ok(Some(early)), Ok(Some(found))) => assert_eq!(early, *found),
            (Err(_), Err(_)) => {}
            other => panic!("cut at {cut}: {other:?}"),
        }
    }
    let Ok(Some((packet, used))) = found else { return };
    assert!(used <= limits::STARTUP_MAX && used <= stream.len());
    assert_eq!(packet.encode(), stream[..used]);
    if let FirstPacket::Startup(mut packet) = packet {
        packet.set("application_name", "n1");
        assert_eq!(packet.get("application_name"), Some(&b"n1"[..]));
        let again = startup::parse(&packet.encode());
        assert!(
            used > 9_900 || matches!(again, Ok(Some((FirstPacket::Startup(p), _))) if p == packet)
        );
    }
}

/// Every reader of bodies: over the whole input and over the bodies of messages in it.
fn bodies(stream: &[u8]) {
    body(stream);
    let mut buf = BytesMut::from(stream);
    while let Ok(Some(message)) = frame::take(&mut buf, limits::MESSAGE_MAX) {
        body(&message.body);
    }
}

fn body(body: &[u8]) {
    if let Ok(fields) = Fields::parse(body) {
        let _ = (fields.code(), fields.message(), fields.is_cancelled_sync_wait());
        let mut again = BytesMut::new();
        for (field, value) in (1..=255).filter_map(|f| Some((f, fields.get(f)?))) {
            again.put_u8(field);
            put_cstr(&mut again, value);
        }
        again.put_u8(0);
        let same = Fields::parse(&again).expect("what was read");
        assert!((0..=255).all(|f| same.get(f) == fields.get(f)));
    }
    let _ = Status::parse(body);
    let _ = FromServer::parse(body);
    if let Ok(Some(update)) = StatusUpdate::parse(body) {
        let mut again = BytesMut::new();
        update.put(&mut again);
        assert_eq!(StatusUpdate::parse(&again[HEADER..]), Ok(Some(update)));
        assert_eq!(again[HEADER..again.len() - 1], body[..body.len() - 1]);
    }
    let bytes = Bytes::copy_from_slice(body);
    if let Ok(columns) = text_columns(&bytes) {
        let held: usize = columns.iter().map(|c| 4 + c.as_ref().map_or(0, Bytes::len)).sum();
        assert!(2 + held <= body.len());
        let _ = SystemIdentity::parse(&bytes);
    }
    if let Ok(key) = CancelKey::parse(body) {
        assert!(key.secret.len() <= limits::CANCEL_KEY_MAX);
        let packet = FirstPacket::Cancel(key);
        let bytes = packet.encode();
        assert_eq!(startup::parse(&bytes), Ok(Some((packet, bytes.len()))));
    }
    let mut rest = body;
    while let Ok(text) = take_cstr(&mut rest, "a name") {
        assert!(!text.contains(&0));
    }
    if let Some(binding) = Binding::of_certificate(body) {
        assert!(binding.as_bytes().len() <= 64);
    }
    if let Ok(text) = std::str::from_utf8(body) {
        texts(text);
    }
    scram(body);
}

fn texts(text: &str) {
    if let Ok(verifier) = Verifier::parse(text) {
        assert!(!verifier.is_decoy());
        assert!(format!("{verifier:?}").len() < 100, "it is printed");
    }
    let cluster = "c1";
    if let Some(token) = Token::from_text(text, cluster) {
        assert_eq!(Token::from_text(&token.text(cluster), cluster), Some(token));
    }
    let report = Report::error("57P03", text).detail(text).hint(text);
    let encoded = report.encode();
    let fields = Fields::parse(&encoded[HEADER..]).expect("a report of our own");
    let cut = text.split('\0').next().unwrap_or_default();
    assert_eq!((fields.code(), fields.message()), ("57P03", cut));
    assert_eq!(fields.get(b'H'), Some(cut.as_bytes()));
}

/// Nobody gets in without the password, whatever is said and in which order.
fn scram(body: &[u8]) {
    let parse = |stored| Verifier::parse(stored).expect("a stored password");
    if let Verifier::Md5(hash) = parse(OLD) {
        assert!(auth::md5_check("old", &hash, [1, 2, 3, 4], body).is_err());
    }
    let at = body.first().map_or(0, |&at| usize::from(at) * 2).min(body.len());
    let (first, last) = body.split_at(at);
    // As a client would send it: the mechanism and a length before the message.
    for (binding, mechanism) in [(None, "SCRAM-SHA-256"), (Some([7; 32]), "SCRAM-SHA-256-PLUS")] {
        let mut initial = BytesMut::new();
        put_cstr(&mut initial, mechanism.as_bytes());
        initial.put_u32(first.len() as u32);
        initial.put_slice(first);
        for first in [body, &initial] {
            let Verifier::Scram(keys) = parse(APP) else { return };
            let exchange = Exchange::new("app", keys, binding.map(Binding::new));
            let Ok((challenged, challenge)) = exchange.first(first, &[5; 18]) else { continue };
            assert!(first.len() <= limits::AUTHENTICATION_MAX);
            assert!(challenge.len() <= first.len() + 200);
            // The challenge's nonce, so that more than the first comparison is reached.
            let nonce = challenge[HEADER + 4 + 2..].split(|&b| b == b',').next();
            let repeated = [b"c=biws,r=", nonce.unwrap_or_default(), b",", last].concat();
            for last in [last, &repeated] {
                assert!(challenged.clone().last(last).is_err());
            }
        }
    }
}
