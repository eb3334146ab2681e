//! `quorate config`: the cluster document, checked, versioned, compared, rolled back.

use std::io::Read;
use std::process::Command;

use anyhow::{Context, Result, bail};
use quorate_core::document::Document;
use quorate_core::state::DocumentVersion;
use serde_json::{Value, json};

use super::reach::{self, Failure};
use super::{ConfigCommand, Global, show};
use crate::http::Ask;

/// Does one `config` command.
pub async fn config(global: &Global, command: ConfigCommand) -> Result<()> {
    match command {
        ConfigCommand::Show { version } => show_document(global, version).await,
        ConfigCommand::Edit => edit(global).await,
        ConfigCommand::Apply { file, dry_run } => {
            let text = if file == "-" {
                let mut text = String::new();
                std::io::stdin().read_to_string(&mut text)?;
                text
            } else {
                std::fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?
            };
            let now = current(global).await?;
            apply(global, &now, &text, dry_run).await
        }
        ConfigCommand::History => history(global).await,
        ConfigCommand::Rollback { version } => {
            let old = find(global, version).await?;
            let now = current(global).await?;
            apply(global, &now, &toml::to_string_pretty(&old.document)?, false).await
        }
    }
}

async fn versions(global: &Global) -> Result<Vec<DocumentVersion>> {
    reach::get(global, "/api/config").await
}

async fn current(global: &Global) -> Result<DocumentVersion> {
    versions(global).await?.pop().context("the cluster has no document yet")
}

async fn find(global: &Global, version: u64) -> Result<DocumentVersion> {
    versions(global)
        .await?
        .into_iter()
        .find(|v| v.version == version)
        .ok_or_else(|| Failure::Refused(format!("version {version} is not kept")).into())
}

async fn show_document(global: &Global, version: Option<u64>) -> Result<()> {
    let shown = match version {
        Some(version) => find(global, version).await?,
        None => current(global).await?,
    };
    if global.json {
        println!("{}", serde_json::to_string_pretty(&shown)?);
    } else {
        println!("# version {} of {}", shown.version, show::clock(shown.at));
        print!("{}", toml::to_string_pretty(&shown.document)?);
    }
    Ok(())
}

async fn history(global: &Global) -> Result<()> {
    let versions = versions(global).await?;
    if global.json {
        println!("{}", serde_json::to_string_pretty(&versions)?);
        return Ok(());
    }
    let mut before = String::new();
    for v in versions {
        let text = toml::to_string_pretty(&v.document)?;
        println!("version {}  {}", v.version, show::clock(v.at));
        if !before.is_empty() {
            print!("{}", difference(&before, &text));
        }
        before = text;
    }
    Ok(())
}

async fn edit(global: &Global) -> Result<()> {
    let now = current(global).await?;
    let path = std::env::temp_dir().join(format!("quorate-config-{}.toml", std::process::id()));
    let text = format!(
        "# Cluster document, version {}. Save and leave to apply; empty the file to give up.\n{}",
        now.version,
        toml::to_string_pretty(&now.document)?
    );
    std::fs::write(&path, &text)?;
    let editor = std::env::var("EDITOR").unwrap_or_else(|_| "vi".to_owned());
    let status = Command::new("sh")
        .args(["-c", &format!("{editor} \"$1\""), "sh"])
        .arg(&path)
        .status()
        .with_context(|| format!("cannot run the editor {editor:?}: set EDITOR"))?;
    let edited = std::fs::read_to_string(&path)?;
    if !status.success() || edited.trim().is_empty() {
        std::fs::remove_file(&path)?;
        bail!("nothing was changed");
    }
    match apply(global, &now, &edited, false).await {
        Ok(()) => Ok(std::fs::remove_file(&path)?),
        Err(e) => Err(e.context(format!("your text is kept in {}", path.display()))),
    }
}

async fn apply(global: &Global, now: &DocumentVersion, text: &str, dry_run: bool) -> Result<()> {
    let document: Document = toml::from_str(text).context("the document does not parse")?;
    let problems = document.validate();
    if !problems.is_empty() {
        let list: Vec<String> = problems.iter().map(ToString::to_string).collect();
        return Err(Failure::Refused(list.join("\n")).into());
    }
    let change =
        difference(&toml::to_string_pretty(&now.document)?, &toml::to_string_pretty(&document)?);
    if change.is_empty() {
        if global.json {
            println!("{}", json!({ "version": now.version, "notes": [] }));
        } else {
            println!("nothing to change: version {} says the same", now.version);
        }
        return Ok(());
    }
    let body = json!({
        "expect_version": now.version, "document": document, "dry_run": dry_run,
    });
    let answer = reach::call(global, Ask::post("/api/config", body)).await?;
    if global.json {
        println!("{answer}");
        return Ok(());
    }
    print!("{change}");
    for note in answer["notes"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        println!("note: {note}");
    }
    match dry_run {
        true => println!("not applied (--dry-run)"),
        false => println!("applied as version {}", answer["version"]),
    }
    Ok(())
}

/// Lines that went and came. Documents are small: lines are compared as sets, in order.
fn difference(before: &str, after: &str) -> String {
    let lines = |t: &str| t.lines().map(str::to_owned).collect::<Vec<_>>();
    let (old, new) = (lines(before), lines(after));
    let gone = old.iter().filter(|l| !new.contains(l)).map(|l| format!("- {l}\n"));
    let come = new.iter().filter(|l| !old.contains(l)).map(|l| format!("+ {l}\n"));
    gone.chain(come).collect()
}
