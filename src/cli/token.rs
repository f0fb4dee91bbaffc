//! `shardhost token`: tokens of users in the catalog.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Subcommand;
use serde_json::{Value, json};
use shardhost::wall_clock::now_ms;
use shardhost_policy::catalog::{
    NewToken, Operation, Record, RecordKind, Subject, Token, TokenDigest,
};
use shardhost_proto::grants::Grants;
use shardhost_security::make::private_file;
use shardhost_security::token::TokenText;

use super::catalog::{Catalog, typed_name};
use super::output::{Column, table};
use super::target::Target;

/// What is done with tokens.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a token and print it, once: the catalog keeps what recognizes it, not the token.
    Make {
        /// Name of the user.
        name: String,
        /// What the user may do: admin, operator, reader, table-read, table-write, queue-read, queue-write,
        /// or client for the last four.
        #[arg(long, value_name = "GRANTS")]
        grants: Grants,
        /// Days after which it ends; by default when it is removed.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: Option<u32>,
        /// Write it into this new file, which this user alone can read, in place of printing it.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        #[command(flatten)]
        target: Target,
    },
    /// Show the tokens that there are.
    List {
        #[command(flatten)]
        target: Target,
    },
    /// End a token. Calls that are open with it end within a second.
    Remove {
        /// Its number, as the list shows it.
        #[arg(value_parser = number)]
        id: u64,
        #[command(flatten)]
        target: Target,
    },
}

fn number(text: &str) -> Result<u64, String> {
    let number = u64::from_str_radix(text, 16).ok().filter(|_| text.len() == 16);
    number.ok_or_else(|| {
        "a token has a number of 16 digits, as `shardhost token list` shows it".to_owned()
    })
}

/// Carries out a command.
pub async fn run(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Make { name, grants, days, out, target } => {
            make(name, *grants, *days, out.as_deref(), target).await?;
        }
        Command::List { target } => list(target).await?,
        Command::Remove { id, target } => {
            let catalog = Catalog::reach(target).await?;
            catalog.apply(None, Operation::RemoveToken { id: *id }).await?;
            match target.json {
                true => println!("{}", json!({ "removed": format!("{id:016x}") })),
                false => println!("token {id:016x} is removed"),
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A file for a token.
fn new_file(path: &Path) -> anyhow::Result<(&Path, File)> {
    let file = private_file(path);
    let file = file.with_context(|| format!("{} cannot be created", path.display()))?;
    Ok((path, file))
}

async fn make(
    name: &str,
    grants: Grants,
    days: Option<u32>,
    out: Option<&Path>,
    target: &Target,
) -> anyhow::Result<()> {
    let name = typed_name(Subject::Token, name)?;
    // Before it is made: a token that was not kept is of no use.
    let file = out.map(new_file).transpose()?;
    let token = TokenText::make().map_err(anyhow::Error::msg)?;
    let for_ms = days.map(|days| Duration::from_secs(u64::from(days) * 24 * 60 * 60).as_millis());
    let for_ms = for_ms.map(u64::try_from).transpose().context("that is too long")?;
    let new = NewToken {
        id: token.id(),
        name,
        grants,
        digest: TokenDigest::new(token.sha256()),
        expires_ms: for_ms.map(|for_ms| now_ms().saturating_add(for_ms)),
    };
    let made = async { Catalog::reach(target).await?.apply(None, Operation::PutToken(new)).await };
    if let Err(error) = made.await {
        if let Some((path, _)) = file {
            std::fs::remove_file(path).with_context(|| format!("{} stays", path.display()))?;
        }
        return Err(error);
    }
    let id = format!("{:016x}", token.id());
    if let Some((path, mut file)) = file {
        let written = file.write_all(format!("{}\n", token.text()).as_bytes());
        let path = path.display();
        written.and_then(|()| file.sync_all()).with_context(|| {
            format!(
                "token {id} is made and {path} cannot be written; remove it and make another one"
            )
        })?;
        match target.json {
            true => println!("{}", json!({ "id": id })),
            false => println!("token {id} is in {path}"),
        }
        return Ok(());
    }
    match target.json {
        true => println!("{}", json!({ "id": id, "token": token.text() })),
        false => println!("{}", token.text()),
    }
    Ok(())
}

async fn list(target: &Target) -> anyhow::Result<()> {
    let catalog = Catalog::reach(target).await?;
    let records = catalog.list(RecordKind::Token).await?;
    let tokens: Vec<_> = records
        .into_iter()
        .filter_map(|record| match record {
            Record::Token(token) => Some(token),
            _ => None,
        })
        .collect();
    let now = now_ms();
    if target.json {
        let tokens: Vec<Value> = tokens.iter().map(|token| as_json(token, now)).collect();
        println!("{}", json!({ "tokens": tokens }));
        return Ok(());
    }
    let columns =
        [Column::Left("token"), Column::Left("user"), Column::Left("grants"), Column::Left("ends")];
    let rows = tokens.iter().map(|token| {
        vec![
            format!("{:016x}", token.id),
            token.name.to_string(),
            token.grants.to_string(),
            ends(token, now),
        ]
    });
    println!("{}", table(&columns, rows));
    Ok(())
}

fn ends(token: &Token, now_ms: u64) -> String {
    match token.expires_ms {
        None => "when it is removed".to_owned(),
        Some(end) if end <= now_ms => "expired".to_owned(),
        Some(end) => format!("in {} h", (end - now_ms) / 3_600_000),
    }
}

fn as_json(token: &Token, now_ms: u64) -> Value {
    json!({
        "id": format!("{:016x}", token.id),
        "user": token.name.to_string(),
        "grants": token.grants.to_string(),
        "made_ms": token.made_ms,
        "expires_ms": token.expires_ms,
        "expired": token.is_expired(now_ms),
    })
}
