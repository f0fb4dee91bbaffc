//! `shardhost cert`: certificates for a test or a small cluster.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde_json::json;
use shardhost::NodeId;
use shardhost_proto::grants::Grants;
use shardhost_security::make::{Made, authority, cluster_of, first_in_pem, sign_named};
use shardhost_security::{CertificateFacts, Identity};

/// The longest that a certificate is made for: a hundred years.
const MAX_DAYS: i64 = 36_500;

/// What is done with certificates. They are written into a directory, each with its key.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make the authority of a cluster: ca.pem, which every node and user gets, and ca.key, which signs for
    /// them. Who has ca.key can be any node and any user: keep it away from the nodes.
    Ca {
        /// Name of the cluster.
        #[arg(long, default_value = "shardhost")]
        cluster: String,
        #[command(flatten)]
        place: Place,
        /// Days for which it is valid.
        #[arg(long, default_value_t = 3_650, value_parser = clap::value_parser!(u32).range(1..=MAX_DAYS))]
        days: u32,
    },
    /// Make the certificate of a node, signed by the authority in the same directory: node-N.pem and
    /// node-N.key.
    Node {
        /// Number of the node.
        #[arg(value_parser = clap::value_parser!(u64).range(1..))]
        node: u64,
        /// A DNS name or an IP address by which browsers and Prometheus reach its --http-listen; may be given
        /// several times. Nodes, clients and commands need none.
        #[arg(long = "name", value_name = "NAME")]
        names: Vec<String>,
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        valid: Valid,
    },
    /// Make the certificate of a user, signed by the authority in the same directory: NAME.pem and NAME.key.
    #[command(alias = "client")]
    User {
        /// Name of the user: letters, digits, `.`, `_` and `-`.
        name: String,
        /// What the user may do: admin, operator, reader, table-read, table-write, queue-read, queue-write,
        /// or client for the last four.
        #[arg(long, value_name = "GRANTS")]
        grants: Grants,
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        valid: Valid,
    },
    /// Show whose certificate a file holds, and how long it is valid.
    Show {
        file: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Where certificates are.
#[derive(Debug, Args)]
pub struct Place {
    /// The directory; created when missing. Files that are there are not replaced.
    #[arg(long, value_name = "DIRECTORY", default_value = "certs")]
    dir: PathBuf,
}

/// For how long.
#[derive(Debug, Args)]
pub struct Valid {
    /// Days for which it is valid.
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=MAX_DAYS))]
    days: u32,
}

/// Carries out a command.
pub fn run(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Ca { cluster, place, days } => {
            keep(place, "ca", &authority(cluster, days_of(*days))?)?;
        }
        Command::Node { node, names, place, valid } => {
            let node = NodeId::new(*node).context("nodes are numbered from 1")?;
            let of = |cluster: &str| Identity::of_node(cluster, node);
            signed(place, valid, &format!("node-{node}"), names, of)?;
        }
        Command::User { name, grants, place, valid } => {
            if name == "ca" {
                bail!("`ca` names the authority; choose another name");
            }
            signed(place, valid, name, &[], |cluster| Identity::of_user(cluster, name, *grants))?;
        }
        Command::Show { file, json } => show(file, *json)?,
    }
    Ok(ExitCode::SUCCESS)
}

const fn days_of(days: u32) -> Duration {
    Duration::from_secs(days as u64 * 24 * 60 * 60)
}

fn signed<E: std::error::Error + Send + Sync + 'static>(
    place: &Place,
    valid: &Valid,
    name: &str,
    names: &[String],
    identity: impl FnOnce(&str) -> Result<Identity, E>,
) -> anyhow::Result<()> {
    let read = |name: &str| {
        let path = place.dir.join(name);
        std::fs::read_to_string(&path)
            .with_context(|| format!("{}: `shardhost cert ca` makes an authority", path.display()))
    };
    let authority = Made { certificate: read("ca.pem")?, key: read("ca.key")? };
    let identity = identity(&cluster_of(&authority.certificate)?)?;
    keep(place, name, &sign_named(&authority, &identity, names, days_of(valid.days))?)
}

fn keep(place: &Place, name: &str, made: &Made) -> anyhow::Result<()> {
    let (certificate, key) = made.keep(&place.dir, name)?;
    println!("{} and {} are written", certificate.display(), key.display());
    Ok(())
}

fn show(file: &Path, as_json: bool) -> anyhow::Result<()> {
    let path = file.display();
    let text = std::fs::read(file).with_context(|| format!("{path} cannot be read"))?;
    let facts = CertificateFacts::read(&first_in_pem(&text).with_context(|| format!("{path}"))?);
    let facts = facts.with_context(|| format!("{path}"))?;
    let seconds = |time: SystemTime| {
        time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
    };
    let now = seconds(SystemTime::now());
    let (from, until) = (seconds(facts.not_before), seconds(facts.not_after));
    let state = match () {
        () if until < now => "expired".to_owned(),
        () if from > now => "not valid yet".to_owned(),
        () => format!("valid for {} more days", (until - now) / 86_400),
    };
    if as_json {
        let identity = facts.identity.to_string();
        println!(
            "{}",
            json!({ "name": identity, "not_before": from, "not_after": until, "state": state })
        );
    } else {
        println!("{}: {state}", facts.identity);
    }
    Ok(())
}
