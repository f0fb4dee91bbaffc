//! Messages from peers: checked, then given to raft or to the host's own protocol of sleep.

use shardhost_proto::peer::{GroupMessage, MessageKind};
use shardhost_storage::{LogIndex, NodeId};

use super::GroupCore;
use crate::convert;
use crate::error::GroupFault;
use crate::validate::{Refusal, ReplicaView, validate};
use crate::worker::Round;

/// What became of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stepped {
    /// It was taken.
    Taken,
    /// It is not one that a correct peer sends.
    Refused(Refusal),
    /// It shows that this replica cannot go on.
    Fatal(GroupFault),
}

impl GroupCore {
    /// Takes one message from `node`.
    pub fn step(&mut self, node: NodeId, message: GroupMessage, round: &mut Round) -> Stepped {
        match self.check(node, &message) {
            Ok(()) => {}
            Err(Refusal::LostTail) => return Stepped::Fatal(self.lost_tail(&message)),
            Err(refusal) => return Stepped::Refused(refusal),
        }
        self.wake_on(&message, round);
        match message.kind() {
            MessageKind::Sleep => self.answer_sleep(&message, round),
            MessageKind::SleepResponse => self.take_sleep_response(&message),
            MessageKind::Wake => {}
            MessageKind::Snapshot => self.step_snapshot(message),
            // It cannot campaign yet; see `tick`. The leader gives the transfer up.
            MessageKind::TimeoutNow if self.snapshots.is_installing() => {}
            _ => self.step_raft(message),
        }
        Stepped::Taken
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
        };
        validate(&view, node, message, |index| {
            let first = raft.raft_log.first_index();
            (index + 1 >= first).then(|| raft.raft_log.term(index).ok()).flatten()
        })
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
