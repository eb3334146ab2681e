//! Who is trusted, and the TLS configurations that follow from it.
//!
//! A client checks the server inside the handshake: wrong cluster, wrong node, wrong dates end it.
//! A server lets the handshake finish with any certificate whose owner proves to hold its key, so
//! that it can *tell* the client why it is refused; `Tls::judge` then decides, and only `server.rs`
//! calls it, between the handshake and everything else.
//! Sessions are never resumed: a resumed session would not look at the certificate again.

use std::sync::{Arc, LazyLock, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use quorate_core::NodeId;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore,
    ServerConfig, SignatureScheme,
};
use x509_parser::extensions::GeneralName;

use crate::error::Distrust;
use crate::greeting::cut;
use crate::{Error, Identity, Kind, authority, clock, limits, names};

// Held here and passed on explicitly: a process-wide default would be somebody else's choice too.
static PROVIDER: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(rustls::crypto::ring::default_provider()));

/// An identity made ready for TLS.
pub(crate) struct Tls {
    pub(crate) node: NodeId,
    pub(crate) cluster_id: String,
    pub(crate) server: Arc<ServerConfig>,
    certified: Arc<CertifiedKey>,
    roots: Arc<RootCertStore>,
}

impl Tls {
    pub(crate) fn new(identity: &Identity) -> Result<Self, Error> {
        let certified = Arc::new(certified_key(&identity.cert_pem, &identity.key_pem)?);
        let resolver = Arc::new(SingleCertAndKey::from(Arc::clone(&certified)));
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&PROVIDER))
            .with_protocol_versions(&[&TLS13])
            .map_err(unusable)?
            .with_client_cert_verifier(Arc::new(ProofOnly))
            .with_cert_resolver(resolver);
        server.alpn_protocols = Kind::ALL.iter().map(|k| k.alpn().to_vec()).collect();
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Ok(Self {
            node: identity.node,
            cluster_id: identity.cluster_id.clone(),
            server: Arc::new(server),
            certified,
            roots: roots(identity.authority()?)?,
        })
    }

    /// What is needed to call `node`, and where the reason will be if its certificate is not taken.
    pub(crate) fn call(&self, node: NodeId, kind: Kind) -> Result<Call, Error> {
        let name = server_name(node, &self.cluster_id).map_err(|e| Error::Certificate(e.into()))?;
        let verifier = Arc::new(NodeVerifier {
            webpki: verifier(&self.roots)?,
            cluster_id: self.cluster_id.clone(),
            wanted: node,
            why: OnceLock::new(),
        });
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER))
            .with_protocol_versions(&[&TLS13])
            .map_err(unusable)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&verifier) as _)
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(
                &self.certified,
            ))));
        config.alpn_protocols = vec![kind.alpn().to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_sni = false; // Nobody on the way needs to know who calls whom.
        Ok(Call { config: Arc::new(config), name, why: Why::Node(verifier) })
    }

    /// The node that a client's certificate names, if it is of our cluster and good today.
    pub(crate) fn judge(&self, chain: Option<&[CertificateDer<'_>]>) -> Result<NodeId, Distrust> {
        let leaf = chain.and_then(|chain| chain.first()).ok_or(Distrust::Missing)?;
        check_chain(leaf, &self.roots, clock::wall())
            .map_err(|err| distrust(err, leaf, &self.cluster_id, None))?;
        match name(leaf) {
            Some((node, cluster_id)) if cluster_id == self.cluster_id => Ok(node),
            _ => Err(Distrust::Unusable("it names no node of this cluster".into())),
        }
    }
}

/// One call: a client configuration that takes exactly one kind of answer.
pub(crate) struct Call {
    pub(crate) config: Arc<ClientConfig>,
    pub(crate) name: ServerName<'static>,
    why: Why,
}

enum Why {
    Node(Arc<NodeVerifier>),
    Pin(Arc<PinVerifier>),
}

impl Call {
    /// A call of a node that has no identity yet: it knows the authority's fingerprint only.
    pub(crate) fn join(fingerprint: [u8; 32]) -> Result<Self, Error> {
        let verifier = Arc::new(PinVerifier { fingerprint, why: OnceLock::new() });
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER))
            .with_protocol_versions(&[&TLS13])
            .map_err(unusable)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&verifier) as _)
            .with_no_client_auth();
        config.alpn_protocols = vec![Kind::Join.alpn().to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        let name = ServerName::try_from("join.quorate").map_err(|e| unusable(e.to_string()))?;
        Ok(Call { config: Arc::new(config), name, why: Why::Pin(verifier) })
    }

    /// Why the certificate that was shown is not taken.
    pub(crate) fn distrust(&self) -> Option<Distrust> {
        match &self.why {
            Why::Node(verifier) => verifier.why.get().cloned(),
            Why::Pin(verifier) => verifier.why.get().cloned(),
        }
    }
}

/// Takes one node of one cluster, and remembers why it did not.
#[derive(Debug)]
struct NodeVerifier {
    webpki: Arc<WebPkiServerVerifier>,
    cluster_id: String,
    wanted: NodeId,
    why: OnceLock<Distrust>,
}

impl ServerCertVerifier for NodeVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.webpki.verify_server_cert(leaf, chain, server_name, ocsp, now).map_err(|err| {
            let why = distrust(err.clone(), leaf, &self.cluster_id, Some(self.wanted));
            let shown = match why {
                // A foreign authority may bear the same name as ours, which reads as a bad
                // signature; the other side is to learn the real reason.
                Distrust::OtherCluster { .. } => CertificateError::UnknownIssuer.into(),
                _ => err,
            };
            let _ = self.why.set(why);
            shown
        })
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_proof(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PROVIDER.signature_verification_algorithms.supported_schemes()
    }
}

/// Takes any node whose certificate comes from the authority with one fingerprint.
#[derive(Debug)]
struct PinVerifier {
    fingerprint: [u8; 32],
    why: OnceLock<Distrust>,
}

impl PinVerifier {
    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Distrust> {
        let pinned = chain
            .iter()
            .find(|cert| authority::fingerprint(cert) == self.fingerprint)
            .ok_or(Distrust::OtherFingerprint)?;
        let bad = |e: Error| Distrust::Unusable(e.to_string());
        let cluster_id = authority::authority_cluster_id(pinned).map_err(bad)?;
        let roots = roots(pinned.clone().into_owned()).map_err(bad)?;
        let now = UNIX_EPOCH + std::time::Duration::from_secs(now.as_secs());
        check_chain(leaf, &roots, now).map_err(|e| distrust(e, leaf, &cluster_id, None))
    }
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.check(leaf, chain, now) {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(why) => {
                let _ = self.why.set(why);
                Err(CertificateError::UnknownIssuer.into())
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_proof(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PROVIDER.signature_verification_algorithms.supported_schemes()
    }
}

/// The server's half of the handshake: proof of the key only. `Tls::judge` decides about trust.
#[derive(Debug)]
struct ProofOnly;

impl ClientCertVerifier for ProofOnly {
    fn client_auth_mandatory(&self) -> bool {
        false // A node that joins has none; `server.rs` demands one for every other kind.
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_proof(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PROVIDER.signature_verification_algorithms.supported_schemes()
    }
}

/// Random bytes from the provider's generator.
pub(crate) fn random(bytes: &mut [u8]) -> Result<(), Error> {
    PROVIDER.secure_random.fill(bytes).map_err(|_| unusable("the system has no random bytes"))
}

/// A store that trusts one authority.
pub(crate) fn roots(ca: CertificateDer<'static>) -> Result<Arc<RootCertStore>, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(ca).map_err(unusable)?;
    Ok(Arc::new(roots))
}

/// Whether one of `roots` signed `leaf`, for a node's use, valid at `when`.
pub(crate) fn check_chain(
    leaf: &CertificateDer<'_>,
    roots: &Arc<RootCertStore>,
    when: SystemTime,
) -> Result<(), rustls::Error> {
    let unnamed = || rustls::Error::from(CertificateError::NotValidForName);
    let (node, cluster_id) = name(leaf).ok_or_else(unnamed)?;
    let dns = server_name(node, &cluster_id).map_err(|_| unnamed())?;
    let when = UnixTime::since_unix_epoch(when.duration_since(UNIX_EPOCH).unwrap_or_default());
    let webpki = verifier(roots).map_err(|e| rustls::Error::General(e.to_string()))?;
    webpki.verify_server_cert(leaf, &[], &dns, &[], when).map(|_| ())
}

/// The only DNS name in a certificate.
pub(crate) fn dns_name(cert: &CertificateDer<'_>) -> Option<String> {
    let (_, cert) = x509_parser::parse_x509_certificate(cert).ok()?;
    let names = cert.subject_alternative_name().ok()??;
    match names.value.general_names.as_slice() {
        [GeneralName::DNSName(name)] => Some((*name).to_owned()),
        _ => None,
    }
}

/// The node and cluster that a certificate names. Proves nothing by itself.
pub(crate) fn name(cert: &CertificateDer<'_>) -> Option<(NodeId, String)> {
    names::decode(&dns_name(cert)?)
}

/// First and last moment of a certificate, in seconds since 1970.
pub(crate) fn dates(cert: &CertificateDer<'_>) -> Result<(i64, i64), Error> {
    let (_, cert) =
        x509_parser::parse_x509_certificate(cert).map_err(|e| unusable(e.to_string()))?;
    let validity = cert.validity();
    Ok((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

/// Whether a key is the one in the certificate.
pub(crate) fn check_key(leaf: &CertificateDer<'_>, key_pem: &str) -> Result<(), Error> {
    let key = private_key(key_pem)?;
    CertifiedKey::from_der(vec![leaf.clone().into_owned()], key, &PROVIDER)
        .map_err(|e| unusable(format!("the key is not the certificate's: {e}")))?;
    Ok(())
}

fn certified_key(cert_pem: &str, key_pem: &str) -> Result<CertifiedKey, Error> {
    let chain = CertificateDer::pem_slice_iter(cert_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| unusable(e.to_string()))?;
    CertifiedKey::from_der(chain, private_key(key_pem)?, &PROVIDER).map_err(unusable)
}

fn private_key(pem: &str) -> Result<PrivateKeyDer<'static>, Error> {
    // The parser's own words could quote the input, which is a secret.
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| unusable("the key cannot be read"))
}

fn server_name(node: NodeId, cluster_id: &str) -> Result<ServerName<'static>, &'static str> {
    ServerName::try_from(names::encode(node, cluster_id))
        .map_err(|_| "the node's name does not make a DNS name")
}

fn verifier(roots: &Arc<RootCertStore>) -> Result<Arc<WebPkiServerVerifier>, Error> {
    WebPkiServerVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(&PROVIDER))
        .build()
        .map_err(|e| unusable(e.to_string()))
}

fn verify_proof(
    message: &[u8],
    cert: &CertificateDer<'_>,
    dss: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    let algorithms = &PROVIDER.signature_verification_algorithms;
    rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
}

/// What a person should hear about a failed check.
fn distrust(
    err: rustls::Error,
    leaf: &CertificateDer<'_>,
    ours: &str,
    wanted: Option<NodeId>,
) -> Distrust {
    use CertificateError as E;
    let Some((found, theirs)) = name(leaf) else {
        return Distrust::Unusable("it names no node".into());
    };
    if theirs != ours {
        return Distrust::OtherCluster { theirs, ours: ours.to_owned() };
    }
    match (err, wanted) {
        (rustls::Error::InvalidCertificate(E::Expired | E::ExpiredContext { .. }), _) => {
            Distrust::Expired
        }
        (rustls::Error::InvalidCertificate(E::NotValidYet | E::NotValidYetContext { .. }), _) => {
            Distrust::NotYetValid
        }
        (rustls::Error::InvalidCertificate(E::UnknownIssuer | E::BadSignature), _) => {
            Distrust::OtherAuthority
        }
        (
            rustls::Error::InvalidCertificate(
                E::NotValidForName | E::NotValidForNameContext { .. },
            ),
            Some(wanted),
        ) if found != wanted => Distrust::OtherNode { found, wanted },
        (err, _) => {
            Distrust::Unusable(cut(&err.to_string(), limits::REFUSAL_BYTES_MAX / 2).to_owned())
        }
    }
}

fn unusable(reason: impl ToString) -> Error {
    Error::Certificate(reason.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Authority;

    fn chain(pem: &str) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(pem.as_bytes()).map(Result::unwrap).collect()
    }

    /// A cluster, and somebody who makes certificates with its id and a node's name.
    fn real_and_forged() -> (Authority, Identity, Identity) {
        let real = Authority::create("shop").unwrap();
        let forger = Authority::of_cluster("shop", real.cluster_id()).unwrap();
        let node = NodeId::new("n1").unwrap();
        let good = Identity::issued_by(&real, node).unwrap();
        (real, good, Identity::issued_by(&forger, node).unwrap())
    }

    #[test]
    fn a_forged_client_is_refused_whatever_chain_it_shows() {
        let (_, good, forged) = real_and_forged();
        let tls = Tls::new(&good).unwrap();
        assert_eq!(tls.judge(Some(&chain(&good.cert_pem))), Ok(good.node));
        let forged_chain = chain(&forged.cert_pem);
        let borrowed = [forged_chain[0].clone(), chain(&good.ca_pem)[0].clone()];
        assert_eq!(tls.judge(Some(&forged_chain)), Err(Distrust::OtherAuthority));
        assert_eq!(tls.judge(Some(&borrowed)), Err(Distrust::OtherAuthority));
        assert_eq!(tls.judge(Some(&[])), Err(Distrust::Missing));
        assert_eq!(tls.judge(None), Err(Distrust::Missing));
        // The authority's own certificate is public, and no node's.
        assert!(matches!(tls.judge(Some(&chain(&good.ca_pem))), Err(Distrust::Unusable(_))));
    }

    #[test]
    fn a_forged_server_does_not_pass_by_showing_the_pinned_authority() {
        let (real, good, forged) = real_and_forged();
        let pin = PinVerifier { fingerprint: real.fingerprint(), why: OnceLock::new() };
        let ca = chain(&good.ca_pem);
        let now = UnixTime::now();
        assert_eq!(pin.check(&chain(&good.cert_pem)[0], &ca, now), Ok(()));
        let leaf = &chain(&forged.cert_pem)[0];
        let both = [chain(&forged.ca_pem), ca.clone()].concat();
        assert_eq!(pin.check(leaf, &both, now), Err(Distrust::OtherAuthority));
        let without = pin.check(&chain(&good.cert_pem)[0], &[], now);
        assert_eq!(without, Err(Distrust::OtherFingerprint));
        // The pinned authority itself is public too, and cannot stand in for a node.
        assert!(pin.check(&ca[0], &ca, now).is_err());
    }
}
