//! What the catalog can be asked to do, and what of that can be checked without knowing its state.
//!
//! Decoding is total: every byte string gives a command or a refusal. Bytes that this version does
//! not write (another version, an unknown operation or field) are refused and change nothing, as
//! with tables and queues. Replicas of different versions would differ over them, so a new
//! operation is proposed only when all replicas of the system group know it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;
use shardhost_storage::{GroupId, LogIndex, NodeId, Requirement};

use super::convert::{command_from_message, command_to_message, read_versioned, versioned};
use super::error::{Refusal, Subject};
use super::name::Name;
use super::record::{
    DrainFallback, IntentId, Label, Placement, PlannedMoves, PlannerMode, RecordKey, ReplicaRule,
    ReplicaSettings, Revision, Selection, TokenDigest,
};
use super::{
    MAX_ADDRESS_BYTES, MAX_CAPABILITIES, MAX_COMMAND_BYTES, MAX_LABEL_BYTES, MAX_LABELS,
    MAX_MEMBERS, MAX_NODES, MAX_PASSED_MS, MAX_PREFERENCES, MAX_REPLACE_AFTER_MS,
    MAX_RULED_LEARNERS, MAX_RULED_VOTERS, MAX_RULED_ZONES, MAX_TEXT_BYTES, MAX_TIME_MS,
    MIN_REPLACE_AFTER_MS, SYSTEM_GROUP,
};
use shardhost_proto::grants::Grants;
use shardhost_proto::shard_map::ShardMap;
use shardhost_proto::version::ClusterVersion;

/// A change of the catalog, with the proposer's time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Milliseconds since 1970, by the proposer's clock. At most [`MAX_TIME_MS`].
    pub now_ms: u64,
    /// The revision that the record must be at; 0: there must be none. `None`: whatever it is.
    pub expected: Option<Revision>,
    pub operation: Operation,
}

/// What a command does.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// Creates a group. Its founders must be registered.
    CreateGroup(NewGroup),
    /// Sets the requirement of a group; the default requires nothing. Capabilities that no node has
    /// are accepted: a later binary may bring them.
    SetRequirement {
        group: GroupId,
        requirement: Requirement,
    },
    /// Sets where the leader of a group is wanted; the default is anywhere. Replaces all of it.
    SetPlacement {
        group: GroupId,
        placement: Placement,
    },
    /// Reports the members of a group. A fact: it is recorded even when a pin then names a node
    /// that is no member, which the planner reports and ignores.
    RecordMembers {
        group: GroupId,
        /// The configuration's index in the group's log, later than the recorded one.
        config_index: LogIndex,
        /// The members, 1 to [`MAX_MEMBERS`].
        nodes: BTreeSet<NodeId>,
        /// Those of them whose member is the one that the group was created with; `None`: not
        /// reported.
        founding: Option<BTreeSet<NodeId>>,
        /// Those of them that have no vote; `None`: not reported. From [`RULES_KNOWN`](super::RULES_KNOWN) on.
        learners: Option<BTreeSet<NodeId>>,
        /// The generation of the group that the report is about; `None`: not reported.
        generation: Option<u32>,
    },
    /// Orders the end of a group: hosts destroy their replicas.
    DestroyGroup {
        group: GroupId,
        /// Only this generation of it; `None`: whichever it is.
        generation: Option<u32>,
    },
    /// All replicas of a group whose end was ordered are gone. To be proposed with the revision of
    /// that order: one that comes late must not end the wait for the replicas of the next life.
    FinishDestroy {
        group: GroupId,
    },
    /// Registers a node, or changes its record.
    PutNode(NewNode),
    /// Reports the capabilities of a node.
    Advertise {
        node: NodeId,
        /// Its process; larger is later.
        incarnation: u64,
        capabilities: BTreeSet<Name>,
    },
    /// Forgets a node that no group has a member on, and its drain. From version 2 of the cluster on its
    /// number is remembered, and no node is registered under it again.
    RemoveNode {
        node: NodeId,
    },
    SetPlannerMode {
        mode: PlannerMode,
    },
    SetPlannedMoves {
        /// Whether planned moves are made.
        moves: PlannedMoves,
        /// Why, and who; at most [`MAX_TEXT_BYTES`].
        reason: String,
    },
    /// Begins to drain a node. The revision of the answer names the drain.
    BeginDrain(NewDrain),
    /// Moves deadline and expiry of a drain whose deadline has not passed.
    ExtendDrain {
        node: NodeId,
        intent: IntentId,
        /// Until when it is to be done.
        deadline_ms: u64,
        /// When it expires.
        expires_ms: u64,
    },
    /// A node leads nothing any more.
    FinishDrain {
        node: NodeId,
        intent: IntentId,
    },
    /// Ends a drain, done or not: the node takes leaders again.
    EndDrain {
        node: NodeId,
        intent: IntentId,
    },
    /// Time passes, by the proposer's clock: ends drains that have expired, and applies the
    /// fallback of those whose deadline has passed. Of versions without [`Operation::PassTime`]; at
    /// time 0 it changes nothing.
    Tick,
    /// Records the first map of shards. It stays: another one is refused, and so is one that
    /// contradicts the shards that an earlier version created.
    FoundShardMap {
        map: ShardMap,
    },
    /// Lets the cluster use a later version, for good. Refused while a node that was seen is not one of
    /// those that are prepared for it.
    RaiseVersion {
        version: ClusterVersion,
        /// The nodes, and their disks, whose data directories no program opens that does not know the
        /// version.
        prepared: BTreeMap<NodeId, u64>,
    },
    /// Sets whether replicas are moved automatically. From version 2 of the cluster on.
    SetReplicas {
        replicas: ReplicaSettings,
    },
    /// Creates a token. It is not changed afterwards: the same again changes nothing, other content under the
    /// same id is refused. From [`TOKENS_KNOWN`](super::TOKENS_KNOWN) on.
    PutToken(NewToken),
    /// Removes a token, expired or not.
    RemoveToken {
        id: u64,
    },
    /// Sets a rule for replicas, in the place of the one of its name. From
    /// [`RULES_KNOWN`](super::RULES_KNOWN) on.
    PutRule(ReplicaRule),
    /// Removes a rule: replicas stay as they are.
    RemoveRule {
        name: Name,
    },
    /// So much time has passed for a drain, on a clock that never jumps: ends it if it has expired,
    /// and applies its fallback if its deadline has passed. Proposed by the leader of the system
    /// group.
    PassTime {
        node: NodeId,
        intent: IntentId,
        /// At most [`MAX_PASSED_MS`]; 0 changes nothing.
        passed_ms: u64,
    },
}

/// A group to be created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewGroup {
    pub id: GroupId,
    /// The kind of its state machine.
    pub kind: Name,
    /// The nodes that create it, 1 to [`MAX_MEMBERS`].
    pub founders: BTreeSet<NodeId>,
    /// How many lives it had before; `None`: as many as the catalog knows of.
    pub incarnation: Option<u32>,
    pub labels: Vec<Label>,
    /// What it asks of its leader.
    pub requirement: Requirement,
    /// Where its leader is wanted.
    pub placement: Placement,
}

/// A node to be registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewNode {
    pub id: NodeId,
    /// Where it is reached, 1 to [`MAX_ADDRESS_BYTES`] bytes.
    pub address: String,
    /// What fails together with it.
    pub zone: Option<Name>,
    /// How many leaders it takes, compared with others; 0: none.
    pub weight: u32,
    /// The identity of its store.
    pub store: u64,
}

/// A drain to be begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewDrain {
    pub node: NodeId,
    /// Who asks for it, 1 to [`MAX_TEXT_BYTES`] bytes.
    pub owner: String,
    /// Until when it is to be done.
    pub deadline_ms: u64,
    /// When it expires; at most [`super::MAX_DRAIN_MS`] from now.
    pub expires_ms: u64,
    /// What happens at the deadline.
    pub fallback: DrainFallback,
    /// What to do about groups that only this node can lead.
    pub stranding: Stranding,
}

/// A token to be created. Its record is made at the time of the command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewToken {
    /// Chosen at random, so that no two programs choose the same one.
    pub id: u64,
    /// For operators. Several tokens may have the same one.
    pub name: Name,
    /// At least one.
    pub grants: Grants,
    /// Of the secret, which the catalog does not know.
    pub digest: TokenDigest,
    /// From when on it admits no caller, in milliseconds since 1970: later than the command, at most
    /// [`MAX_TIME_MS`]. `None`: it does not expire.
    pub expires_ms: Option<u64>,
}

/// What a drain does when groups would be left without an eligible leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stranding {
    Refuse,
    /// It begins. Those groups cannot be moved, and the fallback decides.
    Accept,
}

impl Command {
    /// A command without an expectation.
    #[must_use]
    pub const fn new(now_ms: u64, operation: Operation) -> Self {
        Self { now_ms, expected: None, operation }
    }
    /// Refuses the command unless the record is still at this revision.
    #[must_use]
    pub const fn expecting(mut self, revision: Revision) -> Self {
        self.expected = Some(revision);
        self
    }

    /// The command as it is proposed.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        versioned(&command_to_message(self))
    }

    /// Reads a command.
    ///
    /// # Errors
    /// [`Refusal`], for every byte string that [`Command::encode`] does not write.
    pub fn decode(data: &Bytes) -> Result<Self, Refusal> {
        check_limit(Subject::CommandBytes, data.len(), MAX_COMMAND_BYTES)?;
        let command = command_from_message(read_versioned(data)?)?;
        // A field of a later version is lost when the message is written back.
        if command.encode() != *data {
            return Err(malformed("it has fields that are not known, or is in another order"));
        }
        Ok(command)
    }

    /// Checks everything but how it fits the state.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn check(&self) -> Result<(), Refusal> {
        if self.now_ms > MAX_TIME_MS {
            let (subject, given) = (Subject::Now, self.now_ms);
            return Err(Refusal::BadTime { subject, given, from: 0, to: MAX_TIME_MS });
        }
        if self.expected.is_some() && self.operation.target().is_none() {
            return Err(malformed("a revision is expected, but no record is named"));
        }
        self.operation.check()
    }
}

impl Operation {
    /// The record that is changed, whose revision may be expected. Time passing names none.
    #[must_use]
    pub const fn target(&self) -> Option<RecordKey> {
        Some(match self {
            Self::CreateGroup(new) => RecordKey::Group(new.id),
            Self::SetRequirement { group, .. }
            | Self::SetPlacement { group, .. }
            | Self::RecordMembers { group, .. }
            | Self::DestroyGroup { group, .. }
            | Self::FinishDestroy { group } => RecordKey::Group(*group),
            Self::PutNode(new) => RecordKey::Node(new.id),
            Self::Advertise { node, .. } | Self::RemoveNode { node } => RecordKey::Node(*node),
            Self::SetPlannerMode { .. }
            | Self::SetPlannedMoves { .. }
            | Self::FoundShardMap { .. }
            | Self::RaiseVersion { .. }
            | Self::SetReplicas { .. }
            | Self::PutRule(_)
            | Self::RemoveRule { .. } => RecordKey::Settings,
            Self::BeginDrain(new) => RecordKey::Drain(new.node),
            Self::ExtendDrain { node, .. }
            | Self::FinishDrain { node, .. }
            | Self::EndDrain { node, .. }
            | Self::PassTime { node, .. } => RecordKey::Drain(*node),
            Self::PutToken(new) => RecordKey::Token(new.id),
            Self::RemoveToken { id } => RecordKey::Token(*id),
            Self::Tick => return None,
        })
    }

    fn check(&self) -> Result<(), Refusal> {
        match self {
            Self::CreateGroup(new) => new.check(),
            Self::SetRequirement { requirement, .. } => check_requirement(requirement),
            Self::SetPlacement { placement, .. } => check_placement(placement),
            Self::RecordMembers { nodes, founding, learners, .. } => {
                check_count(Subject::Member, nodes.len(), MAX_MEMBERS)?;
                match (founding, learners) {
                    (Some(founding), _) if !founding.is_subset(nodes) => {
                        Err(malformed("a founding member is none of the members"))
                    }
                    (_, Some(learners)) if !learners.is_subset(nodes) => {
                        Err(malformed("a learner is none of the members"))
                    }
                    _ => Ok(()),
                }
            }
            Self::DestroyGroup { group, .. } => check_not_reserved(*group),
            Self::PassTime { passed_ms, .. } if *passed_ms > MAX_PASSED_MS => {
                let (subject, given) = (Subject::Now, *passed_ms);
                Err(Refusal::BadTime { subject, given, from: 0, to: MAX_PASSED_MS })
            }
            Self::PutNode(new) => check_text(Subject::Address, &new.address, 1, MAX_ADDRESS_BYTES),
            Self::Advertise { capabilities, .. } => {
                check_limit(Subject::Capability, capabilities.len(), MAX_CAPABILITIES)
            }
            Self::SetPlannedMoves { reason, .. } => {
                check_text(Subject::Reason, reason, 0, MAX_TEXT_BYTES)
            }
            Self::FoundShardMap { map } => map.validate().map_err(malformed),
            Self::RaiseVersion { version, .. } if !version.is_known() => {
                Err(Refusal::VersionNotKnown { given: *version })
            }
            Self::SetReplicas { replicas } => {
                let (given, subject) = (replicas.replace_after_ms, Subject::ReplaceAfter);
                let (from, to) = (MIN_REPLACE_AFTER_MS, MAX_REPLACE_AFTER_MS);
                match (from..=to).contains(&given) {
                    true => Ok(()),
                    false => Err(Refusal::BadTime { subject, given, from, to }),
                }
            }
            Self::RaiseVersion { prepared, .. } => {
                check_limit(Subject::Nodes, prepared.len(), MAX_NODES)
            }
            Self::BeginDrain(new) => check_text(Subject::Owner, &new.owner, 1, MAX_TEXT_BYTES),
            Self::PutToken(new) => new.check(),
            Self::PutRule(rule) => check_rule(rule),
            Self::FinishDestroy { .. }
            | Self::RemoveNode { .. }
            | Self::RemoveToken { .. }
            | Self::RemoveRule { .. }
            | Self::SetPlannerMode { .. }
            | Self::ExtendDrain { .. }
            | Self::FinishDrain { .. }
            | Self::EndDrain { .. }
            | Self::Tick
            | Self::PassTime { .. } => Ok(()),
        }
    }
}

impl NewGroup {
    /// A group that asks for nothing and whose leader may be anywhere.
    #[must_use]
    pub fn new(id: GroupId, kind: Name, founders: impl IntoIterator<Item = NodeId>) -> Self {
        Self {
            id,
            kind,
            founders: founders.into_iter().collect(),
            incarnation: None,
            labels: Vec::new(),
            requirement: Requirement::default(),
            placement: Placement::default(),
        }
    }

    fn check(&self) -> Result<(), Refusal> {
        check_not_reserved(self.id)?;
        check_count(Subject::Founder, self.founders.len(), MAX_MEMBERS)?;
        check_limit(Subject::Label, self.labels.len(), MAX_LABELS)?;
        let mut keys: Vec<&Name> = self.labels.iter().map(|label| &label.key).collect();
        keys.sort_unstable();
        check_distinct(Subject::Label, &keys)?;
        for label in &self.labels {
            check_text(Subject::LabelValue, &label.value, 0, MAX_LABEL_BYTES)?;
        }
        check_requirement(&self.requirement)?;
        check_placement(&self.placement)
    }
}

impl NewToken {
    fn check(&self) -> Result<(), Refusal> {
        if self.grants.is_empty() {
            return Err(Refusal::Missing { subject: Subject::Grants });
        }
        Ok(())
    }
}

/// The system group is no group of the catalog: it cannot end or begin by its own order.
fn check_not_reserved(group: GroupId) -> Result<(), Refusal> {
    if group == SYSTEM_GROUP {
        return Err(Refusal::ReservedGroup { group });
    }
    Ok(())
}

fn check_requirement(requirement: &Requirement) -> Result<(), Refusal> {
    check_limit(Subject::Capability, requirement.capabilities.len(), MAX_CAPABILITIES)?;
    let names = requirement.capabilities.iter();
    names.map(|name| Name::new(Subject::Capability, name)).try_for_each(|name| name.map(drop))
}

fn check_placement(placement: &Placement) -> Result<(), Refusal> {
    check_limit(Subject::Preference, placement.preference.len(), MAX_PREFERENCES)?;
    let mut places: Vec<_> = placement.preference.iter().collect();
    places.sort_unstable();
    check_distinct(Subject::Preference, &places)
}

fn check_rule(rule: &ReplicaRule) -> Result<(), Refusal> {
    if let Some(given) = rule.voters.filter(|voters| voters % 2 == 0 || *voters > MAX_RULED_VOTERS)
    {
        return Err(Refusal::BadVoters { given });
    }
    let learners = rule.learners.unwrap_or(0) as usize;
    check_limit(Subject::Learners, learners, MAX_RULED_LEARNERS as usize)?;
    check_limit(Subject::Zone, rule.zones.len(), MAX_RULED_ZONES)?;
    check_limit(Subject::Capability, rule.capabilities.len(), MAX_CAPABILITIES)?;
    if let Selection::Label(label) = &rule.groups {
        check_text(Subject::LabelValue, &label.value, 0, MAX_LABEL_BYTES)?;
    }
    Ok(())
}

/// Refuses an item that occurs twice in a sorted list.
pub(super) fn check_distinct<T: PartialEq + fmt::Display>(
    subject: Subject,
    sorted: &[T],
) -> Result<(), Refusal> {
    match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(Refusal::Repeated { subject, given: pair[0].to_string() }),
        None => Ok(()),
    }
}

fn check_count(subject: Subject, actual: usize, limit: usize) -> Result<(), Refusal> {
    if actual == 0 {
        return Err(Refusal::Missing { subject });
    }
    check_limit(subject, actual, limit)
}

fn check_text(subject: Subject, text: &str, least: usize, limit: usize) -> Result<(), Refusal> {
    if text.len() < least {
        return Err(Refusal::Missing { subject });
    }
    check_limit(subject, text.len(), limit)
}

pub(super) const fn check_limit(
    subject: Subject,
    actual: usize,
    limit: usize,
) -> Result<(), Refusal> {
    if actual > limit {
        let (actual, limit) = (actual as u64, limit as u64);
        return Err(Refusal::OverLimit { subject, actual, limit });
    }
    Ok(())
}

pub(super) fn malformed(detail: impl fmt::Display) -> Refusal {
    Refusal::Malformed { detail: detail.to_string() }
}
