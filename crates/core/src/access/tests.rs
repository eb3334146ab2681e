use proptest::prelude::*;

use super::*;

fn rule(action: Action) -> AccessRule {
    AccessRule {
        database: everything(),
        role: everything(),
        address: everything(),
        tls: TlsNeed::Any,
        action,
        because: None,
    }
}

fn list(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn gateway(access: Vec<AccessRule>) -> Gateway {
    Gateway { access, ..Gateway::default() }
}

fn rules(access: Vec<AccessRule>) -> AccessRules {
    AccessRules::new(&gateway(access)).unwrap()
}

fn asking(address: &str) -> Asking<'static> {
    let address = address.parse().unwrap();
    Asking { database: "shop", physical: false, role: "app", address, tls: None }
}

fn tls(client_cn: Option<&str>) -> Option<TlsFacts<'_>> {
    Some(TlsFacts { client_cn })
}

fn rejection(decision: Decision) -> Rejection {
    match decision.verdict {
        Verdict::Reject(rejection) => rejection,
        other => panic!("{other:?}"),
    }
}

#[test]
fn without_rules_everybody_needs_a_password() {
    let decision = rules(vec![]).decide(&asking("192.0.2.1"));
    assert_eq!((decision.verdict, decision.rule), (Verdict::Password, None));
    assert_eq!(
        decision.because,
        "gateway.access has no rules: host \"192.0.2.1\", user \"app\", database \"shop\", no encryption needs a password"
    );
}

#[test]
fn the_first_rule_that_matches_decides() {
    let rules = rules(vec![
        AccessRule {
            role: list(&["intern_*"]),
            because: Some("they left".to_owned()),
            ..rule(Action::Reject)
        },
        AccessRule {
            database: list(&["shop", "shop_*"]),
            address: list(&["10.0.0.0/8"]),
            ..rule(Action::Password)
        },
        AccessRule { address: list(&["local"]), ..rule(Action::Trust) },
        AccessRule { tls: TlsNeed::Certificate, ..rule(Action::Certificate) },
    ]);
    let at = |asking: Asking<'_>| {
        let decision = rules.decide(&asking);
        (decision.rule, decision.verdict)
    };
    let here = asking("10.1.2.3");
    assert_eq!(at(here), (Some(1), Verdict::Password));
    assert_eq!(at(Asking { database: "shop_eu", ..here }), (Some(1), Verdict::Password));
    assert_eq!(at(asking("127.0.0.1")), (Some(2), Verdict::Trust));
    assert_eq!(at(asking("::1")), (Some(2), Verdict::Trust));
    let there = Asking { tls: tls(Some("app")), ..asking("192.0.2.1") };
    assert_eq!(at(there), (Some(3), Verdict::Certificate));
    for cn in [None, Some("App"), Some("app2")] {
        assert_eq!(at(Asking { tls: tls(cn), ..there }).0, None, "{cn:?}");
    }
    assert_eq!(at(Asking { database: "Shop", ..here }).0, None);

    let intern = rules.decide(&Asking { role: "intern_7", ..here });
    assert_eq!(
        intern.because,
        "gateway.access[0] rejects host \"10.1.2.3\", user \"intern_7\", database \"shop\", no encryption: they left"
    );
    let told = rejection(intern);
    assert_eq!(told.code, "28000");
    assert_eq!(
        told.message,
        "gateway.access rejects connection for host \"10.1.2.3\", user \"intern_7\", database \"shop\", no encryption"
    );
}

#[test]
fn the_log_as_it_is_needs_a_rule_that_says_so() {
    let physical = Asking { database: "replication", physical: true, ..asking("10.1.2.3") };
    let everything = rule(Action::Password);
    let named = AccessRule { database: list(&["shop", "replication"]), ..rule(Action::Password) };
    let decided = |all: Vec<AccessRule>, asking| rules(all).decide(&asking).rule;
    assert_eq!(decided(vec![everything.clone()], physical), None);
    assert_eq!(decided(vec![everything, named.clone()], physical), Some(1));
    assert_eq!(decided(vec![named], asking("10.1.2.3")), Some(0));
    let like = AccessRule { database: list(&["repl*"]), ..rule(Action::Password) };
    assert_eq!(decided(vec![like], physical), None);
    let told = rejection(rules(vec![rule(Action::Reject)]).decide(&physical));
    assert_eq!(
        told.message,
        "no gateway.access rule for replication connection from host \"10.1.2.3\", user \"app\", database \"replication\", no encryption"
    );
    // Without any rule a password will do, and PostgreSQL asks for the role's attribute.
    assert_eq!(rules(vec![]).decide(&physical).verdict, Verdict::Password);
}

#[test]
fn who_matches_no_rule_learns_what_to_add_and_the_log_what_was_missing() {
    let rules = rules(vec![
        AccessRule { role: list(&["boss"]), ..rule(Action::Password) },
        AccessRule { tls: TlsNeed::Required, ..rule(Action::Password) },
    ]);
    let decision = rules.decide(&asking("10.1.2.3"));
    assert_eq!(
        decision.because,
        "no rule of gateway.access matches host \"10.1.2.3\", user \"app\", database \"shop\", no encryption; gateway.access[1] would over TLS"
    );
    let told = rejection(decision);
    assert_eq!(
        told.message,
        "no gateway.access rule for host \"10.1.2.3\", user \"app\", database \"shop\", no encryption"
    );
    assert_eq!((told.code, told.hint), ("28000", HINT_NO_RULE));
}

#[test]
fn the_action_certificate_sends_away_who_has_none() {
    let rules = rules(vec![rule(Action::Certificate), rule(Action::Password)]);
    let decision = rules.decide(&Asking { tls: tls(Some("other")), ..asking("10.1.2.3") });
    assert_eq!(decision.rule, Some(0));
    assert_eq!(rejection(decision).message, "certificate authentication failed for user \"app\"");
    assert_eq!(rejection(rules.decide(&asking("10.1.2.3"))).hint, HINT_CERTIFICATE);
}

#[test]
fn encryption_that_is_required_comes_before_the_rules() {
    let gateway = Gateway { tls: Tls::Required, ..gateway(vec![rule(Action::Password)]) };
    let rules = AccessRules::new(&gateway).unwrap();
    let told = rejection(rules.decide(&asking("127.0.0.1")));
    assert_eq!((told.code, told.hint), ("28000", HINT_TLS));
    let encrypted = Asking { tls: tls(None), ..asking("127.0.0.1") };
    assert_eq!(rules.decide(&encrypted).verdict, Verdict::Password);
}

#[test]
fn a_name_that_postgresql_would_cut_passes_no_rule() {
    let cut = "a".repeat(63);
    let long = "a".repeat(64);
    for access in [
        vec![],
        vec![AccessRule { role: list(&[&cut]), ..rule(Action::Reject) }, rule(Action::Password)],
    ] {
        let rules = rules(access);
        assert_eq!(rejection(rules.decide(&Asking { role: &long, ..asking("::1") })).code, "28000");
        let database = Asking { database: &long, ..asking("::1") };
        assert_eq!(rejection(rules.decide(&database)).code, "28000");
    }
}

#[test]
fn a_name_cannot_write_a_line_of_its_own_into_the_log() {
    let asking = Asking { role: "app\n\"root\"", ..asking("::1") };
    let because = rules(vec![]).decide(&asking).because;
    assert!(because.contains(r#"user "app\n\"root\"", "#), "{because}");
}

#[test]
fn addresses_match_by_their_first_bits() {
    let cases = [
        ("10.0.0.0/8", "10.255.0.1", true),
        ("10.0.0.0/8", "11.0.0.1", false),
        ("10.0.0.0/8", "::ffff:10.1.2.3", true),
        ("::ffff:10.0.0.0/104", "10.1.2.3", true),
        ("::ffff:10.0.0.0/104", "11.1.2.3", false),
        ("0.0.0.0/0", "203.0.113.9", true),
        ("0.0.0.0/0", "::ffff:203.0.113.9", true),
        ("0.0.0.0/0", "2001:db8::1", false),
        ("::/0", "2001:db8::1", true),
        ("::/0", "203.0.113.9", false),
        ("::/0", "::ffff:203.0.113.9", false),
        ("192.0.2.7", "192.0.2.7", true),
        ("192.0.2.7/32", "192.0.2.8", false),
        ("192.0.2.6/31", "192.0.2.7", true),
        ("fd00::/8", "fd12::1", true),
        ("fd00::/8", "fe00::1", false),
        ("::1/128", "::1", true),
        ("local", "127.200.0.1", true),
        ("local", "::1", true),
        ("local", "::ffff:127.0.0.1", true),
        ("local", "10.0.0.1", false),
        ("*", "10.0.0.1", true),
    ];
    for (network, address, expected) in cases {
        let parsed = Address::parse(network).unwrap();
        assert_eq!(parsed.contains(address.parse().unwrap()), expected, "{address} in {network}");
    }
}

#[test]
fn loopback_is_known() {
    for (network, expected) in [
        ("local", true),
        ("127.0.0.0/8", true),
        ("127.0.0.1", true),
        ("::1", true),
        ("::ffff:127.0.0.1", true),
        ("127.0.0.0/7", false),
        ("126.0.0.0/7", false),
        ("0.0.0.0/0", false),
        ("::/0", false),
        ("*", false),
    ] {
        let loopback = Address::parse(network).is_ok_and(|address| address.is_loopback());
        assert_eq!(loopback, expected, "{network}");
    }
}

#[test]
fn all_problems_are_told_at_once_with_their_paths() {
    let access = vec![
        AccessRule {
            database: list(&[]),
            role: list(&["", "a*b", "fine", &"x".repeat(64)]),
            address: list(&["10.0.0.0/33", "10.1.0.0/8", "db.example", "10.0.0.0/", "::/129"]),
            ..rule(Action::Password)
        },
        AccessRule { address: list(&[]), ..rule(Action::Reject) },
        rule(Action::Trust),
        AccessRule { address: list(&["local", "10.0.0.0/8"]), ..rule(Action::Trust) },
        AccessRule { address: list(&["local", "127.0.0.0/8"]), ..rule(Action::Trust) },
        AccessRule { tls: TlsNeed::Certificate, ..rule(Action::Trust) },
        AccessRule { tls: TlsNeed::Required, ..rule(Action::Trust) },
    ];
    let problems = AccessRules::new(&gateway(access)).unwrap_err();
    let told: Vec<String> = problems.iter().map(|problem| problem.to_string()).collect();
    let begins = [
        "gateway.access[0].database: is empty",
        "gateway.access[0].role: an empty name matches nothing",
        "gateway.access[0].role: \"a*b\" has a * inside",
        "gateway.access[0].role: \"xxx",
        "gateway.access[0].address: 10.0.0.0/33 needs a prefix length from 0 to 32",
        "gateway.access[0].address: \"10.1.0.0/8\" has bits set beyond its prefix: write \"10.0.0.0/8\" for the network or \"10.1.0.0/32\" for the one address",
        "gateway.access[0].address: \"db.example\" is no address",
        "gateway.access[0].address: 10.0.0.0/ needs a prefix length",
        "gateway.access[0].address: ::/129 needs a prefix length from 0 to 128",
        "gateway.access[1].address: is empty",
        "gateway.access[2].action: \"trust\" lets anybody in",
        "gateway.access[3].action: \"trust\" lets anybody in",
        "gateway.access[6].action: \"trust\" lets anybody in",
    ];
    assert_eq!(told.len(), begins.len(), "{told:#?}");
    for (told, begin) in told.iter().zip(begins) {
        assert!(told.starts_with(begin), "{told}");
    }
}

#[test]
fn rules_that_need_tls_are_refused_where_there_is_none() {
    let access = vec![
        AccessRule { tls: TlsNeed::Required, ..rule(Action::Password) },
        rule(Action::Certificate),
        rule(Action::Password),
    ];
    let gateway = Gateway { tls: Tls::Off, ..gateway(access) };
    let fields: Vec<_> = gateway.validate().into_iter().map(|problem| problem.field).collect();
    assert_eq!(fields, ["gateway.access[0].tls", "gateway.access[1].tls"]);
}

fn patterns(names: &'static [&'static str]) -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(prop::sample::select(names), 1..3).prop_map(|names| list(&names))
}

const ADDRESSES: &[&str] = &["10.0.0.0/8", "10.1.0.0/16", "local", "fd00::/8", "0.0.0.0/0", "*"];

prop_compose! {
    fn any_rule()(
        database in patterns(&["shop", "shop_*", "*"]),
        role in patterns(&["app", "a*", "boss", "*"]),
        address in patterns(ADDRESSES),
        tls in prop::sample::select(&[TlsNeed::Any, TlsNeed::Required, TlsNeed::Certificate][..]),
        action in prop::sample::select(
            &[Action::Password, Action::Certificate, Action::Trust, Action::Reject][..]),
    ) -> AccessRule {
        // Trust is only taken from nearby.
        let address = if action == Action::Trust { list(&["local"]) } else { address };
        AccessRule { database, role, address, tls, action, because: None }
    }
}

prop_compose! {
    fn anybody()(
        database in prop::sample::select(&["shop", "shop_eu", "other"][..]),
        role in prop::sample::select(&["app", "boss", "zoe"][..]),
        address in prop::sample::select(
            &["10.1.2.3", "10.9.9.9", "::ffff:10.1.0.1", "127.0.0.1", "fd00::1", "2001:db8::1"][..]),
        tls in prop::sample::select(
            vec![None, tls(None), tls(Some("app")), tls(Some("boss"))]),
    ) -> Asking<'static> {
        Asking { database, physical: false, role, address: address.parse().unwrap(), tls }
    }
}

proptest! {
    #[test]
    fn first_match_wins(access in prop::collection::vec(any_rule(), 1..6), asking in anybody()) {
        let alone = |at: usize| rules(vec![access[at].clone()]).decide(&asking);
        let first = (0..access.len()).find(|at| alone(*at).rule.is_some());
        let decision = rules(access.clone()).decide(&asking);
        prop_assert_eq!(decision.rule, first);
        match first {
            Some(at) => prop_assert_eq!(decision.verdict, alone(at).verdict),
            None => prop_assert!(matches!(decision.verdict, Verdict::Reject(_))),
        }
    }

    #[test]
    fn a_reject_all_at_the_end_changes_only_who_matched_nothing(
        access in prop::collection::vec(any_rule(), 1..6), asking in anybody(),
    ) {
        let before = rules(access.clone()).decide(&asking);
        let last = access.len();
        let after = rules([access, vec![rule(Action::Reject)]].concat()).decide(&asking);
        if before.rule.is_some() {
            prop_assert_eq!(before, after);
        } else {
            prop_assert_eq!(after.rule, Some(last));
            prop_assert!(matches!(after.verdict, Verdict::Reject(_)));
        }
    }

    #[test]
    fn what_is_written_is_read_again(access in prop::collection::vec(any_rule(), 0..6)) {
        let gateway = gateway(access);
        let text = toml::to_string_pretty(&gateway).unwrap();
        prop_assert_eq!(&toml::from_str::<Gateway>(&text).unwrap(), &gateway);
        let text = serde_json::to_string(&gateway).unwrap();
        prop_assert_eq!(&serde_json::from_str::<Gateway>(&text).unwrap(), &gateway);
    }

    #[test]
    fn no_text_makes_an_address_panic(text in "[0-9a-f:./*]{0,24}", address in "10\\.[0-9]\\.0\\.0/[0-9]{1,3}") {
        let _ = Address::parse(&text);
        let _ = Address::parse(&address);
    }

    #[test]
    fn a_network_holds_exactly_the_addresses_that_share_its_bits(bits: u32, prefix in 0u8..=32, other: u32) {
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
        let base = core::net::Ipv4Addr::from_bits(bits & mask);
        let network = Address::parse(&format!("{base}/{prefix}")).unwrap();
        let near = bits ^ (other & !mask);
        prop_assert!(network.contains(core::net::Ipv4Addr::from_bits(near).into()));
        let there = core::net::Ipv4Addr::from_bits(other);
        prop_assert_eq!(network.contains(there.into()), other & mask == bits & mask);
    }
}
