//! The promise file (rule R2): 64 bytes that outlive everything this process remembers.
//!
//! Written with its directory synced before any word of the new term leaves the node. A node whose
//! file is missing or damaged has amnesia: it may have promised something, so it takes part in
//! nothing until the commit rule goes on without it.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use quorate_core::Term;
use quorate_core::node::Promise;

use crate::durable;

const MAGIC: &[u8; 8] = b"QRPROM01";
const LENGTH: usize = 64;

/// The promise file of one node.
#[derive(Debug)]
pub struct PromiseFile {
    path: PathBuf,
    cluster: u64,
}

impl PromiseFile {
    /// The file at `path`, belonging to the cluster of this identity.
    pub fn new(path: PathBuf, cluster: u64) -> Self {
        Self { path, cluster }
    }

    /// What was promised. `Ok(None)` when there is no file at all.
    pub fn read(&self) -> io::Result<Option<Promise>> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(Some(self.decode(&bytes).map_or(Promise::Lost, Promise::Kept)))
    }

    /// Makes a promise durable. Never lowers one.
    pub fn write(&self, term: Term) -> io::Result<()> {
        if let Some(Promise::Kept(kept)) = self.read()?
            && kept >= term
        {
            return Ok(());
        }
        durable::replace(&self.path, &self.encode(term))
    }

    fn encode(&self, term: Term) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..16].copy_from_slice(&self.cluster.to_be_bytes());
        bytes[16..24].copy_from_slice(&term.0.to_be_bytes());
        let sum = checksum(&bytes[..LENGTH - 8]);
        bytes[LENGTH - 8..].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    fn decode(&self, bytes: &[u8]) -> Option<Term> {
        let bytes: &[u8; LENGTH] = bytes.try_into().ok()?;
        let number = |at: usize| {
            let mut n = [0; 8];
            n.copy_from_slice(&bytes[at..at + 8]);
            u64::from_be_bytes(n)
        };
        let good = &bytes[..8] == MAGIC
            && number(8) == self.cluster
            && number(LENGTH - 8) == checksum(&bytes[..LENGTH - 8]);
        good.then(|| Term(number(16)))
    }
}

/// FNV-1a, 64 bits: enough to notice a torn or damaged block.
fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_promise_survives_and_never_falls() {
        let dir = tempfile::tempdir().unwrap();
        let file = PromiseFile::new(dir.path().join("promise"), 7);
        assert_eq!(file.read().unwrap(), None);
        file.write(Term(5)).unwrap();
        file.write(Term(3)).unwrap();
        assert_eq!(file.read().unwrap(), Some(Promise::Kept(Term(5))));
    }

    #[test]
    fn any_damage_is_amnesia() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("promise");
        let file = PromiseFile::new(path.clone(), 7);
        file.write(Term(5)).unwrap();
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            assert_eq!(file.read().unwrap(), Some(Promise::Lost), "byte {at}");
        }
        fs::write(&path, &good[..40]).unwrap();
        assert_eq!(file.read().unwrap(), Some(Promise::Lost));
        fs::write(&path, &good).unwrap();
        assert_eq!(
            PromiseFile::new(path, 8).read().unwrap(),
            Some(Promise::Lost),
            "another cluster's promise"
        );
    }
}
