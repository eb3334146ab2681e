//! What a login costs the server's side, and what it would cost without stored keys.
//!
//! `cargo run --release -p quorate-wire --example scram`

use std::hint::black_box;
use std::time::Instant;

use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use quorate_wire::binding::Binding;
use quorate_wire::scram::{Exchange, NONCE, SCRAM, SCRAM_PLUS};
use quorate_wire::verifier::{Keys, Verifier};

/// As PostgreSQL stored it for `correct horse`.
const STORED: &str = "SCRAM-SHA-256$4096:DAxE/Ykp4p7N+YWaiW19rA==$cZtBpicSm6RhppoV+u38WgagKbW2u05jGl0QUyy13BQ=:comUIfInZ7PIomvLpXKGbKS+dnwm2uNruLAGeGgyQrg=";
const SEED: [u8; NONCE] = [9; NONCE];
const RUNS: u32 = 20_000;
const RUNS_CLIENT: u32 = 50;

fn main() {
    let keys = keys(Verifier::parse(STORED).expect("a stored password"));
    for (mechanism, binding) in [(SCRAM, None), (SCRAM_PLUS, Some(Binding::new([7; 32])))] {
        measure(mechanism, &keys, binding);
    }
    micros("stored password read", RUNS, || {
        black_box(Verifier::parse(black_box(STORED)).is_ok());
    });
    micros("decoy made", RUNS, || {
        black_box(Verifier::decoy(black_box("ghost"), b"secret", 4096));
    });
}

fn measure(mechanism: &str, keys: &Keys, binding: Option<Binding>) {
    let client = || match &binding {
        Some(binding) => ChannelBinding::tls_server_end_point(binding.as_bytes().to_vec()),
        None => ChannelBinding::unsupported(),
    };
    let mut scram = ScramSha256::new(b"correct horse", client());
    let mut body = [mechanism.as_bytes(), &[0]].concat();
    body.extend((scram.message().len() as u32).to_be_bytes());
    body.extend(scram.message());
    let exchange = || Exchange::new("app", keys.clone(), binding.clone());
    let (_, challenge) = exchange().first(&body, &SEED).expect("a challenge");
    scram.update(&challenge[9..]).expect("a challenge the client takes");
    let answer = scram.message().to_vec();
    micros(&format!("{mechanism}: server's side"), RUNS, || {
        let exchange = exchange();
        black_box(exchange.mechanisms());
        let (challenged, message) = exchange.first(&body, &SEED).expect("a challenge");
        black_box(message);
        black_box(challenged.last(&answer).expect("the right password"));
    });
    micros(&format!("{mechanism}: client's side"), RUNS_CLIENT, || {
        let mut scram = ScramSha256::new(b"correct horse", client());
        let r = scram.message().windows(2).position(|w| w == b"r=").expect("a nonce");
        let nonce = String::from_utf8_lossy(&scram.message()[r + 2..]).into_owned();
        let challenge = format!("r={nonce}x,s=DAxE/Ykp4p7N+YWaiW19rA==,i=4096");
        scram.update(challenge.as_bytes()).expect("a challenge the client takes");
        black_box(scram.message());
    });
}

fn keys(verifier: Verifier) -> Keys {
    match verifier {
        Verifier::Scram(keys) => keys,
        Verifier::Md5(_) => unreachable!("the constant is a SCRAM password"),
    }
}

fn micros(what: &str, runs: u32, mut work: impl FnMut()) {
    work();
    let start = Instant::now();
    (0..runs).for_each(|_| work());
    println!("{what}: {:.2} µs", start.elapsed().as_secs_f64() * 1e6 / f64::from(runs));
}
