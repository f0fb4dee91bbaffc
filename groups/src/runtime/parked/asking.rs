//! Asks members whether replicas that do not run still belong to their groups.
//!
//! A leader sends a few notices to a replica that it removed; afterwards members answer what they are asked. A
//! replica that does not run asks nothing, so one that was removed while its node was away would stay for ever.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};
use shardhost_proto::peer::{GroupMessage, MessageKind};
use shardhost_storage::{Genesis, GroupId, GroupMeta, NodeId};

use crate::runtime::RuntimeShared;
use crate::status::Role;
use crate::transport::{Lane, Outgoing};

/// Election timeouts between two passes.
const PAUSE: u32 = 10;
/// Groups that are asked about in one pass. The next pass continues behind them.
const GROUPS_PER_PASS: usize = 256;

/// Asks until the channel ends.
pub(in crate::runtime) fn run(shared: &Arc<RuntimeShared>, stop: &Receiver<()>) {
    let timeout = shared.config.election_timeout().max(Duration::from_millis(1));
    let mut last = None;
    while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(timeout.saturating_mul(PAUSE)) {
        let asked = next(&not_running(shared), last);
        last = asked.last().copied();
        let questions: Vec<Outgoing> =
            asked.into_iter().flat_map(|group| questions_of(shared, group)).collect();
        if !questions.is_empty() {
            shared.send(questions);
        }
    }
}

/// The groups whose replicas the log holds and that take part in nothing.
fn not_running(shared: &RuntimeShared) -> BTreeSet<GroupId> {
    let open = shared.registry.iter();
    let failed = open.filter(|group| matches!(group.status().role, Role::Failed(_)));
    let failed: BTreeSet<GroupId> = failed.map(|group| group.id()).collect();
    failed.into_iter().chain(shared.parked.groups()).collect()
}

/// The groups of the next pass: those behind the last one, then the first.
fn next(all: &BTreeSet<GroupId>, last: Option<GroupId>) -> Vec<GroupId> {
    let after = last.map_or(Bound::Unbounded, Bound::Excluded);
    let behind = all.range((after, Bound::Unbounded));
    let before = all.iter().take_while(|group| last.is_some_and(|last| **group <= last));
    behind.chain(before).copied().take(GROUPS_PER_PASS).collect()
}

fn questions_of(shared: &RuntimeShared, group: GroupId) -> Vec<Outgoing> {
    match shared.store().and_then(|store| store.meta(group)) {
        Ok(meta) => meta.map(|meta| questions(&meta, shared.config.node)).unwrap_or_default(),
        Err(error) => {
            tracing::debug!(%group, %error, "which members to ask is not known");
            Vec::new()
        }
    }
}

/// A member answers a replica that was removed with a notice, and takes this from one that was not for nothing.
fn questions(meta: &GroupMeta, own: NodeId) -> Vec<Outgoing> {
    let others = meta.membership.members.iter();
    let others = others.filter(|(id, member)| **id != meta.replica && member.node != own);
    let question = |to: u64| GroupMessage {
        group: meta.group.get(),
        from_replica: meta.replica.get(),
        to_replica: to,
        kind: MessageKind::Wake.into(),
        // Of any replica: it takes part in no election.
        term: 1,
        genesis: meta.membership.genesis.map_or(0, Genesis::get),
        ..GroupMessage::default()
    };
    let question = |(id, member): (&shardhost_storage::ReplicaId, &shardhost_storage::Member)| {
        Outgoing { to: member.node, lane: Lane::Urgent, message: question(id.get()) }
    };
    others.map(question).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_group_is_asked_about_however_many_there_are() {
        let all: BTreeSet<GroupId> = (0..600).map(GroupId::new).collect();
        let mut asked = BTreeSet::new();
        let mut last = None;
        for _ in 0..3 {
            let pass = next(&all, last);
            assert!(pass.len() <= GROUPS_PER_PASS);
            last = pass.last().copied();
            asked.extend(pass);
        }
        assert_eq!(asked, all);
    }

    #[test]
    fn few_groups_are_all_asked_about_in_each_pass_and_once() {
        let all: BTreeSet<GroupId> = (0..3).map(GroupId::new).collect();
        for last in [None, Some(1), Some(2), Some(9)] {
            let pass = next(&all, last.map(GroupId::new));
            assert_eq!(pass.iter().copied().collect::<BTreeSet<_>>(), all, "{last:?}");
            assert_eq!(pass.len(), 3);
        }
        assert!(next(&BTreeSet::new(), None).is_empty());
    }
}
