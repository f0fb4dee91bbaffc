//! L: leases.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use shardhost_proto::peer::MessageKind;
use shardhost_storage::NodeId;

use super::super::world::{TIMEOUT, answered, eventually};
use super::super::{Leader, Outcome, Plan, Trial, Unmet, World};
use super::GROUP;
use super::held::HeldTransfer;
use crate::network::Fate;
use shardhost_groups::error::ReadError;
use shardhost_groups::leadership::{HookKind, LeadershipEvent};
use shardhost_groups::membership::{MembershipChange, MembershipError};
use shardhost_groups::runtime::{Group, ReadMode};
use shardhost_groups::selector::GroupSelector;

fn is_valid(group: &Group) -> bool {
    group.lease().is_some_and(|lease| lease.valid)
}

async fn leased(leader: &Leader) {
    eventually("the lease is valid", || is_valid(leader)).await;
}

async fn runs_out(leader: &Leader) {
    eventually("the lease runs out", || !is_valid(leader)).await;
}

/// No group hibernates: one that does has no use for a lease.
fn awake(plan: &mut Plan) {
    plan.config.hibernate_after_ticks = 0;
}

/// A leader with a valid lease, in a new world.
async fn with_lease(trial: &Trial) -> Result<(Arc<World>, Leader), Unmet> {
    let world = trial.world_with(awake).await?;
    world.create(GROUP).await;
    let leader = world.leader(GROUP).await;
    leased(&leader).await;
    Ok((world, leader))
}

pub(super) async fn l1_a_lease_is_an_election_timeout_less_a_margin(trial: Trial) -> Outcome {
    let (world, leader) = with_lease(&trial).await?;
    let lease = leader.lease().expect("it is valid");
    let margin = world.config().lease_margin.expect("leases are on");
    assert_eq!(lease.duration, world.election_timeout() - margin);
    assert!(lease.applied >= leader.status().first, "{lease:?}");
    Ok(())
}

pub(super) async fn l1_without_leases_reads_ask_a_quorum(trial: Trial) -> Outcome {
    for margin in [None, Some(Duration::from_secs(3_600))] {
        let world = trial.world_with(|plan| plan.config.lease_margin = margin).await?;
        world.create(GROUP).await;
        let leader = world.leader(GROUP).await;
        world.propose(GROUP, "command").await;
        assert_eq!(leader.lease(), None);
        let read = answered("a read", leader.query(ReadMode::Lease, "last")).await;
        assert_eq!(read.expect("by quorum"), "command");
        assert_eq!(leader.lease(), None);
    }
    Ok(())
}

pub(super) async fn l2_only_a_leader_that_a_quorum_answered_has_a_lease(trial: Trial) -> Outcome {
    let (world, leader) = with_lease(&trial).await?;
    for (node, follower) in world.followers(&leader).await {
        assert_eq!(follower.lease(), None, "{node:?} follows");
    }
    world.isolate(leader.node)?;
    eventually("the loss", || !leader.status().is_leader()).await;
    assert_eq!(leader.lease(), None, "the leadership is lost");
    world.links()?.heal();
    let next = world.leader(GROUP).await;
    leased(&next).await;
    let group = Group::clone(&next);
    assert!(answered("closing", world.host(next.node).close(GROUP)).await);
    assert_eq!(group.lease(), None, "the group is closed");
    Ok(())
}

pub(super) async fn l2_a_failed_replica_has_no_lease(trial: Trial) -> Outcome {
    let (_world, leader) = with_lease(&trial).await?;
    let group = Group::clone(&leader);
    // Looks without a pause: a reader that sees the failure sees no lease, however soon it looks.
    let at_the_failure = tokio::task::spawn_blocking(move || {
        let start = Instant::now();
        while group.status().is_leader() {
            assert!(start.elapsed() < TIMEOUT, "it still leads");
            std::hint::spin_loop();
        }
        group.lease()
    });
    answered("a failure", leader.propose("fail")).await.expect_err("the journal fails");
    assert_eq!(at_the_failure.await.expect("it looks until the failure"), None);
    assert_eq!(leader.lease(), None);
    Ok(())
}

pub(super) async fn l3_a_lease_needs_a_quorum_and_no_more(trial: Trial) -> Outcome {
    let (world, _) = with_lease(&trial).await?;
    let spare = (world.nodes().len() - 1) / 2;
    loop {
        let leader = world.leader(GROUP).await;
        let others = world.others(leader.node);
        cut_off(&world, leader.node, &others[..spare])?;
        // Longer than any answer from before lasts.
        world.time_passes(2 * u32::from(world.config().election_ticks)).await;
        let over = || !leader.status().is_leader();
        eventually("the lease is valid", || is_valid(&leader) || over()).await;
        if over() {
            // A busy machine may elect another one.
            world.links()?.heal();
            continue;
        }
        cut_off(&world, leader.node, &others)?;
        runs_out(&leader).await;
        return Ok(());
    }
}

fn cut_off(world: &World, node: NodeId, others: &[NodeId]) -> Outcome {
    for other in others {
        world.links()?.cut_one_way(node, *other);
        world.links()?.cut_one_way(*other, node);
    }
    Ok(())
}

pub(super) async fn l4_learners_do_not_count(trial: Trial) -> Outcome {
    let world = trial.world_with(awake).await?;
    let [one, two, three] = [world.nodes()[0], world.nodes()[1], world.nodes()[2]];
    world.create_on(GROUP, &[one, two]).await;
    let leader = world.leader(GROUP).await;
    let learner = MembershipChange::new().add_learner(three);
    answered("the addition", leader.change_membership(learner)).await.expect("it is added");
    let written = world.propose(GROUP, "command").await.index;
    eventually("the learner has it", || {
        world.replicas(GROUP).len() == 3 && world.replica(three, GROUP).status().applied >= written
    })
    .await;
    let leader = world.leader(GROUP).await;
    leased(&leader).await;
    let other = if leader.node == one { two } else { one };
    cut_off(&world, leader.node, &[other])?;
    runs_out(&leader).await;
    Ok(())
}

pub(super) async fn l5_a_change_of_voters_recomputes_the_lease(trial: Trial) -> Outcome {
    let world = trial.world_with(awake).await?;
    let [one, two] = [world.nodes()[0], world.nodes()[1]];
    world.create_on(GROUP, &[one]).await;
    let leader = world.leader(GROUP).await;
    leased(&leader).await;
    let grown = MembershipChange::new().add_voter(two);
    answered("growing", leader.change_membership(grown)).await.expect("it is added");
    // From two voters on, the lease needs an answer.
    let leader = world.leader(GROUP).await;
    leased(&leader).await;
    cut_off(&world, one, &[two])?;
    runs_out(&leader).await;
    world.links()?.heal();
    let leader = world.leader(GROUP).await;
    let other = if leader.node == one { two } else { one };
    let shrunk = MembershipChange::new().remove(other);
    // That the other one is back is noticed a little later.
    while let Err(error) = answered("shrinking", leader.change_membership(shrunk.clone())).await {
        use MembershipError::{ConfigChangePending, NoQuorum, NotServing};
        // A leader that is new takes the last entry before its term for a change until it applied that.
        let later =
            matches!(error, NoQuorum { .. } | ConfigChangePending { .. } | NotServing { .. });
        assert!(later, "{error}");
    }
    cut_off(&world, one, &[two])?;
    // Longer than any answer from before lasts.
    world.time_passes(2 * u32::from(world.config().election_ticks)).await;
    assert!(is_valid(&leader), "alone it needs no answer: {:?}", leader.lease());
    Ok(())
}

pub(super) async fn l6_the_lease_of_a_lone_voter_follows_the_clock(trial: Trial) -> Outcome {
    let world = trial.world_with(awake).await?;
    let node = world.nodes()[0];
    world.create_on(GROUP, &[node]).await;
    let leader = world.leader(GROUP).await;
    leased(&leader).await;
    world.time_passes(2 * u32::from(world.config().election_ticks)).await;
    let lease = leader.lease().expect("it leads");
    assert!(lease.valid && lease.acknowledged.is_zero(), "{lease:?}");
    Ok(())
}

pub(super) async fn l7_a_fresh_lease_asks_nobody_and_a_stale_one_a_quorum(trial: Trial) -> Outcome {
    let (world, leader) = with_lease(&trial).await?;
    let network = world.network()?;
    world.propose(GROUP, "command").await;
    leased(&leader).await;
    let asked = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&asked);
    let _tap = network.tap(move |envelope| {
        let heartbeat = envelope.kind() == MessageKind::Heartbeat;
        if heartbeat && !envelope.message.context.is_empty() {
            count.fetch_add(1, Ordering::Relaxed);
        }
        Fate::Deliver
    });
    for _ in 0..100 {
        leased(&leader).await;
        let read = answered("a read", leader.query(ReadMode::Lease, "last")).await;
        assert_eq!(read.expect("it leads"), "command");
    }
    // A lease that ran out between the look and the read asks.
    let rounds = asked.load(Ordering::Relaxed);
    assert!(rounds < 20, "{rounds} questions for 100 reads under a lease");
    world.isolate(leader.node)?;
    runs_out(&leader).await;
    let read = answered("a read", leader.query(ReadMode::Lease, "last")).await;
    let refused = matches!(read, Err(ReadError::Unconfirmed { .. } | ReadError::NotLeader { .. }));
    assert!(refused, "{read:?} without a lease and without a quorum");
    Ok(())
}

pub(super) async fn l8_a_lease_is_void_from_the_start_of_a_transfer(trial: Trial) -> Outcome {
    let (world, _) = with_lease(&trial).await?;
    loop {
        let leader = world.leader(GROUP).await;
        leased(&leader).await;
        let held = HeldTransfer::begin_at(&world, leader, None).await?;
        let lease = held.leader.lease();
        let read = answered("a read", held.leader.query(ReadMode::Lease, "last")).await;
        let in_transfer = held.is_under_way();
        let outcome = held.lose().await;
        if in_transfer {
            assert!(!lease.is_some_and(|lease| lease.valid), "during a transfer: {lease:?}");
            assert_eq!(read, Err(ReadError::Transferring { group: GROUP }));
            outcome.expect_err("the order to campaign was lost");
            break;
        }
    }
    let again = world.leader(GROUP).await;
    leased(&again).await;
    Ok(())
}

pub(super) async fn l9_the_lease_is_gone_when_the_loss_is_told(trial: Trial) -> Outcome {
    let (world, leader) = with_lease(&trial).await?;
    let at_loss = Arc::new(parking_lot::Mutex::new(None));
    let (told, group) = (Arc::clone(&at_loss), Group::clone(&leader));
    let only = GroupSelector::One(GROUP);
    let _hook = world.host(leader.node).on_leadership(only, HookKind::Inline, move |event| {
        if let LeadershipEvent::Lost(_) = event {
            told.lock().get_or_insert(group.lease());
        }
    });
    drop(answered("a transfer", leader.transfer_leadership(None)).await);
    eventually("the loss is told", || at_loss.lock().is_some()).await;
    assert_eq!(*at_loss.lock(), Some(None), "a lease when the loss was told");
    Ok(())
}
