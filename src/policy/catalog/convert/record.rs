//! Records and their messages.

use std::collections::BTreeSet;
use std::sync::Arc;

use shardhost_proto::version::ClusterVersion;
use shardhost_storage::{GroupId, LogIndex, NodeId, Requirement, RequirementMode};

use super::super::error::{Refusal, Subject};
use super::super::name::Name;
use super::super::record::{
    Advertisement, DrainIntent, EndedGroup, GroupRecord, IntentId, Members, NodeRecord, Placement,
    Record, Revision, Settings,
};
use super::super::wire;
use super::super::wire::record::Record as Message;
use super::token::{token_of, token_to};
use super::{
    drain_state_from, drain_state_to, fallback_from, fallback_to, group_state_from, group_state_to,
    labels_from, labels_to, map_from, map_to, mode_from, mode_to, moves_from, moves_to, names_from,
    names_to, node_from, nodes_from, nodes_to, optional_name_from, optional_name_to,
    placement_from, placement_to, present, replicas_from, replicas_to, requirement_from,
    requirement_to, rule_from, rule_to,
};

/// The message of a record.
pub(in super::super) fn record_to_message(record: &Record) -> wire::Record {
    let message = match record {
        Record::Settings(settings) => Message::Settings(settings_to(settings)),
        Record::Node(node) => Message::Node(node_to(node)),
        Record::Group(group) => Message::Group(group_to(group)),
        Record::Ended(ended) => Message::Ended(ended_to(ended)),
        Record::Drain(drain) => Message::Drain(drain_to(drain)),
        Record::Token(token) => Message::Token(token_to(token)),
    };
    wire::Record { record: Some(message) }
}

/// The record of a message.
pub(in super::super) fn record_from_message(message: wire::Record) -> Result<Record, Refusal> {
    Ok(match present(message.record, "record")? {
        Message::Settings(message) => Record::Settings(Arc::new(settings_of(message)?)),
        Message::Node(message) => Record::Node(Arc::new(node_of(message)?)),
        Message::Group(message) => Record::Group(Arc::new(group_of(message)?)),
        Message::Ended(message) => Record::Ended(ended_of(&message)),
        Message::Drain(message) => Record::Drain(Arc::new(drain_of(message)?)),
        Message::Token(message) => Record::Token(Arc::new(token_of(&message)?)),
    })
}

fn settings_to(settings: &Settings) -> wire::Settings {
    wire::Settings {
        revision: settings.revision.get(),
        mode: mode_to(settings.mode),
        moves: moves_to(settings.moves),
        reason: settings.reason.as_ref().to_owned(),
        since_ms: settings.since_ms,
        shard_map: settings.shard_map.as_deref().map(map_to),
        // The digest of a catalog at the first version is that of programs that know no other.
        cluster_version: match settings.cluster_version {
            ClusterVersion::FIRST => 0,
            version => version.get(),
        },
        removed_nodes: nodes_to(settings.removed_nodes.iter()),
        replicas: settings.replicas.map(replicas_to),
        rules: settings.rules.iter().map(rule_to).collect(),
    }
}

fn settings_of(message: wire::Settings) -> Result<Settings, Refusal> {
    Ok(Settings {
        revision: Revision::new(message.revision),
        mode: mode_from(message.mode)?,
        moves: moves_from(message.moves)?,
        reason: message.reason.into(),
        since_ms: message.since_ms,
        shard_map: message.shard_map.as_ref().map(map_from).transpose()?.map(Arc::new),
        cluster_version: known_version(message.cluster_version)?,
        removed_nodes: sorted(nodes_from(Subject::Nodes, &message.removed_nodes)?).into(),
        replicas: message.replicas.map(replicas_from).transpose()?,
        rules: message.rules.into_iter().map(rule_from).collect::<Result<_, _>>()?,
    })
}

/// A version that this program does not know may mean anything by what follows.
fn known_version(number: u32) -> Result<ClusterVersion, Refusal> {
    let version = ClusterVersion::new(number);
    version.is_known().then_some(version).ok_or(Refusal::VersionNotKnown { given: version })
}

pub(super) fn advertisement_to<'a>(
    incarnation: u64,
    capabilities: impl IntoIterator<Item = &'a Name>,
) -> wire::Advertisement {
    wire::Advertisement { incarnation, capabilities: names_to(capabilities) }
}

pub(super) fn capabilities_of(message: &wire::Advertisement) -> Result<BTreeSet<Name>, Refusal> {
    names_from(Subject::Capability, &message.capabilities)
}

fn node_to(node: &NodeRecord) -> wire::Node {
    let advertisement = |advertisement: &Advertisement| {
        advertisement_to(advertisement.incarnation, &advertisement.capabilities)
    };
    wire::Node {
        node: node.id.get(),
        revision: node.revision.get(),
        address: node.address.as_ref().to_owned(),
        zone: optional_name_to(node.zone.as_ref()),
        weight: node.weight,
        store: node.store,
        store_since: node.store_since.get(),
        advertisement: node.advertisement.as_ref().map(advertisement),
    }
}

fn node_of(message: wire::Node) -> Result<NodeRecord, Refusal> {
    let advertisement = |advertisement: &wire::Advertisement| {
        let capabilities = capabilities_of(advertisement)?.into_iter().collect();
        Ok(Advertisement { incarnation: advertisement.incarnation, capabilities })
    };
    Ok(NodeRecord {
        id: node_from(message.node)?,
        revision: Revision::new(message.revision),
        address: message.address.into(),
        zone: optional_name_from(Subject::Zone, &message.zone)?,
        weight: message.weight,
        store: message.store,
        store_since: Revision::new(message.store_since),
        advertisement: message.advertisement.as_ref().map(advertisement).transpose()?,
    })
}

pub(super) fn members_to<'a>(
    config_index: LogIndex,
    nodes: impl IntoIterator<Item = &'a NodeId>,
    founding: Option<impl IntoIterator<Item = &'a NodeId>>,
    learners: Option<impl IntoIterator<Item = &'a NodeId>>,
) -> wire::Members {
    wire::Members {
        config_index: config_index.get(),
        nodes: nodes_to(nodes),
        founding_known: founding.is_some(),
        founding: founding.map(nodes_to).unwrap_or_default(),
        learners_known: learners.is_some(),
        learners: learners.map(nodes_to).unwrap_or_default(),
    }
}

/// The initial members, if they are reported.
pub(super) fn founding_from(members: &wire::Members) -> Result<Option<BTreeSet<NodeId>>, Refusal> {
    members.founding_known.then(|| nodes_from(Subject::Member, &members.founding)).transpose()
}

/// The members without a vote, if they are reported.
pub(super) fn learners_from(members: &wire::Members) -> Result<Option<BTreeSet<NodeId>>, Refusal> {
    members.learners_known.then(|| nodes_from(Subject::Member, &members.learners)).transpose()
}

fn group_to(group: &GroupRecord) -> wire::Group {
    let members = |members: &Members| {
        let Members { config_index, nodes, founding, learners } = members;
        members_to(*config_index, nodes, founding.as_deref(), learners.as_deref())
    };
    wire::Group {
        group: group.id.get(),
        revision: group.revision.get(),
        founded: group.founded.get(),
        incarnation: group.incarnation,
        ended_from: group.ended_from,
        state: group_state_to(group.state),
        kind: group.kind.as_str().to_owned(),
        founders: nodes_to(&group.founders),
        labels: labels_to(&group.labels),
        requirement: requirement_to(&group.requirement()),
        placement: group.placement.as_deref().and_then(placement_to),
        members: group.reported.as_deref().map(members),
    }
}

fn group_of(message: wire::Group) -> Result<GroupRecord, Refusal> {
    let members = |members: &wire::Members| {
        let nodes = sorted(nodes_from(Subject::Member, &members.nodes)?);
        let founding = founding_from(members)?.map(sorted);
        let learners = learners_from(members)?.map(sorted);
        let config_index = LogIndex::new(members.config_index);
        Ok(Box::new(Members { config_index, nodes, founding, learners }))
    };
    let requirement = requirement_from(message.requirement.as_ref())?;
    let (capabilities, mode) = compact(&requirement)?;
    Ok(GroupRecord {
        id: GroupId::new(message.group),
        revision: Revision::new(message.revision),
        founded: Revision::new(message.founded),
        incarnation: message.incarnation,
        ended_from: message.ended_from,
        state: group_state_from(message.state)?,
        kind: Name::new(Subject::Kind, &message.kind)?,
        founders: sorted(nodes_from(Subject::Founder, &message.founders)?),
        labels: labels_from(message.labels)?.into(),
        capabilities,
        mode,
        placement: boxed(placement_from(message.placement.as_ref())?),
        reported: message.members.as_ref().map(members).transpose()?,
    })
}

/// A requirement as a record keeps it: a set costs more room than all the rest.
pub(in super::super) fn compact(
    requirement: &Requirement,
) -> Result<(Box<[Name]>, RequirementMode), Refusal> {
    let names = requirement.capabilities.iter();
    let names: Result<Box<[Name]>, _> =
        names.map(|name| Name::new(Subject::Capability, name)).collect();
    Ok((names?, requirement.mode))
}

/// A placement as a record keeps it: nothing for the default.
pub(in super::super) fn boxed(placement: Placement) -> Option<Box<Placement>> {
    (placement != Placement::default()).then(|| Box::new(placement))
}

pub(in super::super) fn sorted(nodes: BTreeSet<NodeId>) -> Box<[NodeId]> {
    nodes.into_iter().collect()
}

fn ended_to(ended: &EndedGroup) -> wire::EndedGroup {
    wire::EndedGroup {
        group: ended.id.get(),
        revision: ended.revision.get(),
        first: ended.first,
        next: ended.next,
    }
}

const fn ended_of(message: &wire::EndedGroup) -> EndedGroup {
    EndedGroup {
        id: GroupId::new(message.group),
        revision: Revision::new(message.revision),
        first: message.first,
        next: message.next,
    }
}

fn drain_to(drain: &DrainIntent) -> wire::Drain {
    wire::Drain {
        node: drain.node.get(),
        revision: drain.revision.get(),
        intent: drain.id.begun().get(),
        owner: drain.owner.as_ref().to_owned(),
        state: drain_state_to(drain.state),
        fallback: fallback_to(drain.fallback),
        begun_ms: drain.begun_ms,
        deadline_ms: drain.deadline_ms,
        expires_ms: drain.expires_ms,
        clock_ms: if drain.clock_ms == drain.begun_ms { 0 } else { drain.clock_ms },
    }
}

fn drain_of(message: wire::Drain) -> Result<DrainIntent, Refusal> {
    Ok(DrainIntent {
        node: node_from(message.node)?,
        revision: Revision::new(message.revision),
        id: IntentId::new(Revision::new(message.intent)),
        owner: message.owner.into(),
        state: drain_state_from(message.state)?,
        fallback: fallback_from(message.fallback)?,
        begun_ms: message.begun_ms,
        deadline_ms: message.deadline_ms,
        expires_ms: message.expires_ms,
        clock_ms: if message.clock_ms == 0 { message.begun_ms } else { message.clock_ms },
    })
}
