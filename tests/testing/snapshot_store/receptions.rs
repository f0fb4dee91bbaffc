//! Snapshots that come from another host.

use super::{Subject, get, put};
use shardhost_storage::testing::fixtures::GROUP;
use shardhost_storage::{
    GroupId, LogPosition, NodeId, SnapshotAnnouncement, SnapshotError, SnapshotReceive,
};

const AT: LogPosition = LogPosition::new(3, 40);

/// What is announced for these bytes.
#[must_use]
pub fn announce(bytes: &[u8]) -> SnapshotAnnouncement {
    SnapshotAnnouncement {
        from: NodeId::must(1),
        group: GROUP,
        position: AT,
        size: bytes.len() as u64,
        crc: crc32fast::hash(bytes),
    }
}

/// Bytes that differ from their neighbours.
#[must_use]
pub fn content(length: usize) -> Vec<u8> {
    (0..length).map(|place| (place % 251) as u8).collect()
}

fn begin(subject: &dyn Subject, announced: SnapshotAnnouncement) -> Box<dyn SnapshotReceive> {
    subject.store().receive(announced).expect("a reception")
}

fn receive(subject: &dyn Subject, bytes: &[u8]) -> Result<(), SnapshotError> {
    let mut reception = begin(subject, announce(bytes));
    for chunk in bytes.chunks(7_001) {
        reception.append(chunk)?;
    }
    reception.finish()
}

fn corrupt(outcome: Result<(), SnapshotError>) -> bool {
    matches!(outcome, Err(SnapshotError::Corrupt { group: GROUP, position: AT, .. }))
}

/// Receives the first bytes, as far as the stream goes.
fn pause_after(subject: &dyn Subject, announced: SnapshotAnnouncement, bytes: &[u8]) {
    let mut reception = begin(subject, announced);
    reception.append(bytes).expect("taken");
    assert_eq!(reception.pause(), Ok(bytes.len() as u64));
}

/// Chunks of any size become the snapshot that was announced.
pub fn a_received_snapshot_is_read_as_it_was_sent(subject: &mut dyn Subject) {
    let bytes = content(1_000_000);
    assert_eq!(receive(subject, &bytes), Ok(()));
    assert!(get(subject.store(), GROUP, AT) == Ok(bytes.clone()));
    subject.crash();
    assert!(get(subject.store(), GROUP, AT) == Ok(bytes));
}

/// A snapshot of no bytes can be received.
pub fn an_empty_snapshot_can_be_received(subject: &mut dyn Subject) {
    assert_eq!(receive(subject, b""), Ok(()));
    assert_eq!(get(subject.store(), GROUP, AT), Ok(vec![]));
}

/// Before it is finished it is invisible; dropped, it is gone and not paused.
pub fn a_reception_is_no_snapshot_before_it_is_finished(subject: &mut dyn Subject) {
    let bytes = content(100_000);
    let mut reception = begin(subject, announce(&bytes));
    reception.append(&bytes).expect("taken");
    assert_eq!(subject.store().list(GROUP), Ok(vec![]));
    drop(reception);
    assert_eq!(subject.store().list(GROUP), Ok(vec![]));
    assert_eq!(begin(subject, announce(&bytes)).received(), 0, "dropped is not paused");
}

/// Other bytes than announced, or fewer, never become a snapshot.
pub fn s4_bytes_that_were_not_announced_are_refused(subject: &mut dyn Subject) {
    let bytes = content(50_000);
    let mut other = bytes.clone();
    other[20_000] ^= 1;
    for came in [&other, &bytes[..49_999], &[]] {
        let mut reception = begin(subject, announce(&bytes));
        reception.append(came).expect("taken");
        assert!(corrupt(reception.finish()), "{} bytes", came.len());
        assert_eq!(subject.store().list(GROUP), Ok(vec![]));
    }
}

/// More bytes than announced are not taken.
pub fn more_bytes_than_announced_are_refused_at_once(subject: &mut dyn Subject) {
    let bytes = content(1_000);
    let mut reception = begin(subject, announce(&bytes));
    reception.append(&bytes).expect("taken");
    assert!(corrupt(reception.append(b"x")));
    let empty = begin(subject, announce(b"")).append(b"x");
    assert!(corrupt(empty));
}

/// The same snapshot is continued, as often as its stream breaks.
pub fn a_paused_reception_goes_on_where_it_stopped(subject: &mut dyn Subject) {
    let bytes = content(300_000);
    pause_after(subject, announce(&bytes), &bytes[..70_001]);
    assert_eq!(subject.store().list(GROUP), Ok(vec![]));
    let mut again = begin(subject, announce(&bytes));
    assert_eq!(again.received(), 70_001);
    again.append(&bytes[70_001..200_000]).expect("taken");
    assert_eq!(again.pause(), Ok(200_000));
    let mut last = begin(subject, announce(&bytes));
    assert_eq!(last.received(), 200_000);
    last.append(&bytes[200_000..]).expect("taken");
    assert_eq!(last.finish(), Ok(()));
    subject.crash();
    assert!(get(subject.store(), GROUP, AT) == Ok(bytes));
}

/// Whatever differs in the announcement makes it another snapshot.
pub fn a_paused_reception_of_anything_else_is_forgotten(subject: &mut dyn Subject) {
    let bytes = content(10_000);
    let own = announce(&bytes);
    let others = [
        SnapshotAnnouncement { from: NodeId::must(2), ..own },
        SnapshotAnnouncement { position: LogPosition::new(3, 41), ..own },
        SnapshotAnnouncement { position: LogPosition::new(4, 40), ..own },
        SnapshotAnnouncement { size: own.size + 1, ..own },
        SnapshotAnnouncement { crc: own.crc ^ 1, ..own },
    ];
    for other in others {
        pause_after(subject, own, &bytes[..5_000]);
        assert_eq!(begin(subject, other).received(), 0, "{other:?}");
        assert_eq!(begin(subject, own).received(), 0, "after {other:?}");
    }
    pause_after(subject, own, &bytes[..5_000]);
    begin(subject, SnapshotAnnouncement { group: GroupId::new(8), ..own });
    assert_eq!(begin(subject, own).received(), 5_000, "another group changes nothing");
}

/// What was paused is garbage once the group has that snapshot or a later one.
pub fn a_later_snapshot_of_the_group_forgets_what_was_paused(subject: &mut dyn Subject) {
    let bytes = content(10_000);
    for (position, left) in [((3, 39), 5_000), ((3, 40), 0), ((4, 50), 0)] {
        pause_after(subject, announce(&bytes), &bytes[..5_000]);
        put(subject.store(), GROUP, LogPosition::new(position.0, position.1), b"own");
        assert_eq!(begin(subject, announce(&bytes)).received(), left, "after {position:?}");
    }
}

/// Removing snapshots removes what was paused of them.
pub fn removing_the_snapshots_of_a_group_forgets_what_was_paused(subject: &mut dyn Subject) {
    let bytes = content(10_000);
    for (keep, left) in [(Some(AT), 5_000), (Some(LogPosition::new(3, 41)), 0), (None, 0)] {
        pause_after(subject, announce(&bytes), &bytes[..5_000]);
        subject.store().remove_below(GROUP, keep).expect("removed");
        assert_eq!(begin(subject, announce(&bytes)).received(), left, "below {keep:?}");
    }
}

/// A crash leaves nothing of what was not finished.
pub fn what_was_paused_is_gone_after_a_crash(subject: &mut dyn Subject) {
    let bytes = content(10_000);
    pause_after(subject, announce(&bytes), &bytes[..5_000]);
    subject.crash();
    assert_eq!(begin(subject, announce(&bytes)).received(), 0);
}

/// A snapshot that is here is taken as received.
pub fn a_snapshot_that_is_here_already_is_not_wanted_again(subject: &mut dyn Subject) {
    let bytes = content(10_000);
    assert_eq!(receive(subject, &bytes), Ok(()));
    let mut again = begin(subject, announce(&bytes));
    assert_eq!(again.received(), 10_000);
    assert!(corrupt(again.append(b"x")));
    assert_eq!(begin(subject, announce(&bytes)).pause(), Ok(10_000));
    assert_eq!(begin(subject, announce(&bytes)).finish(), Ok(()));
    drop(begin(subject, announce(&bytes)));
    assert_eq!(get(subject.store(), GROUP, AT), Ok(bytes.clone()));
    let other = SnapshotAnnouncement { crc: 1, ..announce(&bytes) };
    assert_eq!(begin(subject, other).received(), 0, "not the same bytes");
}

/// A size that no disk has is refused with both numbers, and takes nothing away.
pub fn e9_absurd_sizes_are_refused_before_anything_is_written(subject: &mut dyn Subject) {
    for size in [1 << 63, u64::MAX, u64::MAX - 51, 1 << 56] {
        let announced = SnapshotAnnouncement { size, ..announce(b"state") };
        let refused = subject.store().receive(announced).map(|_| ()).expect_err("too large");
        let SnapshotError::NoSpace { group: GROUP, needed, available } = refused else {
            panic!("{size} bytes: {refused}");
        };
        assert!(needed >= size && available < needed, "{needed} of {available}");
    }
    assert_eq!(receive(subject, b"state"), Ok(()), "the promises were given back");
}
