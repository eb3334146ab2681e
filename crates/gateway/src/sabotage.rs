//! Switches that remove one safety rule, so that a test can show that its absence is noticed.
//! They exist only in builds with the `sabotage` feature, which no release has.

/// Whether `QUORATE_SABOTAGE` names this rule.
pub fn is(rule: &str) -> bool {
    std::env::var("QUORATE_SABOTAGE").is_ok_and(|v| v.split(',').any(|r| r == rule))
}
