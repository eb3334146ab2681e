//! Names with a `*` at the end, and networks.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::document::Invalid;
use crate::limits;

/// The pattern that matches every name and every address.
const ANY: &str = "*";

/// Addresses of clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Address {
    /// All of them.
    Everywhere,
    /// This host: 127.0.0.0/8, ::1 and Unix sockets.
    Local,
    /// Those whose first bits are those of `base`.
    Net {
        /// First address of the network. Never an IPv4-mapped IPv6 address.
        base: IpAddr,
        /// How many bits count.
        prefix: u8,
    },
}

impl Address {
    /// Reads `*`, `local`, an address, or a network such as `10.0.0.0/8`; says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            ANY => return Ok(Address::Everywhere),
            "local" => return Ok(Address::Local),
            _ => {}
        }
        let (base, prefix) = match text.split_once('/') {
            Some((base, prefix)) => (base, Some(prefix)),
            None => (text, None),
        };
        let Ok(base) = base.parse::<IpAddr>() else {
            return Err(format!(
                "{text:?} is no address: use a network such as \"10.0.0.0/8\", an address, \
                 \"local\" or \"*\"; host names are not looked up"
            ));
        };
        let width = width(base);
        let prefix = match prefix {
            None => width,
            Some(text) => match text.parse::<u8>() {
                Ok(prefix) if prefix <= width && !text.starts_with('+') => prefix,
                _ => return Err(format!("{base}/{text} needs a prefix length from 0 to {width}")),
            },
        };
        let first = first_address(base, prefix);
        if first != base {
            return Err(format!(
                "{text:?} has bits set beyond its prefix: write \"{first}/{prefix}\" for the \
                 network or \"{base}/{width}\" for the one address"
            ));
        }
        Ok(unmapped(base, prefix))
    }

    /// Whether an address is among them. An IPv4-mapped IPv6 address counts as the IPv4 one.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        match *self {
            Address::Everywhere => true,
            Address::Local => address.is_loopback(),
            Address::Net { base, prefix } => {
                base.is_ipv4() == address.is_ipv4() && first_address(address, prefix) == base
            }
        }
    }

    /// Whether all of them are this host's own.
    pub fn is_loopback(&self) -> bool {
        match *self {
            Address::Everywhere => false,
            Address::Local => true,
            Address::Net { base, prefix } => {
                base.is_loopback() && prefix >= if base.is_ipv4() { 8 } else { 128 }
            }
        }
    }
}

/// Whether a pattern matches a name: the same, or the same up to the `*` that ends the pattern.
/// Case counts, as it does in PostgreSQL's startup packet.
pub fn name_matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => pattern == name,
    }
}

/// Whether any of the patterns matches.
pub(crate) fn patterns_match(patterns: &[String], name: &str) -> bool {
    patterns.iter().any(|pattern| name_matches(pattern, name))
}

/// The list that matches everything.
pub(crate) fn everything() -> Vec<String> {
    vec![ANY.to_owned()]
}

/// Whether a list is the one that is taken when none is written.
pub fn is_everything(patterns: &[String]) -> bool {
    matches!(patterns, [one] if one == ANY)
}

/// What is wrong with a list of names.
pub(crate) fn check_patterns(field: &str, patterns: &[String], problems: &mut Vec<Invalid>) {
    let mut bad = |problem: String| problems.push(Invalid { field: field.to_owned(), problem });
    if patterns.is_empty() {
        bad("is empty: name some, or leave it out for all".to_owned());
    }
    for pattern in patterns {
        let name = pattern.strip_suffix('*').unwrap_or(pattern);
        if pattern.is_empty() {
            bad("an empty name matches nothing; \"*\" matches all".to_owned());
        } else if name.contains('*') {
            bad(format!("{pattern:?} has a * inside: it may only stand at the end"));
        } else if name.len() > limits::PG_NAME_MAX {
            let max = limits::PG_NAME_MAX;
            bad(format!("{pattern:?} is longer than PostgreSQL's names, {max} bytes"));
        }
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The first address of the network that an address is in.
fn first_address(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
            Ipv4Addr::from_bits(v4.to_bits() & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0);
            Ipv6Addr::from_bits(v6.to_bits() & mask).into()
        }
    }
}

/// `::ffff:10.0.0.0/104` is 10.0.0.0/8: clients are compared in that form.
fn unmapped(base: IpAddr, prefix: u8) -> Address {
    match base.to_canonical() {
        v4 if v4 != base && prefix >= 96 => Address::Net { base: v4, prefix: prefix - 96 },
        _ => Address::Net { base, prefix },
    }
}
