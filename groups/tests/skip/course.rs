//! A skip from its beginning to its end, or until it is abandoned.

use shardhost_groups::runtime::SkipEnd;
use shardhost_groups::{ApplyFault, Group, LogIndex};

use super::{ID, SOON, Trio, leader_of};

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_gets_past_a_command_that_fails_every_replica() {
    let (trio, replicas) = Trio::start();
    leader_of(&replicas).await.propose("one").await.unwrap();
    trio.poison(&replicas).await;
    // An operator finds it behind what was applied.
    let index = LogIndex::new(replicas[0].machine_applied().get() + 1);
    for host in &trio.hosts {
        assert!(host.close(ID).await);
    }
    let entry = trio.hosts[0].stored_entry(ID, index).unwrap().expect("it is there");
    assert!(!entry.is_empty && entry.bytes == 6);
    let unprepared = trio.skip(0, entry).unwrap_err().to_string();
    assert!(unprepared.contains("no skip of entry"), "{unprepared}");
    (0..3).for_each(|at| trio.begin(at, entry).unwrap());
    trio.skip(1, entry).unwrap();
    // Interrupted: nothing opens a replica, whether its log is rewritten or not.
    for at in 0..3 {
        let refused = trio.hosts[at].open(ID, trio.machine(at)).unwrap_err().to_string();
        assert!(refused.contains("not all members have done so"), "{refused}");
    }
    // Again, from the beginning.
    (0..3).for_each(|at| trio.begin(at, entry).unwrap());
    (0..3).for_each(|at| trio.skip(at, entry).unwrap());
    // Nothing but an order opens it meanwhile, as a repair of what is damaged beside it.
    for at in 0..3 {
        assert!(trio.reopen(at).is_none() && trio.hosts[at].parked_replica(ID).unwrap().ordered);
    }
    let replicas: Vec<Group> = (0..3).map(|at| trio.open(at, index)).collect();
    let two = leader_of(&replicas).await.propose("two").await.unwrap().index;
    let all = |at: usize| {
        let replica = &replicas[at];
        replica.wait_for(move |status| status.applied >= two, SOON)
    };
    for at in 0..3 {
        all(at).await.expect("it applies what follows");
        assert_eq!(trio.disks[at].lock().unwrap().words, ["one", "two"]);
        let here = trio.hosts[at].stored_entry(ID, index).unwrap().expect("it is there");
        assert!(here.is_empty && here.term == entry.term);
    }

    // A replica that was opened by order is opened again by the code that closed it, whatever was
    // ordered before.
    assert!(trio.hosts[1].close(ID).await);
    assert!(trio.reopen(1).is_some() && trio.hosts[1].parked_replica(ID).is_none());

    // Done twice, it changes nothing but that the state machine is past it.
    assert!(trio.hosts[0].close(ID).await);
    let message = trio.begin(0, entry).expect_err("it is applied").to_string();
    assert!(message.contains("has applied entry"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_a_skip_closed_shows_that_until_it_is_open() {
    let (trio, replicas) = Trio::start();
    trio.poison(&replicas).await;
    let left = |at: usize| {
        let parked = trio.hosts[at].parked_replica(ID);
        parked.is_some_and(|parked| parked.left_by_skip)
    };
    // It holds an older entry there, and has nothing to skip.
    assert!(trio.hosts[0].close_for_skip(ID).await);
    trio.hosts[0].enter_term(ID, trio.later_term()).unwrap();
    assert!(left(0) && trio.hosts[0].is_to_be_reopened(ID));

    assert!(trio.hosts[1].close(ID).await);
    let index = LogIndex::new(replicas[1].machine_applied().get() + 1);
    let entry = trio.hosts[1].stored_entry(ID, index).unwrap().unwrap();
    trio.begin(1, entry).unwrap();
    assert!(!left(1), "its note says so");
    trio.skip(1, entry).unwrap();
    trio.hosts[1].finish_skip(ID, index, SkipEnd::Skipped).unwrap();
    assert!(left(1) && trio.hosts[1].is_to_be_reopened(ID));
    // Its note is gone, and it cannot be opened for now.
    trio.disks[1].lock().unwrap().fault = Some(ApplyFault::passing("too many open files"));
    trio.hosts[1].open(ID, trio.machine(1)).expect_err("its state cannot be read");
    let parked = trio.hosts[1].parked_replica(ID).unwrap();
    assert!(parked.left_by_skip && parked.cause.to_string().contains("too many open files"));
    trio.disks[1].lock().unwrap().fault = None;
    for at in 0..2 {
        trio.hosts[at].finish_skip(ID, index, SkipEnd::Skipped).expect("no skip is noted");
        trio.hosts[at].open(ID, trio.machine(at)).unwrap();
        assert!(!left(at));
    }
    // What closes it for another reason leaves nothing of that.
    assert!(trio.hosts[0].close_to_reopen(ID, "its disk is repaired").await && !left(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_skip_that_begun_at_some_members_is_abandoned() {
    let (trio, entry) = Trio::poisoned().await;
    let index = entry.index;
    trio.hosts[0].abandon_skip(ID, index).expect("nothing is noted, so nothing is to do");
    assert!(trio.hosts[0].parked_replica(ID).is_none());
    (0..2).for_each(|at| trio.begin(at, entry).unwrap());
    // An order to open it is not enough: it would apply what others may skip.
    let refused = trio.hosts[0]
        .finish_skip(ID, index, SkipEnd::Skipped)
        .expect_err("it is not skipped")
        .to_string();
    assert!(refused.contains("is not skipped here") && refused.contains("--abandon"), "{refused}");
    let other = LogIndex::new(index.get() + 1);
    let refused = trio.hosts[0].abandon_skip(ID, other).expect_err("another one").to_string();
    assert!(refused.contains(&format!("--index {index}")), "{refused}");

    (0..2).for_each(|at| trio.hosts[at].abandon_skip(ID, index).unwrap());
    for at in 0..2 {
        assert!(trio.reopen(at).is_none(), "not before all have agreed");
        let refused = trio.skip(at, entry).expect_err("it is abandoned").to_string();
        assert!(refused.contains("is being abandoned"), "{refused}");
    }
    for at in 0..2 {
        trio.hosts[at].finish_skip(ID, index, SkipEnd::Skipped).expect_err("it is not skipped");
        trio.hosts[at].finish_skip(ID, index, SkipEnd::Abandoned).unwrap();
        let stored = trio.hosts[at].stored_group(ID).unwrap().unwrap();
        assert_eq!(stored.skipping, None);
        trio.hosts[at].open(ID, trio.machine(at)).expect("nothing keeps it closed");
        assert_eq!(trio.hosts[at].stored_entry(ID, index).unwrap(), Some(entry), "unchanged");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_skip_is_not_abandoned_where_the_entry_is_rewritten_and_begins_anew_where_it_is_not() {
    let (trio, entry) = Trio::poisoned().await;
    let index = entry.index;
    (0..3).for_each(|at| trio.begin(at, entry).unwrap());
    trio.hosts[0].abandon_skip(ID, index).unwrap();
    trio.skip(1, entry).unwrap();
    let refused = trio.hosts[1].abandon_skip(ID, index).expect_err("it is skipped").to_string();
    assert!(refused.contains("is skipped here already"), "{refused}");
    assert!(trio.hosts[0].open(ID, trio.machine(0)).is_err(), "it notes the skip all the time");
    // So the operator finishes it.
    (0..3).for_each(|at| trio.begin(at, entry).unwrap());
    (0..3).for_each(|at| trio.skip(at, entry).unwrap());
    let replicas: Vec<Group> = (0..3).map(|at| trio.open(at, index)).collect();
    leader_of(&replicas).await.propose("two").await.unwrap();
}

/// A late note of an opening does not remove what was noted after it.
#[tokio::test(flavor = "multi_thread")]
async fn a_skip_that_begins_right_after_an_opening_keeps_the_replica_closed() {
    let (trio, entry) = Trio::poisoned().await;
    for _ in 0..50 {
        std::thread::scope(|scope| {
            // Refused where the skip begins first.
            let opens = scope.spawn(|| drop(trio.hosts[0].open(ID, trio.machine(0))));
            while trio.begin(0, entry).is_err() {
                futures::executor::block_on(trio.hosts[0].close(ID));
            }
            opens.join().unwrap();
        });
        assert!(trio.hosts[0].group(ID).is_none());
        assert!(trio.hosts[0].parked_replica(ID).expect("it is kept closed").ordered);
        trio.hosts[0].abandon_skip(ID, entry.index).unwrap();
        trio.hosts[0].finish_skip(ID, entry.index, SkipEnd::Abandoned).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_to_open_a_replica_does_not_undo_that_its_skip_is_abandoned() {
    let (trio, entry) = Trio::poisoned().await;
    trio.begin(0, entry).unwrap();
    trio.hosts[0].abandon_skip(ID, entry.index).unwrap();
    trio.hosts[0].open(ID, trio.machine(0)).expect_err("it notes a skip");
    trio.skip(0, entry).expect_err("it is abandoned");
    trio.hosts[0].finish_skip(ID, entry.index, SkipEnd::Abandoned).unwrap();
}
