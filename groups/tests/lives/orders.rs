//! A handle of a replica that was closed orders nothing from the next replica of the group.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use shardhost_groups::completion::{Charge, Completion, Pending};
use shardhost_groups::config::GroupsConfig;
use shardhost_groups::core::{Effects, GroupCore, Proposal, ReplicaStart};
use shardhost_groups::nodes::Advertisement;
use shardhost_groups::policy::Policies;
use shardhost_groups::storage::{
    GroupMeta, GroupWrite, HardState, LogBatch, LogStore, MemoryStore,
};
use shardhost_groups::worker::{Input, WorkerCore};
use shardhost_groups::{
    GroupId, LogPosition, Membership, NodeId, ProposalRejection, ProposeError, Term,
};
use tokio::sync::oneshot;

const GROUP: GroupId = GroupId::new(7);
const OPEN: u64 = 2;

/// A worker with one replica, which was opened twice.
fn worker() -> WorkerCore {
    let store = MemoryStore::new();
    let membership = Membership::initial([NodeId::must(1)]);
    let mut write = GroupWrite::new(GROUP);
    write.meta = Some(GroupMeta {
        group: GROUP,
        replica: membership.replica_on(NodeId::must(1)).unwrap(),
        membership,
        snapshot: None,
        labels: Default::default(),
        kind: String::new(),
        skipping: None,
    });
    write.hard_state =
        Some(HardState { term: Term::new(1), vote: None, commit: Default::default() });
    write.reset = Some(LogPosition::default());
    store.write(&LogBatch { writes: vec![write] }).unwrap();
    let start = ReplicaStart {
        persisted: store.load(GROUP).unwrap().unwrap(),
        applied: LogPosition::default(),
        durable: None,
        lost: false,
        open_id: OPEN,
        policies: Policies::new(),
    };
    let config = Arc::new(GroupsConfig::new(NodeId::must(1)));
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    let core = GroupCore::open(config, Arc::new(store), &logger, start).unwrap();
    let mut worker = WorkerCore::new(Advertisement::default(), Policies::new());
    worker.handle(Input::Open(Box::new(core)));
    worker.finish_step(None);
    worker
}

/// Proposes for an opening; what the step refuses.
fn propose(worker: &mut WorkerCore, open_id: u64) -> Vec<ProposeError> {
    let (sender, _answer) = shardhost_groups::completion::answer();
    let pending = Pending::new(GROUP, Completion::One(sender), Charge::default(), Instant::now());
    let command = Bytes::from_static(b"x");
    let proposals = vec![Proposal { command, in_term: None, through_barrier: false, pending }];
    worker.handle(Input::Propose { group: GROUP, open_id: Some(open_id), proposals });
    let Effects { failed, .. } = worker.finish_step(None);
    failed.into_iter().map(|(_, error)| error).collect()
}

#[test]
fn a_proposal_for_an_earlier_opening_is_rejected() {
    let mut worker = worker();
    let reason = ProposalRejection::Stopping;
    let expected = ProposeError::Rejected { group: GROUP, reason };
    assert_eq!(propose(&mut worker, OPEN - 1), std::slice::from_ref(&expected));
    // The one for this opening is looked at: the replica has not campaigned yet.
    let [other] = &propose(&mut worker, OPEN)[..] else { panic!("it is refused at once") };
    assert_ne!(*other, expected);
}

#[test]
fn an_order_for_an_earlier_opening_is_dropped() {
    let mut worker = worker();
    for (open_id, taken) in [(OPEN - 1, false), (OPEN, true)] {
        let (completion, mut answer) = shardhost_groups::completion::answer();
        let order = Box::new(Input::TakeSnapshot { group: GROUP, completion });
        worker.handle(Input::Order { group: GROUP, open_id, order });
        worker.finish_step(None);
        let dropped = matches!(answer.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        assert_eq!(dropped, !taken, "for opening {open_id}");
    }
    assert_eq!(worker.counters().stale, 1);
}
