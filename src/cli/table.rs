//! `shardhost table`: single reads and writes of the table.

use std::borrow::Cow;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use anyhow::Context;
use bytes::Bytes;
use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use shardhost::NodeId;
use shardhost_proto::limits::MAX_SCAN_LIMIT;

use super::output::{Column, bytes_json, table, text, whole_in};
use super::shown::{lines, shown};
use super::target::Target;

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Set the value of a key.
    Put {
        /// The key.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        key: String,
        /// The value.
        value: String,
        #[command(flatten)]
        target: Target,
    },
    /// Print the value of a key; ends with 1 when there is none.
    Get {
        /// The key.
        key: String,
        /// Read what this node has, however old, instead of the newest.
        #[arg(long, value_name = "NODE")]
        stale: Option<u64>,
        #[command(flatten)]
        target: Target,
    },
    /// Remove a key. Ends with 0 whether or not it existed, and prints which.
    Delete {
        /// The key.
        key: String,
        #[command(flatten)]
        target: Target,
    },
    /// Set or remove the value of a key if the present value is the expected one.
    ///
    /// Ends with exit code 4 if it is not; then nothing changed, and the present value is printed.
    Cas(CasArguments),
    /// Print a range of keys in their order.
    Scan {
        /// The first key.
        #[arg(long, default_value = "")]
        from: String,
        /// The key to end before; by default to the end.
        #[arg(long, default_value = "")]
        to: String,
        /// How many at most.
        #[arg(long, default_value_t = 100, value_parser = whole_in::<u32>(1..=u64::from(MAX_SCAN_LIMIT)))]
        limit: u32,
        #[command(flatten)]
        target: Target,
    },
}

/// What to compare and to set.
#[derive(Debug, Args)]
pub struct CasArguments {
    /// The key.
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    key: String,
    /// The value that must be there.
    #[arg(long, value_name = "VALUE", required_unless_present = "expect_absent")]
    expect: Option<String>,
    /// The key must not be there.
    #[arg(long, conflicts_with = "expect")]
    expect_absent: bool,
    /// The value that is put there.
    #[arg(long, value_name = "VALUE", required_unless_present = "remove")]
    value: Option<String>,
    /// The key is removed.
    #[arg(long, conflicts_with = "value")]
    remove: bool,
    #[command(flatten)]
    target: Target,
}

/// Exit code of a write whose expectation failed.
const NOT_AS_EXPECTED: u8 = 4;

/// Reads or writes the table.
pub async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Put { key, value, target } => put(key, value, &target).await,
        Command::Delete { key, target } => delete(key, &target).await,
        Command::Cas(arguments) => compare_and_set(arguments).await,
        Command::Get { key, stale, target } => get(key, stale, &target).await,
        Command::Scan { from, to, limit, target } => scan(from, to, limit, &target).await,
    }
}

async fn put(key: String, value: String, target: &Target) -> anyhow::Result<ExitCode> {
    let words = target.client().await?.table();
    let group = words.group_of(key.as_bytes()).map_or(0, shardhost::GroupId::get);
    let written = words.put(key, value).await?;
    if target.json {
        let (index, existed) = (written.index, written.existed);
        println!("{}", json!({ "group": group, "index": index, "existed": existed }));
    } else {
        let what = if written.existed { "replaced" } else { "added" };
        println!("{what} in group {group} at index {}", written.index);
    }
    Ok(ExitCode::SUCCESS)
}

async fn delete(key: String, target: &Target) -> anyhow::Result<ExitCode> {
    let words = target.client().await?.table();
    let written = words.delete(key.clone()).await?;
    let (index, existed) = (written.index, written.existed);
    match target.json {
        true => println!("{}", json!({ "key": key, "index": index, "existed": existed })),
        false if existed => println!("removed at index {index}"),
        false => println!("there was no key `{}`", shown(&key)),
    }
    Ok(ExitCode::SUCCESS)
}

async fn compare_and_set(arguments: CasArguments) -> anyhow::Result<ExitCode> {
    let CasArguments { key, expect, value, target, .. } = arguments;
    let words = target.client().await?.table();
    let removes = value.is_none();
    let written =
        words.compare_and_set(key.clone(), expect.map(Bytes::from), value.map(Bytes::from)).await?;
    if target.json {
        println!(
            "{}",
            json!({
                "key": key,
                "done": written.done,
                "existed": written.existed,
                "index": written.index,
                "actual": written.actual.as_deref().map_or(Value::Null, bytes_json),
            })
        );
    } else if written.done {
        println!("{} at index {}", if removes { "removed" } else { "set" }, written.index);
    }
    if written.done {
        return Ok(ExitCode::SUCCESS);
    }
    if !target.json {
        let key = shown(&key);
        match &written.actual {
            Some(actual) => eprintln!("not done: the value of `{key}` is {}", text(actual)),
            None if written.existed => eprintln!("not done: `{key}` has another value"),
            None => eprintln!("not done: there is no key `{key}`"),
        }
    }
    Ok(ExitCode::from(NOT_AS_EXPECTED))
}

async fn get(key: String, stale: Option<u64>, target: &Target) -> anyhow::Result<ExitCode> {
    let words = target.client().await?.table();
    let value = match stale {
        None => words.get(key.clone()).await?,
        Some(node) => {
            let node = NodeId::new(node).context("nodes are numbered from 1")?;
            words.get_via(node, key.clone()).await?
        }
    };
    if target.json {
        let shown = value.as_deref().map_or(Value::Null, bytes_json);
        println!("{}", json!({ "key": key, "value": shown }));
    }
    match value {
        Some(value) if !target.json => print_raw(&value)?,
        Some(_) => {}
        None => {
            eprintln!("error: the table has no key `{}`", shown(&key));
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print_raw(value: &Bytes) -> anyhow::Result<()> {
    let mut output = std::io::stdout().lock();
    output.write_all(&for_reader(value, output.is_terminal()))?;
    Ok(output.write_all(b"\n")?)
}

/// As it is, for a program: it may be no text. On a terminal, what would control it is escaped.
fn for_reader(value: &[u8], is_terminal: bool) -> Cow<'_, [u8]> {
    match is_terminal {
        true => Cow::Owned(lines(&String::from_utf8_lossy(value)).into_owned().into_bytes()),
        false => Cow::Borrowed(value),
    }
}

async fn scan(from: String, to: String, limit: u32, target: &Target) -> anyhow::Result<ExitCode> {
    let page = target.client().await?.table().scan(from, to, Some(limit)).await?;
    if target.json {
        let pairs: Vec<Value> = page
            .pairs
            .iter()
            .map(|pair| json!({ "key": bytes_json(&pair.key), "value": bytes_json(&pair.value) }))
            .collect();
        let next = page.next.as_deref().map_or(Value::Null, bytes_json);
        println!("{}", json!({ "pairs": pairs, "next": next }));
        return Ok(ExitCode::SUCCESS);
    }
    let columns = [Column::Left("key"), Column::Left("value")];
    let rows = page.pairs.iter().map(|pair| vec![text(&pair.key), text(&pair.value)]);
    println!("{}", table(&columns, rows));
    if let Some(next) = page.next {
        println!("there is more; continue with --from {:?}", String::from_utf8_lossy(&next));
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_itself_for_programs_and_harmless_on_a_terminal() {
        let value = b"\x1b]0;title\x07 \xff\ntwo";
        assert_eq!(*for_reader(value, false), value[..]);
        let shown = for_reader(value, true).into_owned();
        assert_eq!(String::from_utf8(shown).unwrap(), "\\u001b]0;title\\u0007 \u{fffd}\ntwo");
    }
}
