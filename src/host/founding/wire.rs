//! Reports of founders as messages.

use shardhost_proto::PROTOCOL_VERSION;
use shardhost_proto::peer as wire;
use shardhost_storage::NodeId;

use super::decide::{Phase, Record, Report, StoreId};

/// What is created by the bootstrap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    System,
    /// The shards of a cluster without a catalog.
    Shards,
}

/// Founders in one report at most.
const MAX_FOUNDERS: usize = 1_024;

const PHASES: [(Phase, wire::FoundingPhase); 4] = [
    (Phase::Gathering, wire::FoundingPhase::Gathering),
    (Phase::Recorded, wire::FoundingPhase::Recorded),
    (Phase::Decided, wire::FoundingPhase::Decided),
    (Phase::Holds, wire::FoundingPhase::Holds),
];

/// A report to a node of the cluster.
pub(super) fn to_wire(
    report: &Report,
    cluster: &str,
    to: NodeId,
    scope: Scope,
) -> wire::FounderReport {
    let record = &report.record;
    let phase = PHASES.iter().find(|pair| pair.0 == record.phase).map(|pair| pair.1);
    let scope = match scope {
        Scope::System => wire::FoundingScope::System,
        Scope::Shards => wire::FoundingScope::Shards,
    };
    let stores = record.stores.iter();
    wire::FounderReport {
        protocol: PROTOCOL_VERSION,
        cluster: cluster.to_owned(),
        node: report.node.get(),
        to_node: to.get(),
        scope: scope.into(),
        phase: phase.unwrap_or_default().into(),
        store: record.store.get(),
        founders: record.founders.iter().map(|node| node.get()).collect(),
        stores: stores
            .map(|(node, store)| wire::FounderStore { node: node.get(), store: store.get() })
            .collect(),
        shard_map: None,
    }
}

/// What a report is about.
pub(super) fn scope_of(message: &wire::FounderReport) -> Result<Scope, String> {
    match wire::FoundingScope::try_from(message.scope) {
        Ok(wire::FoundingScope::System) => Ok(Scope::System),
        Ok(wire::FoundingScope::Shards) => Ok(Scope::Shards),
        _ => Err(format!("scope {} of a founding is unknown", message.scope)),
    }
}

/// Reads a report that was sent to node `own` of a cluster.
pub(super) fn from_wire(
    message: &wire::FounderReport,
    cluster: &str,
    own: NodeId,
) -> Result<Report, String> {
    if message.protocol != PROTOCOL_VERSION {
        let theirs = message.protocol;
        return Err(format!("it speaks protocol {theirs}, this host speaks {PROTOCOL_VERSION}"));
    }
    if message.cluster != cluster {
        let theirs: String = message.cluster.chars().take(64).collect();
        return Err(format!("it belongs to cluster {theirs:?}, this host to {cluster:?}"));
    }
    if message.to_node != own.get() {
        return Err(format!("node {} was meant, node {own} was reached", message.to_node));
    }
    if message.founders.len().max(message.stores.len()) > MAX_FOUNDERS {
        return Err(format!("more than {MAX_FOUNDERS} founders"));
    }
    let node_of = |node| NodeId::new(node).ok_or_else(|| "a node has number 0".to_owned());
    let phase = wire::FoundingPhase::try_from(message.phase).ok();
    let phase = PHASES.iter().find(|pair| Some(pair.1) == phase).map(|pair| pair.0);
    let founders = message.founders.iter().map(|node| node_of(*node));
    let stores = message.stores.iter();
    let stores = stores.map(|one| Ok((node_of(one.node)?, StoreId::new(one.store))));
    let record = Record {
        store: StoreId::new(message.store),
        phase: phase.ok_or_else(|| format!("phase {} is unknown", message.phase))?,
        founders: founders.collect::<Result<_, String>>()?,
        stores: stores.collect::<Result<_, String>>()?,
    };
    Ok(Report { node: node_of(message.node)?, record })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let (one, two) = (NodeId::must(1), NodeId::must(2));
        let store = StoreId::new(7);
        let stores = [(one, store), (two, StoreId::new(8))].into();
        let record = Record { store, phase: Phase::Recorded, founders: [one, two].into(), stores };
        Report { node: one, record }
    }

    #[test]
    fn a_report_is_read_as_it_was_sent() {
        let two = NodeId::must(2);
        for scope in [Scope::System, Scope::Shards] {
            let message = to_wire(&report(), "shop", two, scope);
            assert_eq!(scope_of(&message), Ok(scope));
            assert_eq!(from_wire(&message, "shop", two), Ok(report()));
        }
    }

    #[test]
    fn a_report_that_is_for_somebody_else_or_makes_no_sense_is_refused() {
        type Spoil = fn(&mut wire::FounderReport);
        let cases: [(Spoil, &str); 7] = [
            (|m| m.protocol = 9, "protocol 9"),
            (|m| m.cluster = "farm".into(), "cluster \"farm\""),
            (|m| m.to_node = 3, "node 3 was meant"),
            (|m| m.node = 0, "number 0"),
            (|m| m.phase = 0, "phase 0"),
            (|m| m.founders = vec![0], "number 0"),
            (|m| m.founders = vec![1; MAX_FOUNDERS + 1], "founders"),
        ];
        let two = NodeId::must(2);
        for (spoil, words) in cases {
            let mut message = to_wire(&report(), "shop", two, Scope::System);
            spoil(&mut message);
            let refused = from_wire(&message, "shop", two).unwrap_err();
            assert!(refused.contains(words), "{refused}");
        }
    }
}
