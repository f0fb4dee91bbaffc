//! The encoding of a change in the log. The bytes are decoded and checked by types of this crate
//! before raft, whose parser sees bytes of this replica only.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use raft::eraftpb;
use shardhost_proto::log;
use shardhost_proto::log::config_change::{Kind, Step, Transition};
use shardhost_storage::convert::{
    incoming_from_message, incoming_to_message, requirement_from_message, requirement_to_message,
};
use shardhost_storage::{Incoming, LogIndex, Member, Membership, NodeId, ReplicaId, Requirement};

/// Replicas that one entry changes at most.
const MAX_CHANGES: usize = 64;

/// A change of configuration as a log entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ConfigEntry {
    /// What changes; nothing: a joint configuration is left.
    pub changes: Vec<(Kind, ReplicaId)>,
    /// Where the replicas live that get a part.
    pub placements: BTreeMap<ReplicaId, NodeId>,
    /// The addition that is under way once this is applied.
    pub incoming: Option<Incoming>,
}

impl ConfigEntry {
    /// The entry that leaves a joint configuration.
    pub(crate) fn leave_joint() -> Self {
        Self::default()
    }

    /// Whether it goes through a joint configuration.
    pub(crate) fn is_joint(&self) -> bool {
        self.changes.len() > 1
    }

    /// Data and context of the log's entry.
    pub(crate) fn encode(&self) -> (Bytes, Bytes) {
        let step =
            |(kind, id): &(Kind, ReplicaId)| Step { kind: (*kind).into(), replica: id.get() };
        let transition = if self.is_joint() { Transition::Explicit } else { Transition::Auto };
        let change = log::ConfigChange {
            transition: transition.into(),
            changes: self.changes.iter().map(step).collect(),
            context: Bytes::new(),
        };
        let placement = |(id, node): (&ReplicaId, &NodeId)| log::Placement {
            replica: id.get(),
            node: node.get(),
        };
        let context = log::ConfigContext {
            placements: self.placements.iter().map(placement).collect(),
            incoming: self.incoming.map(incoming_to_message),
        };
        (change.encode_to_vec().into(), context.encode_to_vec().into())
    }

    /// Reads an entry; `None` when it makes no sense.
    pub(crate) fn decode(data: &Bytes, context: &Bytes) -> Option<Self> {
        let change = log::ConfigChange::decode(data.clone()).ok()?;
        let context = log::ConfigContext::decode(context.clone()).ok()?;
        let transition = Transition::try_from(change.transition).ok()?;
        let expected =
            if change.changes.len() > 1 { Transition::Explicit } else { Transition::Auto };
        if transition != expected || change.changes.len() > MAX_CHANGES {
            return None;
        }
        let placements = placements(&context)?;
        let mut changes = Vec::with_capacity(change.changes.len());
        for step in &change.changes {
            let (kind, replica) = (Kind::try_from(step.kind).ok()?, ReplicaId::new(step.replica)?);
            let placed = kind == Kind::Remove || placements.contains_key(&replica);
            if !placed || changes.iter().any(|(_, known)| *known == replica) {
                return None;
            }
            changes.push((kind, replica));
        }
        let incoming = context.incoming.as_ref().map(incoming_from_message);
        Some(Self { changes, placements, incoming: incoming.transpose().ok()? })
    }

    pub(crate) fn to_raft(&self) -> eraftpb::ConfChangeV2 {
        use eraftpb::{ConfChangeTransition, ConfChangeType};
        let mut change = eraftpb::ConfChangeV2::default();
        if self.is_joint() {
            change.set_transition(ConfChangeTransition::Explicit);
        }
        for (kind, replica) in &self.changes {
            let mut single = eraftpb::ConfChangeSingle::default();
            single.set_change_type(match kind {
                Kind::AddVoter => ConfChangeType::AddNode,
                Kind::Remove => ConfChangeType::RemoveNode,
                Kind::AddLearner => ConfChangeType::AddLearnerNode,
            });
            single.node_id = replica.get();
            change.mut_changes().push(single);
        }
        change
    }

    /// The membership after this entry, given raft's `state`. `None` when the node of a member is
    /// unknown.
    pub(crate) fn apply(
        &self,
        before: &Membership,
        state: &eraftpb::ConfState,
        index: LogIndex,
    ) -> Option<Membership> {
        let mut after = Membership { config_index: index, ..Membership::default() };
        after.auto_leave = state.auto_leave;
        after.incoming = self.incoming;
        after.genesis = before.genesis;
        after.requirement = before.requirement.clone();
        let mut part = |ids: &[u64], give: fn(&mut Member)| {
            ids.iter().try_for_each(|id| {
                let id = ReplicaId::new(*id)?;
                let known = self.placements.get(&id).copied();
                let node = known.or_else(|| before.node_of(id))?;
                let never_voted = before.members.get(&id).is_none_or(|member| member.never_voted);
                let (voter, learner, outgoing_voter) = (false, false, false);
                let none = Member { node, voter, learner, outgoing_voter, never_voted };
                give(after.members.entry(id).or_insert(none));
                Some(())
            })
        };
        part(&state.voters, |member| {
            member.voter = true;
            member.never_voted = false;
        })?;
        part(&state.learners, |member| member.learner = true)?;
        part(&state.learners_next, |member| member.learner = true)?;
        part(&state.voters_outgoing, |member| member.outgoing_voter = true)?;
        let newest = before.next_replica().and_then(|next| ReplicaId::new(next.get() - 1));
        after.newest_replica = newest.max(self.placements.keys().next_back().copied());
        Some(after)
    }
}

/// The data of an entry with a requirement.
pub(crate) fn encode_requirement(requirement: &Requirement) -> Bytes {
    requirement_to_message(requirement).unwrap_or_default().encode_to_vec().into()
}

/// Reads the data of an entry with a requirement; `None` when it makes no sense.
pub(crate) fn decode_requirement(data: &Bytes) -> Option<Requirement> {
    let message = log::Requirement::decode(data.clone()).ok()?;
    requirement_from_message(Some(&message)).ok()
}

fn placements(context: &log::ConfigContext) -> Option<BTreeMap<ReplicaId, NodeId>> {
    if context.placements.len() > MAX_CHANGES {
        return None;
    }
    let mut placements = BTreeMap::new();
    for placement in &context.placements {
        let (replica, node) = (ReplicaId::new(placement.replica)?, NodeId::new(placement.node)?);
        if placements.insert(replica, node).is_some() {
            return None;
        }
    }
    Some(placements)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joint() -> ConfigEntry {
        let (new, old) = (ReplicaId::must(4), ReplicaId::must(1));
        ConfigEntry {
            changes: vec![(Kind::AddVoter, new), (Kind::Remove, old)],
            placements: [(new, NodeId::must(9))].into(),
            incoming: Some(Incoming { replica: new, replaces: Some(old) }),
        }
    }

    fn conf_state(voters: &[u64]) -> eraftpb::ConfState {
        eraftpb::ConfState { voters: voters.to_vec(), ..eraftpb::ConfState::default() }
    }

    #[test]
    fn an_entry_is_read_as_it_was_written() {
        let one = ConfigEntry {
            changes: vec![(Kind::AddLearner, ReplicaId::must(7))],
            placements: [(ReplicaId::must(7), NodeId::must(3))].into(),
            incoming: None,
        };
        for entry in [joint(), one, ConfigEntry::leave_joint()] {
            let (data, context) = entry.encode();
            assert_eq!(ConfigEntry::decode(&data, &context), Some(entry));
        }
    }

    /// Raft reads the same bytes as we do, and takes them for the same change.
    #[test]
    fn raft_reads_the_same_change() {
        use protobuf::Message as _;
        for entry in [joint(), ConfigEntry::leave_joint()] {
            let (data, _) = entry.encode();
            let mut read = eraftpb::ConfChangeV2::default();
            read.merge_from_bytes(&data).unwrap();
            assert_eq!(read, entry.to_raft());
        }
        assert!(ConfigEntry::leave_joint().encode().0.is_empty(), "raft leaves on empty data");
    }

    #[test]
    fn what_makes_no_sense_is_not_read() {
        let refused = |change: fn(&mut log::ConfigChange, &mut log::ConfigContext)| {
            let (data, context) = joint().encode();
            let mut data = log::ConfigChange::decode(data).unwrap();
            let mut context = log::ConfigContext::decode(context).unwrap();
            change(&mut data, &mut context);
            let (data, context) = (data.encode_to_vec().into(), context.encode_to_vec().into());
            ConfigEntry::decode(&data, &context).is_none()
        };
        assert!(!refused(|_, _| ()), "the unchanged one is fine");
        assert!(refused(|change, _| change.transition = 0), "joint, but not said so");
        assert!(refused(|change, _| change.transition = 9), "unknown transition");
        assert!(refused(|change, _| change.changes[0].kind = 9), "unknown kind");
        assert!(refused(|change, _| change.changes[0].replica = 0), "zero replica");
        assert!(refused(|change, _| change.changes[1].replica = 4), "one replica twice");
        assert!(refused(|_, context| context.placements.clear()), "a voter without a node");
        assert!(refused(|_, context| context.placements[0].node = 0), "zero node");
        assert!(
            refused(|_, context| context.incoming = Some(log::Incoming { replica: 3, replaces: 3 })),
            "one that replaces itself"
        );
        let garbage = Bytes::from_static(b"\xff\xff\xff");
        assert_eq!(ConfigEntry::decode(&garbage, &Bytes::new()), None);
        assert_eq!(ConfigEntry::decode(&Bytes::new(), &garbage), None);
    }

    #[test]
    fn a_joint_change_names_everybody_who_has_a_part() {
        let before = Membership::initial([1, 2, 3].map(NodeId::must));
        let mut state = conf_state(&[2, 3, 4]);
        state.voters_outgoing = vec![1, 2, 3];
        let after = joint().apply(&before, &state, LogIndex::new(12)).unwrap();
        assert!(after.is_joint());
        assert_eq!(after.config_index, LogIndex::new(12));
        assert_eq!(after.node_of(ReplicaId::must(4)), Some(NodeId::must(9)));
        let leaving = after.members[&ReplicaId::must(1)];
        assert!(leaving.outgoing_voter && !leaving.voter);
        assert_eq!(after.newest_replica, ReplicaId::new(4));

        state.voters_outgoing.clear();
        let left = ConfigEntry::leave_joint().apply(&after, &state, LogIndex::new(13)).unwrap();
        assert!(left.was_removed(ReplicaId::must(1)) && !left.is_joint());
        assert_eq!((left.incoming, left.newest_replica), (None, ReplicaId::new(4)));
        assert_eq!(left.next_replica(), ReplicaId::new(5));
    }

    #[test]
    fn a_member_without_a_known_node_cannot_be() {
        let before = Membership::initial([1, 2, 3].map(NodeId::must));
        assert_eq!(joint().apply(&before, &conf_state(&[1, 2, 9]), LogIndex::new(1)), None);
    }
}
