//! Who this node is: its certificate, its key and the authority that both come from.
//!
//! On disk it is one file, `identity.pem` (key, certificate, authority), so that a renewal replaces
//! all of it or nothing.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quorate_core::NodeId;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::authority::{Authority, authority_cluster_id, fingerprint};
use crate::{Error, limits, trust};

const FILE: &str = "identity.pem";

/// A node's identity in its cluster. `Debug` does not show the key.
#[derive(Clone)]
pub struct Identity {
    /// The node that the certificate names.
    pub node: NodeId,
    /// The cluster that the certificate names: sixteen hexadecimal digits.
    pub cluster_id: String,
    /// The node's certificate followed by the authority's.
    pub cert_pem: String,
    /// The node's key.
    pub key_pem: String,
    /// The authority's certificate.
    pub ca_pem: String,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Identity {
    /// A new key, and the request that asks the cluster to certify it. The key never leaves
    /// the node.
    pub fn request(node: NodeId) -> Result<(String, String), Error> {
        let bad = |e: rcgen::Error| Error::Certificate(format!("cannot make a request: {e}"));
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(bad)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, node.as_str());
        let csr = params.serialize_request(&key).and_then(|csr| csr.pem()).map_err(bad)?;
        Ok((key.serialize_pem(), csr))
    }

    /// Checks that the certificate, its key and the authority belong together.
    /// Dates are not checked: an expired identity can be read, and says so.
    pub fn new(cert_pem: &str, key_pem: &str, ca_pem: &str) -> Result<Self, Error> {
        let leaf = CertificateDer::from_pem_slice(cert_pem.as_bytes())
            .map_err(|e| Error::Certificate(format!("there is no certificate in it: {e}")))?;
        let ca = CertificateDer::from_pem_slice(ca_pem.as_bytes())
            .map_err(|e| Error::Certificate(format!("there is no authority in it: {e}")))?;
        let (node, cluster_id) = trust::name(&leaf)
            .ok_or_else(|| Error::Certificate("the certificate does not name a node".into()))?;
        if authority_cluster_id(&ca)? != cluster_id {
            return Err(Error::Certificate("the authority is another cluster's".into()));
        }
        trust::check_key(&leaf, key_pem)?;
        let (not_before, not_after) = trust::dates(&leaf)?;
        let cert_pem = format!("{}{}", first_certificate(cert_pem), first_certificate(ca_pem));
        let identity = Self {
            node,
            cluster_id,
            cert_pem,
            key_pem: key_pem.to_owned(),
            ca_pem: first_certificate(ca_pem),
            not_before: at(not_before),
            not_after: at(not_after),
        };
        identity.check_signature(&leaf)?;
        Ok(identity)
    }

    /// The identity that `authority` itself gives to a node: for the first node of a cluster.
    pub fn issued_by(authority: &Authority, node: NodeId) -> Result<Self, Error> {
        let (key, csr) = Self::request(node)?;
        let chain = authority.issue(&csr, node, limits::CERTIFICATE_VALIDITY)?;
        Self::new(&chain, &key, authority.cert_pem())
    }

    /// SHA-256 of the authority's certificate, as in join tokens.
    pub fn authority_fingerprint(&self) -> Result<[u8; 32], Error> {
        Ok(fingerprint(&self.authority()?))
    }

    /// When the certificate ends.
    pub fn expires_at(&self) -> SystemTime {
        self.not_after
    }

    /// Whether two thirds of the certificate's life are over.
    pub fn should_renew(&self, now: SystemTime) -> bool {
        // Certificates start early by this much; that day is not part of their life.
        let issued = self.not_before + limits::CLOCK_SKEW_ALLOWED;
        let life = self.not_after.duration_since(issued).unwrap_or_default();
        now >= issued + life * 2 / 3
    }

    /// Writes the identity into a directory (made if needed), for its owner only, and so that a
    /// crash leaves either the old one or the new one.
    pub fn save(&self, dir: &Path) -> Result<(), Error> {
        let path = dir.join(FILE);
        self.write(dir, &path).map_err(|source| Error::File { doing: "write", path, source })
    }

    /// Reads the identity that `save` wrote.
    pub fn load(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(FILE);
        let text = match read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => return Err(Error::NoIdentity(path)),
            Err(e) if e.kind() == ErrorKind::InvalidData => {
                return Err(Error::DamagedIdentity { path, reason: "it is not text".into() });
            }
            Err(source) => return Err(Error::File { doing: "read", path, source }),
        };
        Self::from_text(&text).map_err(|e| Error::DamagedIdentity { path, reason: e.to_string() })
    }

    pub(crate) fn authority(&self) -> Result<CertificateDer<'static>, Error> {
        CertificateDer::from_pem_slice(self.ca_pem.as_bytes())
            .map_err(|e| Error::Certificate(format!("the authority cannot be read: {e}")))
    }

    fn check_signature(&self, leaf: &CertificateDer<'_>) -> Result<(), Error> {
        let roots = trust::roots(self.authority()?)?;
        // Checked at a moment inside the certificate's life: this is about the signature only.
        trust::check_chain(leaf, &roots, self.not_after - Duration::from_secs(1)).map_err(|e| {
            Error::Certificate(format!("the authority did not sign the certificate: {e}"))
        })
    }

    fn from_text(text: &str) -> Result<Self, Error> {
        let missing = |what| Error::Certificate(format!("{what} is missing or cut"));
        let certs: Vec<_> = text.match_indices(BEGIN).map(|(at, _)| &text[at..]).collect();
        let (&cert, &ca) = match certs.as_slice() {
            [cert, ca] => (cert, ca),
            _ => return Err(missing("one of the two certificates")),
        };
        let key = PrivateKeyDer::from_pem_slice(text.as_bytes()).map(|_| text);
        let key = key.map_err(|_| missing("the key"))?.split(BEGIN).next().unwrap_or_default();
        Self::new(cert, key, ca)
    }

    fn write(&self, dir: &Path, path: &Path) -> io::Result<()> {
        if !dir.is_dir() {
            DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        let temporary: PathBuf = dir.join(format!("{FILE}.{}.new", std::process::id()));
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        // The mode above holds for new files only; one may be left from an earlier crash.
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.write_all(self.key_pem.as_bytes())?;
        file.write_all(self.cert_pem.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(dir)?.sync_all()
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("node", &self.node)
            .field("cluster_id", &self.cluster_id)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

fn first_certificate(pem: &str) -> String {
    let from = pem.find(BEGIN).unwrap_or(0);
    let to = pem[from..].find(END).map_or(pem.len(), |at| from + at + END.len());
    format!("{}\n", &pem[from..to])
}

fn at(unix_seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(unix_seconds).unwrap_or(0))
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(limits::IDENTITY_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        let authority = Authority::create("shop").unwrap();
        Identity::issued_by(&authority, NodeId::new("db_1").unwrap()).unwrap()
    }

    #[test]
    fn an_identity_survives_the_disk_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("certificates");
        let identity = identity();
        identity.save(&dir).unwrap();
        let mode = fs::metadata(dir.join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let again = Identity::load(&dir).unwrap();
        assert_eq!((again.node, &again.cluster_id), (identity.node, &identity.cluster_id));
        assert_eq!((&again.cert_pem, &again.key_pem), (&identity.cert_pem, &identity.key_pem));
        assert_eq!(again.expires_at(), identity.expires_at());
        again.save(&dir).unwrap();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "no temporary file stays");
        assert!(!format!("{identity:?}").contains("PRIVATE"));
    }

    #[test]
    fn missing_and_damaged_files_say_so() {
        let dir = tempfile::tempdir().unwrap();
        let err = Identity::load(dir.path()).unwrap_err();
        assert!(err.to_string().contains("no identity yet"), "{err}");
        assert!(err.hint().contains("quorate join"));
        identity().save(dir.path()).unwrap();
        let whole = fs::read(dir.path().join(FILE)).unwrap();
        let mut flipped = whole.clone();
        let at = whole.len() / 2;
        flipped[at] = if flipped[at] == b'A' { b'B' } else { b'A' };
        for bad in [&whole[..whole.len() / 2], &whole[..40], &[][..], &[0xff; 9][..], &flipped] {
            fs::write(dir.path().join(FILE), bad).unwrap();
            let err = Identity::load(dir.path()).unwrap_err();
            assert!(err.to_string().contains("is damaged"), "{err}");
        }
    }

    #[test]
    fn parts_of_different_identities_do_not_fit() {
        let (a, b) = (identity(), identity());
        for (cert, key, ca) in [
            (&a.cert_pem, &b.key_pem, &a.ca_pem),
            (&a.cert_pem, &a.key_pem, &b.ca_pem),
            (&a.ca_pem, &a.key_pem, &a.ca_pem),
        ] {
            assert!(Identity::new(cert, key, ca).is_err());
        }
    }

    #[test]
    fn renewal_is_due_at_two_thirds() {
        let identity = identity();
        let day = Duration::from_secs(86_400);
        let start = identity.expires_at() - limits::CERTIFICATE_VALIDITY;
        assert!(!identity.should_renew(start));
        assert!(!identity.should_renew(start + 59 * day));
        assert!(identity.should_renew(start + 61 * day));
    }
}
