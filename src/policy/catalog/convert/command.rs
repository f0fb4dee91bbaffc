//! Commands and their messages.

use std::collections::BTreeMap;

use shardhost_proto::version::ClusterVersion;
use shardhost_storage::{GroupId, LogIndex, NodeId};

use super::super::command::{Command, NewDrain, NewGroup, NewNode, Operation};
use super::super::error::{Refusal, Subject};
use super::super::name::Name;
use super::super::record::{IntentId, Revision};
use super::super::wire;
use super::super::wire::command::Operation as Message;
use super::record::{advertisement_to, capabilities_of, founding_from, learners_from, members_to};
use super::token::{new_token_from, new_token_to};
use super::{
    fallback_from, fallback_to, labels_from, labels_to, map_from, map_to, mode_from, mode_to,
    moves_from, moves_to, node_from, nodes_from, nodes_to, optional_name_from, optional_name_to,
    placement_from, placement_to, present, replicas_from, replicas_to, requirement_from,
    requirement_to, rule_from, rule_to, stranding_from, stranding_to,
};

/// The message of a command.
pub(in super::super) fn command_to_message(command: &Command) -> wire::Command {
    wire::Command {
        now_ms: command.now_ms,
        expected: command.expected.map(Revision::get),
        operation: Some(operation_to(&command.operation)),
    }
}

/// The command of a message.
pub(in super::super) fn command_from_message(message: wire::Command) -> Result<Command, Refusal> {
    Ok(Command {
        now_ms: message.now_ms,
        expected: message.expected.map(Revision::new),
        operation: operation_from(present(message.operation, "operation")?)?,
    })
}

fn operation_to(operation: &Operation) -> Message {
    match operation {
        Operation::CreateGroup(new) => Message::CreateGroup(new_group_to(new)),
        Operation::SetRequirement { group, requirement } => {
            let requirement = requirement_to(requirement);
            Message::SetRequirement(wire::SetRequirement { group: group.get(), requirement })
        }
        Operation::SetPlacement { group, placement } => {
            let placement = placement_to(placement);
            Message::SetPlacement(wire::SetPlacement { group: group.get(), placement })
        }
        Operation::RecordMembers { group, config_index, nodes, founding, learners, generation } => {
            let members = members_to(*config_index, nodes, founding.as_ref(), learners.as_ref());
            let (group, members, generation) = (group.get(), Some(members), *generation);
            Message::RecordMembers(wire::RecordMembers { group, members, generation })
        }
        Operation::DestroyGroup { group, generation } => {
            let (group, generation) = (group.get(), *generation);
            Message::DestroyGroup(wire::DestroyGroup { group, generation })
        }
        Operation::FinishDestroy { group } => {
            Message::FinishDestroy(wire::FinishDestroy { group: group.get() })
        }
        Operation::PutNode(new) => Message::PutNode(new_node_to(new)),
        Operation::Advertise { node, incarnation, capabilities } => {
            let advertisement = Some(advertisement_to(*incarnation, capabilities));
            Message::Advertise(wire::Advertise { node: node.get(), advertisement })
        }
        Operation::RemoveNode { node } => {
            Message::RemoveNode(wire::RemoveNode { node: node.get() })
        }
        Operation::SetPlannerMode { mode } => {
            Message::SetPlannerMode(wire::SetPlannerMode { mode: mode_to(*mode) })
        }
        Operation::SetPlannedMoves { moves, reason } => {
            let (moves, reason) = (moves_to(*moves), reason.clone());
            Message::SetPlannedMoves(wire::SetPlannedMoves { moves, reason })
        }
        Operation::BeginDrain(new) => Message::BeginDrain(new_drain_to(new)),
        Operation::ExtendDrain { node, intent, deadline_ms, expires_ms } => {
            let (node, intent) = (node.get(), intent.begun().get());
            let (deadline_ms, expires_ms) = (*deadline_ms, *expires_ms);
            Message::ExtendDrain(wire::ExtendDrain { node, intent, deadline_ms, expires_ms })
        }
        Operation::FinishDrain { node, intent } => {
            let (node, intent) = (node.get(), intent.begun().get());
            Message::FinishDrain(wire::FinishDrain { node, intent })
        }
        Operation::EndDrain { node, intent } => {
            let (node, intent) = (node.get(), intent.begun().get());
            Message::EndDrain(wire::EndDrain { node, intent })
        }
        Operation::FoundShardMap { map } => {
            Message::FoundShardMap(wire::FoundShardMap { shard_map: Some(map_to(map)) })
        }
        Operation::SetReplicas { replicas } => {
            Message::SetReplicas(wire::SetReplicas { replicas: Some(replicas_to(*replicas)) })
        }
        Operation::RaiseVersion { version, prepared } => {
            let one = |(node, store): (&NodeId, &u64)| wire::PreparedNode {
                node: node.get(),
                store: *store,
            };
            let (version, prepared) = (version.get(), prepared.iter().map(one).collect());
            Message::RaiseVersion(wire::RaiseVersion { version, prepared })
        }
        Operation::PutToken(new) => Message::PutToken(new_token_to(new)),
        Operation::RemoveToken { id } => Message::RemoveToken(wire::RemoveToken { token: *id }),
        Operation::PutRule(rule) => Message::PutRule(rule_to(rule)),
        Operation::RemoveRule { name } => {
            Message::RemoveRule(wire::RemoveRule { rule: name.as_str().to_owned() })
        }
        Operation::Tick => Message::Tick(wire::Tick::default()),
        Operation::PassTime { node, intent, passed_ms } => {
            let (node, intent) = (node.get(), intent.begun().get());
            Message::Tick(wire::Tick { passed_ms: Some(*passed_ms), node, intent })
        }
    }
}

fn operation_from(message: Message) -> Result<Operation, Refusal> {
    Ok(match message {
        Message::CreateGroup(message) => Operation::CreateGroup(new_group_from(message)?),
        Message::SetRequirement(message) => Operation::SetRequirement {
            group: GroupId::new(message.group),
            requirement: requirement_from(message.requirement.as_ref())?,
        },
        Message::SetPlacement(message) => Operation::SetPlacement {
            group: GroupId::new(message.group),
            placement: placement_from(message.placement.as_ref())?,
        },
        Message::RecordMembers(message) => {
            let members = present(message.members, "members")?;
            Operation::RecordMembers {
                group: GroupId::new(message.group),
                config_index: LogIndex::new(members.config_index),
                founding: founding_from(&members)?,
                learners: learners_from(&members)?,
                nodes: nodes_from(Subject::Member, &members.nodes)?,
                generation: message.generation,
            }
        }
        Message::DestroyGroup(message) => Operation::DestroyGroup {
            group: GroupId::new(message.group),
            generation: message.generation,
        },
        Message::FinishDestroy(message) => {
            Operation::FinishDestroy { group: GroupId::new(message.group) }
        }
        Message::PutNode(message) => Operation::PutNode(new_node_from(message)?),
        Message::Advertise(message) => {
            let advertisement = present(message.advertisement, "advertisement")?;
            Operation::Advertise {
                node: node_from(message.node)?,
                incarnation: advertisement.incarnation,
                capabilities: capabilities_of(&advertisement)?,
            }
        }
        Message::RemoveNode(message) => Operation::RemoveNode { node: node_from(message.node)? },
        Message::SetPlannerMode(message) => {
            Operation::SetPlannerMode { mode: mode_from(message.mode)? }
        }
        Message::SetPlannedMoves(message) => {
            let moves = moves_from(message.moves)?;
            Operation::SetPlannedMoves { moves, reason: message.reason }
        }
        Message::BeginDrain(message) => Operation::BeginDrain(new_drain_from(message)?),
        Message::ExtendDrain(message) => Operation::ExtendDrain {
            node: node_from(message.node)?,
            intent: intent_of(message.intent),
            deadline_ms: message.deadline_ms,
            expires_ms: message.expires_ms,
        },
        Message::FinishDrain(message) => {
            let (node, intent) = (node_from(message.node)?, intent_of(message.intent));
            Operation::FinishDrain { node, intent }
        }
        Message::EndDrain(message) => {
            let (node, intent) = (node_from(message.node)?, intent_of(message.intent));
            Operation::EndDrain { node, intent }
        }
        Message::FoundShardMap(message) => {
            let map = map_from(&present(message.shard_map, "map of shards")?)?;
            Operation::FoundShardMap { map }
        }
        Message::SetReplicas(message) => Operation::SetReplicas {
            replicas: replicas_from(present(message.replicas, "settings of replicas")?)?,
        },
        Message::RaiseVersion(message) => Operation::RaiseVersion {
            version: ClusterVersion::new(message.version),
            prepared: prepared_from(&message.prepared)?,
        },
        Message::PutToken(message) => Operation::PutToken(new_token_from(&message)?),
        Message::RemoveToken(message) => Operation::RemoveToken { id: message.token },
        Message::PutRule(message) => Operation::PutRule(rule_from(message)?),
        Message::RemoveRule(message) => {
            Operation::RemoveRule { name: Name::new(Subject::Rule, &message.rule)? }
        }
        Message::Tick(wire::Tick { passed_ms: None, .. }) => Operation::Tick,
        Message::Tick(wire::Tick { passed_ms: Some(passed_ms), node, intent }) => {
            let (node, intent) = (node_from(node)?, intent_of(intent));
            Operation::PassTime { node, intent, passed_ms }
        }
    })
}

fn prepared_from(nodes: &[wire::PreparedNode]) -> Result<BTreeMap<NodeId, u64>, Refusal> {
    let mut prepared = BTreeMap::new();
    for one in nodes {
        if prepared.insert(node_from(one.node)?, one.store).is_some() {
            return Err(Refusal::Repeated { subject: Subject::Nodes, given: one.node.to_string() });
        }
    }
    Ok(prepared)
}

const fn intent_of(number: u64) -> IntentId {
    IntentId::new(Revision::new(number))
}

fn new_group_to(new: &NewGroup) -> wire::CreateGroup {
    wire::CreateGroup {
        group: new.id.get(),
        kind: new.kind.as_str().to_owned(),
        founders: nodes_to(&new.founders),
        incarnation: new.incarnation,
        labels: labels_to(&new.labels),
        requirement: requirement_to(&new.requirement),
        placement: placement_to(&new.placement),
    }
}

fn new_group_from(message: wire::CreateGroup) -> Result<NewGroup, Refusal> {
    Ok(NewGroup {
        id: GroupId::new(message.group),
        kind: Name::new(Subject::Kind, &message.kind)?,
        founders: nodes_from(Subject::Founder, &message.founders)?,
        incarnation: message.incarnation,
        labels: labels_from(message.labels)?,
        requirement: requirement_from(message.requirement.as_ref())?,
        placement: placement_from(message.placement.as_ref())?,
    })
}

fn new_node_to(new: &NewNode) -> wire::PutNode {
    wire::PutNode {
        node: new.id.get(),
        address: new.address.clone(),
        zone: optional_name_to(new.zone.as_ref()),
        weight: new.weight,
        store: new.store,
    }
}

fn new_node_from(message: wire::PutNode) -> Result<NewNode, Refusal> {
    Ok(NewNode {
        id: node_from(message.node)?,
        address: message.address,
        zone: optional_name_from(Subject::Zone, &message.zone)?,
        weight: message.weight,
        store: message.store,
    })
}

fn new_drain_to(new: &NewDrain) -> wire::BeginDrain {
    wire::BeginDrain {
        node: new.node.get(),
        owner: new.owner.clone(),
        deadline_ms: new.deadline_ms,
        expires_ms: new.expires_ms,
        fallback: fallback_to(new.fallback),
        stranding: stranding_to(new.stranding),
    }
}

fn new_drain_from(message: wire::BeginDrain) -> Result<NewDrain, Refusal> {
    Ok(NewDrain {
        node: node_from(message.node)?,
        owner: message.owner,
        deadline_ms: message.deadline_ms,
        expires_ms: message.expires_ms,
        fallback: fallback_from(message.fallback)?,
        stranding: stranding_from(message.stranding)?,
    })
}
