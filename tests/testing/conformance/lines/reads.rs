//! R: reading.

use std::future::IntoFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::future::join_all;
use shardhost_proto::peer::MessageKind;
use shardhost_storage::LogIndex;

use super::super::world::{answered, eventually, reached};
use super::super::{Outcome, Trial, World};
use super::GROUP;
use super::held::HeldTransfer;
use super::history::Clients;
use crate::network::Fate;
use shardhost_groups::error::ReadError;
use shardhost_groups::membership::MembershipChange;
use shardhost_groups::runtime::{Group, ReadMode};

/// The modes that promise to see everything acknowledged before, on a leader.
const BY_THE_LEADER: [ReadMode; 2] = [ReadMode::Linearizable, ReadMode::Lease];

pub(super) async fn r1_a_read_sees_everything_that_was_acknowledged_before(
    trial: Trial,
) -> Outcome {
    let world = trial.world().await?;
    world.create(GROUP).await;
    let acknowledged = Arc::new(AtomicU64::new(0));
    let readers: Vec<_> = BY_THE_LEADER
        .into_iter()
        .map(|mode| {
            tokio::spawn(read_while_writing(Arc::clone(&world), mode, acknowledged.clone()))
        })
        .collect();
    for number in 0..60 {
        let applied = world.propose(GROUP, format!("command{number}")).await;
        acknowledged.fetch_max(applied.index.get(), Ordering::SeqCst);
    }
    acknowledged.store(u64::MAX, Ordering::SeqCst);
    for reader in readers {
        let reads = answered("a reader's end", reader).await.expect("no stale read");
        assert!(reads > 0, "nothing was read");
    }
    Ok(())
}

/// Reads at the leader until everything is written.
async fn read_while_writing(
    world: Arc<World>,
    mode: ReadMode,
    acknowledged: Arc<AtomicU64>,
) -> u64 {
    let mut reads = 0;
    loop {
        let leader = world.leader(GROUP).await;
        let needed = acknowledged.load(Ordering::SeqCst);
        if needed == u64::MAX {
            return reads;
        }
        let Ok(barrier) = answered("a read", leader.read_barrier(mode)).await else { continue };
        assert!(barrier.read_index.get() >= needed, "{mode:?}: {barrier:?}, but {needed} was told");
        assert!(barrier.applied >= barrier.read_index, "{barrier:?}");
        let held = world.journal(leader.node, GROUP).contents().applied;
        assert!(held.is_none_or(|held| held.index.get() >= needed), "{held:?}");
        reads += 1;
    }
}

pub(super) async fn r1_reads_and_writes_are_linearizable_whatever_happens(trial: Trial) -> Outcome {
    let world = trial.world().await?;
    world.create(GROUP).await;
    let clients = Clients::start(&world, GROUP, 4);
    for round in 0..6 {
        let leader = world.leader(GROUP).await;
        clients.wait_for_more(30).await;
        match round % 3 {
            0 => {
                world.isolate(leader.node)?;
                world.leader_among(GROUP, &world.others(leader.node)).await;
                clients.wait_for_more(30).await;
                world.links()?.heal();
            }
            1 => drop(answered("a transfer", leader.transfer_leadership(None)).await),
            _ => {
                world.stop(leader.node).await;
                world.leader_among(GROUP, &world.others(leader.node)).await;
                clients.wait_for_more(30).await;
                world.start(leader.node).await;
            }
        }
    }
    clients.stop().await.demand();
    Ok(())
}

pub(super) async fn r2_a_proof_of_leadership_does_not_wait_for_the_state_machine(
    trial: Trial,
) -> Outcome {
    let world = trial.world().await?;
    world.create(GROUP).await;
    let leader = world.leader(GROUP).await;
    let journal = world.journal(leader.node, GROUP);
    journal.hold_apply();
    let held = leader.propose("held").into_future();
    let status = reached(&leader, "it is committed", |status| status.apply_backlog() > 0).await;
    let read = leader.clone();
    let read = tokio::spawn(async move { read.query(ReadMode::Linearizable, "list").await });
    let proved = answered("the proof", leader.verify_leader()).await.expect("it leads");
    assert!(proved >= status.committed, "{proved} is below {}", status.committed);
    assert!(!read.is_finished(), "a read does not wait for the state machine");
    journal.release();
    answered("the proposal", held).await.expect("it is applied");
    let read = answered("the read", read).await.expect("no panic");
    assert_eq!(read.expect("it is applied"), "held");
    Ok(())
}

pub(super) async fn r3_whoever_does_not_lead_refuses_reads_with_a_hint(trial: Trial) -> Outcome {
    let world = trial.world().await?;
    world.create(GROUP).await;
    let leader = world.leader(GROUP).await;
    for (node, follower) in world.followers(&leader).await {
        let mut refusals = vec![follower.verify_leader().await.expect_err("it follows")];
        for mode in BY_THE_LEADER {
            refusals.push(follower.read_barrier(mode).await.expect_err("it follows"));
            refusals.push(follower.query(mode, "count").await.expect_err("it follows"));
        }
        for refusal in refusals {
            let ReadError::NotLeader { group, hint } = &refusal else { panic!("{refusal}") };
            assert_eq!(*group, GROUP);
            assert_eq!(hint.map(|hint| hint.node), Some(leader.node), "{node:?}: {refusal}");
        }
        follower.query(ReadMode::Stale, "count").await.expect("anybody answers these");
    }
    Ok(())
}

pub(super) async fn r4_reads_fail_at_once_during_a_transfer(trial: Trial) -> Outcome {
    let world = trial.world().await?;
    world.create(GROUP).await;
    for mode in BY_THE_LEADER {
        let read = loop {
            let held = HeldTransfer::begin(&world).await?;
            let read = answered("a read in a transfer", held.leader.read_barrier(mode)).await;
            let at_once = held.is_under_way();
            drop(held.lose().await);
            if at_once {
                break read;
            }
        };
        assert_eq!(read, Err(ReadError::Transferring { group: GROUP }), "{mode:?}");
    }
    let leader = world.leader(GROUP).await;
    let again = answered("a read afterwards", leader.read_barrier(ReadMode::Linearizable)).await;
    assert!(again.is_ok(), "{again:?}");
    Ok(())
}

pub(super) async fn r5_a_leader_without_its_quorum_answers_no_read(trial: Trial) -> Outcome {
    let world = trial.world().await?;
    world.create(GROUP).await;
    world.propose(GROUP, "before").await;
    let old = world.leader(GROUP).await;
    world.isolate(old.node)?;
    let asked = old.read_barrier(ReadMode::Linearizable);
    answered("a read without a quorum", asked).await.expect_err("nobody confirmed it");
    let next = world.leader_among(GROUP, &world.others(old.node)).await;
    answered("a proposal", next.propose("after")).await.expect("a quorum is there");
    for mode in [ReadMode::Linearizable, ReadMode::Lease, ReadMode::Follower] {
        for _ in 0..10 {
            let read = answered("a read of the past", old.query(mode, "list")).await;
            assert!(read.is_err(), "{mode:?} answers {read:?} although another one leads");
        }
    }
    world.links()?.heal();
    Ok(())
}

pub(super) async fn r6_every_read_ends(trial: Trial) -> Outcome {
    let world = trial.world().await?;
    world.create(GROUP).await;
    let old = world.leader(GROUP).await;
    let follower = world.followers(&old).await.remove(0);
    // Both wait for an answer that never comes: their way to the others is cut.
    for (node, replica) in [(old.node, Group::clone(&old)), follower] {
        world.isolate(node)?;
        for mode in [ReadMode::Linearizable, ReadMode::Lease, ReadMode::Follower] {
            let read = answered("a read that nobody confirms", replica.read_barrier(mode)).await;
            let leased = mode == ReadMode::Lease && read.is_ok();
            assert!(leased || read.is_err(), "{node:?} {mode:?}: {read:?}");
        }
    }
    Ok(())
}

pub(super) async fn r7_cancelled_reads_leave_nothing(trial: Trial) -> Outcome {
    let world = trial.world_with(|plan| plan.config.max_reads_per_group = 8).await?;
    world.create(GROUP).await;
    let leader = world.leader(GROUP).await;
    // What was read waits for the state machine.
    let journal = world.journal(leader.node, GROUP);
    journal.hold_apply();
    let held = leader.propose("held").into_future();
    reached(&leader, "it is committed", |status| status.apply_backlog() > 0).await;
    let readers: Vec<_> = (0..8)
        .map(|_| {
            let leader = leader.clone();
            tokio::spawn(async move { leader.read_barrier(ReadMode::Linearizable).await })
        })
        .collect();
    let busy = || async {
        let read =
            tokio::time::timeout(world.ticks(1), leader.read_barrier(ReadMode::Linearizable));
        matches!(read.await, Ok(Err(ReadError::Busy { .. })))
    };
    while !busy().await {
        assert!(readers.iter().any(|reader| !reader.is_finished()), "the room was never taken");
    }
    readers.iter().for_each(tokio::task::JoinHandle::abort);
    journal.release();
    answered("the proposal", held).await.expect("it is applied");
    // A caller that went away is noticed at the next tick.
    let deadline = tokio::time::Instant::now() + super::super::TIMEOUT;
    loop {
        let again = (0..8).map(|_| leader.read_barrier(ReadMode::Linearizable));
        let again = answered("eight reads", join_all(again)).await;
        if again.iter().all(Result::is_ok) {
            return Ok(());
        }
        let late = tokio::time::Instant::now() > deadline;
        assert!(!late, "not all the room is there again: {again:?}");
    }
}

pub(super) async fn r8_no_read_before_an_entry_of_the_own_term_is_applied(trial: Trial) -> Outcome {
    let world = trial.world().await?;
    world.create(GROUP).await;
    let old = world.leader(GROUP).await;
    let followers = world.followers(&old).await;
    for (node, _) in &followers {
        world.journal(*node, GROUP).hold_apply();
    }
    let stuck = old.propose("stuck").await.expect("applied by the leader").index;
    for (_, follower) in &followers {
        reached(follower, "it knows the commit", |status| status.committed >= stuck).await;
    }
    world.stop(old.node).await;
    let leads = followers.iter().map(|(node, replica)| {
        Box::pin(async move {
            reached(replica, "it leads", shardhost_groups::GroupStatus::is_leader).await;
            (*node, replica)
        })
    });
    let (node, next) = futures::future::select_all(leads).await.0;
    assert!(!next.status().serving, "it applied nothing of its term: {:?}", next.status());
    for mode in BY_THE_LEADER {
        let read = answered("a read too early", next.read_barrier(mode)).await;
        assert!(read.is_err(), "{mode:?} answers {read:?} before it serves");
    }
    for (node, _) in &followers {
        world.journal(*node, GROUP).release();
    }
    let serves = world.leader(GROUP).await;
    let read = answered("a read", serves.query(ReadMode::Linearizable, "list")).await;
    assert_eq!(read.expect("it serves"), "stuck", "{node:?}");
    Ok(())
}

pub(super) async fn r9_many_reads_share_a_round(trial: Trial) -> Outcome {
    const READS: usize = 400;
    let world = trial.world().await?;
    let network = world.network()?;
    world.create(GROUP).await;
    let leader = world.leader(GROUP).await;
    let asked = Arc::new(AtomicU64::new(0));
    let (count, from) = (Arc::clone(&asked), leader.node);
    let _tap = network.tap(move |envelope| {
        let round = envelope.kind() == MessageKind::Heartbeat;
        if round && envelope.from == from && !envelope.message.context.is_empty() {
            count.fetch_add(1, Ordering::Relaxed);
        }
        Fate::Deliver
    });
    let reads = (0..READS).map(|_| leader.read_barrier(ReadMode::Linearizable));
    for read in answered("many reads", join_all(reads)).await {
        assert!(read.is_ok(), "{read:?} of a leader");
    }
    let asked = asked.load(Ordering::Relaxed);
    assert!(asked > 0, "nobody was asked");
    assert!(asked < READS as u64 / 4, "{asked} questions for {READS} reads");
    Ok(())
}

pub(super) async fn r10_followers_and_learners_read_through_their_leader(trial: Trial) -> Outcome {
    let world = trial.world().await?;
    let [one, two, three] = [world.nodes()[0], world.nodes()[1], world.nodes()[2]];
    world.create_on(GROUP, &[one, two]).await;
    let leader = world.leader(GROUP).await;
    let learner = MembershipChange::new().add_learner(three);
    answered("the addition", leader.change_membership(learner)).await.expect("it is added");
    eventually("the learner's replica", || world.replicas(GROUP).len() == 3).await;
    for number in 0..20 {
        let written = world.propose(GROUP, format!("command{number}")).await;
        for (node, replica) in world.replicas(GROUP) {
            let barrier = read_until_answered(&replica).await;
            assert!(barrier >= written.index, "{node:?} reads {barrier} after {written:?}");
            let held = world.journal(node, GROUP).count(&format!("command{number}"));
            assert_eq!(held, 1, "{node:?} did not wait for what it read");
        }
    }
    if let Ok(links) = world.links() {
        world.isolate(three)?;
        let lonely = world.replica(three, GROUP);
        let read = answered("a read alone", lonely.read_barrier(ReadMode::Follower)).await;
        assert!(read.is_err(), "{read:?} of a replica that reaches nobody");
        links.heal();
    }
    Ok(())
}

/// A follower that does not know its leader yet refuses.
async fn read_until_answered(replica: &Group) -> LogIndex {
    loop {
        let known = reached(replica, "it knows its leader", |status| status.leader.is_some());
        known.await;
        if let Ok(barrier) = answered("a read", replica.read_barrier(ReadMode::Follower)).await {
            assert!(barrier.applied >= barrier.read_index, "{barrier:?}");
            return barrier.read_index;
        }
    }
}
