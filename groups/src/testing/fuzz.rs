//! What the fuzzing of a transport gives its messages to: everything that is done with a message before
//! a replica acts on it, for replicas in several states.

use shardhost_proto::peer::GroupMessage;
use shardhost_storage::{Membership, NodeId, ReplicaId};

use crate::convert;
use crate::validate::{ReplicaView, validate};

/// The replica that the messages are for, in group 7 on node 1.
const OURS: ReplicaId = ReplicaId::must(1);

/// Checks a message from `node` for a follower, a leader, and a replica that knows nothing, and makes
/// raft's message of it where it passes. Says how many took it.
///
/// # Panics
/// When what passes is not what raft can be given.
pub fn check_message(node: NodeId, message: &GroupMessage) -> usize {
    let membership = Membership::initial((1..=3).map(NodeId::must));
    let view = |term, leader, last_index, committed| ReplicaView {
        replica: OURS,
        term,
        leader,
        leads: leader == OURS.get(),
        last_index,
        persisted: last_index,
        committed,
        membership: &membership,
        contacts: &[],
    };
    let views = [view(0, 0, 0, 0), view(3, 2, 9, 6), view(3, 1, 9, 9)];
    let passes = |view: &&ReplicaView<'_>| {
        let term_at = |index| (index <= view.last_index).then_some(view.term);
        match validate(view, node, message, term_at) {
            Ok(()) => true,
            Err(refusal) => {
                assert!(!refusal.to_string().is_empty());
                false
            }
        }
    };
    let taken = views.iter().filter(passes).count();
    if taken > 0 {
        let raft = convert::from_wire(message.clone());
        let entries = raft.map_or(0, |raft| raft.entries.len());
        assert!(entries == message.entries.len() || entries == 0, "entries were lost");
    }
    taken
}
