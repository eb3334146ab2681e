//! `init` and `join`: making a node.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use quorate_agent::node::wall_millis;
use quorate_agent::promise::PromiseFile;
use quorate_consensus::{Consensus, Dial, Dialling, Options};
use quorate_core::document::Document;
use quorate_core::state::{CertificateAuthority, Change, Command};
use quorate_core::{Answer, NodeId, Term};
use quorate_link::{Authority, Identity, Token, dial_join, frame};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::reach::Failure;
use super::{Global, InitArgs, JoinArgs, NodeArgs};
use crate::config::{Config, ConfigFile, Listen, PostgresFile, told};
use crate::page::web::WebTls;

/// Largest message of a join.
const JOIN_BYTES_MAX: usize = 256 * 1024;
/// How long a join may take: a round of consensus and a signature.
const JOIN_WAIT: Duration = Duration::from_secs(20);

/// What a new node says.
#[derive(Serialize, Deserialize)]
pub struct JoinRequest {
    /// Proof that an operator wants it.
    pub token: String,
    /// Its name.
    pub name: NodeId,
    /// Its entry in the cluster's state.
    pub node: quorate_core::state::Node,
    /// Its certificate request, PEM.
    pub request: String,
}

/// What it is told.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JoinAnswer {
    /// Admitted.
    Welcome { certificate: String, authority: String, cluster_id: String },
    /// Not admitted; says why and what to do.
    Refused { because: String },
}

/// Makes a directory that only its owner reads.
pub fn private_dir(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot make {}", path.display()))
}

/// Writes a file that only its owner reads.
pub fn private_file(path: &Path, text: &str) -> Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    Ok(())
}

/// So many random bytes as hexadecimal digits.
pub fn random_hex(bytes: usize) -> Result<String> {
    let mut buffer = vec![0; bytes];
    let mut file = fs::File::open("/dev/urandom").context("no source of randomness")?;
    std::io::Read::read_exact(&mut file, &mut buffer)?;
    Ok(buffer.iter().map(|b| format!("{b:02x}")).collect())
}

fn host_name() -> Result<String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() {
        bail!("this host has no name: say --name and --advertise")
    }
    Ok(name.to_owned())
}

/// The configuration file for a new node.
fn new_file(args: &NodeArgs, witness: bool) -> Result<ConfigFile> {
    let name = match args.name {
        Some(name) => name,
        None => {
            let host = host_name()?.to_lowercase();
            let short = host.split('.').next().unwrap_or_default().to_owned();
            NodeId::new(&short).context("the host's name cannot be the node's: say --name")?
        }
    };
    let advertise = match &args.advertise {
        Some(host) => host.clone(),
        None => host_name()?,
    };
    Ok(ConfigFile {
        name,
        advertise,
        zone: args.zone.clone(),
        witness,
        listen: Listen {
            gateway: args.gateway,
            read_only: None,
            link: args.link,
            web: args.web,
            web_tls: WebTls::default(),
        },
        postgres: PostgresFile { bin: args.postgres_bin.clone(), ..PostgresFile::default() },
        tls: None,
        notify: Vec::new(),
        routes: Default::default(),
    })
}

/// Finds PostgreSQL before anything is made, so that a host without it hears so at once.
fn check_postgres(file: &ConfigFile) -> Result<()> {
    if file.witness {
        return Ok(());
    }
    let install = quorate_postgres::Install::find(file.postgres.bin.as_deref());
    let install = install.map_err(|e| told(&e, e.hint()))?;
    quorate_postgres::User::for_server(file.postgres.user.as_deref())
        .map_err(|e| told(&e, e.hint()))?;
    tracing::debug!(version = install.version, "found PostgreSQL");
    Ok(())
}

/// Nobody to call: a cluster of one.
struct Alone;

impl Dial for Alone {
    fn dial(&self, _peer: NodeId) -> Dialling {
        Box::pin(async { Err(std::io::Error::other("not connected yet")) })
    }
}

/// `quorate init`.
pub async fn init(global: &Global, args: InitArgs) -> Result<()> {
    let file = new_file(&args.node, false)?;
    check_postgres(&file)?;
    let name = file.name;
    let password = match &args.superuser_password_file {
        Some(path) => fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?
            .trim_end_matches(['\r', '\n'])
            .to_owned(),
        None => random_hex(16)?,
    };
    let config = Config::create(global.dir(), file)?;
    let cluster_id = random_hex(8)?;
    let authority = Authority::create(&cluster_id)?;
    private_dir(&config.identity_dir())?;
    Identity::issued_by(&authority, name)?.save(&config.identity_dir())?;
    private_file(&config.password_file(), &format!("{password}\n"))?;
    private_file(&config.admin_token_file(), &format!("{}\n", random_hex(16)?))?;
    let ca = CertificateAuthority {
        certificate: authority.cert_pem().to_owned(),
        key: authority.key_pem().to_owned(),
    };
    let document = Document { timing: args.timing, ..Document::default() };
    let change = Change::Found {
        cluster_id: authority.cluster_id().to_owned(),
        ca,
        name,
        node: config.node(),
        document,
    };
    found(&config, change).await?;
    let cluster = u64::from_str_radix(authority.cluster_id(), 16)?;
    PromiseFile::new(config.promise(), cluster).write(Term(0))?;
    let text = format!(
        "made cluster {} with node {name} in {}\n\
         the superuser's password is in {}\n\
         next: quorate run --dir {}",
        authority.cluster_id(),
        config.dir.display(),
        config.password_file().display(),
        global.dir().display(),
    );
    if global.json {
        println!("{}", json!({ "cluster_id": authority.cluster_id(), "node": name }));
    } else {
        println!("{text}");
    }
    Ok(())
}

async fn found(config: &Config, change: Change) -> Result<()> {
    let options = Options::new(config.file.name, config.store());
    let consensus = Consensus::start(options, Arc::new(Alone)).await?;
    consensus.found().await?;
    let answer = consensus.propose(Command { at: wall_millis(), change }).await?;
    consensus.shutdown().await;
    match answer {
        Answer::Done => Ok(()),
        Answer::Refused { because } => bail!(because),
    }
}

/// `quorate join`.
pub async fn join(global: &Global, args: JoinArgs) -> Result<()> {
    let file = new_file(&args.node, args.witness)?;
    check_postgres(&file)?;
    let token: Token = args.token.trim().parse().context("the token")?;
    if global.dir().join(crate::config::FILE).exists() {
        let config = Config::load(global.dir())?;
        bail!(
            "{} holds node {} already: choose another --dir",
            global.dir().display(),
            config.file.name
        );
    }
    let name = file.name;
    let (key, request) = Identity::request(name)?;
    let draft = Config { dir: global.dir().to_owned(), file: file.clone() };
    let ask = JoinRequest { token: token.to_string(), name, node: draft.node(), request };
    let answer = tokio::time::timeout(JOIN_WAIT, talk(&args.address, &token, &ask))
        .await
        .map_err(|_| Failure::Unreachable(format!("{} did not answer in time", args.address)))??;
    let (certificate, authority, cluster_id) = match answer {
        JoinAnswer::Welcome { certificate, authority, cluster_id } => {
            (certificate, authority, cluster_id)
        }
        JoinAnswer::Refused { because } => return Err(Failure::Refused(because).into()),
    };
    let config = Config::create(global.dir(), file)?;
    private_dir(&config.identity_dir())?;
    Identity::new(&certificate, &key, &authority)?.save(&config.identity_dir())?;
    private_file(&config.admin_token_file(), &format!("{}\n", random_hex(16)?))?;
    if global.json {
        println!("{}", json!({ "cluster_id": cluster_id, "node": name }));
    } else {
        println!("{name} joined cluster {cluster_id}");
        println!("next: quorate run --dir {}", global.dir().display());
    }
    Ok(())
}

async fn talk(address: &str, token: &Token, ask: &JoinRequest) -> Result<JoinAnswer> {
    let mut stream = dial_join(address, token.fingerprint)
        .await
        .map_err(|e| Failure::Unreachable(told(&e, e.hint()).to_string()))?;
    frame::write_json(&mut stream, ask, JOIN_BYTES_MAX).await?;
    Ok(frame::read_json(&mut stream, JOIN_BYTES_MAX).await?)
}

/// Largest message of a join, for the answering side.
pub const fn join_bytes_max() -> usize {
    JOIN_BYTES_MAX
}
