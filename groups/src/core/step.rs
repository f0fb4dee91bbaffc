//! Messages from peers: checked, then given to raft or to the host's own protocol of hibernation.

use shardhost_proto::peer::{GroupMessage, MessageKind};
use shardhost_storage::{Genesis, LogIndex, NodeId, ReplicaId};

use super::GroupCore;
use crate::convert;
use crate::core::Effects;
use crate::error::GroupFault;
use crate::known_bugs::KnownBug;
use crate::transport::{Lane, Outgoing};
use crate::validate::{Refusal, ReplicaView, check_create_request, validate};

/// Replicas that are remembered before the membership knows them.
const MAX_CONTACTS: usize = 8;

/// What became of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stepped {
    Taken,
    /// It is not one that a correct peer sends.
    Refused(Refusal),
    /// It shows that this replica cannot continue.
    Fatal(GroupFault),
}

impl GroupCore {
    /// Takes one message from `node`.
    ///
    /// Each passes the same stations. What no correct peer sends is refused, and so is what this
    /// replica must not take in doubt, or while its vote is locked. Then what the message shows of
    /// its sender counts, and it wakes the group. Only then is it taken for what it is.
    pub fn step(&mut self, node: NodeId, message: GroupMessage, effects: &mut Effects) -> Stepped {
        if let Err(refusal) = self.check(node, &message) {
            return self.step_refused(node, &message, refusal, effects);
        }
        if self.is_for_successor(&message) {
            self.take_notice(node, &message);
            return Stepped::Taken;
        }
        if self.refuses_in_doubt(&message) {
            return Stepped::Refused(Refusal::InDoubt);
        }
        self.notice_abdication(&message);
        if self.withholds_vote(&message, effects) {
            return Stepped::Refused(Refusal::VoteLocked);
        }
        if message.kind() == MessageKind::PreVote && self.refuses_pre_vote(node, &message, effects)
        {
            return Stepped::Taken;
        }
        self.note_contact(node, &message);
        let counts = self.take_sign(&message, effects);
        self.wake_on(&message, effects);
        if !counts {
            return Stepped::Taken;
        }
        if message.kind() == MessageKind::TimeoutNow && !self.is_current_order(&message) {
            return Stepped::Refused(Refusal::StaleOrder);
        }
        self.step_kind(node, message, effects);
        Stepped::Taken
    }

    /// A message that is not one of a correct peer, or shows what this replica lacks.
    fn step_refused(
        &mut self,
        node: NodeId,
        message: &GroupMessage,
        refusal: Refusal,
        effects: &mut Effects,
    ) -> Stepped {
        match refusal {
            Refusal::LostTail if self.doubt.is_some() => {
                self.outbid_leader(message.term);
                return Stepped::Refused(Refusal::InDoubt);
            }
            // Meant for another disk of the node: the leader counts anew what such a replica holds
            // as soon as it hears of the node's new process.
            Refusal::LostTail if self.never_voted() => {}
            Refusal::LostTail => return Stepped::Fatal(self.lost_tail(message)),
            Refusal::CommittedConflict => return self.note_contradiction(message),
            Refusal::Removed => self.answer_removed(node, message, effects),
            Refusal::OtherGenesis => {
                self.note_conflict(node);
                self.answer_conflicting(node, message, effects);
            }
            _ => {}
        }
        Stepped::Refused(refusal)
    }

    fn step_kind(&mut self, node: NodeId, message: GroupMessage, effects: &mut Effects) {
        match message.kind() {
            MessageKind::Hibernate => self.answer_hibernate(node, &message, effects),
            MessageKind::HibernateResponse => self.take_hibernate_response(&message, effects),
            // The node has the replica already.
            MessageKind::Wake | MessageKind::CreateReplica => {}
            MessageKind::Removed => self.take_notice(node, &message),
            MessageKind::ReadIndex => self.take_read_index(node, &message, effects),
            MessageKind::ReadIndexResponse => self.take_read_answer(&message, effects),
            MessageKind::Snapshot if message.any_giver => self.take_given_state(&message),
            MessageKind::Snapshot => self.step_from_leader(message, effects, Self::step_snapshot),
            MessageKind::RecoveryRequest => self.answer_recovery(&message, effects),
            MessageKind::RecoveryResponse => self.take_recovery(&message),
            MessageKind::StateRequest => self.take_state_request(&message, effects),
            MessageKind::Checksum => self.take_checksum(&message, effects),
            MessageKind::ChecksumVerdict => self.take_verdict(&message, effects),
            MessageKind::TransferAsk => self.answer_transfer(&message, effects),
            MessageKind::TransferAnswer => self.take_transfer_answer(&message, effects),
            MessageKind::TimeoutNow => self.step_order(message, effects),
            MessageKind::Append | MessageKind::Heartbeat => {
                self.step_from_leader(message, effects, Self::step_raft);
            }
            MessageKind::Vote => self.step_vote(node, message, effects),
            _ => self.step_raft(message),
        }
    }

    /// A TimeoutNow. One that cannot be followed is answered, so that the leader continues.
    fn step_order(&mut self, message: GroupMessage, effects: &mut Effects) {
        match self.refuses_leadership(message.escape, effects) {
            Some(refusal) => self.send_answer(&message, Some(refusal), effects),
            None => self.step_raft(message),
        }
    }

    /// Messages of a leader: a replica that takes one locks its vote for a while.
    fn step_from_leader(
        &mut self,
        message: GroupMessage,
        effects: &Effects,
        step: fn(&mut Self, GroupMessage),
    ) {
        let (kind, from, stamp) = (message.kind(), message.from_replica, message.stamp);
        let (term, lacks_state) = (message.term, message.lacks_state);
        step(self, message);
        if term == self.raw.raft.term {
            self.hear_leader(kind, from, stamp, effects);
            self.candidacy.hear_leader();
            if kind == MessageKind::Heartbeat {
                self.hear_of_leaders_state(lacks_state);
            }
        }
    }

    /// The node is asked to hold another replica of the group: this one was removed.
    fn is_for_successor(&self, message: &GroupMessage) -> bool {
        message.kind() == MessageKind::CreateReplica && message.to_replica > self.replica.get()
    }

    /// Another group with this id and other members exists.
    fn note_conflict(&mut self, node: NodeId) {
        if self.conflicting.replace(node) != Some(node) {
            tracing::error!(group = %self.id, %node, members = %self.membership,
                "the node holds a group of the same id that was created with other members; one \
                 of the two must be destroyed");
        }
    }

    /// Notifies the other group of this id that there are two: the nodes of the one need not be
    /// members of the other, which would never learn of it. Only a message that introduces its
    /// sender is answered, and the answer is not such a message.
    fn answer_conflicting(&self, node: NodeId, message: &GroupMessage, effects: &mut Effects) {
        let says_whose = message.genesis != 0 || message.create_request.is_some();
        let introduced = says_whose && message.kind() != MessageKind::Wake;
        if !introduced || self.config.bugs.has(KnownBug::OneGroupIsTold) {
            return;
        }
        let genesis = self.membership.genesis.map_or(0, Genesis::get);
        let answer = self.own_message(MessageKind::Wake, message.from_replica);
        let message = GroupMessage { genesis, ..answer };
        effects.messages.push(Outgoing { to: node, lane: Lane::Urgent, message });
    }

    /// Remembers where a replica lives that the membership does not know yet.
    fn note_contact(&mut self, node: NodeId, message: &GroupMessage) {
        let Some(id) = ReplicaId::new(message.from_replica) else { return };
        if !self.membership.is_yet_to_come(id) || self.node_of(id.get()).is_some() {
            return;
        }
        if self.contacts.len() >= MAX_CONTACTS {
            self.contacts.remove(0);
        }
        self.contacts.push((id, node));
    }

    pub(super) fn step_raft(&mut self, message: GroupMessage) {
        let Some(message) = convert::from_wire(message) else { return };
        if let Err(error) = self.raw.step(message) {
            // Raft refuses stray responses; nothing is lost by them.
            tracing::trace!(group = %self.id, %error, "raft refused a message");
        }
        self.pin_election_timeout();
    }

    fn check(&self, node: NodeId, message: &GroupMessage) -> Result<(), Refusal> {
        if self.is_for_successor(message) {
            return match self.config.bugs.has(KnownBug::CreateRequestOfAnotherGroup) {
                true => Ok(()),
                false => check_create_request(&self.membership, message),
            };
        }
        let raft = &self.raw.raft;
        let view = ReplicaView {
            replica: self.replica,
            term: raft.term,
            leader: raft.leader_id,
            leads: self.leads(),
            last_index: raft.raft_log.last_index(),
            persisted: raft.raft_log.persisted,
            committed: raft.raft_log.committed,
            membership: &self.membership,
            contacts: &self.contacts,
        };
        validate(&view, node, message, |index| {
            let first = raft.raft_log.first_index();
            (index + 1 >= first).then(|| raft.raft_log.term(index).ok()).flatten()
        })
    }

    /// Whether this replica has had no vote, as far as it has applied.
    fn never_voted(&self) -> bool {
        self.membership.members.get(&self.replica).is_some_and(|member| member.never_voted)
    }

    fn lost_tail(&self, message: &GroupMessage) -> GroupFault {
        let last = LogIndex::new(self.raw.raft.raft_log.last_index());
        let text = format!(
            "the leader of {:?} knows that replica {} holds index {}, but its log ends at {last}: \
             the log lost its tail",
            self.id, self.replica, message.commit
        );
        GroupFault::Invariant(text.into())
    }
}
