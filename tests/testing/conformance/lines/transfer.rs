//! T: handing leadership over.

use std::sync::Arc;
use std::time::Duration;

use shardhost_proto::peer::MessageKind;
use shardhost_storage::NodeId;

use super::super::world::{answered, eventually, reached};
use super::super::{Leader, Outcome, Trial, Unmet, World};
use super::GROUP;
use super::held::HeldTransfer;
use crate::network::Fate;
use shardhost_groups::error::TransferError;
use shardhost_groups::membership::MembershipChange;
use shardhost_groups::policy::RejectReason;
use shardhost_groups::runtime::Group;

async fn with_leader(trial: &Trial) -> Result<(Arc<World>, Leader), Unmet> {
    let world = trial.world().await?;
    world.create(GROUP).await;
    let leader = world.leader(GROUP).await;
    Ok((world, leader))
}

pub(super) async fn t1_a_transfer_is_done_when_the_old_leader_knows_the_next_one(
    trial: Trial,
) -> Outcome {
    let (world, _) = with_leader(&trial).await?;
    for _ in 0..4 {
        let leader = world.leader(GROUP).await;
        world.applied_everywhere(GROUP, world.nudge(GROUP, "level").await).await;
        let target = world.others(leader.node)[0];
        match answered("the transfer", leader.transfer_leadership(Some(target))).await {
            Ok(moved) => {
                assert_eq!(moved.to, target);
                assert!(moved.term > leader.term, "{moved:?}");
                let known = leader.status().leader;
                assert!(known.is_some_and(|hint| hint.term >= moved.term), "{known:?}");
                let next = world.replica(target, GROUP);
                reached(&next, "it serves", |status| status.serving).await;
                return Ok(());
            }
            // An election on a busy machine may come in between, and questions may be lost.
            Err(
                TransferError::Aborted { .. }
                | TransferError::NotLeader { .. }
                | TransferError::TargetSilent { .. },
            ) => {}
            Err(error) => panic!("{error}"),
        }
    }
    panic!("no transfer succeeds:{}", world.statuses(GROUP));
}

pub(super) async fn t2_itself_strangers_and_learners_are_refused_at_once(trial: Trial) -> Outcome {
    let world = trial.world().await?;
    let [one, two, three] = [world.nodes()[0], world.nodes()[1], world.nodes()[2]];
    world.create_on(GROUP, &[one, two]).await;
    let leader = world.leader(GROUP).await;
    let learner = MembershipChange::new().add_learner(three);
    answered("the addition", leader.change_membership(learner)).await.expect("it is added");
    let leader = world.leader(GROUP).await;
    let own = leader.transfer_leadership(Some(leader.node)).await;
    assert_eq!(own, Err(TransferError::AlreadyLeads { group: GROUP, node: leader.node }));
    for node in [three, NodeId::must(99)] {
        let refused = leader.transfer_leadership(Some(node)).await;
        assert_eq!(refused, Err(TransferError::NoVoter { group: GROUP, node }));
    }
    assert_eq!(leader.status().transferring_to, None);
    leader.propose("nothing was begun").await.expect("it leads on");
    Ok(())
}

pub(super) async fn t3_whoever_does_not_lead_refuses(trial: Trial) -> Outcome {
    let (world, leader) = with_leader(&trial).await?;
    for (node, follower) in world.followers(&leader).await {
        let refused = follower.transfer_leadership(Some(node)).await.expect_err("it follows");
        let TransferError::NotLeader { group, hint } = &refused else { panic!("{refused}") };
        assert_eq!((*group, hint.map(|hint| hint.node)), (GROUP, Some(leader.node)));
    }
    Ok(())
}

pub(super) async fn t4_a_transfer_waits_for_no_pending_change(trial: Trial) -> Outcome {
    let world = trial.world().await?;
    let [one, two, three] = [world.nodes()[0], world.nodes()[1], world.nodes()[2]];
    world.create_on(GROUP, &[one, two]).await;
    let leader = world.leader(GROUP).await;
    // The change is not committed, because no follower acknowledges it.
    let _tap = world.network()?.tap(|envelope| match envelope.kind() {
        MessageKind::AppendResponse => Fate::Lose,
        _ => Fate::Deliver,
    });
    let group = Group::clone(&leader);
    let change = MembershipChange::new().add_learner(three);
    let change = tokio::spawn(async move { group.change_membership(change).await });
    reached(&leader, "a change is pending", |status| status.pending_change.is_some()).await;
    let refused = leader.transfer_leadership(None).await;
    assert_eq!(refused, Err(TransferError::ConfigChangePending { group: GROUP }));
    drop(_tap);
    answered("the change", change).await.expect("no panic").expect("it is committed");
    Ok(())
}

pub(super) async fn t5_the_same_target_joins_and_another_is_refused(trial: Trial) -> Outcome {
    let (world, _) = with_leader(&trial).await?;
    loop {
        let leader = world.leader(GROUP).await;
        let others = world.others(leader.node);
        let held = HeldTransfer::begin_at(&world, leader, Some(others[0])).await?;
        let joined = [Some(others[0]), None].map(|to| {
            let group = Group::clone(&held.leader);
            tokio::spawn(async move { group.transfer_leadership(to).await })
        });
        let other = held.leader.transfer_leadership(Some(others[1]));
        let other = answered("another target", other).await;
        let undisturbed = held.leader.status().transferring_to == Some(others[0]);
        let outcome = held.release().await;
        if !undisturbed {
            // It was given up before the others asked.
            joined.iter().for_each(tokio::task::JoinHandle::abort);
            continue;
        }
        assert_eq!(other, Err(TransferError::InProgress { group: GROUP, to: others[0] }));
        for one in joined {
            let one = answered("who joined", one).await.expect("no panic");
            match (&outcome, one) {
                (Ok(first), Ok(one)) => assert_eq!((first.to, first.term), (one.to, one.term)),
                (Err(first), Err(one)) => assert_eq!(*first, one),
                (first, one) => panic!("{first:?} and {one:?} of one transfer"),
            }
        }
        return Ok(());
    }
}

pub(super) async fn t6_only_fit_candidates_are_taken_in_their_order(trial: Trial) -> Outcome {
    let world = trial.world_of(4).await?;
    let nodes = world.nodes()[..4].to_vec();
    let (voters, learner) = (&nodes[..3], nodes[3]);
    world.create_on(GROUP, voters).await;
    let leader = world.leader(GROUP).await;
    let added = MembershipChange::new().add_learner(learner);
    answered("the addition", leader.change_membership(added)).await.expect("it is added");
    let leader = world.leader_among(GROUP, voters).await;
    let others: Vec<_> = voters.iter().copied().filter(|node| *node != leader.node).collect();
    let (fit, lagging) = (others[0], others[1]);
    let stranger = NodeId::must(99);
    let none = leader.transfer_to_first_fit([stranger, learner, leader.node], 0).await;
    assert_eq!(none, Err(TransferError::NoHealthyTarget { group: GROUP }));
    // Live, but without what is appended from here on.
    let tap = world.network()?.tap(move |envelope| match envelope.kind() {
        MessageKind::Append if envelope.to == lagging => Fate::Lose,
        _ => Fate::Deliver,
    });
    for number in 0..20 {
        let written = answered("a proposal", leader.propose(format!("command{number}"))).await;
        written.expect("a quorum has it");
    }
    let behind = leader.transfer_to_first_fit([stranger, lagging], 0).await;
    let Err(TransferError::TargetNotCaughtUp { node, lag, max_lag, .. }) = behind else {
        panic!("{behind:?}")
    };
    assert!(node == lagging && lag >= 20 && max_lag == 0, "{lag} of {max_lag}");
    let moved = leader.transfer_to_first_fit([learner, lagging, fit], 0).await;
    match moved {
        Ok(moved) => assert_eq!(moved.to, fit),
        Err(error) => assert!(matches!(error, TransferError::Aborted { to, .. } if to == fit)),
    }
    drop(tap);
    world.stop(fit).await;
    Ok(())
}

pub(super) async fn t6_a_dead_candidate_is_not_taken(trial: Trial) -> Outcome {
    let (world, leader) = with_leader(&trial).await?;
    let dead = world.others(leader.node)[0];
    world.stop(dead).await;
    let refused = || async { leader.transfer_to_first_fit([dead], u64::MAX).await };
    let gone = Err(TransferError::TargetNotLive { group: GROUP, node: dead });
    let deadline = tokio::time::Instant::now() + super::super::TIMEOUT;
    while refused().await != gone {
        let late = tokio::time::Instant::now() > deadline;
        assert!(!late, "a dead target is taken:{}", world.statuses(GROUP));
        reached(&leader, "it leads again", |s| s.serving && s.transferring_to.is_none()).await;
    }
    let named = leader.transfer_leadership(Some(dead)).await;
    assert_eq!(named, gone);
    Ok(())
}

pub(super) async fn t7_an_empty_list_of_candidates_is_an_error(trial: Trial) -> Outcome {
    let (_world, leader) = with_leader(&trial).await?;
    let refused = leader.transfer_to_first_fit([], u64::MAX).await;
    assert_eq!(refused, Err(TransferError::NoCandidates { group: GROUP }));
    Ok(())
}

pub(super) async fn t8_an_abandoned_transfer_is_aborted_and_proposals_work_again(
    trial: Trial,
) -> Outcome {
    let (world, leader) = with_leader(&trial).await?;
    let held = HeldTransfer::begin_at(&world, leader, None).await?;
    let leader = held.leader.clone();
    let outcome = held.lose().await;
    let Err(TransferError::Aborted { after, .. }) = outcome else { panic!("{outcome:?}") };
    // Counted in ticks, of which a busy machine has fewer.
    assert!(after <= world.election_timeout() * 2, "given up only after {after:?}");
    assert_eq!(leader.status().transferring_to, None);
    world.propose(GROUP, "again").await;
    Ok(())
}

pub(super) async fn t11_a_transfer_goes_on_without_its_completion(trial: Trial) -> Outcome {
    let (world, _) = with_leader(&trial).await?;
    loop {
        let leader = world.leader(GROUP).await;
        let target = world.others(leader.node)[0];
        let held = HeldTransfer::begin_at(&world, leader, Some(target)).await?;
        held.task.abort();
        eventually("the completion is gone", || held.task.is_finished()).await;
        let goes_on = held.leader.status().transferring_to == Some(target);
        held.tap.release();
        let over = |status: &shardhost_groups::GroupStatus| status.transferring_to.is_none();
        reached(&held.leader, "the transfer is over", over).await;
        world.nudge(GROUP, "somebody leads").await;
        if goes_on {
            return Ok(());
        }
    }
}

pub(super) async fn t12_what_becomes_of_transfers_is_counted_by_reason(trial: Trial) -> Outcome {
    let (world, leader) = with_leader(&trial).await?;
    let refused = [
        leader.transfer_leadership(Some(leader.node)).await,
        leader.transfer_leadership(Some(NodeId::must(99))).await,
        leader.transfer_to_first_fit([], u64::MAX).await,
    ];
    let reasons = refused.map(|outcome| outcome.expect_err("nobody is there").reason());
    let held = HeldTransfer::begin_at(&world, leader, None).await?;
    let (host, target) = (world.host(held.leader.node), held.leader.status().transferring_to);
    let Err(error @ TransferError::Aborted { .. }) = held.lose().await else {
        panic!("it is lost, on its way to {target:?}")
    };
    let counted = || host.stats().workers.policy;
    eventually("the transfer is counted", || counted().freezes > 0).await;
    for reason in reasons.into_iter().chain([error.reason()]) {
        assert_eq!(counted().transfers_failed[reason], 1, "{reason:?}: {:?}", counted());
    }
    assert_eq!(reasons[1..], [RejectReason::NotVoter, RejectReason::NoCandidates]);
    assert_eq!((counted().candidates_refused[RejectReason::NotVoter], counted().freezes), (1, 1));
    let stood = Duration::from_micros(host.freezes().snapshot().max_us());
    assert!(stood >= world.config().freeze_timeout, "users waited for {stood:?} only");
    Ok(())
}
