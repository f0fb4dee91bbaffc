//! Notices of removal that come late.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use shardhost_groups::runtime::MachineFactory;
use shardhost_groups::testing::alone::{Alone, Stateless};
use shardhost_groups::transport::Inbound;
use shardhost_groups::{GroupSpec, Groups, GroupsBuilder, GroupsConfig};
use shardhost_proto::peer::{CreateRequest, GroupMessage, MessageKind};
use shardhost_storage::convert::membership_to_message;
use shardhost_storage::{
    Genesis, GroupId, GroupMeta, LogBatch, LogError, LogIndex, LogStore, MemorySnapshots,
    MemoryStore, NodeId, ReplicaId,
};

const SOON: Duration = Duration::from_secs(5);
const ID: GroupId = GroupId::new(7);

/// Holds a thread that comes through while it is shut.
#[derive(Debug, Default)]
struct Gate {
    shut: Mutex<bool>,
    opened: Condvar,
    waits: AtomicBool,
}
impl Gate {
    fn set(&self, shut: bool) {
        *self.shut.lock().unwrap() = shut;
        self.opened.notify_all();
    }
    fn pass(&self) {
        let mut shut = self.shut.lock().unwrap();
        while *shut {
            self.waits.store(true, Ordering::SeqCst);
            shut = self.opened.wait(shut).unwrap();
        }
    }
    fn until_a_thread_waits(&self, what: &str) {
        let deadline = Instant::now() + SOON;
        while !self.waits.load(Ordering::SeqCst) {
            assert!(Instant::now() < deadline, "{what}");
            std::thread::yield_now();
        }
    }
}

/// A log on a disk that is slow at two places.
#[derive(Debug, Default)]
struct Slow {
    below: MemoryStore,
    /// Before a destruction is written.
    destroys: Gate,
    /// After a worker read what a replica knows of itself.
    reads: Gate,
}
impl shardhost_storage::LogLayer for Slow {
    fn below(&self) -> &dyn LogStore {
        &self.below
    }
    fn meta(&self, group: GroupId) -> Result<Option<GroupMeta>, LogError> {
        let meta = self.below.meta(group);
        if std::thread::current().name().is_some_and(|name| name.contains("worker")) {
            self.reads.pass();
        }
        meta
    }
    fn write(&self, batch: &LogBatch) -> Result<(), LogError> {
        if batch.writes.iter().any(|write| write.destroy.is_some()) {
            self.destroys.pass();
        }
        self.below.write(batch)
    }
}

/// A member reports that replica 1 on node 1 was removed.
fn notice(meta: &GroupMeta) -> GroupMessage {
    let mut membership = meta.membership.clone();
    membership.newest_replica = Some(ReplicaId::must(3));
    membership.members.remove(&ReplicaId::must(1));
    membership.config_index = LogIndex::new(9);
    let mut message =
        GroupMessage { group: ID.get(), from_replica: 2, to_replica: 1, ..Default::default() };
    message.kind = MessageKind::Removed.into();
    message.genesis = membership.genesis.map_or(0, Genesis::get);
    message.term = 5;
    message.commit = 9;
    message.commit_term = 5;
    let membership = Some(membership_to_message(&membership));
    message.create_request = Some(CreateRequest { membership, ..CreateRequest::default() });
    message
}

/// Two notices of the removal of one replica: the second one is looked at while the destruction that the
/// first one ordered ends, and the next replica of the group is created.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_notice_for_a_replica_leaves_the_next_one_alone() {
    let log = Arc::new(Slow::default());
    let mut config = GroupsConfig::new(NodeId::must(1));
    config.tick = Duration::from_millis(2);
    let groups: Groups = GroupsBuilder::new(config)
        .start(log.clone(), Arc::new(MemorySnapshots::new()), Arc::new(Alone))
        .unwrap();
    let spec = GroupSpec::new(ID, [1, 2, 3].map(NodeId::must));
    groups.create(spec.clone(), Box::new(Stateless)).unwrap();
    groups.close(ID).await;
    let none: MachineFactory = Box::new(|| Err("of no known kind".to_owned()));
    groups.open_with(ID, none).expect_err("it is parked");
    let meta = log.below.meta(ID).unwrap().unwrap();

    log.destroys.set(true);
    groups.inbound().deliver(NodeId::must(2), vec![notice(&meta)]);
    log.destroys.until_a_thread_waits("the first notice destroys it");
    log.reads.set(true);
    groups.inbound().deliver(NodeId::must(2), vec![notice(&meta)]);
    log.reads.until_a_thread_waits("the second notice is looked at");
    log.destroys.set(false);
    let next = groups.clone();
    let created = tokio::task::spawn_blocking(move || {
        next.create(spec.incarnation(1), Box::new(Stateless)).unwrap()
    });
    created.await.unwrap();
    log.reads.set(false);
    // What the second notice ordered is done before what comes later through the same threads.
    for other in [8, 9] {
        let alone = GroupSpec::new(GroupId::new(other), [NodeId::must(1)]);
        let other = groups.create(alone, Box::new(Stateless)).unwrap();
        other.wait_for(|status| status.serving, SOON).await.expect("it serves");
    }
    assert!(groups.is_stored(ID).unwrap() && groups.group(ID).is_some(), "it is open");
}
