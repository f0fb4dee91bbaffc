//! M and N: who belongs to a group, and learners.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use shardhost_proto::peer::{GroupMessage, MessageKind};
use shardhost_storage::{LogIndex, Membership, NodeId, ReplicaId, Requirement};

use super::super::world::{answered, eventually, reached};
use super::super::{Keeps, Leader, Outcome, Trial, Unmet, World};
use super::GROUP;
use crate::network::Fate;
use shardhost_groups::error::TransferError;
use shardhost_groups::membership::{CaughtUp, MembershipChange, MembershipError};
use shardhost_groups::selector::GroupSelector;
use shardhost_groups::status::Role;
use shardhost_groups::transport::Inbound;

/// A group with voters on all but the last of so many nodes.
async fn with_spare(trial: &Trial, nodes: u64) -> Result<(Arc<World>, Vec<NodeId>, NodeId), Unmet> {
    let world = trial.world_of(nodes).await?;
    let count = usize::try_from(nodes).unwrap_or(usize::MAX);
    let mut voters = world.nodes()[..count].to_vec();
    let spare = voters.remove(count - 1);
    world.create_on(GROUP, &voters).await;
    world.leader(GROUP).await;
    Ok((world, voters, spare))
}

/// Changes the membership, again as long as an election or the change before is in the way.
async fn change(world: &World, wanted: &MembershipChange) -> Arc<Membership> {
    match try_change(world, wanted).await {
        Ok(membership) => membership,
        Err(error) => panic!("{wanted:?}: {error}{}", world.statuses(GROUP)),
    }
}

async fn try_change(
    world: &World,
    wanted: &MembershipChange,
) -> Result<Arc<Membership>, MembershipError> {
    loop {
        let leader = world.leader(GROUP).await;
        match answered("the change", leader.change_membership(wanted.clone())).await {
            Err(
                MembershipError::NotLeader { .. }
                | MembershipError::NotServing { .. }
                | MembershipError::ConfigChangePending { .. },
            ) => {}
            other => return other,
        }
    }
}

fn nodes_of(members: impl Iterator<Item = (ReplicaId, NodeId)>) -> Vec<NodeId> {
    let mut nodes: Vec<_> = members.map(|(_, node)| node).collect();
    nodes.sort_unstable();
    nodes
}

/// Waits until the replica on a node has what the group has.
async fn level(world: &World, node: NodeId) {
    let written = world.nudge(GROUP, "level").await;
    eventually("its replica exists", || world.host(node).group(GROUP).is_some()).await;
    let replica = world.replica(node, GROUP);
    reached(&replica, "it has everything", |status| status.applied >= written).await;
}

pub(super) async fn m1_an_added_voter_replicates_and_shows_up(trial: Trial) -> Outcome {
    let (world, voters, spare) = with_spare(&trial, 3).await?;
    let written = world.propose_many(GROUP, "before", 0..30).await;
    let after = change(&world, &MembershipChange::new().add_voter(spare)).await;
    assert_eq!(nodes_of(after.voters()), [&voters[..], &[spare]].concat());
    level(&world, spare).await;
    assert_eq!(world.journal(spare, GROUP).texts()[..30], written[..]);
    // It counts: with one of the others away, it is needed and it serves.
    world.stop(voters[0]).await;
    world.propose(GROUP, "after").await;
    Ok(())
}

pub(super) async fn m2_a_removed_replica_ends_when_it_learns_of_it(trial: Trial) -> Outcome {
    let world = trial.world().await?;
    world.create(GROUP).await;
    let leader = world.leader(GROUP).await;
    let removed = world.others(leader.node)[0];
    level(&world, removed).await;
    let replica = world.replica(removed, GROUP);
    let after = change(&world, &MembershipChange::new().remove(removed)).await;
    assert!(!nodes_of(after.voters()).contains(&removed));
    reached(&replica, "it ended", |status| status.role == Role::Removed).await;
    ended(&world, removed).await;
    world.propose(GROUP, "the others go on").await;
    Ok(())
}

/// Nothing is left of a removed replica but its tombstone.
async fn ended(world: &World, node: NodeId) {
    let host = world.host(node);
    eventually("its log is gone", || !host.is_stored(GROUP).expect("readable")).await;
    let told = || world.journal(node, GROUP).counts().removed == 1;
    eventually("its state machine is told", told).await;
    let again = shardhost_groups::GroupSpec::new(GROUP, world.nodes().iter().copied());
    let refused = world.try_create(node, again).await.expect_err("its replica id is used up");
    assert!(refused.to_string().contains("destroyed here before"), "{refused}");
}

pub(super) async fn m2_a_replica_that_was_down_when_it_was_removed_ends_as_well(
    trial: Trial,
) -> Outcome {
    let world = trial.world_with(|plan| plan.keeps = Keeps::Everything).await?;
    world.create(GROUP).await;
    let leader = world.leader(GROUP).await;
    let removed = world.others(leader.node)[0];
    level(&world, removed).await;
    world.stop(removed).await;
    change(&world, &MembershipChange::new().remove(removed)).await;
    world.propose(GROUP, "meanwhile").await;
    world.start(removed).await;
    ended(&world, removed).await;
    Ok(())
}

pub(super) async fn m3_a_change_that_expects_another_configuration_is_refused(
    trial: Trial,
) -> Outcome {
    let (world, _, spare) = with_spare(&trial, 3).await?;
    let actual = world.leader(GROUP).await.membership().config_index;
    let expected = LogIndex::new(77);
    let wrong = MembershipChange::new().add_learner(spare).expecting(expected);
    let refused = try_change(&world, &wrong).await.expect_err("another configuration");
    let MembershipError::WrongConfig { group, expected: told, actual: is } = refused else {
        panic!("{refused}")
    };
    assert_eq!((group, told, is), (GROUP, expected, actual));
    let text = MembershipError::WrongConfig { group, expected, actual }.to_string();
    assert!(text.contains("77") && text.contains(&actual.to_string()), "{text}");
    let right = MembershipChange::new().add_learner(spare).expecting(actual);
    let after = change(&world, &right).await;
    // The same again: another change was quicker, and both would have been right.
    let refused = try_change(&world, &right).await.expect_err("it was changed meanwhile");
    let expected =
        MembershipError::WrongConfig { group, expected: actual, actual: after.config_index };
    assert_eq!(refused, expected);
    Ok(())
}

pub(super) async fn m4_one_change_at_a_time(trial: Trial) -> Outcome {
    let (world, _, spare) = with_spare(&trial, 3).await?;
    let leader = world.leader(GROUP).await;
    // No follower acknowledges, so nothing is committed.
    let tap = world.network()?.tap(|envelope| match envelope.kind() {
        MessageKind::AppendResponse => Fate::Lose,
        _ => Fate::Deliver,
    });
    let first = tokio::spawn({
        let leader = leader.clone();
        let change = MembershipChange::new().add_learner(spare);
        async move { leader.change_membership(change).await }
    });
    let pending = |status: &shardhost_groups::GroupStatus| status.pending_change.is_some();
    let status = reached(&leader, "a change is pending", pending).await;
    let index = status.pending_change.expect("it is pending");
    let second = MembershipChange::new().remove(world.others(leader.node)[0]);
    let refused = leader.change_membership(second).await;
    assert_eq!(refused, Err(MembershipError::ConfigChangePending { group: GROUP, index }));
    drop(tap);
    answered("the first", first).await.expect("no panic").expect("it is committed");
    reached(&leader, "nothing is pending", |status| status.pending_change.is_none()).await;
    Ok(())
}

pub(super) async fn m5_the_fence_goes_with_an_entry_that_is_overwritten(trial: Trial) -> Outcome {
    let world = trial.world().await?;
    world.create(GROUP).await;
    let old = world.leader(GROUP).await;
    let others = world.others(old.node);
    world.isolate(old.node)?;
    let lost = tokio::spawn({
        // A change of members is not begun without answers of the others.
        let (old, requirement) = (old.clone(), Requirement::soft(["lost"]).expect("a name"));
        async move { old.require(requirement, None).await }
    });
    reached(&old, "a change is pending", |status| status.pending_change.is_some()).await;
    let next = world.leader_among(GROUP, &others).await;
    assert_eq!(next.status().pending_change, None, "the next leader never saw it");
    answered("a proposal", next.propose("in its place")).await.expect("a quorum is there");
    let lost = answered("the lost change", lost).await.expect("no panic");
    assert!(matches!(lost, Err(MembershipError::Unknown { .. })), "{lost:?}");
    world.links()?.heal();
    world.settled(GROUP).await;
    let members = world.leader(GROUP).await.membership();
    assert!(members.requirement.is_empty(), "it never took effect");
    // A replica that had it in its log can lead and change again.
    let removed = world.nodes()[0];
    change(&world, &MembershipChange::new().remove(removed)).await;
    Ok(())
}

pub(super) async fn m7_the_configuration_index_is_what_the_change_returned_and_survives(
    trial: Trial,
) -> Outcome {
    let (world, voters, spare) = with_spare(&trial, 3).await?;
    let added = change(&world, &MembershipChange::new().add_learner(spare)).await;
    level(&world, spare).await;
    let index = added.config_index;
    assert!(index > LogIndex::new(0));
    for (node, replica) in world.replicas(GROUP) {
        assert_eq!(replica.status().config_index(), index, "{node:?}");
    }
    let members = [&voters[..], &[spare]].concat();
    for node in &members {
        world.stop(*node).await;
    }
    for node in &members {
        world.start(*node).await;
        let membership = world.replica(*node, GROUP).membership();
        assert_eq!((membership.config_index, &membership.members), (index, &added.members));
    }
    assert_eq!(nodes_of(world.leader(GROUP).await.membership().voters()), voters);
    Ok(())
}

pub(super) async fn m8_impossible_changes_are_refused_by_name(trial: Trial) -> Outcome {
    let (world, voters, spare) = with_spare(&trial, 3).await?;
    change(&world, &MembershipChange::new().add_learner(spare)).await;
    let before = world.leader(GROUP).await.status().membership.clone();
    let (group, voter, stranger) = (GROUP, voters[0], NodeId::must(99));
    let new = MembershipChange::new;
    let refusals = [
        (new().add_voter(spare), MembershipError::IsLearner { group, node: spare }),
        (new().add_learner(voter), MembershipError::IsVoter { group, node: voter }),
        (new().add_voter(voter), MembershipError::AlreadyMember { group, node: voter }),
        (new().add_learner(spare), MembershipError::AlreadyMember { group, node: spare }),
        (new().remove(stranger), MembershipError::NotMember { group, node: stranger }),
        (
            new().promote(voter, CaughtUp::Unchecked),
            MembershipError::NotLearner { group, node: voter },
        ),
        (new().demote(spare), MembershipError::NotVoter { group, node: spare }),
        (new().remove(voters[0]).remove(voters[1]), MembershipError::LastVoter { group }),
    ];
    for (wanted, expected) in refusals {
        let refused = try_change(&world, &wanted).await;
        assert_eq!(refused, Err(expected), "{wanted:?}");
    }
    for senseless in [new(), new().remove(voter).remove(voter)] {
        let refused = try_change(&world, &senseless).await.expect_err("it makes no sense");
        assert!(matches!(refused, MembershipError::Impossible { .. }), "{refused}");
    }
    assert_eq!(world.leader(GROUP).await.membership(), before, "bad input changed something");
    Ok(())
}

pub(super) async fn m9_answers_of_removed_peers_change_nothing(trial: Trial) -> Outcome {
    let world = trial.world().await?;
    world.create(GROUP).await;
    let leader = world.leader(GROUP).await;
    let removed = world.others(leader.node)[0];
    let replica = world.replica(removed, GROUP).status().replica;
    change(&world, &MembershipChange::new().remove(removed)).await;
    let leader = world.leader_among(GROUP, &world.others(removed)).await;
    let answer = GroupMessage {
        group: GROUP.get(),
        from_replica: replica.get(),
        to_replica: leader.status().replica.get(),
        kind: MessageKind::AppendResponse.into(),
        term: leader.term.get(),
        index: leader.status().last.get(),
        ..GroupMessage::default()
    };
    let host = world.host(leader.node);
    assert_eq!(host.inbound().deliver(removed, vec![answer]), 0);
    let before = leader.status();
    leader.propose("it goes on").await.expect("it leads on");
    let after = leader.status();
    assert_eq!((before.term, &before.membership), (after.term, &after.membership));
    assert!(after.is_leader(), "{after:?}");
    Ok(())
}

pub(super) async fn m10_a_hook_is_asked_before_a_node_is_added(trial: Trial) -> Outcome {
    let (world, _, spare) = with_spare(&trial, 3).await?;
    let asked = Arc::new(AtomicU64::new(0));
    let guards: Vec<_> = world
        .nodes()
        .iter()
        .map(|node| {
            let asked = Arc::clone(&asked);
            world.host(*node).before_addition(GroupSelector::One(GROUP), move |_, node, _| {
                asked.fetch_add(1, Ordering::SeqCst);
                Err(format!("node {node} has no room"))
            })
        })
        .collect();
    let members = world.leader(GROUP).await.membership();
    for wanted in
        [MembershipChange::new().add_learner(spare), MembershipChange::new().add_voter(spare)]
    {
        let refused = try_change(&world, &wanted).await.expect_err("the hook refuses");
        assert!(matches!(refused, MembershipError::Refused { .. }), "{refused}");
        assert!(refused.to_string().contains("has no room"), "{refused}");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    assert_eq!(world.leader(GROUP).await.membership(), members, "it was added all the same");
    drop(guards);
    change(&world, &MembershipChange::new().add_learner(spare)).await;
    Ok(())
}

pub(super) async fn m11_several_members_change_in_one_step(trial: Trial) -> Outcome {
    let (world, voters, spare) = with_spare(&trial, 3).await?;
    change(&world, &MembershipChange::new().add_learner(spare)).await;
    level(&world, spare).await;
    let leader = world.leader(GROUP).await;
    let follower = voters.iter().copied().find(|node| *node != leader.node).expect("two voters");
    let swap = MembershipChange::new().promote(spare, CaughtUp::MaxLag(1_000)).demote(follower);
    let after = change(&world, &swap).await;
    assert!(!after.is_joint(), "it returned before the joint configuration was left");
    let mut expected = vec![leader.node, spare];
    expected.sort_unstable();
    assert_eq!(nodes_of(after.voters()), expected);
    assert_eq!(nodes_of(after.learners()), [follower]);
    world.propose(GROUP, "after").await;
    Ok(())
}

/// A group with two voters and a learner that is level.
async fn with_learner(trial: &Trial) -> Result<(Arc<World>, Vec<NodeId>, NodeId), Unmet> {
    let (world, voters, learner) = with_spare(trial, 3).await?;
    change(&world, &MembershipChange::new().add_learner(learner)).await;
    level(&world, learner).await;
    Ok((world, voters, learner))
}

pub(super) async fn n1_learners_apply_and_do_not_count(trial: Trial) -> Outcome {
    let (world, voters, learner) = with_learner(&trial).await?;
    let written = world.propose_many(GROUP, "command", 0..10).await;
    level(&world, learner).await;
    let texts = world.journal(learner, GROUP).texts();
    assert!(written.iter().all(|command| texts.contains(command)), "{texts:?}");
    assert_eq!(world.replica(learner, GROUP).status().role, Role::Learner);
    let leader = world.leader(GROUP).await;
    let other = voters.iter().copied().find(|node| *node != leader.node).expect("two voters");
    world.links()?.cut_one_way(leader.node, other);
    world.links()?.cut_one_way(other, leader.node);
    let alone = leader.propose("without a quorum").within(world.ticks(15)).await;
    alone.expect_err("a learner counts for a quorum");
    world.links()?.heal();
    Ok(())
}

pub(super) async fn n2_only_learners_that_have_caught_up_are_promoted(trial: Trial) -> Outcome {
    let (world, voters, spare) = with_spare(&trial, 3).await?;
    let (group, new) = (GROUP, MembershipChange::new);
    world.stop(spare).await;
    change(&world, &new().add_learner(spare)).await;
    world.propose_many(GROUP, "command", 0..20).await;
    let too_early = [CaughtUp::MaxLag(5), CaughtUp::AtLeast(LogIndex::new(10))];
    for when in too_early {
        let refused = try_change(&world, &new().promote(spare, when)).await;
        let Err(MembershipError::Behind { node, needed, matched, .. }) = &refused else {
            panic!("{when:?}: {refused:?}")
        };
        assert!(*node == spare && matched < needed, "{refused:?}");
    }
    let nothing = CaughtUp::AtLeast(LogIndex::new(0));
    let refused = try_change(&world, &new().promote(spare, nothing)).await;
    assert_eq!(refused, Err(MembershipError::NoMinimum { group }));
    let refused = try_change(&world, &new().promote(voters[0], CaughtUp::MaxLag(0))).await;
    assert_eq!(refused, Err(MembershipError::NotLearner { group, node: voters[0] }));
    world.start(spare).await;
    level(&world, spare).await;
    let after = loop {
        match try_change(&world, &new().promote(spare, CaughtUp::MaxLag(5))).await {
            Ok(after) => break after,
            // The leader hears of it a little later than we do.
            Err(MembershipError::Behind { .. } | MembershipError::LacksState { .. }) => {
                level(&world, spare).await;
            }
            Err(error) => panic!("{error}"),
        }
    };
    assert!(nodes_of(after.voters()).contains(&spare));
    Ok(())
}

pub(super) async fn n3_a_node_joins_catches_up_is_promoted_and_restarts(trial: Trial) -> Outcome {
    let (world, _, node) = with_learner(&trial).await?;
    change(&world, &MembershipChange::new().promote(node, CaughtUp::MaxLag(1_000))).await;
    let written = world.propose_many(GROUP, "before", 0..5).await;
    level(&world, node).await;
    world.stop(node).await;
    world.start(node).await;
    level(&world, node).await;
    let texts = world.journal(node, GROUP).texts();
    assert!(written.iter().all(|command| texts.contains(command)), "{texts:?}");
    let role = world.replica(node, GROUP).status().role.clone();
    assert!(!matches!(role, Role::Learner), "it is a voter: {role:?}");
    Ok(())
}

pub(super) async fn n4_a_removed_node_comes_back_as_a_fresh_learner(trial: Trial) -> Outcome {
    let (world, _, node) = with_learner(&trial).await?;
    let first = world.replica(node, GROUP).status().replica;
    change(&world, &MembershipChange::new().remove(node)).await;
    eventually("its replica is gone", || !world.host(node).is_stored(GROUP).expect("readable"))
        .await;
    change(&world, &MembershipChange::new().add_learner(node)).await;
    eventually("its replica exists", || {
        world.host(node).group(GROUP).is_some_and(|replica| replica.status().replica != first)
    })
    .await;
    level(&world, node).await;
    let again = world.replica(node, GROUP).status();
    assert!(again.replica > first, "a replica id is used again");
    assert_eq!(again.role, Role::Learner);
    Ok(())
}

pub(super) async fn n5_learners_never_campaign_and_are_no_targets(trial: Trial) -> Outcome {
    let (world, voters, learner) = with_learner(&trial).await?;
    let leader = world.leader(GROUP).await;
    let refused = leader.transfer_leadership(Some(learner)).await;
    assert_eq!(refused, Err(TransferError::NoVoter { group: GROUP, node: learner }));
    let replica = world.replica(learner, GROUP);
    let before = replica.status().term;
    for voter in &voters {
        world.stop(*voter).await;
    }
    let campaigns = |status: &shardhost_groups::GroupStatus| {
        status.term > before || matches!(status.role, Role::PreCandidate | Role::Candidate)
    };
    let met = replica.wait_for(campaigns, world.election_timeout() * 5).await;
    assert_eq!(met, None, "a learner campaigns");
    Ok(())
}

pub(super) async fn n7_a_dead_member_is_replaced(trial: Trial) -> Outcome {
    let (world, voters, new) = with_spare(&trial, 4).await?;
    let written = world.propose_many(GROUP, "before", 0..10).await;
    let leader = world.leader(GROUP).await;
    let dead = *voters.iter().find(|node| **node != leader.node).expect("three voters");
    world.stop(dead).await;
    let wrong = leader.replace_member(dead, new, Some(LogIndex::new(77))).await;
    assert!(matches!(wrong, Err(MembershipError::WrongConfig { .. })), "{wrong:?}");
    begin_replacement(&world, dead, new).await;
    // The node that began it may go: the recorded change is continued.
    let leader = world.leader(GROUP).await;
    drop(answered("a transfer", leader.transfer_leadership(None)).await);
    let done = |membership: &Membership| {
        let nodes = nodes_of(membership.voters());
        nodes.contains(&new) && !nodes.contains(&dead) && membership.incoming.is_none()
    };
    let leader = world.leader(GROUP).await;
    eventually("the replacement is done", || {
        let mut replicas = world.replicas(GROUP).into_iter();
        replicas.any(|(_, replica)| replica.status().is_leader() && done(&replica.membership()))
    })
    .await;
    level(&world, new).await;
    assert_eq!(world.journal(new, GROUP).texts()[..10], written[..], "{leader:?}");
    Ok(())
}

async fn begin_replacement(world: &World, old: NodeId, new: NodeId) {
    loop {
        let leader: Leader = world.leader(GROUP).await;
        match answered("the replacement", leader.replace_member(old, new, None)).await {
            Ok(_) => return,
            Err(MembershipError::NotLeader { .. } | MembershipError::NotServing { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

pub(super) async fn n7_without_a_quorum_nobody_is_replaced(trial: Trial) -> Outcome {
    let (world, voters, new) = with_spare(&trial, 3).await?;
    let leader = world.leader(GROUP).await;
    let dead = *voters.iter().find(|node| **node != leader.node).expect("two voters");
    world.stop(dead).await;
    let mut refused = answered("the replacement", leader.replace_member(dead, new, None)).await;
    while let Err(MembershipError::Unknown { .. }) | Ok(_) = refused {
        // The loss of the node was not noticed yet: what was proposed cannot be committed.
        refused = answered("the replacement", leader.replace_member(dead, new, None)).await;
    }
    let fits = matches!(
        refused,
        Err(MembershipError::NoQuorum { live: 1, needed: 2, .. }
            | MembershipError::NotLeader { .. }
            | MembershipError::ConfigChangePending { .. })
    );
    assert!(fits, "{refused:?}");
    assert_eq!(nodes_of(world.replica(leader.node, GROUP).membership().voters()), voters);
    Ok(())
}
