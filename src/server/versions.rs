//! The version of the cluster, for operators: shown, and raised.

use std::time::Duration;

use shardhost_proto::admin as wire;
use shardhost_proto::version::ClusterVersion;
use tokio::time::Instant;
use tonic::{Code, Status};

use super::catalog::of_catalog;
use super::nodes::no_catalog;
use super::refusals::refusal;
use shardhost::driver::System;
use shardhost::driver::versions::{NodeVersions, Said, ask_all, common, concerned};
use shardhost::host::Host;
use shardhost_policy::catalog::View;

/// How long the leader of the system group may take to notice that all nodes are prepared.
const RAISED_WITHIN: Duration = Duration::from_secs(15);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What the nodes say.
pub(super) async fn show(
    host: &Host,
    system: Option<&System>,
) -> Result<wire::VersionReport, Status> {
    let system = system.ok_or_else(no_catalog)?;
    let view = system.fresh_view().await.map_err(|error| of_catalog(&error))?;
    let said = ask_all(host, system.catalog(), concerned(host, &view), None).await;
    Ok(report(&view, &said))
}

/// Prepares every node, and waits until the cluster is at the version.
pub(super) async fn raise(
    host: &Host,
    system: Option<&System>,
    request: &wire::RaiseVersionRequest,
) -> Result<wire::VersionReport, Status> {
    let system = system.ok_or_else(no_catalog)?;
    let view = system.fresh_view().await.map_err(|error| of_catalog(&error))?;
    let nodes = concerned(host, &view);
    let said = ask_all(host, system.catalog(), nodes.clone(), None).await;
    let wanted = wanted(&view, &said, request.version)?;
    let Some(wanted) = wanted else { return Ok(report(&view, &said)) };
    let said = ask_all(host, system.catalog(), nodes, Some(wanted)).await;
    if let Some((node, Err(error))) = said.iter().find(|(_, said)| said.is_err()) {
        let message = format!(
            "node {node} is not prepared for version {wanted}: {error}; those that are open their data \
             directories with no program any more that does not know it. Run this again"
        );
        return Err(refusal(Code::FailedPrecondition, "NOT_PREPARED", message, []));
    }
    await_version(system, wanted).await?;
    show(host, Some(system)).await
}

/// The version to raise the cluster to; `None`: it is there.
fn wanted(view: &View, said: &Said, asked: u32) -> Result<Option<ClusterVersion>, Status> {
    let silent = said.iter().find_map(|(node, said)| Some((node, said.as_ref().err()?)));
    let possible = common(said, |versions| versions.newest);
    let present = view.settings().cluster_version;
    let (Some(possible), None) = (possible, silent) else {
        let (node, why) = silent.map_or((String::new(), ""), |(node, why)| (node.to_string(), why));
        let message = format!(
            "node {node} does not answer ({why}); every node must know the version before it is used: \
             start it, or remove it if it is gone for good (`shardhost node remove {node}`)"
        );
        return Err(refusal(Code::FailedPrecondition, "NODE_SILENT", message, []));
    };
    let asked = (asked > 0).then(|| ClusterVersion::new(asked));
    match asked {
        Some(asked) if asked < present => {
            let message = format!("the cluster is at version {present}, which never goes back");
            Err(refusal(Code::FailedPrecondition, "VERSION_GOES_BACK", message, []))
        }
        Some(asked) if asked > possible => {
            let behind = said.iter().filter_map(|(node, said)| {
                let newest = said.as_ref().ok()?.newest;
                (newest < asked).then(|| format!("node {node} up to {newest}"))
            });
            let behind = behind.collect::<Vec<_>>().join(", ");
            let message = format!(
                "not every node takes part in clusters at version {asked}: {behind}; start a later program there"
            );
            Err(refusal(Code::FailedPrecondition, "VERSION_NOT_KNOWN", message, []))
        }
        asked => Ok(Some(asked.unwrap_or(possible)).filter(|wanted| *wanted > present)),
    }
}

async fn await_version(system: &System, wanted: ClusterVersion) -> Result<(), Status> {
    let deadline = Instant::now() + RAISED_WITHIN;
    loop {
        let there = system.view().is_some_and(|view| view.settings().cluster_version >= wanted);
        if there {
            return Ok(());
        }
        if Instant::now() > deadline {
            let message = format!(
                "every node is prepared for version {wanted}, and the leader of the system group did not raise \
                 it within {RAISED_WITHIN:?}; it does so when it sees all nodes"
            );
            return Err(refusal(Code::DeadlineExceeded, "OUTCOME_UNKNOWN", message, []));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn report(view: &View, said: &Said) -> wire::VersionReport {
    let present = view.settings().cluster_version;
    let possible = common(said, |versions| versions.newest).unwrap_or(present);
    let node = |(node, said): (&_, &Result<NodeVersions, String>)| node_version(*node, said);
    wire::VersionReport {
        cluster_version: present.get(),
        possible: possible.max(present).get(),
        nodes: said.iter().map(node).collect(),
    }
}

fn node_version(
    node: shardhost_groups::NodeId,
    said: &Result<NodeVersions, String>,
) -> wire::NodeVersion {
    let node = node.get();
    match said {
        Ok(said) => wire::NodeVersion {
            node,
            newest: said.newest.get(),
            prepared: said.prepared.get(),
            program: said.program.clone(),
            problem: String::new(),
        },
        Err(problem) => {
            wire::NodeVersion { node, problem: problem.clone(), ..wire::NodeVersion::default() }
        }
    }
}

#[cfg(test)]
mod tests {
    use shardhost_groups::NodeId;

    use super::*;

    fn said(list: &[Option<u32>]) -> Said {
        let one = |(number, newest): (u64, &Option<u32>)| {
            let said = newest.map(|newest| NodeVersions {
                newest: ClusterVersion::new(newest),
                prepared: ClusterVersion::FIRST,
                program: String::new(),
                store: number,
            });
            (NodeId::must(number), said.ok_or_else(|| "refused".to_owned()))
        };
        (1..).zip(list).map(one).collect()
    }

    #[test]
    fn a_version_is_wanted_only_when_every_node_knows_it() {
        let view = View::default();
        let want = |list: &[Option<u32>], asked| wanted(&view, &said(list), asked);
        let second = Some(ClusterVersion::new(2));
        assert_eq!(want(&[Some(2), Some(2)], 0).unwrap(), second);
        assert_eq!(want(&[Some(2), Some(3)], 0).unwrap(), second);
        assert_eq!(want(&[Some(2), Some(1)], 0).unwrap(), None, "it is at the first one");
        let behind = want(&[Some(2), Some(1)], 2).unwrap_err();
        assert!(behind.message().contains("node 2 up to 1"), "{behind}");
        let silent = want(&[Some(2), None], 0).unwrap_err();
        assert!(silent.message().contains("node 2 does not answer (refused)"), "{silent}");
    }
}
