//! What is not skipped: another entry than is meant, and one that a replica may have applied.

use shardhost_groups::runtime::{SkipEnd, StoredEntry};
use shardhost_groups::{ApplyFault, LogIndex, LogPosition};

use super::{ID, SOON, Trio, leader_of};

#[tokio::test(flavor = "multi_thread")]
async fn only_the_very_entry_that_was_meant_is_skipped() {
    let (trio, replicas) = Trio::start();
    trio.poison(&replicas).await;
    let index = LogIndex::new(replicas[1].machine_applied().get() + 1);
    let entry = trio.hosts[1].stored_entry(ID, index).unwrap().unwrap();
    trio.begin(1, entry).expect_err("it is open");
    assert!(trio.hosts[1].close(ID).await);

    for other in [
        StoredEntry { checksum: entry.checksum ^ 1, ..entry },
        StoredEntry { bytes: 7, ..entry },
        StoredEntry { term: shardhost_groups::Term::new(entry.term.get() + 1), ..entry },
    ] {
        let message = trio.begin(1, other).expect_err("another entry").to_string();
        assert!(message.contains("another entry is at"), "{message}");
    }
    assert_eq!(trio.hosts[1].stored_entry(ID, index).unwrap(), Some(entry), "nothing changed");
    // Where the log ends before it there is nothing to skip: it comes from the others, empty.
    let behind = StoredEntry { index: LogIndex::new(index.get() + 100), ..entry };
    assert_eq!(trio.hosts[1].stored_entry(ID, behind.index).unwrap(), None);
    trio.begin(1, behind).unwrap();
    trio.skip(1, behind).unwrap();
    assert_eq!(trio.hosts[1].stored_entry(ID, index).unwrap(), Some(entry), "nothing changed");
    // The note keeps this member from applying what others may have skipped: no other skip removes it.
    let message = trio.begin(1, entry).expect_err("one is not finished").to_string();
    assert!(message.contains(&format!("--index {}", behind.index)), "{message}");
    // Nor does an order to open the replica that is meant for another one.
    let message = trio.hosts[1]
        .finish_skip(ID, index, SkipEnd::Skipped)
        .expect_err("another one")
        .to_string();
    assert!(message.contains(&format!("--index {}", behind.index)), "{message}");
    trio.hosts[1].abandon_skip(ID, behind.index).unwrap();
    trio.hosts[1].finish_skip(ID, behind.index, SkipEnd::Abandoned).unwrap();
    trio.begin(1, entry).unwrap();
    trio.skip(1, entry).unwrap();
}

/// The state on the disk is older than the snapshot, as after the end of a process.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_a_snapshot_shows_as_applied_is_not_skipped() {
    let (trio, replicas) = Trio::start();
    let one = leader_of(&replicas).await.propose("one").await.unwrap().index;
    let applied = replicas[1].wait_for(|status| status.applied >= one, SOON).await;
    applied.expect("it applies it");
    let snapshot = replicas[1].snapshot().await.unwrap();
    assert!(snapshot.index >= one && trio.hosts[1].close(ID).await);
    trio.disks[1].lock().unwrap().applied = None;

    let entry = trio.hosts[1].stored_entry(ID, one).unwrap().expect("it is there");
    let machine = trio.machine(1);
    let shown = trio.hosts[1].applied_of_closed(ID, Box::new(move || Ok(machine))).unwrap();
    assert_eq!(shown, Some(snapshot));
    let message = trio.begin(1, entry).expect_err("it is applied").to_string();
    assert!(message.contains("has applied entry"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_skip_that_is_refused_leaves_the_replica_as_it_was() {
    let (trio, entry) = Trio::poisoned().await;
    let another = StoredEntry { checksum: entry.checksum ^ 1, ..entry };
    trio.begin(0, another).expect_err("another entry");
    assert!(trio.hosts[0].parked_replica(ID).is_none(), "nothing keeps it closed");
    trio.skip(0, entry).expect_err("it was not begun");
    assert!(trio.hosts[0].parked_replica(ID).is_none(), "nothing keeps it closed");
    assert!(trio.reopen(0).is_some(), "whatever closed it opens it again");
    // One that an operator parked stays so.
    trio.hosts[1].park(ID, "by order");
    trio.begin(1, another).expect_err("another entry");
    assert!(trio.hosts[1].parked_replica(ID).unwrap().cause.to_string().contains("by order"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_cannot_be_read_may_hold_the_command() {
    let (trio, entry) = Trio::poisoned().await;
    let fails = |fault| trio.disks[0].lock().unwrap().fault = fault;
    let faults = [
        ApplyFault::passing("too many open files"),
        ApplyFault::damaged("a checksum is wrong"),
        ApplyFault::new("it gives up"),
    ];
    for fault in &faults {
        fails(Some(fault.clone()));
        let refused = trio.begin(0, entry).expect_err("it may have applied it").to_string();
        assert!(refused.contains(&fault.message), "{refused}");
        let stored = trio.hosts[0].stored_group(ID).unwrap().unwrap();
        assert!(stored.skipping.is_none() && trio.hosts[0].parked_replica(ID).is_none());
    }
    fails(None);
    trio.begin(0, entry).unwrap();
    for fault in &faults {
        fails(Some(fault.clone()));
        trio.skip(0, entry).expect_err("it may have applied it");
        assert_eq!(trio.hosts[0].stored_entry(ID, entry.index).unwrap(), Some(entry), "unchanged");
    }
    // Where it is skipped already, that was asked before: nothing keeps the others waiting.
    fails(None);
    trio.skip(0, entry).unwrap();
    fails(Some(faults[1].clone()));
    trio.begin(0, entry).unwrap();
    trio.skip(0, entry).unwrap();
}

/// What can be read of a damaged state is recovered: it is there again, with what the command did.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_state_that_is_recovered_later_holds_no_command_that_others_skipped() {
    let (trio, entry) = Trio::poisoned().await;
    // Replica 0 applied the command, and acknowledged it. Its state cannot be opened now.
    {
        let mut disk = trio.disks[0].lock().unwrap();
        disk.applied = Some(LogPosition { term: entry.term, index: entry.index });
        disk.fault = Some(ApplyFault::damaged("a part of the state cannot be opened"));
    }
    let refused = trio.begin(0, entry).expect_err("it may have applied it").to_string();
    assert!(refused.contains("cannot be opened"), "{refused}");
    trio.disks[0].lock().unwrap().fault = None;
    let refused = trio.begin(0, entry).expect_err("it has applied it").to_string();
    assert!(refused.contains("has applied entry"), "{refused}");
}
