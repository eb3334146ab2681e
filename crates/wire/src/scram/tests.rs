use bytes::BufMut;
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use proptest::prelude::*;

use super::*;
use crate::verifier::tests::{APP, UNICODE};
use crate::verifier::{ITERATIONS, Verifier};

const SEED: [u8; NONCE] = *b"eighteen bytes now";

fn keys(stored: &str) -> Keys {
    match Verifier::parse(stored).unwrap() {
        Verifier::Scram(keys) => keys,
        Verifier::Md5(_) => panic!(),
    }
}

fn decoy() -> Keys {
    match Verifier::decoy("app", b"secret", ITERATIONS) {
        Verifier::Scram(keys) => keys,
        Verifier::Md5(_) => panic!(),
    }
}

fn binding() -> Binding {
    Binding::new([7; 32])
}

fn initial_body(mechanism: &str, message: &[u8]) -> Vec<u8> {
    let mut body = BytesMut::new();
    put_cstr(&mut body, mechanism.as_bytes());
    body.put_u32(message.len() as u32);
    body.put_slice(message);
    body.to_vec()
}

/// The data of an authentication message of this kind.
fn data(message: &[u8], kind: u8) -> Vec<u8> {
    assert_eq!((message[0], message[8]), (b'R', kind));
    assert_eq!(u32::from_be_bytes(message[1..5].try_into().unwrap()) as usize, message.len() - 1);
    message[9..].to_vec()
}

/// A login by the client of tokio-postgres: what the server says, and what the client makes of it.
fn login(
    keys: Keys,
    password: &str,
    mechanism: &str,
    server: Option<Binding>,
    client: ChannelBinding,
) -> Result<(), Refusal> {
    let mut scram = ScramSha256::new(password.as_bytes(), client);
    let exchange = Exchange::new("app", keys, server);
    let (challenged, message) = exchange.first(&initial_body(mechanism, scram.message()), &SEED)?;
    scram.update(&data(&message, 11)).unwrap();
    let message = challenged.last(scram.message())?;
    scram.finish(&data(&message, 12)).unwrap();
    Ok(())
}

fn plain(keys: Keys, password: &str) -> Result<(), Refusal> {
    login(keys, password, SCRAM, None, ChannelBinding::unsupported())
}

#[test]
fn mechanisms_are_offered_as_postgresql_does() {
    assert_eq!(&sasl_mechanisms(false)[..], b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0");
    let both = Exchange::new("app", keys(APP), Some(binding())).mechanisms();
    assert_eq!(&both[9..], b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0");
    assert_eq!(Exchange::new("app", keys(APP), None).mechanisms(), sasl_mechanisms(false));
}

/// The example of RFC 7677, section 3.
#[test]
fn the_example_of_the_standard() {
    let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
    let mut round = hmac(b"pencil", &[&salt, &[0, 0, 0, 1]]);
    let mut salted = round;
    for _ in 1..4096 {
        round = hmac(b"pencil", &[&round]);
        salted.iter_mut().zip(round).for_each(|(sum, byte)| *sum ^= byte);
    }
    let stored = Sha256::digest(hmac(&salted, &[b"Client Key"])).into();
    let server = hmac(&salted, &[b"Server Key"]);
    let keys = Keys { iterations: 4096, salt, stored, server, decoy: false };
    let first = initial_body(SCRAM, b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
    let exchange = Exchange::new("user", keys, None);
    let (challenged, message) =
        exchange.challenge(&first, "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0").unwrap();
    assert_eq!(
        data(&message, 11),
        b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    );
    let last = b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
    let message = challenged.last(last).unwrap();
    assert_eq!(data(&message, 12), b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
}

#[test]
fn passwords_that_postgresql_stored_let_in_and_others_do_not() {
    assert_eq!(plain(keys(APP), "correct horse"), Ok(()));
    assert_eq!(plain(keys(UNICODE), "ⅸ pencil"), Ok(()));
    for wrong in ["", "correct hors", "correct horse ", "ⅸ pencil"] {
        let refusal = plain(keys(APP), wrong).unwrap_err();
        assert_eq!(refusal.report.code, "28P01");
        assert_eq!(refusal.report.message, "password authentication failed for user \"app\"");
        assert_eq!(refusal.because, "the password is wrong");
    }
}

#[test]
fn a_decoy_answers_like_a_role_and_never_lets_in() {
    let real = plain(keys(APP), "wrong").unwrap_err();
    let ghost = plain(decoy(), "wrong").unwrap_err();
    assert_eq!(real.report, ghost.report);
    assert_ne!(real.because, ghost.because);
    // Even with the keys of a real password.
    let doomed = Keys { decoy: true, ..keys(APP) };
    assert_eq!(plain(doomed, "correct horse").unwrap_err().report.code, "28P01");
}

#[test]
fn channel_binding_ties_the_proof_to_the_certificate() {
    let bound = |hash: Vec<u8>| {
        let client = ChannelBinding::tls_server_end_point(hash);
        login(keys(APP), "correct horse", SCRAM_PLUS, Some(binding()), client)
    };
    assert_eq!(bound(vec![7; 32]), Ok(()));
    for other in [vec![8; 32], vec![7; 31], vec![]] {
        let refusal = bound(other).unwrap_err().report;
        assert_eq!(
            (refusal.code, &refusal.message[..]),
            ("28000", "SCRAM channel binding check failed")
        );
    }
}

#[test]
fn a_list_that_was_cut_on_its_way_is_noticed() {
    let y =
        |server| login(keys(APP), "correct horse", SCRAM, server, ChannelBinding::unrequested());
    assert_eq!(y(None), Ok(()));
    let refusal = y(Some(binding())).unwrap_err();
    assert_eq!(refusal.report.code, "28000");
    assert_eq!(refusal.report.message, "SCRAM channel binding negotiation error");
    // A client that cannot bind at all may come in over TLS.
    let n = ChannelBinding::unsupported();
    assert_eq!(login(keys(APP), "correct horse", SCRAM, Some(binding()), n), Ok(()));
}

/// Code and message (with the detail, if any) of the refusal of a first message.
fn first(mechanism: &str, message: &[u8], server: Option<Binding>) -> (&'static str, String) {
    first_body(&initial_body(mechanism, message), server)
}

fn first_body(body: &[u8], server: Option<Binding>) -> (&'static str, String) {
    let refusal = Exchange::new("app", keys(APP), server).first(body, &SEED).unwrap_err();
    (refusal.report.code, refusal.because)
}

#[test]
fn first_messages_are_refused_in_postgresqls_words() {
    let malformed = |detail: &str| ("08P01", format!("malformed SCRAM message: {detail}"));
    let cases: &[(&[u8], (&str, String))] = &[
        (b"", malformed("The message is empty.")),
        (b"n,,n=,r=a\0b", malformed("Message length does not match input length.")),
        (b"x,,n=,r=abc", malformed("Unexpected channel-binding flag \"x\".")),
        (b"n", malformed("Comma expected, but found character \"end of message\".")),
        (b"n;,n=,r=abc", malformed("Comma expected, but found character \";\".")),
        (b"n,b,n=,r=abc", malformed("Unexpected attribute \"b\" in client-first-message.")),
        (
            b"n,a=root,n=,r=abc",
            ("0A000", "client uses authorization identity, but it is not supported".into()),
        ),
        (b"n,,m=ext,n=,r=abc", ("0A000", "client requires an unsupported SCRAM extension".into())),
        (b"n,,r=abc", malformed("Expected attribute \"n\" but found \"r\".")),
        (b"n,,n", malformed("Expected character \"=\" for attribute \"n\".")),
        (b"n,,n=app", malformed("Expected attribute \"r\" but found \"end of message\".")),
        (b"n,,n=,r=", ("08P01", "non-printable characters in SCRAM nonce".into())),
        (b"n,,n=,r=a b", ("08P01", "non-printable characters in SCRAM nonce".into())),
        (b"n,,n=,r=abc,=x", malformed("Attribute expected, but found \"=\".")),
        (
            b"p=tls-unique,,n=,r=abc",
            ("08P01", "unsupported SCRAM channel-binding type \"tls-unique\"".into()),
        ),
        (
            b"p=tls-server-end-point,,n=,r=abc",
            malformed(
                "The client selected SCRAM-SHA-256 without channel binding, but the SCRAM message includes channel binding data.",
            ),
        ),
    ];
    for (message, expected) in cases {
        assert_eq!(&first(SCRAM, message, None), expected, "{}", message.escape_ascii());
    }
    let unbound = malformed(
        "The client selected SCRAM-SHA-256-PLUS, but the SCRAM message does not include channel binding data.",
    );
    assert_eq!(first(SCRAM_PLUS, b"n,,n=,r=abc", Some(binding())), unbound);
    assert_eq!(first(SCRAM_PLUS, b"y,,n=,r=abc", Some(binding())), unbound);
}

#[test]
fn mechanisms_that_were_not_offered_and_crooked_frames_are_refused() {
    let invalid = ("08P01", "client selected an invalid SASL authentication mechanism".to_owned());
    assert_eq!(first(SCRAM_PLUS, b"p=tls-server-end-point,,n=,r=abc", None), invalid);
    assert_eq!(first("PLAIN", b"n,,n=,r=abc", None), invalid);
    let format = ("08P01", "invalid message format".to_owned());
    for body in [&b""[..], b"SCRAM-SHA-256", b"SCRAM-SHA-256\0\0\0", b"SCRAM-SHA-256\0\0\0\0\x09n"]
    {
        assert_eq!(first_body(body, None), format);
    }
    // PostgreSQL would ask once more; no client starts so.
    assert_eq!(first_body(b"SCRAM-SHA-256\0\xff\xff\xff\xff", None), format);
    assert_eq!(first_body(&[b'x'; 1025], None).1, "invalid message length");
}

#[test]
fn last_messages_are_refused_in_postgresqls_words() {
    let nonce = format!("abc{}", STANDARD.encode(SEED));
    let proof = STANDARD.encode([0; 32]);
    let last = |message: &str| {
        let body = initial_body(SCRAM, b"n,,n=somebody else,r=abc,x=ignored");
        let (challenged, _) = Exchange::new("app", keys(APP), None).first(&body, &SEED).unwrap();
        let refusal = challenged.last(message.as_bytes()).unwrap_err();
        (refusal.report.code, refusal.because)
    };
    let malformed = |detail: &str| ("08P01", format!("malformed SCRAM message: {detail}"));
    let mismatch = ("08P01", "invalid SCRAM response: Nonce does not match.".to_owned());
    assert_eq!(last(""), malformed("The message is empty."));
    assert_eq!(last(&format!("r={nonce}")), malformed("Expected attribute \"c\" but found \"r\"."));
    assert_eq!(last(&format!("c=biws,r=abc,p={proof}")), mismatch);
    assert_eq!(last(&format!("c=biws,r={nonce}x,p={proof}")), mismatch);
    assert_eq!(
        last(&format!("c=eSws,r={nonce},p={proof}")).1,
        "unexpected SCRAM channel-binding attribute in client-final-message"
    );
    let bad_proof = malformed("Malformed proof in client-final-message.");
    assert_eq!(last(&format!("c=biws,r={nonce},p=")), bad_proof);
    assert_eq!(last(&format!("c=biws,r={nonce},p=AAAA")), bad_proof);
    let garbage = malformed("Garbage found at the end of client-final-message.");
    assert_eq!(last(&format!("c=biws,r={nonce},p={proof},x=1")), garbage);
    let missing = malformed("Attribute expected, but found \"end of message\".");
    assert_eq!(last(&format!("c=biws,r={nonce}")), missing);
    assert_eq!(last(&format!("c=biws,r={nonce},p={proof}")).0, "28P01");
    assert_eq!(last(&format!("c=biws,r={nonce},x=1,p={proof}")).0, "28P01");
}

proptest! {
    #[test]
    fn no_bytes_panic_or_succeed(
        noise in prop::collection::vec(any::<u8>(), 0..120),
        text in "[nyp],[a=]{0,2},?[nrmcp=,a-c0-9]{0,30}",
        plus: bool,
    ) {
        let server = plus.then(binding);
        let mechanism = if plus { SCRAM_PLUS } else { SCRAM };
        let exchange = || Exchange::new("app", keys(APP), server.clone());
        let _ = exchange().first(&noise, &SEED);
        for message in [&noise[..], text.as_bytes()] {
            if let Ok((challenged, _)) = exchange().first(&initial_body(mechanism, message), &SEED) {
                prop_assert!(challenged.clone().last(&noise).is_err());
                prop_assert!(challenged.last(text.as_bytes()).is_err());
            }
        }
    }

    /// Rounds are few here, so that many cases can be tried.
    #[test]
    fn one_changed_byte_of_a_right_answer_is_enough(at in 0usize..200, byte: u8) {
        let mut scram = ScramSha256::new(b"x", ChannelBinding::unsupported());
        let stored = few_rounds("x");
        let body = initial_body(SCRAM, scram.message());
        let (challenged, message) = Exchange::new("app", stored, None).first(&body, &SEED).unwrap();
        scram.update(&data(&message, 11)).unwrap();
        let mut answer = scram.message().to_vec();
        prop_assert!(challenged.clone().last(&answer).is_ok());
        let at = at % answer.len();
        prop_assume!(answer[at] != byte);
        answer[at] = byte;
        prop_assert!(challenged.last(&answer).is_err());
    }
}

fn few_rounds(password: &str) -> Keys {
    let salted = hmac(password.as_bytes(), &[b"salt", &[0, 0, 0, 1]]);
    let stored = Sha256::digest(hmac(&salted, &[b"Client Key"])).into();
    let server = hmac(&salted, &[b"Server Key"]);
    Keys { iterations: 1, salt: b"salt".to_vec(), stored, server, decoy: false }
}
