//! What a node says of its groups, and of those that failed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use shardhost_groups::nodes::Advertisement;
use shardhost_groups::runtime::ParkedReplica;
use shardhost_groups::{Group, GroupId, GroupStatus, LogIndex, NodeId, ReplicaId, Role};
use shardhost_proto::{admin as wire, log};
use shardhost_storage::convert::membership_to_message;
use shardhost_storage::{Doubt, Membership};

use shardhost::driver::life_of;
use shardhost::host::Host;
use shardhost_policy::catalog::{GroupState, View, rule_of};

/// Failed replicas that a node names at most in its status.
const MAX_FAILED_SHOWN: usize = 10;

pub(super) fn failed_replicas(
    statuses: &[Arc<GroupStatus>],
    parked: &[ParkedReplica],
) -> Vec<wire::FailedReplica> {
    let failed = statuses.iter().filter_map(|status| match &status.role {
        Role::Failed(fault) => Some((status.id, fault.to_string())),
        _ => None,
    });
    let parked = parked.iter().map(|parked| (parked.group, parked.cause.to_string()));
    let mut all: Vec<_> = failed.chain(parked).collect();
    all.sort_unstable();
    let shown = all.into_iter().take(MAX_FAILED_SHOWN);
    shown.map(|(group, cause)| wire::FailedReplica { group: group.get(), cause }).collect()
}

/// The first groups whose replicas differ, with no majority that agrees.
pub(super) fn differing_groups(statuses: &[Arc<GroupStatus>]) -> Vec<u64> {
    let differing = statuses.iter().filter(|status| status.differs.is_some());
    let mut all: Vec<u64> = differing.map(|status| status.id.get()).collect();
    all.sort_unstable();
    all.truncate(MAX_FAILED_SHOWN);
    all
}

/// Some groups: how many there are, and the first of them.
pub(super) fn count_of(groups: impl IntoIterator<Item = GroupId>) -> wire::GroupCount {
    let mut all: Vec<u64> = groups.into_iter().map(GroupId::get).collect();
    all.sort_unstable();
    let count = all.len() as u64;
    all.truncate(MAX_FAILED_SHOWN);
    wire::GroupCount { count, first: all }
}

/// The groups of which this node knows no leader. What failed has none to know.
pub(super) fn leaderless(statuses: &[Arc<GroupStatus>]) -> wire::GroupCount {
    let running = |status: &&Arc<GroupStatus>| {
        !matches!(status.role, Role::Failed(_) | Role::Stopped | Role::Removed)
    };
    let without = statuses.iter().filter(running).filter(|status| status.leader.is_none());
    count_of(without.map(|status| status.id))
}

/// The voters of groups that are led here that are on nodes that do not answer.
pub(super) fn short_voters(
    statuses: &[Arc<GroupStatus>],
    live: &BTreeSet<NodeId>,
) -> Vec<wire::ShortVoters> {
    let mut short: BTreeMap<NodeId, Vec<GroupId>> = BTreeMap::new();
    for status in statuses.iter().filter(|status| status.is_leader()) {
        let silent = status.membership.voters().filter(|(_, node)| !live.contains(node));
        silent.for_each(|(_, node)| short.entry(node).or_default().push(status.id));
    }
    let of_node = |(node, groups): (NodeId, Vec<GroupId>)| wire::ShortVoters {
        node: node.get(),
        groups: Some(count_of(groups)),
    };
    short.into_iter().map(of_node).collect()
}

/// The groups that are led here and have fewer voters than their rules ask for, or, without one, than the catalog
/// had them created with.
pub(super) fn shrunk(statuses: &[Arc<GroupStatus>], view: &View) -> wire::ShrunkGroups {
    let led = statuses.iter().filter(|status| status.is_leader());
    let rules = &view.settings().rules;
    let shrunk = led.filter_map(|status| {
        let known = view.groups().get(&status.id)?;
        let ruled = rule_of(rules, known).and_then(|rule| rule.voters);
        (known.state == GroupState::Active)
            .then(|| shrunk_group(status.id, &status.membership, &known.founders, ruled))?
    });
    let mut first: Vec<wire::ShrunkGroup> = shrunk.collect();
    first.sort_unstable_by_key(|shrunk| shrunk.group);
    let count = first.len() as u64;
    first.truncate(MAX_FAILED_SHOWN);
    wire::ShrunkGroups { count, first }
}

/// What a group lacks that was created on these nodes, and is to have so many voters by its rule; `None`: no
/// voter.
fn shrunk_group(
    group: GroupId,
    membership: &Membership,
    founders: &[NodeId],
    ruled: Option<u32>,
) -> Option<wire::ShrunkGroup> {
    let voters = membership.voters().count();
    let wanted = ruled.map_or(founders.len(), |voters| voters as usize);
    if voters >= wanted {
        return None;
    }
    let founders = if ruled.is_some() { &[] } else { founders };
    let members: BTreeSet<NodeId> = membership.members.values().map(|one| one.node).collect();
    let incoming = membership.incoming.as_ref();
    let incoming = incoming.and_then(|incoming| membership.members.get(&incoming.replica));
    let number = |node: Option<NodeId>| node.map_or(0, NodeId::get);
    let count = |voters: usize| u32::try_from(voters).unwrap_or(u32::MAX);
    Some(wire::ShrunkGroup {
        group: group.get(),
        voters: count(voters),
        created_with: count(wanted),
        incoming_node: number(incoming.map(|member| member.node)),
        learner_node: number(membership.learners().map(|(_, node)| node).min()),
        absent_node: number(founders.iter().copied().find(|node| !members.contains(node))),
        ruled: ruled.is_some(),
    })
}

/// The groups of which the catalog intends a replica on this node, and there is none, not even one
/// that failed; those of them left out whose replica was removed here, which the catalog learns of a moment later.
/// Reads the log.
pub(super) fn missing(host: &Host, absent: Vec<(GroupId, u32)>) -> wire::GroupCount {
    let missing = absent.into_iter().filter(|(group, generation)| {
        !host.tombstone(*group).ok().flatten().is_some_and(|gone| is_removal(gone, *generation))
    });
    count_of(missing.map(|(group, _)| group))
}

/// Whether a replica with this number, or with one before it, was removed from this generation of its group, or
/// from a later one.
fn is_removal(destroyed: ReplicaId, generation: u32) -> bool {
    // The last number of a generation stands for a replica of which the log could not say which one it was.
    let was_known = destroyed.get() as u32 != u32::MAX;
    was_known && life_of(destroyed) >= generation
}

/// The groups of which the catalog intends a replica on this node, and none is open or parked, with their
/// generations.
pub(super) fn absent(host: &Host, view: &View) -> Vec<(GroupId, u32)> {
    let node = host.node_id();
    let intended = view
        .groups()
        .values()
        .filter(|group| group.state == GroupState::Active && group.members().contains(&node));
    let absent = intended
        .filter(|group| host.group(group.id).is_none() && host.parked_replica(group.id).is_none());
    absent.map(|group| (group.id, group.incarnation)).collect()
}

/// What a node says of a replica that it could not open.
pub(super) fn parked_status(parked: &ParkedReplica) -> wire::GroupStatus {
    let meta = parked.meta.as_ref();
    wire::GroupStatus {
        group: parked.group.get(),
        replica: parked.replica.map_or(0, ReplicaId::get),
        kind: meta.map(|meta| meta.kind.clone()).unwrap_or_default(),
        role: "failed".to_owned(),
        membership: meta.map(|meta| membership_to_message(&meta.membership)),
        fault: parked.cause.to_string(),
        unopenable: !parked.ordered && !parked.reopens,
        ..wire::GroupStatus::default()
    }
}

const fn doubt_name(doubt: Doubt) -> &'static str {
    match doubt {
        Doubt::RolledBack => "rolled-back",
        Doubt::Unreadable => "unreadable",
        _ => "torn-tail",
    }
}

/// What a node says of itself, as it travels.
pub(super) fn advertisement_to_wire(advertisement: &Advertisement) -> wire::NodeAdvertisement {
    wire::NodeAdvertisement {
        capabilities: advertisement.capabilities.iter().cloned().collect(),
        draining: advertisement.draining,
    }
}

/// What a node says of one of its groups.
pub(super) fn group_status(group: &Group) -> wire::GroupStatus {
    let status = group.status();
    let (fault, applied) = match &status.role {
        Role::Failed(fault) => (fault.to_string(), group.machine_applied()),
        _ => (String::new(), status.applied),
    };
    let contact = group.last_contact();
    let peers = status.peers.iter().map(|peer| wire::PeerProgress {
        replica: peer.replica.get(),
        node: peer.node.get(),
        matched: peer.matched.get(),
        next: peer.next.get(),
        state: peer.state.to_owned(),
        recently_active: peer.recently_active,
    });
    wire::GroupStatus {
        group: status.id.get(),
        replica: status.replica.get(),
        kind: group.kind().to_owned(),
        role: status.role.name().to_owned(),
        term: status.term.get(),
        leader_node: status.leader.map_or(0, |leader| leader.node.get()),
        first_index: status.first.get(),
        last_index: status.last.get(),
        committed: status.committed.get(),
        applied: applied.get(),
        snapshot: status.snapshot.map(|position| log::LogPosition {
            term: position.term.get(),
            index: position.index.get(),
        }),
        membership: Some(shardhost_storage::convert::membership_to_message(&status.membership)),
        hibernating: status.hibernating,
        fault,
        transferring_to_node: status.transferring_to.map_or(0, NodeId::get),
        peers: peers.collect(),
        pending_change: status.pending_change.map_or(0, LogIndex::get),
        paused: status.paused,
        doubt: status.doubt.map(doubt_name).unwrap_or_default().to_owned(),
        conflicting_node: status.conflicting.map_or(0, NodeId::get),
        checked: status.checked.map_or(0, LogIndex::get),
        differs: status.differs.map_or(0, LogIndex::get),
        serving: status.serving,
        stalled: status.stalled.as_deref().unwrap_or_default().to_owned(),
        caretaker: status.caretaker.as_ref().map(ToString::to_string).unwrap_or_default(),
        closed: false,
        unopenable: false,
        lease: group.lease().is_some_and(|lease| lease.valid),
        leader_contact_ms: contact.and_then(|since| u64::try_from(since.as_millis()).ok()),
    }
}

const MAX_PAGE: usize = 2_000;

/// The groups and parked replicas behind a page, by number, as many as fit into one.
pub(super) fn page_of_groups(host: &Host, request: &wire::ListGroupsRequest) -> wire::GroupList {
    let limit = match request.limit as usize {
        0 => MAX_PAGE,
        limit => limit.min(MAX_PAGE),
    };
    let is_behind = |id: GroupId| request.after_group.is_none_or(|after| id.get() > after);
    let mut open = host.groups();
    open.retain(|group| is_behind(group.id()));
    open.sort_unstable_by_key(Group::id);
    let mut parked = host.parked_replicas();
    parked.retain(|parked| is_behind(parked.group));
    let more = open.len() + parked.len() > limit;
    let open = open.iter().take(limit).map(group_status);
    let mut groups: Vec<_> = open.chain(parked.iter().map(parked_status)).collect();
    groups.sort_unstable_by_key(|group| group.group);
    groups.truncate(limit);
    wire::GroupList { groups, more }
}

/// Why the node should lead nothing for now; empty: nothing is wrong.
pub(super) fn impairment(host: &Host) -> String {
    let impairment = host.impairment();
    impairment.borrow().as_ref().map(|why| why.reason.to_string()).unwrap_or_default()
}

/// The first replicas whose state machine stands still, or lost its state.
pub(super) fn stalled(statuses: &[Arc<GroupStatus>]) -> Vec<wire::Stalled> {
    let stalled = statuses.iter().filter_map(|status| {
        let reason = status.stalled.as_ref()?.to_string();
        Some(wire::Stalled { group: status.id.get(), reason })
    });
    stalled.take(MAX_FAILED_SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use shardhost_storage::Member;

    use super::*;

    #[test]
    fn a_replica_that_was_removed_from_this_generation_is_not_missing() {
        let removal = |generation: u64, number: u64| {
            is_removal(ReplicaId::must((generation << 32) + number), 2)
        };
        assert!(removal(2, 1) && removal(2, 9) && removal(3, 1));
        assert!(!removal(1, 9), "the group was created anew since");
        assert!(!removal(2, u64::from(u32::MAX)), "it could not be read which one it was");
    }

    #[test]
    fn a_group_with_fewer_voters_than_at_first_is_shrunk() {
        let founders = [1, 2, 3].map(NodeId::must);
        let group = GroupId::new(7);
        let ruled = |voters: &[u64], learners: &[u64], ruled| {
            let all = voters.iter().map(|node| (node, true));
            let all = all.chain(learners.iter().map(|node| (node, false)));
            let members = all.map(|(node, voter)| {
                let mut member = Member::voter(NodeId::must(*node));
                (member.voter, member.learner) = (voter, !voter);
                (ReplicaId::must(*node), member)
            });
            let membership = Membership { members: members.collect(), ..Membership::default() };
            shrunk_group(group, &membership, &founders, ruled)
        };
        let of = |voters, learners| ruled(voters, learners, None);
        assert_eq!(of(&[1, 2, 3], &[]), None);
        assert_eq!(of(&[1, 2, 4], &[5]), None, "as many, elsewhere");
        let removed = of(&[1, 2], &[]).unwrap();
        assert_eq!((removed.voters, removed.created_with), (2, 3));
        assert_eq!((removed.absent_node, removed.learner_node, removed.incoming_node), (3, 0, 0));
        let demoted = of(&[1, 2], &[3]).unwrap();
        assert_eq!((demoted.absent_node, demoted.learner_node), (0, 3));
        assert_eq!(ruled(&[1], &[], Some(1)), None, "its rule asks for one");
        let growing = ruled(&[1, 2, 3], &[], Some(5)).unwrap();
        assert_eq!((growing.voters, growing.created_with, growing.ruled), (3, 5, true));
    }
}
