//! Random batches: RocksDB's store must equal the store in memory at every step.
//!
//! The two share the check of the rules and nothing of how they keep entries.

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;
use proptest::sample::Index;
use rocksdb::{DB, IteratorMode, Options};
use shardhost_storage::{
    GroupId, GroupWrite, LogBatch, LogPosition, LogStore, MemoryStore, ReplicaId, RocksOptions,
    RocksStore,
};
use tempfile::TempDir;

use crate::fixtures::{
    create_replica, entry, hard_state, identity, index, read_at_most, small, view,
};
use crate::images::image;

const GROUPS: [u64; 5] = [0, 1, 255, 256, u64::MAX];

/// What to do next, in numbers that are fitted to what the store holds when it is done.
#[derive(Clone, Debug)]
enum Step {
    Write(Vec<(Index, Change)>),
    Read {
        group: Index,
        from: Index,
        to: Index,
        max_bytes: u64,
    },
    Reopen,
    /// Opens a copy of the directory as a crash would leave it.
    Crash,
}

#[derive(Clone, Debug)]
enum Change {
    Append {
        count: u8,
        term: u8,
    },
    Overwrite {
        from: Index,
        count: u8,
        term: u8,
    },
    Compact {
        to: Index,
    },
    AppendAndCompact {
        count: u8,
        to: Index,
    },
    Reset {
        to: u8,
        count: u8,
    },
    HardState {
        term: u8,
        vote: u8,
        commit: u8,
    },
    Destroy,
    /// Most likely against the rules.
    Wild {
        first: u8,
        compact: u8,
    },
}

fn change() -> impl Strategy<Value = Change> {
    let small = || 1..12u8;
    prop_oneof![
        6 => (small(), small()).prop_map(|(count, term)| Change::Append { count, term }),
        5 => (any::<Index>(), small(), small())
            .prop_map(|(from, count, term)| Change::Overwrite { from, count, term }),
        4 => any::<Index>().prop_map(|to| Change::Compact { to }),
        2 => (small(), any::<Index>()).prop_map(|(count, to)| Change::AppendAndCompact { count, to }),
        1 => (any::<u8>(), 0..5u8).prop_map(|(to, count)| Change::Reset { to, count }),
        2 => (any::<u8>(), 0..4u8, any::<u8>())
            .prop_map(|(term, vote, commit)| Change::HardState { term, vote, commit }),
        1 => Just(Change::Destroy),
        1 => (any::<u8>(), any::<u8>()).prop_map(|(first, compact)| Change::Wild { first, compact }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let writes = proptest::collection::vec((any::<Index>(), change()), 1..6);
    prop_oneof![
        20 => writes.prop_map(Step::Write),
        6 => (any::<Index>(), any::<Index>(), any::<Index>(), 0..200u64)
            .prop_map(|(group, from, to, max_bytes)| Step::Read { group, from, to, max_bytes }),
        1 => Just(Step::Reopen),
        1 => Just(Step::Crash),
    ]
}

/// Both stores.
struct Pair {
    memory: MemoryStore,
    rocks: Option<RocksStore>,
    directory: TempDir,
}

impl Pair {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut pair = Self { memory: MemoryStore::new(), rocks: None, directory };
        pair.open();
        pair
    }

    fn open(&mut self) {
        // Runs of a few entries, so that one write makes several.
        let options = RocksOptions { run_bytes: 24, high_water_bytes: 2000, ..small() };
        let opened = RocksStore::open(self.directory.path(), identity(), options);
        self.rocks = Some(opened.expect("a store of ours"));
    }

    fn rocks(&self) -> &RocksStore {
        self.rocks.as_ref().expect("open")
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Write(changes) => self.write(changes),
            Step::Read { group, from, to, max_bytes } => self.read(*group, *from, *to, *max_bytes),
            Step::Reopen => {
                self.rocks = None;
                self.open();
            }
            Step::Crash => self.crash(),
        }
        self.compare();
    }

    fn crash(&mut self) {
        let image = image(self.directory.path());
        self.rocks = None;
        self.directory = image;
        self.open();
    }

    /// The writes are made to fit a copy of the store that already took the ones before.
    fn write(&self, changes: &[(Index, Change)]) {
        let scratch = MemoryStore::new();
        for group in GROUPS.map(GroupId::new) {
            replay(&self.memory, &scratch, group);
        }
        let mut batch = LogBatch::default();
        for (group, change) in changes {
            let write = fit(&scratch, GroupId::new(*group.get(&GROUPS)), change);
            let taken = scratch.write(&LogBatch { writes: vec![write.clone()] });
            batch.writes.push(write);
            if taken.is_err() {
                break;
            }
        }
        assert_eq!(self.memory.write(&batch), self.rocks().write(&batch), "{batch:?}");
    }

    fn read(&self, group: Index, from: Index, to: Index, max_bytes: u64) {
        let group = GroupId::new(*group.get(&GROUPS));
        let last = self.memory.load(group).expect("readable").map_or(0, |p| p.last.index.get());
        let (from, to) = (from.index(last as usize + 3) as u64, to.index(last as usize + 4) as u64);
        let read = |store| read_at_most(store, group, from, to, max_bytes);
        assert_eq!(read(&self.memory as &dyn LogStore), read(self.rocks()));
    }

    /// Unreachable entries must not stay on disk.
    fn check_nothing_stale_is_left(&mut self) {
        self.rocks = None;
        for (group, runs) in runs_on_disk(self.directory.path()) {
            let held = self.memory.load(group).expect("readable").expect("a replica with runs");
            let (base, last) = (held.base.index.get(), held.last.index.get());
            assert!(runs.windows(2).all(|pair| pair[1] > base + 1), "{group:?} {held:?} {runs:?}");
            assert!(runs.iter().all(|run| base < last && *run <= last), "{held:?} {runs:?}");
        }
        self.open();
    }

    fn compare(&self) {
        assert_eq!(self.memory.groups(), self.rocks().groups());
        for group in GROUPS.map(GroupId::new) {
            assert_eq!(view(&self.memory, group), view(self.rocks(), group), "{group:?}");
        }
    }
}

/// The first indexes of the runs in the database, by group.
fn runs_on_disk(directory: &Path) -> BTreeMap<GroupId, Vec<u64>> {
    let families = ["default", "replicas", "log"];
    let database = DB::open_cf(&Options::default(), directory.join("db"), families);
    let database = database.expect("a database");
    let log = database.cf_handle("log").expect("a family");
    let mut runs: BTreeMap<_, Vec<u64>> = BTreeMap::new();
    for item in database.iterator_cf(log, IteratorMode::Start) {
        let (key, _) = item.expect("readable");
        let number = |at| u64::from_be_bytes(key[at..at + 8].try_into().expect("a number"));
        runs.entry(GroupId::new(number(0))).or_default().push(number(8));
    }
    runs
}

/// Copies what `from` holds of a group.
fn replay(from: &MemoryStore, to: &MemoryStore, group: GroupId) {
    let seen = view(from, group).expect("readable");
    let mut writes = Vec::new();
    if let Some(tombstone) = seen.tombstone {
        writes.push(GroupWrite { destroy: Some(tombstone), ..GroupWrite::new(group) });
    }
    if let Some(persisted) = seen.persisted {
        writes.push(GroupWrite {
            meta: Some(persisted.meta),
            reset: Some(persisted.base),
            entries: seen.entries,
            ..GroupWrite::new(group)
        });
    }
    to.write(&LogBatch { writes }).expect("a copy");
}

fn fit(store: &MemoryStore, group: GroupId, change: &Change) -> GroupWrite {
    let Some(held) = store.load(group).expect("readable") else {
        let tombstone = store.tombstone(group).expect("readable");
        return create_replica(group, tombstone.map_or(1, |id| id.get() + 1));
    };
    let (base, last) = (held.base.index.get(), held.last.index.get());
    let run = |first: u64, count: u8, term: u8| -> Vec<_> {
        (first..first + u64::from(count)).map(|at| entry(term.into(), at)).collect()
    };
    let position = |at| {
        let term = store.term(group, index(at)).expect("an entry");
        Some(LogPosition { term, index: index(at) })
    };
    let among = |at: &Index| base + at.index((last - base) as usize + 1) as u64;
    let none = GroupWrite::new(group);
    match change {
        Change::Append { count, term } => {
            GroupWrite { entries: run(last + 1, *count, *term), ..none }
        }
        Change::Overwrite { from, count, term } => {
            GroupWrite { entries: run(among(from) + 1, *count, *term), ..none }
        }
        Change::Compact { to } => GroupWrite { compact: position(among(to)), ..none },
        Change::AppendAndCompact { count, to } => {
            let entries = run(last + 1, *count, 9);
            let at = to.get(&entries);
            let compact = Some(LogPosition { term: at.term, index: at.index });
            GroupWrite { compact, entries, ..none }
        }
        Change::Reset { to, count } => {
            let (reset, entries) =
                (LogPosition::new(3, u64::from(*to)), run(u64::from(*to) + 1, *count, 4));
            GroupWrite { reset: Some(reset), entries, ..none }
        }
        Change::HardState { term, vote, commit } => {
            let state = hard_state(u64::from(*term), u64::from(*vote), u64::from(*commit));
            GroupWrite { hard_state: Some(state), ..none }
        }
        Change::Destroy => GroupWrite { destroy: Some(held.meta.replica), ..none },
        Change::Wild { first, compact } => GroupWrite {
            entries: run(u64::from(*first), 2, 5),
            compact: Some(LogPosition::new(5, u64::from(*compact))),
            destroy: ReplicaId::new(u64::from(*first % 2)),
            ..none
        },
    }
}

/// Each case opens a database several times, so that there are fewer of them than usual.
fn config() -> ProptestConfig {
    let default = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => default,
        None => ProptestConfig { cases: 32, ..default },
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn random_batches_leave_both_stores_alike(steps in proptest::collection::vec(step(), 1..80)) {
        let mut pair = Pair::new();
        for step in &steps {
            pair.step(step);
        }
        pair.check_nothing_stale_is_left();
        pair.step(&Step::Reopen);
        pair.step(&Step::Crash);
    }
}
