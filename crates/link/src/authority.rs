//! The cluster's certificate authority: a key pair that the cluster stores, and what it signs.
//!
//! Whoever holds it can name nodes, so it is only used by the node that grants a join or renewal.
//! A certificate names the node that the *cluster* says it is for: names in the request are ignored.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quorate_core::NodeId;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use sha2::{Digest, Sha256};

use crate::names::{CLUSTER_ID_DIGITS, decode_authority, encode, encode_authority, hex};
use crate::{Error, clock, limits, trust};

/// A cluster's authority.
#[derive(Clone)]
pub struct Authority {
    cluster_id: String,
    cert_pem: String,
    key_pem: String,
    fingerprint: [u8; 32],
}

impl Authority {
    /// A new authority, with a new random cluster id. The cluster's name is for people only.
    pub fn create(cluster_name: &str) -> Result<Self, Error> {
        let mut id = [0; CLUSTER_ID_DIGITS / 2];
        trust::random(&mut id)?;
        Self::of_cluster(cluster_name, &hex(&id))
    }

    /// A new authority that claims a cluster id.
    pub(crate) fn of_cluster(cluster_name: &str, cluster_id: &str) -> Result<Self, Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(cannot("make a key"))?;
        let mut params = params(
            &encode_authority(cluster_id),
            &format!("Quorate {cluster_name} {cluster_id}"),
            limits::AUTHORITY_VALIDITY,
        )?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let cert = params.self_signed(&key).map_err(cannot("sign the authority"))?;
        Self::from_pem(&cert.pem(), &key.serialize_pem())
    }

    /// The authority that `cert_pem()` and `key_pem()` describe.
    pub fn from_pem(cert_pem: &str, key_pem: &str) -> Result<Self, Error> {
        let cert = CertificateDer::from_pem_slice(cert_pem.as_bytes())
            .map_err(|e| Error::Certificate(format!("the authority is not a certificate: {e}")))?;
        let cluster_id = authority_cluster_id(&cert)?;
        let key = KeyPair::from_pem(key_pem).map_err(cannot("read the authority's key"))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&cert)
            .map_err(|e| Error::Certificate(format!("the authority cannot be read: {e}")))?;
        if parsed.public_key().subject_public_key.data != key.public_key_raw() {
            return Err(Error::Certificate("the authority's key is not its own".into()));
        }
        Ok(Self {
            cluster_id,
            fingerprint: fingerprint(&cert),
            cert_pem: cert_pem.to_owned(),
            key_pem: key_pem.to_owned(),
        })
    }

    /// Sixteen hexadecimal digits that no other cluster has.
    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// SHA-256 of the certificate's DER form: what join tokens carry.
    pub fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    /// The certificate, which is public.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// The key, which is the most secret thing that the cluster has.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// Signs a request for `node`, from now (a day ago, for late clocks) until `validity` from now.
    /// Returns the certificate followed by the authority's.
    pub fn issue(&self, csr_pem: &str, node: NodeId, validity: Duration) -> Result<String, Error> {
        if csr_pem.len() > limits::REQUEST_BYTES_MAX {
            let (bytes, max) = (csr_pem.len() as u64, limits::REQUEST_BYTES_MAX);
            return Err(Error::TooLong { bytes, max });
        }
        let request = CertificateSigningRequestParams::from_pem(csr_pem)
            .map_err(cannot("read the certificate request"))?;
        let key = KeyPair::from_pem(&self.key_pem).map_err(cannot("read the authority's key"))?;
        let issuer = Issuer::from_ca_cert_pem(&self.cert_pem, key)
            .map_err(cannot("read the authority's certificate"))?;
        let mut params = params(&encode(node, &self.cluster_id), node.as_str(), validity)?;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let cert = params
            .signed_by(&request.public_key, &issuer)
            .map_err(cannot("sign the certificate"))?;
        Ok(format!("{}{}", cert.pem(), self.cert_pem))
    }

    /// Makes a key and a certificate for the port that applications use, which they verify by these
    /// host names and addresses. It names no node: nobody gets into a link with it. Returns the
    /// certificate followed by the authority's, and the key.
    pub fn issue_front(
        &self,
        hosts: &[String],
        validity: Duration,
    ) -> Result<(String, String), Error> {
        let own = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(cannot("make a key"))?;
        let key = KeyPair::from_pem(&self.key_pem).map_err(cannot("read the authority's key"))?;
        let issuer = Issuer::from_ca_cert_pem(&self.cert_pem, key)
            .map_err(cannot("read the authority's certificate"))?;
        let name = hosts.first().map_or("quorate", String::as_str);
        let mut params = params(name, name, validity)?;
        // Host names, and addresses in their own form.
        params.subject_alt_names = CertificateParams::new(hosts.to_vec())
            .map_err(cannot("name the certificate"))?
            .subject_alt_names;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let cert = params.signed_by(&own, &issuer).map_err(cannot("sign the certificate"))?;
        Ok((format!("{}{}", cert.pem(), self.cert_pem), own.serialize_pem()))
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authority({})", self.cluster_id)
    }
}

/// SHA-256 of a certificate's DER form.
pub(crate) fn fingerprint(cert: &CertificateDer<'_>) -> [u8; 32] {
    Sha256::digest(cert.as_ref()).into()
}

/// The cluster id in an authority's certificate.
pub(crate) fn authority_cluster_id(cert: &CertificateDer<'_>) -> Result<String, Error> {
    trust::dns_name(cert)
        .and_then(|name| decode_authority(&name))
        .ok_or_else(|| Error::Certificate("the certificate is not a cluster's authority".into()))
}

fn params(dns: &str, common_name: &str, validity: Duration) -> Result<CertificateParams, Error> {
    let mut params =
        CertificateParams::new([dns.to_owned()]).map_err(cannot("name the certificate"))?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    let now = clock::wall();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let since = |t: SystemTime| t.duration_since(UNIX_EPOCH).unwrap_or_default();
    params.not_before = epoch + since(now).saturating_sub(limits::CLOCK_SKEW_ALLOWED);
    params.not_after = epoch + since(now) + validity.min(limits::AUTHORITY_VALIDITY);
    let mut serial = [0; 16];
    trust::random(&mut serial)?;
    serial[0] = serial[0] & 0x7f | 1; // Positive and of full length.
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

fn cannot(what: &'static str) -> impl Fn(rcgen::Error) -> Error {
    move |err| Error::Certificate(format!("cannot {what}: {err}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Identity;

    #[test]
    fn an_authority_reads_back_and_a_wrong_key_does_not() {
        let a = Authority::create("shop").unwrap();
        let b = Authority::create("shop").unwrap();
        assert_ne!(a.cluster_id(), b.cluster_id());
        let again = Authority::from_pem(a.cert_pem(), a.key_pem()).unwrap();
        assert_eq!((again.cluster_id(), again.fingerprint()), (a.cluster_id(), a.fingerprint()));
        assert!(Authority::from_pem(a.cert_pem(), b.key_pem()).is_err());
        assert!(!format!("{a:?}").contains("KEY"));
    }

    #[test]
    fn names_in_the_request_are_ignored() {
        let authority = Authority::create("shop").unwrap();
        let wanted = NodeId::new("db_2-a").unwrap();
        let (key, csr) = Identity::request(NodeId::new("n1").unwrap()).unwrap();
        let chain = authority.issue(&csr, wanted, limits::CERTIFICATE_VALIDITY).unwrap();
        let identity = Identity::new(&chain, &key, authority.cert_pem()).unwrap();
        assert_eq!((identity.node, identity.cluster_id.as_str()), (wanted, authority.cluster_id()));
        assert!(!chain.contains("PRIVATE"));
    }

    #[test]
    fn a_damaged_request_is_an_error() {
        let authority = Authority::create("shop").unwrap();
        let node = NodeId::new("n1").unwrap();
        let (_, csr) = Identity::request(node).unwrap();
        let mut bytes = csr.into_bytes();
        let at = bytes.len() / 2;
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        let damaged = String::from_utf8(bytes).unwrap();
        for bad in ["", "nonsense", &damaged, &"x".repeat(limits::REQUEST_BYTES_MAX + 1)] {
            assert!(authority.issue(bad, node, limits::CERTIFICATE_VALIDITY).is_err());
        }
    }
}
