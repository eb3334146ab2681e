//! How a certificate names a node: one DNS name, `<node>.<cluster id>.quorate`.
//!
//! Node names may hold `_`, which DNS names may not, and may end in `-`. So `-` is written `-h`
//! and `_` is written `-u`: every hyphen in a label is followed by one of two letters, which reads
//! back in exactly one way, and a label never ends in a hyphen.

use quorate_core::NodeId;

const SUFFIX: &str = "quorate";

/// Hexadecimal digits of a cluster id.
pub(crate) const CLUSTER_ID_DIGITS: usize = 16;

/// The DNS name of a node in a cluster.
pub(crate) fn encode(node: NodeId, cluster_id: &str) -> String {
    let mut label = String::with_capacity(2 * node.as_str().len());
    for c in node.as_str().chars() {
        match c {
            '-' => label.push_str("-h"),
            '_' => label.push_str("-u"),
            c => label.push(c),
        }
    }
    format!("{label}.{cluster_id}.{SUFFIX}")
}

/// The node and the cluster id that a DNS name stands for, if it is one of ours.
pub(crate) fn decode(name: &str) -> Option<(NodeId, String)> {
    let mut labels = name.split('.');
    let (label, cluster_id) = (labels.next()?, labels.next()?);
    if labels.next() != Some(SUFFIX) || labels.next().is_some() || !is_cluster_id(cluster_id) {
        return None;
    }
    let mut node = String::with_capacity(label.len());
    let mut chars = label.chars();
    while let Some(c) = chars.next() {
        match (c, c == '-') {
            (_, true) => node.push(match chars.next()? {
                'h' => '-',
                'u' => '_',
                _ => return None,
            }),
            ('_', _) => return None,
            (c, _) => node.push(c),
        }
    }
    Some((NodeId::new(&node).ok()?, cluster_id.to_owned()))
}

/// The DNS name in the authority's own certificate, from which its cluster id is read.
pub(crate) fn encode_authority(cluster_id: &str) -> String {
    format!("{cluster_id}.{SUFFIX}")
}

/// The cluster id that an authority's DNS name stands for.
pub(crate) fn decode_authority(name: &str) -> Option<String> {
    let (cluster_id, suffix) = name.split_once('.')?;
    (suffix == SUFFIX && is_cluster_id(cluster_id)).then(|| cluster_id.to_owned())
}

fn is_cluster_id(s: &str) -> bool {
    s.len() == CLUSTER_ID_DIGITS
        && s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: &str = "00112233aabbccdd";

    #[test]
    fn names_read_back_and_are_valid_dns() {
        let long = format!("a{}", "_".repeat(30));
        for name in ["n1", "db_1", "db-1", "a-u", "a-", "a--", "a_-h", "a-h-u", long.as_str()] {
            let node = NodeId::new(name).unwrap();
            let dns = encode(node, CLUSTER);
            assert_eq!(decode(&dns), Some((node, CLUSTER.to_owned())), "{dns}");
            let label = dns.split('.').next().unwrap();
            assert!(label.len() <= 63 && !label.ends_with('-') && !label.contains('_'), "{dns}");
            rustls::pki_types::DnsName::try_from(dns.as_str()).unwrap();
        }
    }

    #[test]
    fn other_names_are_not_ours() {
        for name in [
            "n1",
            "n1.00112233aabbccdd",
            "n1.00112233aabbccdd.example",
            "n1.00112233AABBCCDD.quorate",
            "n1.0011.quorate",
            "a-b.00112233aabbccdd.quorate",
            "a_b.00112233aabbccdd.quorate",
            "a-.00112233aabbccdd.quorate",
            "x.n1.00112233aabbccdd.quorate",
            "*.00112233aabbccdd.quorate",
        ] {
            assert_eq!(decode(name), None, "{name}");
        }
        assert_eq!(decode_authority("00112233aabbccdd.quorate").as_deref(), Some(CLUSTER));
        assert_eq!(decode_authority("n1.00112233aabbccdd.quorate"), None);
    }
}
