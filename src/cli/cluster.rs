//! `shardhost cluster`: the version that the whole cluster uses.

use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use serde_json::json;
use shardhost_proto::admin::{GetVersionRequest, NodeVersion, RaiseVersionRequest, VersionReport};

use super::change::confirmed;
use super::ended::PARTLY;
use super::output::{Column, table};
use super::target::{Target, in_time};

/// How long all nodes may take to be prepared, and the cluster to follow.
const RAISED_WITHIN: Duration = Duration::from_secs(30);

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// The version of the cluster, and which ones its nodes know.
    ///
    /// Ends with exit code 3 when some do not answer.
    Version {
        #[command(flatten)]
        target: Target,
    },
    /// Let the cluster use what the programs of all its nodes know since an upgrade, for good.
    ///
    /// Until then each node may be started with its earlier program again; afterwards that one refuses the
    /// data directory. Every node must run.
    Upgrade {
        /// The version; by default the latest that every node knows.
        #[arg(long, value_name = "VERSION", value_parser = clap::value_parser!(u32).range(1..))]
        to: Option<u32>,
        /// Show which version would be used, and do nothing.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        target: Target,
    },
}

/// Shows the version, or raises it.
pub async fn run(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Version { target } => {
            let report = ask(target).await?;
            show(&report, target.json);
            Ok(code_of(&report))
        }
        Command::Upgrade { dry_run: true, target, .. } => {
            let report = ask(target).await?;
            show(&report, target.json);
            if !target.json {
                println!("{}", outlook(&report));
            }
            Ok(code_of(&report))
        }
        Command::Upgrade { to, dry_run: false, target } => upgrade(target, to.unwrap_or(0)).await,
    }
}

async fn ask(target: &Target) -> anyhow::Result<VersionReport> {
    let node = target.node().await?;
    let mut admin = node.admin.clone();
    in_time(&node.address, admin.get_version(GetVersionRequest {})).await
}

async fn upgrade(target: &Target, version: u32) -> anyhow::Result<ExitCode> {
    let before = ask(target).await?.cluster_version;
    let node = target.node().await?;
    let mut admin = node.admin.clone();
    let raise = admin.raise_version(RaiseVersionRequest { version });
    let report = confirmed(&node.address, target.timeout().max(RAISED_WITHIN), raise).await?;
    if target.json {
        show(&report, true);
    } else if report.cluster_version == before {
        println!("the cluster is at version {before} already, the latest that every node knows");
    } else {
        println!(
            "the cluster is at version {} now; it was at {before}. Programs that do not know it refuse the data \
             directories from here on",
            report.cluster_version
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn code_of(report: &VersionReport) -> ExitCode {
    let whole = report.nodes.iter().all(|node| node.problem.is_empty());
    if whole { ExitCode::SUCCESS } else { ExitCode::from(PARTLY) }
}

/// What `upgrade` would do.
fn outlook(report: &VersionReport) -> String {
    let (present, possible) = (report.cluster_version, report.possible);
    if let Some(node) = report.nodes.iter().find(|node| !node.problem.is_empty()) {
        return format!("nothing is possible while node {} does not answer", node.node);
    }
    if possible > present {
        return format!("would raise the cluster from version {present} to {possible}");
    }
    format!("nothing to do: version {present} is the latest that every node knows")
}

const COLUMNS: [Column; 5] = [
    Column::Right("node"),
    Column::Left("program"),
    Column::Left("knows versions"),
    Column::Left("data directory"),
    Column::Left("problem"),
];

fn show(report: &VersionReport, as_json: bool) {
    if as_json {
        let nodes: Vec<_> = report.nodes.iter().map(json_of).collect();
        let (version, possible) = (report.cluster_version, report.possible);
        println!("{}", json!({ "version": version, "possible": possible, "nodes": nodes }));
        return;
    }
    println!("the cluster is at version {}", report.cluster_version);
    println!("{}", table(&COLUMNS, report.nodes.iter().map(cells)));
}

fn cells(node: &NodeVersion) -> Vec<String> {
    let answered = node.problem.is_empty();
    let or_nothing = |text: String| if answered { text } else { "-".to_owned() };
    vec![
        node.node.to_string(),
        or_nothing(if node.program.is_empty() {
            "earlier".to_owned()
        } else {
            node.program.clone()
        }),
        or_nothing(format!("up to {}", node.newest)),
        or_nothing(format!("asks for {}", node.prepared)),
        node.problem.clone(),
    ]
}

fn json_of(node: &NodeVersion) -> serde_json::Value {
    let NodeVersion { node, newest, prepared, program, problem } = node;
    json!({
        "node": node,
        "program": program,
        "newest": newest,
        "prepared": prepared,
        "problem": (!problem.is_empty()).then_some(problem),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(possible: u32, problem: &str) -> VersionReport {
        let silent = NodeVersion { node: 3, problem: problem.to_owned(), ..NodeVersion::default() };
        VersionReport { cluster_version: 1, possible, nodes: vec![silent] }
    }

    #[test]
    fn what_an_upgrade_would_do_is_said_before() {
        assert!(outlook(&report(2, "")).contains("from version 1 to 2"));
        assert!(outlook(&report(1, "")).contains("nothing to do"));
        assert!(outlook(&report(1, "refused")).contains("while node 3 does not answer"));
    }
}
