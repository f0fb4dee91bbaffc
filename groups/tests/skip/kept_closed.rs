//! Replicas that failed, note a skip, or are closed to be opened again: they are shown, and end when they are
//! removed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use shardhost_groups::runtime::StoredEntry;
use shardhost_groups::{Group, LogIndex, MembershipChange};
use shardhost_proto::peer::MessageKind;
use shardhost_storage::NodeId;
use shardhost_testing::network::Fate;

use super::{ID, SOON, Trio, at_of, is_failed, leader_of};

/// A member takes part in nothing, and is removed while its node is cut off. It ends once that is back, although
/// every notice is lost that it did not ask for.
async fn ends_although_removed_while_away(trio: &Trio, leader: &Group, away: usize) {
    let node = NodeId::must(away as u64 + 1);
    let (is_away, mut asked) = (Arc::new(AtomicBool::new(true)), BTreeSet::new());
    let _tap = trio.network.tap({
        let is_away = Arc::clone(&is_away);
        move |envelope| match envelope.kind() {
            _ if is_away.load(Ordering::SeqCst) && [envelope.from, envelope.to].contains(&node) => {
                Fate::Lose
            }
            MessageKind::Wake if envelope.from == node => {
                asked.insert(envelope.to);
                Fate::Deliver
            }
            MessageKind::Removed if !asked.contains(&envelope.from) => Fate::Lose,
            _ => Fate::Deliver,
        }
    });
    let remove = async {
        while leader.change_membership(MembershipChange::new().remove(node)).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, remove).await.expect("it is removed");
    assert!(trio.hosts[away].is_stored(ID).unwrap());
    is_away.store(false, Ordering::SeqCst);
    let ended = async {
        let here = &trio.hosts[away];
        while here.is_stored(ID).unwrap() || !here.parked().is_empty() || here.group(ID).is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, ended).await.expect("it ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_notes_a_skip_and_was_removed_while_away_ends() {
    let (trio, replicas) = Trio::start();
    let leader = leader_of(&replicas).await;
    let at = at_of(&replicas, leader);
    let away = (at + 1) % 3;
    let index = leader.propose("one").await.unwrap().index;
    let entry = trio.hosts[at].stored_entry(ID, index).unwrap().unwrap();
    assert!(trio.hosts[away].close(ID).await);
    // A wrong index, at this member only.
    trio.begin(away, StoredEntry { index: LogIndex::new(index.get() + 100), ..entry }).unwrap();
    ends_although_removed_while_away(&trio, leader, away).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_failed_and_was_removed_while_away_ends() {
    let (trio, replicas) = Trio::start();
    let leader = leader_of(&replicas).await;
    let away = (at_of(&replicas, leader) + 1) % 3;
    trio.disks[away].lock().unwrap().fails = true;
    leader.propose("one").await.unwrap();
    replicas[away].wait_for(is_failed, SOON).await.expect("its machine fails");
    ends_although_removed_while_away(&trio, leader, away).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_closed_to_be_opened_again_is_parked_until_it_is_open() {
    let (trio, replicas) = Trio::start();
    leader_of(&replicas).await.propose("one").await.unwrap();
    // Its caller goes away as soon as it has begun.
    {
        let mut closing = Box::pin(trio.hosts[0].close_to_reopen(ID, "its disk is repaired"));
        assert!(futures::poll!(&mut closing).is_pending());
    }
    assert!(!trio.hosts[0].close(ID).await || trio.hosts[0].group(ID).is_none());
    let parked = trio.hosts[0].parked_replica(ID).expect("it is shown");
    assert!(parked.reopens && !parked.ordered && trio.hosts[0].is_to_be_reopened(ID));
    assert!(parked.cause.to_string().contains("its disk is repaired"), "{parked:?}");
    assert!(trio.reopen(0).is_some() && trio.hosts[0].parked_replica(ID).is_none());

    // What else is noted of it stays.
    assert!(trio.hosts[1].close(ID).await);
    trio.hosts[1].park(ID, "by order");
    assert!(!trio.hosts[1].close_to_reopen(ID, "its disk is repaired").await);
    assert!(trio.hosts[1].parked_replica(ID).unwrap().ordered && trio.reopen(1).is_none());
    // One that is destroyed leaves no note.
    trio.hosts[2].destroy(ID).await.unwrap();
    assert!(!trio.hosts[2].close_to_reopen(ID, "its disk is repaired").await);
    assert!(trio.hosts[2].parked().is_empty());
}
