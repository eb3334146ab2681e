//! Who may open which stream to whom, and what both sides hear about it.

use std::time::{Duration, SystemTime};

use quorate_link::{
    Cause, Distrust, Error, Identity, Kind, LinkStream, Links, Retry, Token, dial_join, frame,
    limits,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Host, SOON, authority, node, peers};

async fn talk(a: &mut LinkStream, b: &mut LinkStream) {
    frame::write_json(a, "over here", limits::FRAME_BYTES_MAX).await.unwrap();
    let heard: String = frame::read_json(b, limits::FRAME_BYTES_MAX).await.unwrap();
    assert_eq!(heard, "over here");
}

#[tokio::test]
async fn every_kind_of_stream_reaches_the_named_node() {
    let authority = authority();
    let (caller, mut host) =
        (Host::start(&authority, "n-1").await, Host::start(&authority, "db_2").await);
    caller.links.set_peers(peers([("db_2", host.address)]));
    for kind in Kind::ALL.into_iter().filter(|k| *k != Kind::Join) {
        let mut out = caller.links.dial(node("db_2"), kind).await.unwrap();
        let mut incoming = host.incoming().await;
        assert_eq!((incoming.peer, incoming.kind), (node("n-1"), kind));
        assert_eq!(out.peer(), Some(node("db_2")));
        talk(&mut out, &mut incoming.stream).await;
        talk(&mut incoming.stream, &mut out).await;
    }
}

#[tokio::test]
async fn a_large_stream_passes_whole_and_ends_cleanly() {
    let authority = authority();
    let (caller, mut host) =
        (Host::start(&authority, "n1").await, Host::start(&authority, "n2").await);
    caller.links.set_peers(peers([("n2", host.address)]));
    let mut out = caller.links.dial(node("n2"), Kind::Wal).await.unwrap();
    let mut incoming = host.incoming().await.stream;
    let sent: Vec<u8> =
        (0..3_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let expected = sent.clone();
    let writer = tokio::spawn(async move {
        out.write_all(&sent).await.unwrap();
        out.shutdown().await.unwrap();
    });
    let mut received = Vec::new();
    incoming.read_to_end(&mut received).await.unwrap();
    assert!(received == expected);
    writer.await.unwrap();
}

#[tokio::test]
async fn another_clusters_node_is_refused_in_words_on_both_sides() {
    let (ours, theirs) = (authority(), authority());
    let (caller, mut host) = (Host::start(&ours, "n1").await, Host::start(&theirs, "n2").await);
    caller.links.set_peers(peers([("n2", host.address)]));
    let err = caller.links.dial(node("n2"), Kind::Consensus).await.unwrap_err();
    let text = err.to_string();
    let start = format!("n2 at {} belongs to another cluster", host.address);
    assert!(text.starts_with(&start), "{text}");
    assert!(text.contains(ours.cluster_id()) && text.contains(theirs.cluster_id()), "{text}");
    assert_eq!(err.retry(), Retry::Operator);
    let refusal = host.refusal().await;
    assert_eq!(refusal.cause, Cause::Distrusting);
    assert!(refusal.because.contains("does not know this cluster"), "{}", refusal.because);
}

#[tokio::test]
async fn a_client_with_another_clusters_certificate_hears_why() {
    let (ours, theirs) = (authority(), authority());
    let mut host = Host::start(&ours, "n2").await;
    // A caller that trusts our cluster but bears a certificate of another one.
    let stranger = StrangeClient::new(&ours, &theirs, "n1");
    let greeting = stranger.call(host.address, Kind::Wal).await;
    assert!(greeting.contains("n1 at") && greeting.contains("belongs to another cluster"));
    let refusal = host.refusal().await;
    assert_eq!(refusal.cause, Cause::Distrusted);
    assert!(refusal.because.contains("wal stream but belongs to another cluster"), "{refusal:?}");
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused_except_to_join() {
    let ours = authority();
    let mut host = Host::start(&ours, "n2").await;
    for kind in Kind::ALL.into_iter().filter(|k| *k != Kind::Join) {
        let greeting = StrangeClient::naked(&ours).call(host.address, kind).await;
        assert!(greeting.contains("has shown no certificate"), "{greeting}");
        let refusal = host.refusal().await;
        assert!(refusal.because.contains("has shown no certificate"), "{refusal:?}");
    }
}

#[tokio::test]
async fn an_expired_certificate_is_refused_in_words_on_both_sides() {
    let ours = authority();
    let (key, csr) = Identity::request(node("n3")).unwrap();
    let chain = ours.issue(&csr, node("n3"), Duration::ZERO).unwrap();
    let expired = Identity::new(&chain, &key, ours.cert_pem()).unwrap();
    assert!(expired.should_renew(SystemTime::now()));
    let deadline = tokio::time::Instant::now() + SOON;
    // A certificate is good to the end of its last second.
    while SystemTime::now() <= expired.expires_at() + Duration::from_secs(1) {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (mut late, mut host) = (Host::with(&expired).await, Host::start(&ours, "n2").await);
    late.links.set_peers(peers([("n2", host.address)]));
    let err = late.links.dial(node("n2"), Kind::Sql).await.unwrap_err();
    assert!(matches!(err, Error::Refused { .. }), "{err}");
    assert!(err.to_string().contains("n3 at") && err.to_string().contains("has expired"), "{err}");
    assert!(host.refusal().await.because.contains("has expired"));
    host.links.set_peers(peers([("n3", late.address)]));
    let err = host.links.dial(node("n3"), Kind::Sql).await.unwrap_err();
    assert!(matches!(err, Error::Distrusted { why: Distrust::Expired, .. }), "{err}");
    assert!(late.refusal().await.because.contains("not valid today"));
}

#[tokio::test]
async fn the_wrong_node_at_an_address_is_refused() {
    let ours = authority();
    let (caller, mut host) = (Host::start(&ours, "n1").await, Host::start(&ours, "n3").await);
    caller.links.set_peers(peers([("n2", host.address)]));
    let err = caller.links.dial(node("n2"), Kind::Control).await.unwrap_err();
    assert_eq!(err.to_string(), format!("n2 at {} is n3, not n2", host.address));
    let refusal = host.refusal().await;
    assert!(refusal.because.contains("looking for another node"), "{refusal:?}");
    let err = caller.links.dial(node("n9"), Kind::Control).await.unwrap_err();
    assert!(matches!(err, Error::UnknownPeer(_)), "{err}");
}

#[tokio::test]
async fn a_join_stream_pins_the_authority() {
    let ours = authority();
    let mut host = Host::start(&ours, "n1").await;
    let token: Token = Token::generate(ours.fingerprint()).unwrap().to_string().parse().unwrap();
    let mut out = dial_join(&host.address.to_string(), token.fingerprint).await.unwrap();
    assert_eq!(out.peer(), Some(node("n1")));
    let mut joining = host.joining().await;
    assert_eq!(joining.peer(), None);
    talk(&mut out, &mut joining).await;

    let err = dial_join(&host.address.to_string(), authority().fingerprint()).await.unwrap_err();
    assert!(matches!(err, Error::Distrusted { why: Distrust::OtherFingerprint, .. }), "{err}");
    assert!(err.to_string().contains("that the join token does not name"), "{err}");
    assert_eq!(host.refusal().await.cause, Cause::Distrusting);
}

#[tokio::test]
async fn a_renewed_certificate_is_used_without_a_restart() {
    let ours = authority();
    let (key, csr) = Identity::request(node("n1")).unwrap();
    let hour = Duration::from_secs(3600);
    let chain = ours.issue(&csr, node("n1"), hour).unwrap();
    let short = Identity::new(&chain, &key, ours.cert_pem()).unwrap();
    assert!(!short.should_renew(SystemTime::now()) && short.should_renew(SystemTime::now() + hour));
    let mut old = Host::with(&short).await;
    let mut host = Host::start(&ours, "n2").await;
    old.links.set_peers(peers([("n2", host.address)]));
    host.links.set_peers(peers([("n1", old.address)]));

    let mut before = old.links.dial(node("n2"), Kind::Wal).await.unwrap();
    let mut before_far = host.incoming().await.stream;
    assert_eq!(before_far.peer_expires_at(), Some(short.expires_at()));

    let renewed = Identity::issued_by(&ours, node("n1")).unwrap();
    old.links.set_identity(&renewed).unwrap();
    let _after = old.links.dial(node("n2"), Kind::Wal).await.unwrap();
    assert_eq!(host.incoming().await.stream.peer_expires_at(), Some(renewed.expires_at()));
    let called = host.links.dial(node("n1"), Kind::Wal).await.unwrap();
    assert_eq!(called.peer_expires_at(), Some(renewed.expires_at()));
    assert_eq!(old.incoming().await.peer, node("n2"));
    talk(&mut before, &mut before_far).await;

    let other = Identity::issued_by(&ours, node("n9")).unwrap();
    assert!(old.links.set_identity(&other).is_err());
}

#[tokio::test]
async fn what_is_not_a_node_is_noise() {
    let ours = authority();
    let (caller, mut host) = (Host::start(&ours, "n1").await, Host::start(&ours, "n2").await);
    let mut scan = TcpStream::connect(host.address).await.unwrap();
    scan.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    assert_eq!(host.refusal().await.cause, Cause::Noise);
    // The port still serves.
    caller.links.set_peers(peers([("n2", host.address)]));
    caller.links.dial(node("n2"), Kind::Wal).await.unwrap();
}

#[tokio::test]
async fn a_dial_ends_in_time_and_says_what_failed() {
    let ours = authority();
    let links = Links::new(&Identity::issued_by(&ours, node("n1")).unwrap()).unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    links.set_peers(peers([("n2", silent.local_addr().unwrap()), ("n3", closed)]));
    let err = links.dial(node("n2"), Kind::Wal).await.unwrap_err();
    assert!(err.to_string().contains("did not answer within 3000 ms"), "{err}");
    assert_eq!(err.retry(), Retry::Backoff);
    let err = links.dial(node("n3"), Kind::Wal).await.unwrap_err();
    assert!(matches!(err, Error::Unreachable { .. }), "{err}");
}

/// A client that is not ours: rustls with other habits, as a stranger would come.
struct StrangeClient {
    config: rustls::ClientConfig,
    name: rustls::pki_types::ServerName<'static>,
}

impl StrangeClient {
    /// Trusts `trusted`, bears a certificate of `other`.
    fn new(trusted: &quorate_link::Authority, other: &quorate_link::Authority, name: &str) -> Self {
        use rustls::pki_types::pem::PemObject;
        let identity = Identity::issued_by(other, node(name)).unwrap();
        let chain = rustls::pki_types::CertificateDer::pem_slice_iter(identity.cert_pem.as_bytes());
        let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes());
        let config = Self::builder(trusted)
            .with_client_auth_cert(chain.map(Result::unwrap).collect(), key.unwrap())
            .unwrap();
        Self { config, name: Self::server_name(trusted) }
    }

    /// Trusts `trusted` and bears nothing.
    fn naked(trusted: &quorate_link::Authority) -> Self {
        let config = Self::builder(trusted).with_no_client_auth();
        Self { config, name: Self::server_name(trusted) }
    }

    fn builder(
        trusted: &quorate_link::Authority,
    ) -> rustls::ConfigBuilder<rustls::ClientConfig, rustls::client::WantsClientCert> {
        use rustls::pki_types::pem::PemObject;
        let mut roots = rustls::RootCertStore::empty();
        let ca = rustls::pki_types::CertificateDer::from_pem_slice(trusted.cert_pem().as_bytes());
        roots.add(ca.unwrap()).unwrap();
        rustls::ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
    }

    fn server_name(trusted: &quorate_link::Authority) -> rustls::pki_types::ServerName<'static> {
        format!("n2.{}.quorate", trusted.cluster_id()).try_into().unwrap()
    }

    /// Calls, and returns everything that the server says before it closes.
    async fn call(mut self, to: std::net::SocketAddr, kind: Kind) -> String {
        self.config.alpn_protocols = vec![kind.alpn().to_vec()];
        let tcp = TcpStream::connect(to).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(self.config));
        let mut tls = connector.connect(self.name, tcp).await.unwrap();
        let mut said = Vec::new();
        tls.read_to_end(&mut said).await.unwrap();
        assert_eq!(said[0], 1, "refused");
        String::from_utf8_lossy(&said[3..]).into_owned()
    }
}

#[tokio::test]
async fn in_an_outage_bytes_wait_and_agents_still_talk() {
    let authority = authority();
    let (caller, mut host) =
        (Host::start(&authority, "n1").await, Host::start(&authority, "n2").await);
    caller.links.set_peers(peers([("n2", host.address)]));
    let mut out = caller.links.dial(node("n2"), Kind::Wal).await.unwrap();
    let mut wal = host.incoming().await.stream;
    let links = host.links.clone();
    links.outage().begin(&[Kind::Wal, Kind::Control], limits::OUTAGE_MAX);
    out.write_all(b"late").await.unwrap();
    let mut bytes = [0; 4];
    let silence = Duration::from_millis(100);
    let read = tokio::time::timeout(silence, wal.read_exact(&mut bytes));
    read.await.expect_err("nothing passes, and nobody is told");
    let written = tokio::time::timeout(silence, wal.write_all(b"late"));
    written.await.expect_err("neither does anything leave");
    let dialled = tokio::time::timeout(silence, caller.links.dial(node("n2"), Kind::Wal));
    dialled.await.expect_err("a new stream is not greeted");
    let mut control = caller.links.dial(node("n2"), Kind::Control).await.unwrap();
    talk(&mut control, &mut host.incoming().await.stream).await;
    links.outage().end();
    tokio::time::timeout(SOON, wal.read_exact(&mut bytes)).await.unwrap().unwrap();
    assert_eq!(&bytes, b"late");
    links.outage().begin(&[Kind::Wal], silence);
    talk(&mut out, &mut wal).await;
    assert!(!links.outage().holds(Kind::Wal), "it has ended by itself");
}
