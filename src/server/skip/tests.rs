use std::io::Read;

use shardhost::host::HostConfig;
use shardhost_groups::machine::{ApplyBatch, ApplyFault, SnapshotWriter, StateMachine};
use shardhost_groups::{GroupSpec, LogPosition};
use shardhost_proto::shard_map::TABLE_KIND;
use shardhost_storage::NodeId;
use tempfile::TempDir;

use super::*;
use crate::shards::StateDbOptions;
use shardhost::Shutdown;

const ID: GroupId = GroupId::new(7);
const SOON: std::time::Duration = std::time::Duration::from_secs(30);
/// Entries that stay in the log behind what is applied.
const TRAIL: u64 = 8;

/// Keeps nothing but its position, and cannot bear `poison`.
#[derive(Debug, Default)]
struct Position(Option<LogPosition>);

impl StateMachine for Position {
    fn applied(&self) -> Result<Option<LogPosition>, ApplyFault> {
        Ok(self.0)
    }

    fn apply(&mut self, batch: &mut ApplyBatch<'_>) -> Result<(), ApplyFault> {
        if batch.commands().any(|command| command.data().as_ref() == b"poison") {
            return Err(ApplyFault::new("poison"));
        }
        self.0 = Some(batch.last());
        Ok(())
    }

    fn durable_index(&self) -> Option<LogIndex> {
        self.0.map(|at| at.index)
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotWriter>, ApplyFault> {
        Err(ApplyFault::new("none is taken here"))
    }

    fn restore(&mut self, at: LogPosition, _: &mut dyn Read) -> Result<(), ApplyFault> {
        self.0 = Some(at);
        Ok(())
    }
}

struct Alone {
    _directory: TempDir,
    host: Host,
    state: Arc<StateDb>,
    group: Group,
}

impl Alone {
    async fn start() -> Self {
        let (directory, node) = (TempDir::new().unwrap(), NodeId::must(1));
        let mut config = HostConfig::new(node, directory.path().join("host"));
        (config.groups.log_trail_entries, config.groups.log_keep_entries) = (TRAIL, TRAIL);
        let host = Host::start(config).await.unwrap();
        let state = directory.path().join("state");
        let state = StateDb::open(state, StateDbOptions::small()).unwrap();
        let spec = GroupSpec::new(ID, [node]).kind(TABLE_KIND);
        let group = host.create_group(spec, Position::default()).await.unwrap();
        group.wait_for(|status| status.serving, SOON).await.expect("it leads alone");
        Self { _directory: directory, host, state, group }
    }

    async fn look(&self, index: u64) -> wire::EntryReply {
        self.try_look(index).await.unwrap()
    }

    /// Refused while another step has the group.
    async fn try_look(&self, index: u64) -> Result<wire::EntryReply, Status> {
        let request = wire::LookAtEntryRequest { group: ID.get(), index };
        look(&self.host, &self.state, request).await
    }

    async fn begin(&self, index: u64, entry: &wire::EntryReply) -> Result<(), Status> {
        let wire::EntryReply { term, bytes, checksum, .. } = *entry;
        let request = wire::BeginSkipRequest { group: ID.get(), index, term, bytes, checksum };
        begin(&self.host, &self.state, request).await
    }

    async fn skip(&self, index: u64, entry: &wire::EntryReply) -> Result<(), Status> {
        self.skip_or_enter(index, entry, false).await
    }

    async fn skip_or_enter(
        &self,
        index: u64,
        entry: &wire::EntryReply,
        older: bool,
    ) -> Result<(), Status> {
        let wire::EntryReply { term, bytes, checksum, .. } = *entry;
        let raise_to = entry.current_term + 1;
        let group = ID.get();
        let request =
            wire::SkipEntryRequest { group, index, term, bytes, checksum, raise_to, older };
        skip(&self.host, &self.state, request).await
    }

    async fn open(&self, index: u64, abandoned: bool) -> Result<(), Status> {
        let request = wire::OpenReplicaRequest { group: ID.get(), index, abandoned };
        open(&self.host, &self.state, request).await
    }

    /// Has the state machine fail, and finds the command that did it.
    async fn poisoned(&self) -> (u64, wire::EntryReply) {
        self.group.propose("poison").await.expect_err("its machine fails");
        let failed =
            |status: &shardhost_groups::GroupStatus| matches!(status.role, Role::Failed(_));
        self.group.wait_for(failed, SOON).await.expect("it fails");
        let index = self.group.status().applied.get() + 1;
        (index, self.look(index).await)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_failed_is_open_again_where_a_skip_is_refused() {
    let alone = Alone::start().await;
    let (index, entry) = alone.poisoned().await;
    let refused = alone.skip(index, &entry).await.expect_err("it was not begun");
    assert!(refused.message().contains("--confirm"), "{refused:?}");
    assert!(alone.host.group(ID).is_some(), "it was not closed for that");
    let another = wire::EntryReply { checksum: entry.checksum ^ 1, ..entry };
    alone.begin(index, &another).await.expect_err("another entry");
    assert!(alone.host.group(ID).is_some(), "it is open again");
    assert_eq!(alone.look(index).await.skipping, None);
    alone.host.shutdown(Shutdown::Immediate).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_failed_notes_the_skip_and_is_opened_when_it_is_done() {
    let alone = Alone::start().await;
    let (index, entry) = alone.poisoned().await;
    alone.begin(index, &entry).await.unwrap();
    let noted = alone.look(index).await;
    assert_eq!((noted.skipping, noted.skipping_term), (Some(index), entry.term));
    let order = |index| wire::OpenReplicaRequest { group: ID.get(), index, abandoned: false };
    for index in [0, index - 1, index] {
        let refused = open(&alone.host, &alone.state, order(index)).await;
        assert!(refused.is_err() && alone.host.group(ID).is_none(), "it is not skipped");
    }
    alone.skip(index, &entry).await.unwrap();
    open(&alone.host, &alone.state, order(index)).await.unwrap();
    let open = alone.look(index).await;
    assert!(open.running && open.empty && open.skipping.is_none(), "{open:?}");
    alone.host.shutdown(Shutdown::Immediate).await;
}

/// A state of which no part can be opened for now: all that can be read of it may be recovered later.
fn damaged_state() -> (TempDir, Arc<StateDb>) {
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("cells"), "2\n").unwrap();
    for cell in ["cell-00", "cell-01"] {
        let cell = directory.path().join(cell);
        std::fs::create_dir(&cell).unwrap();
        std::fs::write(cell.join("000007.sst"), "").unwrap();
    }
    let state = StateDb::open(directory.path(), StateDbOptions::small()).unwrap();
    (directory, state)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_skip_begins_where_the_state_is_damaged_and_what_it_applied_is_unknown() {
    let alone = Alone::start().await;
    let (index, entry) = alone.poisoned().await;
    let (_directory, damaged) = damaged_state();
    let wire::EntryReply { term, bytes, checksum, .. } = entry;
    let request = wire::BeginSkipRequest { group: ID.get(), index, term, bytes, checksum };
    begin(&alone.host, &damaged, request).await.expect_err("it may have applied it");
    let request = wire::LookAtEntryRequest { group: ID.get(), index };
    let shown = look(&alone.host, &damaged, request).await.unwrap();
    assert!(shown.closed && shown.applied.is_none() && shown.skipping.is_none(), "{shown:?}");
    alone.host.shutdown(Shutdown::Immediate).await;
}

/// A member with an older entry has nothing to skip, and notes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_only_enters_the_term_says_that_a_skip_left_it_closed() {
    let alone = Alone::start().await;
    let (index, entry) = alone.poisoned().await;
    assert!(!entry.left_closed);
    alone.skip_or_enter(index, &entry, true).await.unwrap();
    let closed = alone.look(index).await;
    assert!(closed.closed && closed.left_closed && closed.skipping.is_none(), "{closed:?}");
    assert_eq!(closed.current_term, entry.current_term + 1);
    alone.open(index, true).await.unwrap();
    let open = alone.look(index).await;
    assert!(open.running && !open.left_closed, "{open:?}");
    alone.host.shutdown(Shutdown::Immediate).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_opening_fails_after_its_skip_says_that_it_is_to_be_opened() {
    let alone = Alone::start().await;
    let (index, entry) = alone.poisoned().await;
    alone.begin(index, &entry).await.unwrap();
    alone.skip(index, &entry).await.unwrap();
    let (_directory, damaged) = damaged_state();
    let request = wire::OpenReplicaRequest { group: ID.get(), index, abandoned: false };
    open(&alone.host, &damaged, request).await.expect_err("it cannot be opened");
    let closed = alone.look(index).await;
    assert!(closed.left_closed && closed.skipping.is_none() && closed.empty, "{closed:?}");
    alone.open(index, false).await.unwrap();
    let open = alone.look(index).await;
    assert!(open.running && !open.left_closed, "{open:?}");
    alone.host.shutdown(Shutdown::Immediate).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_ends_when_its_caller_goes_away_and_leaves_no_replica_behind() {
    let alone = Alone::start().await;
    let (index, entry) = alone.poisoned().await;
    {
        let mut begun = Box::pin(alone.begin(index, &entry));
        assert!(futures::poll!(&mut begun).is_pending());
    }
    let noted = async {
        while !alone.try_look(index).await.is_ok_and(|entry| entry.skipping.is_some()) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, noted).await.expect("it goes to its end");
    let kept_closed = async {
        while !alone.host.parked_replica(ID).is_some_and(|parked| parked.ordered) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, kept_closed).await.expect("it is parked");
    alone.host.shutdown(Shutdown::Immediate).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_step_closed_and_another_one_held_is_opened_by_the_other() {
    let alone = Alone::start().await;
    let (index, entry) = alone.poisoned().await;
    // The caller of one operator's step closed it, and was refused because of another one's.
    assert!(alone.host.close_to_reopen(ID, "an operator's step closed it").await);
    let parked = alone.host.parked_replica(ID).expect("it is shown meanwhile");
    assert!(parked.cause.to_string().contains("an operator's step"), "{parked:?}");
    let another = wire::EntryReply { checksum: entry.checksum ^ 1, ..entry };
    alone.begin(index, &another).await.expect_err("another entry");
    assert!(alone.host.group(ID).is_some(), "it is open again");
    assert!(alone.host.parked_replicas().is_empty());
    alone.host.shutdown(Shutdown::Immediate).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_begins_behind_an_entry_says_so_and_not_what_became_of_it() {
    let alone = Alone::start().await;
    let first = alone.group.propose("first").await.unwrap().index.get();
    let entry = alone.look(first).await;
    assert!(entry.present && !entry.behind);
    let truncated = async {
        while !alone.look(first).await.behind {
            alone.group.propose("more").await.unwrap();
        }
    };
    tokio::time::timeout(SOON, truncated).await.expect("the log is truncated");
    let gone = alone.look(first).await;
    assert!(gone.running && !gone.present, "{gone:?}");
    for refused in [alone.begin(first, &entry).await, alone.skip(first, &entry).await] {
        assert!(refused.expect_err("it applied it").message().contains("runs"));
    }
    alone.host.shutdown(Shutdown::Immediate).await;
}
