//! B: barriers.

use std::future::IntoFuture;
use std::sync::Arc;

use super::super::world::{answered, reached};
use super::super::{Leader, Outcome, Trial, Unmet, World};
use super::GROUP;
use shardhost_groups::error::{BarrierError, ProposalRejection, ProposeError};
use shardhost_groups::runtime::Group;

async fn with_leader(trial: &Trial) -> Result<(Arc<World>, Leader), Unmet> {
    let world = trial.world().await?;
    world.create(GROUP).await;
    let leader = world.leader(GROUP).await;
    Ok((world, leader))
}

async fn is_paused(group: &Group) -> bool {
    let outcome = answered("a proposal", group.propose("user")).await;
    let reason = ProposalRejection::Paused;
    let paused = outcome == Err(ProposeError::Rejected { group: GROUP, reason });
    assert!(paused || outcome.is_ok(), "{outcome:?}");
    paused
}

pub(super) async fn b1_without_a_barrier_both_ways_of_proposing_are_one(trial: Trial) -> Outcome {
    let (world, leader) = with_leader(&trial).await?;
    leader.propose("user").await.expect("it is applied");
    let admin = leader.propose("admin").through_barrier().await.expect("it is applied");
    assert_eq!(admin.response, "2");
    assert_eq!(world.settled(GROUP).await, ["user", "admin"]);
    Ok(())
}

pub(super) async fn b2_an_open_barrier_holds_back_users_and_no_operator(trial: Trial) -> Outcome {
    let (world, leader) = with_leader(&trial).await?;
    let barrier = answered("the barrier", leader.open_barrier()).await.expect("it is open");
    assert_eq!(barrier.term(), leader.term);
    reached(&leader, "the status says so", |status| status.paused).await;
    assert!(is_paused(&leader).await);
    leader.propose("admin").through_barrier().await.expect("it is let through");
    let second = leader.open_barrier().await.map(|_| ());
    assert_eq!(second, Err(BarrierError::AlreadyOpen { group: GROUP }));
    barrier.close();
    reached(&leader, "the status says so", |status| !status.paused).await;
    assert!(!is_paused(&leader).await);
    assert_eq!(world.settled(GROUP).await, ["admin", "user"]);
    Ok(())
}

pub(super) async fn b2_whoever_does_not_lead_opens_no_barrier(trial: Trial) -> Outcome {
    let (world, leader) = with_leader(&trial).await?;
    for (_, follower) in world.followers(&leader).await {
        let refused = follower.open_barrier().await.expect_err("it follows");
        assert!(matches!(refused, BarrierError::NotLeader { .. }), "{refused}");
    }
    Ok(())
}

pub(super) async fn b3_after_a_drain_nothing_of_users_is_under_way(trial: Trial) -> Outcome {
    let (world, leader) = with_leader(&trial).await?;
    let journal = world.journal(leader.node, GROUP);
    journal.hold_apply();
    let earlier: Vec<_> = (0..5).map(|_| leader.propose("earlier").into_future()).collect();
    let barrier = answered("the barrier", leader.open_barrier()).await.expect("it is open");
    let draining = tokio::spawn(async move {
        let drained = barrier.drain().await;
        (barrier, drained)
    });
    assert!(is_paused(&leader).await, "one slips in");
    reached(&leader, "they are committed", |status| status.apply_backlog() >= 5).await;
    assert!(!draining.is_finished(), "drained while proposals are under way");
    journal.release();
    let (barrier, drained) = answered("the drain", draining).await.expect("no panic");
    let drained = drained.expect("it leads on");
    assert_eq!(journal.count("earlier"), 5, "drained before they were applied");
    for outcome in earlier {
        let applied = answered("an earlier one", outcome).await.expect("it is applied");
        assert!(applied.index <= drained, "{applied:?} is behind {drained}");
    }
    barrier.close();
    Ok(())
}

pub(super) async fn b4_a_drain_of_nothing_returns_at_once(trial: Trial) -> Outcome {
    let (_world, leader) = with_leader(&trial).await?;
    leader.propose("before").await.expect("it is applied");
    let barrier = answered("the barrier", leader.open_barrier()).await.expect("it is open");
    for _ in 0..3 {
        answered("the drain", barrier.drain()).await.expect("nothing is under way");
    }
    drop(barrier.drain());
    answered("the drain", barrier.drain()).await.expect("a dropped one disturbs nobody");
    Ok(())
}

pub(super) async fn b5_a_barrier_is_closed_once_and_whoever_drained_is_free(
    trial: Trial,
) -> Outcome {
    let (world, leader) = with_leader(&trial).await?;
    let journal = world.journal(leader.node, GROUP);
    journal.hold_apply();
    let stuck = leader.propose("stuck").into_future();
    let barrier = answered("the barrier", leader.open_barrier()).await.expect("it is open");
    let drained = tokio::time::timeout(world.ticks(3), barrier.drain()).await;
    assert!(drained.is_err(), "drained while a proposal is under way: {drained:?}");
    barrier.close();
    reached(&leader, "it is closed", |status| !status.paused).await;
    let next = answered("the next one", leader.open_barrier()).await.expect("it is open");
    assert!(is_paused(&leader).await, "the first one's end closed the second");
    journal.release();
    answered("the proposal", stuck).await.expect("it is applied");
    answered("the drain", next.drain()).await.expect("nothing is under way");
    drop(next);
    reached(&leader, "it is closed", |status| !status.paused).await;
    assert!(!is_paused(&leader).await);
    Ok(())
}

pub(super) async fn b6_a_barrier_ends_with_its_leadership(trial: Trial) -> Outcome {
    let (world, leader) = with_leader(&trial).await?;
    let barrier = answered("the barrier", leader.open_barrier()).await.expect("it is open");
    let journal = world.journal(leader.node, GROUP);
    journal.hold_apply();
    world.isolate(leader.node)?;
    let admin = leader.propose("uncertain").through_barrier().into_future();
    let next = world.leader_among(GROUP, &world.others(leader.node)).await;
    assert!(!is_paused(&next).await, "the next leader knows nothing of it");
    journal.release();
    reached(&leader, "it steps down", |status| !status.is_leader()).await;
    answered("the operator's", admin).await.expect_err("the leadership is lost");
    let drained = answered("the drain", barrier.drain()).await;
    assert_eq!(drained, Err(BarrierError::Ended { group: GROUP }));
    barrier.close();
    world.links()?.heal();
    world.propose(GROUP, "after").await;
    Ok(())
}
