//! What a store must do with each write.

use shardhost_storage::{
    Certainty, Doubt, GroupId, GroupWrite, HardState, LogBatch, LogError, LogPosition, LogStore,
    ReplicaId, Term,
};

use super::Subject;
use shardhost_storage::testing::fixtures::{
    GROUP, append, compact, create, create_replica, destroy, entries, hard_state, index, load,
    meta, read, read_at_most, reset, view, write, write_all,
};

/// Nothing is known of any group, also after it was opened again.
pub fn a_new_store_is_empty(subject: &mut dyn Subject) {
    for _ in 0..2 {
        let store = subject.store();
        assert_eq!(store.groups(), Ok(vec![]));
        assert_eq!(store.load(GROUP), Ok(None));
        assert_eq!(store.tombstone(GROUP), Ok(None));
        subject.reopen();
    }
}

/// The first write of a replica makes it known, with an empty log and hard state.
pub fn a_new_replica_starts_with_an_empty_log(subject: &mut dyn Subject) {
    write_all(subject.store(), [create(GROUP)]);
    for _ in 0..2 {
        let store = subject.store();
        let persisted = load(store, GROUP);
        assert_eq!(store.groups(), Ok(vec![GROUP]));
        assert_eq!(persisted.meta, meta(GROUP, 1));
        assert_eq!(persisted.hard_state, HardState::default());
        assert_eq!((persisted.base, persisted.last), Default::default());
        assert_eq!(store.term(GROUP, index(0)), Ok(Term::new(0)));
        assert_eq!(read(store, GROUP, 1, 1), Ok(vec![]));
        subject.reopen();
    }
}

/// Entries, terms and hard state are read as they were written, by this process and the next.
pub fn what_was_written_is_read_again_and_survives(subject: &mut dyn Subject) {
    let first = GroupWrite {
        hard_state: Some(hard_state(2, 1, 3)),
        entries: [entries(1, 1..=2), entries(2, 3..=9)].concat(),
        ..create(GROUP)
    };
    write_all(subject.store(), [first, append(GROUP, 5, 10..=12)]);
    for _ in 0..2 {
        let store = subject.store();
        let persisted = load(store, GROUP);
        assert_eq!(persisted.hard_state, hard_state(2, 1, 3));
        assert_eq!(persisted.last, LogPosition::new(5, 12));
        let written = [entries(1, 1..=2), entries(2, 3..=9), entries(5, 10..=12)].concat();
        assert_eq!(read(store, GROUP, 1, 13), Ok(written));
        let terms = [0, 1, 1, 2, 2, 2, 2, 2, 2, 2, 5, 5, 5].map(Term::new);
        assert_eq!(view(store, GROUP).expect("readable").terms, terms);
        subject.reopen();
    }
}

/// A meta or a hard state replaces the one before and touches nothing else.
pub fn the_parts_of_a_write_replace_what_was_there(subject: &mut dyn Subject) {
    let store = subject.store();
    write_all(store, [create(GROUP), append(GROUP, 1, 1..=3)]);
    let mut changed = meta(GROUP, 1);
    changed.snapshot = Some(LogPosition::new(1, 2));
    changed.labels.clear();
    let with_meta = GroupWrite { meta: Some(changed.clone()), ..GroupWrite::new(GROUP) };
    let with_state = GroupWrite { hard_state: Some(hard_state(4, 2, 1)), ..GroupWrite::new(GROUP) };
    write_all(store, [with_meta, with_state]);
    for _ in 0..2 {
        let persisted = load(subject.store(), GROUP);
        assert_eq!(persisted.meta, changed);
        assert_eq!(persisted.hard_state, hard_state(4, 2, 1));
        assert_eq!(persisted.last, LogPosition::new(1, 3));
        subject.reopen();
    }
}

/// Entries that begin inside what was written at once replace everything from there on.
pub fn an_overwrite_inside_a_run_cuts_what_was_behind(subject: &mut dyn Subject) {
    write_all(subject.store(), [create(GROUP), append(GROUP, 1, 1..=10), append(GROUP, 2, 5..=6)]);
    for _ in 0..2 {
        let store = subject.store();
        let expected = [entries(1, 1..=4), entries(2, 5..=6)].concat();
        assert_eq!(read(store, GROUP, 1, 7), Ok(expected.clone()));
        assert_eq!(read(store, GROUP, 4, 6), Ok(expected[3..5].to_vec()));
        assert_eq!(load(store, GROUP).last, LogPosition::new(2, 6));
        assert!(matches!(read(store, GROUP, 1, 8), Err(LogError::OutOfRange { .. })));
        subject.reopen();
    }
}

/// Entries that begin where an earlier write began replace it and what came behind.
pub fn an_overwrite_of_exactly_one_run_replaces_it(subject: &mut dyn Subject) {
    write_all(
        subject.store(),
        [
            create(GROUP),
            append(GROUP, 1, 1..=4),
            append(GROUP, 1, 5..=8),
            append(GROUP, 1, 9..=12),
            append(GROUP, 2, 5..=5),
        ],
    );
    for _ in 0..2 {
        let expected = [entries(1, 1..=4), entries(2, 5..=5)].concat();
        assert_eq!(view(subject.store(), GROUP).expect("readable").entries, expected);
        subject.reopen();
    }
}

/// Entries from the first index on replace everything.
pub fn an_overwrite_may_replace_the_whole_log(subject: &mut dyn Subject) {
    let old = [append(GROUP, 1, 1..=4), append(GROUP, 1, 5..=8)];
    write_all(subject.store(), [create(GROUP)].into_iter().chain(old));
    write_all(subject.store(), [append(GROUP, 3, 1..=2)]);
    for _ in 0..2 {
        assert_eq!(view(subject.store(), GROUP).expect("readable").entries, entries(3, 1..=2));
        subject.reopen();
    }
}

/// Overwrites of overwrites leave of each what the later ones did not reach.
pub fn overwrites_pile_up(subject: &mut dyn Subject) {
    // Each one cuts into the one before, so that runs overlap on disk.
    let overwrites = (1..=8).map(|term| append(GROUP, term, 2 * term..=2 * term + 20));
    write_all(subject.store(), [create(GROUP), append(GROUP, 1, 1..=1)]);
    write_all(subject.store(), overwrites);
    let expected: Vec<_> = [entries(1, 1..=1)]
        .into_iter()
        .chain((1..8).map(|term| entries(term, 2 * term..=2 * term + 1)))
        .chain([entries(8, 16..=36)])
        .flatten()
        .collect();
    let terms: Vec<_> = expected.iter().map(|entry| entry.term).collect();
    for _ in 0..2 {
        let view = view(subject.store(), GROUP).expect("readable");
        assert_eq!(view.entries, expected);
        assert_eq!(view.terms[1..], terms);
        subject.reopen();
    }
}

/// The terms of all indexes follow the entries, whatever stood there before.
pub fn an_overwrite_moves_where_terms_begin(subject: &mut dyn Subject) {
    // The same term again, but earlier; then an older stretch again, but longer.
    write_all(
        subject.store(),
        [
            create(GROUP),
            append(GROUP, 1, 1..=4),
            append(GROUP, 2, 5..=9),
            append(GROUP, 2, 3..=6),
            append(GROUP, 3, 7..=7),
            append(GROUP, 2, 7..=8),
        ],
    );
    for _ in 0..2 {
        let terms = [0, 1, 1, 2, 2, 2, 2, 2, 2].map(Term::new);
        assert_eq!(view(subject.store(), GROUP).expect("readable").terms, terms);
        subject.reopen();
    }
}

/// Every range can be read, wherever the writes began and ended.
pub fn reads_start_and_end_inside_runs(subject: &mut dyn Subject) {
    write_all(subject.store(), [create(GROUP)]);
    write_all(subject.store(), (0..6).map(|run| append(GROUP, 1, 4 * run + 1..=4 * run + 4)));
    for _ in 0..2 {
        for from in 1..=24 {
            for to in from..=25 {
                let expected = entries(1, from..=to - 1);
                assert_eq!(read(subject.store(), GROUP, from, to), Ok(expected));
            }
        }
        subject.reopen();
    }
}

/// Entries that are not compacted stay; reads of compacted ones fail as such; the term of the base
/// is kept.
pub fn a_compaction_inside_a_run_keeps_the_rest(subject: &mut dyn Subject) {
    write_all(
        subject.store(),
        [
            create(GROUP),
            append(GROUP, 1, 1..=4),
            append(GROUP, 2, 5..=12),
            append(GROUP, 3, 13..=14),
            compact(GROUP, 2, 7),
        ],
    );
    for _ in 0..2 {
        let store = subject.store();
        let persisted = load(store, GROUP);
        assert_eq!(persisted.base, LogPosition::new(2, 7));
        assert_eq!(persisted.last, LogPosition::new(3, 14));
        let expected = [entries(2, 8..=12), entries(3, 13..=14)].concat();
        assert_eq!(read(store, GROUP, 8, 15), Ok(expected));
        assert_eq!(store.term(GROUP, index(7)), Ok(Term::new(2)));
        let base = persisted.base;
        let compacted = LogError::Compacted { group: GROUP, index: index(7), base };
        assert_eq!(read(store, GROUP, 7, 15), Err(compacted));
        let compacted = LogError::Compacted { group: GROUP, index: index(6), base };
        assert_eq!(store.term(GROUP, index(6)), Err(compacted));
        subject.reopen();
    }
}

/// A log may be compacted up to its last entry.
pub fn a_compaction_may_take_everything(subject: &mut dyn Subject) {
    write_all(subject.store(), [create(GROUP), append(GROUP, 2, 1..=9), compact(GROUP, 2, 9)]);
    for _ in 0..2 {
        let persisted = load(subject.store(), GROUP);
        assert_eq!((persisted.base, persisted.last), (LogPosition::new(2, 9), persisted.base));
        assert_eq!(read(subject.store(), GROUP, 10, 10), Ok(vec![]));
        subject.reopen();
    }
}

/// A compaction behind the base changes nothing.
pub fn a_late_compaction_does_nothing(subject: &mut dyn Subject) {
    write_all(subject.store(), [create(GROUP), append(GROUP, 2, 1..=9), compact(GROUP, 2, 5)]);
    // The terms of what is gone are not known any more, so that a wrong one is not noticed.
    write_all(subject.store(), [compact(GROUP, 2, 5), compact(GROUP, 2, 3), compact(GROUP, 9, 1)]);
    for _ in 0..2 {
        assert_eq!(load(subject.store(), GROUP).base, LogPosition::new(2, 5));
        assert_eq!(read(subject.store(), GROUP, 6, 10), Ok(entries(2, 6..=9)));
        subject.reopen();
    }
}

/// Entries follow the last one, also when it was compacted.
pub fn appends_continue_after_a_compaction(subject: &mut dyn Subject) {
    write_all(
        subject.store(),
        [
            create(GROUP),
            append(GROUP, 1, 1..=9),
            compact(GROUP, 1, 9),
            append(GROUP, 1, 10..=12),
            compact(GROUP, 1, 11),
            append(GROUP, 2, 12..=13),
        ],
    );
    for _ in 0..2 {
        assert_eq!(view(subject.store(), GROUP).expect("readable").entries, entries(2, 12..=13));
        subject.reopen();
    }
}

/// A reset starts the log anew at another position and keeps the hard state.
pub fn a_reset_drops_all_entries(subject: &mut dyn Subject) {
    let state = GroupWrite { hard_state: Some(hard_state(3, 2, 5)), ..GroupWrite::new(GROUP) };
    write_all(
        subject.store(),
        [create(GROUP), append(GROUP, 1, 1..=9), state, reset(GROUP, 3, 100)],
    );
    for _ in 0..2 {
        let persisted = load(subject.store(), GROUP);
        assert_eq!((persisted.base, persisted.last), (LogPosition::new(3, 100), persisted.base));
        assert_eq!(persisted.hard_state, hard_state(3, 2, 5), "the hard state is kept");
        subject.reopen();
    }
    write_all(subject.store(), [append(GROUP, 3, 101..=103)]);
    for _ in 0..2 {
        assert_eq!(view(subject.store(), GROUP).expect("readable").entries, entries(3, 101..=103));
        subject.reopen();
    }
}

/// A reset to where the log begins empties it.
pub fn a_reset_to_the_same_base_drops_all_entries(subject: &mut dyn Subject) {
    write_all(subject.store(), [create(GROUP), append(GROUP, 1, 1..=9), compact(GROUP, 1, 4)]);
    write_all(subject.store(), [reset(GROUP, 1, 4)]);
    for _ in 0..2 {
        let persisted = load(subject.store(), GROUP);
        assert_eq!((persisted.base, persisted.last), (LogPosition::new(1, 4), persisted.base));
        subject.reopen();
    }
}

/// Entries in the write of a reset follow the new base.
pub fn a_reset_and_entries_take_effect_in_order(subject: &mut dyn Subject) {
    let both = GroupWrite { entries: entries(5, 3..=4), ..reset(GROUP, 4, 2) };
    write_all(subject.store(), [create(GROUP), append(GROUP, 1, 1..=9), both]);
    for _ in 0..2 {
        let view = view(subject.store(), GROUP).expect("readable");
        assert_eq!(view.entries, entries(5, 3..=4));
        assert_eq!(view.terms, [4, 5, 5].map(Term::new));
        subject.reopen();
    }
}

/// A write may append entries and compact some of them.
pub fn entries_and_their_compaction_fit_in_one_write(subject: &mut dyn Subject) {
    let beyond = GroupWrite {
        entries: entries(2, 6..=20),
        compact: Some(LogPosition::new(2, 15)),
        ..GroupWrite::new(GROUP)
    };
    write_all(subject.store(), [create(GROUP), append(GROUP, 1, 1..=9), beyond]);
    for _ in 0..2 {
        let view = view(subject.store(), GROUP).expect("readable");
        assert_eq!(view.entries, entries(2, 16..=20));
        assert_eq!(view.persisted.expect("a replica").base, LogPosition::new(2, 15));
        subject.reopen();
    }
}

/// Of a destroyed replica nothing is left but the number that is not used again.
pub fn a_destroyed_replica_leaves_a_tombstone(subject: &mut dyn Subject) {
    write_all(subject.store(), [create(GROUP), append(GROUP, 1, 1..=9), destroy(GROUP, 1)]);
    for _ in 0..2 {
        let store = subject.store();
        assert_eq!(store.groups(), Ok(vec![]));
        assert_eq!(store.load(GROUP), Ok(None));
        assert_eq!(store.tombstone(GROUP), Ok(ReplicaId::new(1)));
        assert_eq!(read(store, GROUP, 1, 2), Err(LogError::UnknownGroup { group: GROUP }));
        subject.reopen();
    }
}

/// The largest destroyed replica id is remembered, whether the replica was here or not.
pub fn a_tombstone_needs_no_replica_and_never_shrinks(subject: &mut dyn Subject) {
    write_all(subject.store(), [destroy(GROUP, 5), destroy(GROUP, 2)]);
    for _ in 0..2 {
        assert_eq!(subject.store().tombstone(GROUP), Ok(ReplicaId::new(5)));
        subject.reopen();
    }
    write_all(subject.store(), [create_replica(GROUP, 6), destroy(GROUP, 6)]);
    assert_eq!(subject.store().tombstone(GROUP), Ok(ReplicaId::new(6)));
}

/// One batch may destroy a replica and create the next.
pub fn a_new_replica_may_follow_in_the_same_batch(subject: &mut dyn Subject) {
    write_all(subject.store(), [create(GROUP), append(GROUP, 1, 1..=9)]);
    let again = GroupWrite { entries: entries(2, 1..=2), ..create_replica(GROUP, 2) };
    assert_eq!(write(subject.store(), [destroy(GROUP, 1), again]), Ok(()));
    for _ in 0..2 {
        let view = view(subject.store(), GROUP).expect("readable");
        assert_eq!(view.entries, entries(2, 1..=2));
        assert_eq!(view.tombstone, ReplicaId::new(1));
        assert_eq!(view.persisted.expect("a replica").meta, meta(GROUP, 2));
        subject.reopen();
    }
}

/// Several writes of one group in a batch count as if they had come one by one.
pub fn merged_writes_of_a_group_take_effect_in_order(subject: &mut dyn Subject) {
    let other = GroupId::new(8);
    let merged = [
        create(GROUP),
        append(GROUP, 1, 1..=5),
        create(other),
        append(GROUP, 1, 6..=9),
        append(GROUP, 2, 4..=7),
        append(other, 9, 1..=1),
        compact(GROUP, 1, 2),
        append(GROUP, 3, 7..=8),
        GroupWrite { hard_state: Some(hard_state(3, 0, 2)), ..GroupWrite::new(GROUP) },
    ];
    assert_eq!(write(subject.store(), merged), Ok(()));
    for _ in 0..2 {
        let seen = view(subject.store(), GROUP).expect("readable");
        let expected = [entries(1, 3..=3), entries(2, 4..=6), entries(3, 7..=8)].concat();
        assert_eq!(seen.entries, expected);
        assert_eq!(seen.persisted.expect("a replica").hard_state, hard_state(3, 0, 2));
        assert_eq!(view(subject.store(), other).expect("readable").entries, entries(9, 1..=1));
        subject.reopen();
    }
}

/// A read is bounded in bytes and makes progress all the same.
pub fn max_bytes_counts_payload_but_never_stops_before_the_first(subject: &mut dyn Subject) {
    let store = subject.store();
    write_all(store, [create(GROUP), append(GROUP, 1, 1..=4), append(GROUP, 1, 5..=9)]);
    let all = entries(1, 1..=9);
    for from in 1..=9usize {
        for max_bytes in 0..60 {
            let sizes = all[from - 1..].iter().scan(0, |sum, entry| {
                *sum += entry.payload_bytes();
                Some(*sum)
            });
            let fitting = sizes.take_while(|sum| *sum <= max_bytes).count().max(1);
            let found = read_at_most(store, GROUP, from as u64, 10, max_bytes);
            assert_eq!(found, Ok(all[from - 1..][..fitting].to_vec()), "{max_bytes} bytes");
        }
    }
}

/// Whatever is done to a group leaves those with neighbouring numbers alone.
pub fn groups_at_the_borders_of_their_keys_do_not_touch(subject: &mut dyn Subject) {
    let borders = [0, 1, 2, 254, 255, 256, 257, u64::MAX - 1, u64::MAX].map(GroupId::new);
    for group in borders {
        write_all(subject.store(), [create(group), append(group, group.get() % 1000 + 1, 1..=9)]);
    }
    // What destroys most: each border group in turn, and its neighbours stay as they are.
    for group in [0, 1, 255, 256, u64::MAX].map(GroupId::new) {
        let others = || borders.into_iter().filter(|other| *other != group);
        let views = |store: &dyn LogStore| -> Vec<_> {
            others().map(|other| view(store, other).expect("readable")).collect()
        };
        let before = views(subject.store());
        let term = group.get() % 1000 + 1;
        write_all(
            subject.store(),
            [compact(group, term, 5), append(group, term + 1, 7..=8), reset(group, 1, 50)],
        );
        assert_eq!(views(subject.store()), before, "{group:?}");
        write_all(subject.store(), [destroy(group, 1)]);
        subject.reopen();
        assert_eq!(views(subject.store()), before, "{group:?}");
        write_all(subject.store(), [create_replica(group, 2)]);
    }
    assert_eq!(subject.store().groups(), Ok(borders.to_vec()));
}

/// Twenty thousand entries in one write are as good as many small ones.
pub fn large_runs_are_read_whole_and_in_part(subject: &mut dyn Subject) {
    // Larger than any run: it becomes several, within one write.
    write_all(subject.store(), [create(GROUP), append(GROUP, 1, 1..=20_000)]);
    write_all(subject.store(), [compact(GROUP, 1, 9_000), append(GROUP, 2, 15_000..=15_001)]);
    for _ in 0..2 {
        let store = subject.store();
        let expected = [entries(1, 9_001..=14_999), entries(2, 15_000..=15_001)].concat();
        assert_eq!(read(store, GROUP, 9_001, 15_002), Ok(expected));
        assert_eq!(read(store, GROUP, 12_345, 12_346), Ok(entries(1, 12_345..=12_345)));
        subject.reopen();
    }
}

/// A doubt about what a log lost stays until a write settles it, and goes with the replica.
pub fn what_is_in_doubt_stays_so_until_it_is_settled(subject: &mut dyn Subject) {
    let with =
        |group, certainty| GroupWrite { certainty: Some(certainty), ..GroupWrite::new(group) };
    let doubt = Certainty::InDoubt(Doubt::RolledBack);
    let others = [GroupId::new(1), GroupId::new(2)];
    write_all(subject.store(), [create(GROUP), create(others[0]), create(others[1])]);
    assert_eq!(load(subject.store(), GROUP).certainty, Certainty::Sure);
    write_all(
        subject.store(),
        [with(GROUP, doubt), with(others[0], doubt), with(others[1], doubt)],
    );
    write_all(subject.store(), [append(GROUP, 1, 1..=3), with(others[0], Certainty::Sure)]);
    write_all(subject.store(), [destroy(others[1], 1), create_replica(others[1], 2)]);
    for _ in 0..2 {
        let found = [GROUP, others[0], others[1]].map(|g| load(subject.store(), g).certainty);
        assert_eq!(found, [doubt, Certainty::Sure, Certainty::Sure]);
        subject.reopen();
    }
}

/// That a state differs is taken back by nothing but the end of the replica.
pub fn what_was_found_to_differ_stays_so(subject: &mut dyn Subject) {
    let with = |certainty| GroupWrite { certainty: Some(certainty), ..GroupWrite::new(GROUP) };
    write_all(subject.store(), [create(GROUP), with(Certainty::Differs)]);
    for said in [Certainty::Sure, Certainty::InDoubt(Doubt::RolledBack)] {
        write_all(subject.store(), [with(said), append(GROUP, 1, 1..=3)]);
        assert_eq!(load(subject.store(), GROUP).certainty, Certainty::Differs);
        subject.reopen();
        assert_eq!(load(subject.store(), GROUP).certainty, Certainty::Differs);
    }
    write_all(subject.store(), [destroy(GROUP, 1), create_replica(GROUP, 2)]);
    for _ in 0..2 {
        assert_eq!(load(subject.store(), GROUP).certainty, Certainty::Sure);
        subject.reopen();
    }
}

/// A batch without writes succeeds.
pub fn an_empty_batch_is_fine(subject: &mut dyn Subject) {
    assert_eq!(subject.store().write(&LogBatch::default()), Ok(()));
}

/// The counters count batches, writes, entries and bytes.
pub fn the_counters_count(subject: &mut dyn Subject) {
    let store = subject.store();
    let written = entries(1, 1..=3);
    let bytes: u64 = written.iter().map(|entry| entry.payload_bytes()).sum();
    write_all(store, [create(GROUP)]);
    assert_eq!(write(store, [append(GROUP, 1, 1..=3), create(GroupId::new(8))]), Ok(()));
    let stats = store.stats();
    assert_eq!((stats.writes, stats.group_writes), (2, 3));
    assert_eq!((stats.entries, stats.bytes), (3, bytes));
}

/// A store has the number that it was given, also after a restart, and it is no other's.
pub fn a_store_keeps_its_number_for_ever(subject: &mut dyn Subject) {
    let number = subject.store().id();
    subject.reopen();
    assert_eq!(subject.store().id(), number);
    assert_ne!(number, shardhost_storage::MemoryStore::new().id());
}
