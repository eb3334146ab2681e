//! stub
use serde::{Deserialize, Serialize};
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Consistency { Strong, #[default] ReadYourWrites, Monotonic, Causal, Bounded, Eventual }
impl std::str::FromStr for Consistency { type Err = (); fn from_str(s: &str) -> Result<Self, ()> { Ok(match s { "strong" => Self::Strong, "read_your_writes" => Self::ReadYourWrites, "monotonic" => Self::Monotonic, "causal" => Self::Causal, "bounded" => Self::Bounded, "eventual" => Self::Eventual, _ => return Err(()) }) } }
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadFrom { Writer, Replica, #[default] Prefer, Nearest }
impl std::str::FromStr for ReadFrom { type Err = (); fn from_str(s: &str) -> Result<Self, ()> { Ok(match s { "writer" => Self::Writer, "replica" => Self::Replica, "prefer" => Self::Prefer, "nearest" => Self::Nearest, _ => return Err(()) }) } }
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolMode { #[default] Transaction, Session }
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TlsPolicy { Off, #[default] Offered, Required }
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool { pub mode: PoolMode, pub size: usize, pub wait_ms: u64, pub waiting_max: usize, pub consistency: Consistency, pub read_from: ReadFrom, pub max_staleness_ms: u64, pub reuse_unnamed: bool, pub prepared_max: usize, pub idle_ms: u64, pub lifetime_ms: u64, pub disabled: Option<String> }
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gateway { pub split: bool, pub max_lag_ms: u64, pub hold_ms: u64, pub held_max: usize, pub resolve_commits: bool, pub tls: TlsPolicy, pub workers: u8, pub clients_max: usize }
impl Default for Gateway { fn default() -> Self { Self { split: true, max_lag_ms: 10000, hold_ms: 10000, held_max: 10000, resolve_commits: true, tls: TlsPolicy::default(), workers: 1, clients_max: 10000 } } }
impl Gateway { pub fn pool_for(&self, _d: &str, _u: &str) -> Pool { Pool { mode: PoolMode::Transaction, size: 16, wait_ms: 60000, waiting_max: 10000, consistency: Consistency::default(), read_from: ReadFrom::default(), max_staleness_ms: 5000, reuse_unnamed: true, prepared_max: 500, idle_ms: 600000, lifetime_ms: 3600000, disabled: None } } }
