//! What a store must refuse, in writes and in reads.

use shardhost_storage::{GroupId, GroupWrite, LogError, LogPosition, Member, ReplicaId};

use super::Subject;
use shardhost_storage::testing::fixtures::{
    GROUP, append, compact, create, create_replica, destroy, entries, hard_state, index, load,
    meta, read, reset, view, write, write_all,
};

fn refused(result: Result<(), LogError>) -> String {
    match result {
        Err(LogError::Invalid { message, .. }) => message,
        other => panic!("should have been refused: {other:?}"),
    }
}

/// A replica with the number of a destroyed one is refused.
pub fn a_replica_id_is_never_used_again(subject: &mut dyn Subject) {
    write_all(subject.store(), [create_replica(GROUP, 3), destroy(GROUP, 3)]);
    for _ in 0..2 {
        for replica in [1, 2, 3] {
            refused(write(subject.store(), [create_replica(GROUP, replica)]));
        }
        subject.reopen();
    }
    write_all(subject.store(), [create_replica(GROUP, 4)]);
    for _ in 0..2 {
        assert_eq!(load(subject.store(), GROUP).meta.replica, ReplicaId::must(4));
        assert_eq!(load(subject.store(), GROUP).last, LogPosition::default());
        subject.reopen();
    }
}

/// Nothing of a refused batch is written, and the store continues.
pub fn a_batch_that_breaks_a_rule_leaves_no_trace(subject: &mut dyn Subject) {
    let other = GroupId::new(8);
    write_all(subject.store(), [create(GROUP), append(GROUP, 1, 1..=5)]);
    let before = view(subject.store(), GROUP).expect("readable");
    let stats = subject.store().stats();
    let bad = [
        create(other),
        append(GROUP, 2, 3..=9),
        compact(GROUP, 1, 2),
        destroy(GROUP, 1),
        append(GROUP, 2, 3..=9),
    ];
    refused(write(subject.store(), bad));
    assert_eq!(subject.store().stats(), stats);
    for _ in 0..2 {
        assert_eq!(subject.store().groups(), Ok(vec![GROUP]));
        assert_eq!(view(subject.store(), GROUP).as_ref(), Ok(&before));
        subject.reopen();
    }
    // The store continues.
    write_all(subject.store(), [append(GROUP, 1, 6..=6)]);
}

/// A replica of which nothing is known cannot be written to.
pub fn the_first_write_must_carry_the_meta(subject: &mut dyn Subject) {
    let store = subject.store();
    refused(write(store, [append(GROUP, 1, 1..=1)]));
    refused(write(store, [reset(GROUP, 1, 1)]));
    refused(write(store, [GroupWrite::new(GROUP)]));
    refused(write(store, [create(GROUP), destroy(GROUP, 1), append(GROUP, 1, 1..=1)]));
}

/// A meta of another group or replica is refused, and one whose members make no sense.
pub fn a_meta_must_fit_its_replica(subject: &mut dyn Subject) {
    let store = subject.store();
    let wrong_group = GroupWrite { meta: Some(meta(GroupId::new(8), 1)), ..GroupWrite::new(GROUP) };
    refused(write(store, [wrong_group]));
    let mut partless = create(GROUP);
    let mut two_parts = create(GROUP);
    for (write, voter) in [(&mut partless, false), (&mut two_parts, true)] {
        let members = &mut write.meta.as_mut().expect("a meta").membership.members;
        for member in members.values_mut() {
            *member = Member { voter, learner: voter, ..*member };
        }
    }
    refused(write(store, [partless]));
    refused(write(store, [two_parts]));
    write_all(store, [create_replica(GROUP, 2)]);
    refused(write(store, [create_replica(GROUP, 3)]));
    refused(write(store, [create_replica(GROUP, 1)]));
    refused(write(store, [destroy(GROUP, 1)]));
    refused(write(store, [destroy(GROUP, 3)]));
    let busy = GroupWrite { hard_state: Some(hard_state(1, 1, 1)), ..destroy(GROUP, 2) };
    refused(write(store, [busy]));
    assert_eq!(load(store, GROUP).meta, meta(GROUP, 2));
}

/// Entries with gaps, or apart from the log, are refused.
pub fn entries_must_be_contiguous_and_attached(subject: &mut dyn Subject) {
    let store = subject.store();
    write_all(store, [create(GROUP)]);
    refused(write(store, [append(GROUP, 1, 2..=2)]));
    refused(write(store, [append(GROUP, 1, 0..=2)]));
    write_all(store, [append(GROUP, 1, 1..=5), compact(GROUP, 1, 3)]);
    refused(write(store, [append(GROUP, 2, 3..=3)]));
    refused(write(store, [append(GROUP, 2, 7..=7)]));
    refused(write(store, [append(GROUP, 1, 6..=8), append(GROUP, 1, 10..=10)]));
    let with = |entries| GroupWrite { entries, ..GroupWrite::new(GROUP) };
    refused(write(store, [with([entries(1, 6..=6), entries(1, 8..=8)].concat())]));
    refused(write(store, [with([entries(1, 6..=6), entries(1, 6..=6)].concat())]));
    refused(write(store, [with([entries(1, 7..=7), entries(1, 6..=6)].concat())]));
    assert_eq!(view(store, GROUP).expect("readable").entries, entries(1, 4..=5));
}

/// A compaction beyond the log, or with another term than the entry's, is refused.
pub fn a_compaction_must_name_an_entry(subject: &mut dyn Subject) {
    let store = subject.store();
    write_all(store, [create(GROUP), append(GROUP, 2, 1..=5)]);
    refused(write(store, [compact(GROUP, 2, 6)]));
    refused(write(store, [compact(GROUP, 1, 5)]));
    refused(write(store, [append(GROUP, 3, 4..=4), compact(GROUP, 2, 4)]));
    refused(write(store, [append(GROUP, 3, 4..=4), compact(GROUP, 2, 5)]));
    assert_eq!(write(store, [append(GROUP, 3, 4..=4), compact(GROUP, 3, 4)]), Ok(()));
}

/// The last index of all cannot be written: one more must always exist.
pub fn no_log_reaches_the_last_index(subject: &mut dyn Subject) {
    let top = u64::MAX;
    write_all(subject.store(), [create(GROUP)]);
    refused(write(subject.store(), [reset(GROUP, 1, top)]));
    write_all(subject.store(), [reset(GROUP, 1, top - 3), append(GROUP, 1, top - 2..=top - 1)]);
    refused(write(subject.store(), [append(GROUP, 1, top..=top)]));
    refused(write(subject.store(), [append(GROUP, 1, top - 1..=top)]));
    for _ in 0..2 {
        let expected = entries(1, top - 2..=top - 1);
        assert_eq!(read(subject.store(), GROUP, top - 2, top), Ok(expected));
        subject.reopen();
    }
}

/// The error of a read before the base or behind the last entry distinguishes the two.
pub fn reads_outside_the_log_say_so(subject: &mut dyn Subject) {
    let store = subject.store();
    write_all(store, [create(GROUP), append(GROUP, 2, 1..=9), compact(GROUP, 2, 4)]);
    let compacted =
        |at| LogError::Compacted { group: GROUP, index: index(at), base: LogPosition::new(2, 4) };
    let beyond =
        |at| LogError::OutOfRange { group: GROUP, index: index(at), last: LogPosition::new(2, 9) };
    assert_eq!(read(store, GROUP, 4, 6), Err(compacted(4)));
    assert_eq!(read(store, GROUP, 0, 20), Err(compacted(0)));
    assert_eq!(read(store, GROUP, 5, 11), Err(beyond(11)));
    assert_eq!(read(store, GROUP, 5, u64::MAX), Err(beyond(u64::MAX)));
    assert_eq!(read(store, GROUP, 10, 10), Ok(vec![]));
    assert_eq!(read(store, GROUP, 7, 6), Ok(vec![]));
    assert_eq!(store.term(GROUP, index(3)), Err(compacted(3)));
    assert_eq!(store.term(GROUP, index(10)), Err(beyond(10)));
}

/// A read that fails appends nothing; one that succeeds appends.
pub fn a_failed_read_leaves_the_buffer_alone(subject: &mut dyn Subject) {
    let store = subject.store();
    write_all(store, [create(GROUP), append(GROUP, 1, 1..=3)]);
    let mut out = entries(9, 1..=1);
    assert!(store.entries(GROUP, index(1), index(5), u64::MAX, &mut out).is_err());
    assert_eq!(out, entries(9, 1..=1));
    assert_eq!(store.entries(GROUP, index(2), index(4), u64::MAX, &mut out), Ok(()));
    assert_eq!(out, [entries(9, 1..=1), entries(1, 2..=3)].concat(), "reads append");
}

/// Reads of a group without a replica say that there is none.
pub fn unknown_groups_say_so(subject: &mut dyn Subject) {
    let store = subject.store();
    let unknown = LogError::UnknownGroup { group: GROUP };
    assert_eq!(read(store, GROUP, 1, 1), Err(unknown.clone()));
    assert_eq!(store.term(GROUP, index(0)), Err(unknown));
}
