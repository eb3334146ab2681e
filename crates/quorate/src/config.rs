//! The node's own configuration: what is local to one host. What is shared lives in the cluster
//! document (`quorate config`).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use quorate_core::NodeId;
use quorate_core::state::{Node, NodeKind};
use serde::{Deserialize, Serialize};

use crate::notify::Receiver;
use crate::page::web::WebTls;

/// Name of the file inside the node's directory.
pub const FILE: &str = "quorate.toml";

/// `quorate.toml` as written. Unknown fields are refused.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    /// Name of the node, unique in the cluster for ever.
    pub name: NodeId,
    /// Host name or address at which other nodes and applications reach this host.
    pub advertise: String,
    /// Failure domain, such as a data centre or a rack.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub zone: String,
    /// Vote without holding data.
    #[serde(default)]
    pub witness: bool,
    /// Where to listen.
    #[serde(default)]
    pub listen: Listen,
    /// The local PostgreSQL.
    #[serde(default)]
    pub postgres: PostgresFile,
    /// The certificate that applications see. Unset: one that the cluster issues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsFile>,
    /// Who is told of alerts while this node leads consensus: the same on every node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notify: Vec<Receiver>,
    /// Other ways to reach a peer's link port: `n2 = "10.1.0.2:6433"`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub routes: BTreeMap<NodeId, String>,
}

/// The certificate that applications see, as files in PEM form. They are read again every minute.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFile {
    /// The certificate, followed by those that lead to its root.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Authorities of clients' certificates. Unset: clients are asked for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_ca: Option<PathBuf>,
}

/// Listening addresses.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Listen {
    /// PostgreSQL protocol, for applications.
    pub gateway: SocketAddr,
    /// The same for applications that only read. Unset: there is no such port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_only: Option<SocketAddr>,
    /// Other nodes, mutual TLS.
    pub link: SocketAddr,
    /// HTTP: the page, status and events; actions need the admin token.
    pub web: SocketAddr,
    /// Encryption there: `off`, `offered` to whoever asks with https, or `required` of everybody but
    /// this host itself.
    #[serde(skip_serializing_if = "is_offered")]
    pub web_tls: WebTls,
}

fn is_offered(tls: &WebTls) -> bool {
    *tls == WebTls::Offered
}

impl Default for Listen {
    fn default() -> Self {
        let any = |port| SocketAddr::from(([0, 0, 0, 0], port));
        Self {
            gateway: any(6432),
            read_only: None,
            link: any(6433),
            web: SocketAddr::from(([127, 0, 0, 1], 6434)),
            web_tls: WebTls::default(),
        }
    }
}

/// The local PostgreSQL.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PostgresFile {
    /// Directory with `postgres`, `initdb` and kin. Unset: the newest supported one found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bin: Option<PathBuf>,
    /// The operating system's user that runs it when Quorate runs as root. Unset: `postgres`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// A shorter directory for unix sockets, when the node's own path is too long for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket_dir: Option<PathBuf>,
    /// File that the disk probe writes. Unset: inside the database's log directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_probe: Option<PathBuf>,
}

/// The resolved configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The node's directory.
    pub dir: PathBuf,
    /// As written.
    pub file: ConfigFile,
}

impl Config {
    /// Reads `<dir>/quorate.toml`.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE);
        let text = std::fs::read_to_string(&path).with_context(|| {
            format!(
                "cannot read {}: make this node with `quorate init` or `quorate join` first, or \
                 name its directory with --dir",
                path.display()
            )
        })?;
        let file: ConfigFile =
            toml::from_str(&text).with_context(|| format!("in {}", path.display()))?;
        for receiver in &file.notify {
            receiver.check().with_context(|| format!("in {}", path.display()))?;
        }
        let dir = std::fs::canonicalize(dir)?;
        Ok(Self { dir, file })
    }

    /// Writes a new node's file. Refuses a directory that holds a node already.
    pub fn create(dir: &Path, file: ConfigFile) -> Result<Self> {
        let path = dir.join(FILE);
        if path.exists() {
            bail!(
                "{} exists: this directory holds node {} already; choose another --dir",
                path.display(),
                Self::load(dir).map_or("?".to_owned(), |c| c.file.name.to_string())
            );
        }
        passable_dir(dir)?;
        let text = toml::to_string_pretty(&file)?;
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { dir: std::fs::canonicalize(dir)?, file })
    }

    /// The node's entry in the cluster's state.
    pub fn node(&self) -> Node {
        let host = &self.file.advertise;
        let at = |addr: SocketAddr| match host.contains(':') && !host.starts_with('[') {
            true => format!("[{host}]:{}", addr.port()),
            false => format!("{host}:{}", addr.port()),
        };
        Node {
            kind: if self.file.witness { NodeKind::Witness } else { NodeKind::Data },
            link: at(self.file.listen.link),
            gateway: at(self.file.listen.gateway),
            web: at(self.file.listen.web),
            zone: self.file.zone.clone(),
        }
    }

    /// Certificates and keys.
    pub fn identity_dir(&self) -> PathBuf {
        self.dir.join("identity")
    }

    /// The consensus store.
    pub fn store(&self) -> PathBuf {
        self.dir.join("consensus.redb")
    }

    /// The promise file.
    pub fn promise(&self) -> PathBuf {
        self.dir.join("promise")
    }

    /// The control socket.
    pub fn control(&self) -> PathBuf {
        self.dir.join("control.sock")
    }

    /// Everything that PostgreSQL's user owns.
    pub fn postgres_dir(&self) -> PathBuf {
        self.dir.join("pg")
    }

    /// The file with the superuser's first password.
    pub fn password_file(&self) -> PathBuf {
        self.dir.join("superuser.password")
    }

    /// The file with the token that the web port asks of actions.
    pub fn admin_token_file(&self) -> PathBuf {
        self.dir.join("admin.token")
    }
}

/// Makes a directory, and missing ones above it, that PostgreSQL's user passes through on its way
/// to its own: nobody but the owner lists what is in it.
pub fn passable_dir(dir: &Path) -> Result<()> {
    let made: Vec<&Path> = dir.ancestors().take_while(|d| !d.exists()).collect();
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    for dir in made.into_iter().chain([dir]).filter(|d| !d.as_os_str().is_empty()) {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o711))?;
    }
    Ok(())
}

/// An error and what to do about it, as two sentences.
pub fn told(error: &impl std::fmt::Display, hint: &str) -> anyhow::Error {
    let mut letters = hint.chars();
    let first = letters.next().map(|c| c.to_uppercase().to_string()).unwrap_or_default();
    anyhow::anyhow!("{error}. {first}{}", letters.as_str())
}
