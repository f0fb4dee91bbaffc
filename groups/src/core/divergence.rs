//! A leader that contradicts what this replica knows to be committed.
//!
//! Raft rules it out as long as disks keep durable data. A data directory that was put back from an
//! older copy, or a disk that lost writes, causes it: then one of the two histories was
//! acknowledged and is about to be forgotten. No replica can know which, so this one stops, keeps
//! its data, and reports it. It answers no reads meanwhile.

use shardhost_proto::peer::GroupMessage;

use super::GroupCore;
use super::step::Stepped;
use crate::error::GroupFault;
use crate::validate::Refusal;

/// Messages of one leader in one term that contradict what is committed, before it counts. A leader
/// that means it repeats itself with every heartbeat; what goes astray does not.
const REPEATED: u8 = 3;

/// Who contradicted last, and how often.
#[derive(Debug, Default)]
pub(super) struct Contradiction {
    leader: u64,
    term: u64,
    seen: u8,
}

impl GroupCore {
    /// An append of the leader of this term, or of a later one, disagrees with committed entries.
    pub(super) fn note_contradiction(&mut self, message: &GroupMessage) -> Stepped {
        let (leader, term) = (message.from_replica, message.term);
        let known = &mut self.contradiction;
        if (known.leader, known.term) != (leader, term) {
            *known = Contradiction { leader, term, seen: 0 };
            tracing::error!(group = %self.id, leader, term, index = message.index,
                "a leader contradicts what is committed here");
        }
        let known = &mut self.contradiction;
        known.seen = known.seen.saturating_add(1);
        if known.seen < REPEATED {
            return Stepped::Refused(Refusal::CommittedConflict);
        }
        let committed = self.raw.raft.raft_log.committed;
        Stepped::Fatal(GroupFault::Diverged { leader, term, committed })
    }
}
