//! G and H: creating, opening and finding groups, and whether they serve.

use std::collections::BTreeMap;

use shardhost_proto::peer::MessageKind;
use shardhost_storage::{GroupId, LogIndex, NodeId};

use super::super::world::{answered, blocking, eventually, reached};
use super::super::{Journal, Outcome, Trial};
use super::{GROUP, OTHER};
use crate::network::Fate;
use shardhost_groups::error::OpenGroupError;
use shardhost_groups::machine::StateMachine;
use shardhost_groups::membership::MembershipChange;
use shardhost_groups::runtime::GroupSpec;
use shardhost_groups::status::Role;

pub(super) async fn g1_many_groups_come_from_one_declaration(trial: Trial) -> Outcome {
    const GROUPS: u64 = 64;
    let world = trial.world().await?;
    for node in world.nodes() {
        let (host, nodes) = (world.host(*node), world.nodes().to_vec());
        let spec = move |id| GroupSpec::new(GroupId::new(id), nodes.iter().copied());
        let specs = (1..=GROUPS)
            .map(|id| (spec(id), Box::new(Journal::default()) as Box<dyn StateMachine>));
        let specs: Vec<_> = specs.collect();
        blocking(move || host.create_many(specs)).await.expect("they are created");
    }
    for id in 1..=GROUPS {
        world.propose(GroupId::new(id), "command").await;
    }
    Ok(())
}

pub(super) async fn g2_what_makes_no_sense_is_refused_and_creates_nothing(trial: Trial) -> Outcome {
    let world = trial.world().await?;
    let node = world.nodes()[0];
    let (host, group) = (world.host(node), GROUP);
    let before = host.stored().expect("readable").len();
    let unknown = {
        let host = host.clone();
        blocking(move || host.open(GROUP, machine())).await
    };
    assert_eq!(unknown.map(|_| ()), Err(OpenGroupError::Unknown { group }));
    let elsewhere = world.try_create(node, GroupSpec::new(GROUP, [NodeId::must(99)])).await;
    assert!(matches!(elsewhere, Err(OpenGroupError::Invalid { .. })), "{elsewhere:?}");
    let nobody = world.try_create(node, GroupSpec::new(GROUP, [])).await;
    assert!(matches!(nobody, Err(OpenGroupError::Invalid { .. })), "{nobody:?}");
    let spec = GroupSpec::new(GROUP, [node]);
    let twice = {
        let (host, spec) = (host.clone(), spec.clone());
        blocking(move || host.create_many(vec![(spec.clone(), machine()), (spec, machine())])).await
    };
    assert_eq!(twice.map(|_| ()), Err(OpenGroupError::AlreadyOpen { group }));
    assert_eq!(host.stored().expect("readable").len(), before, "something was created");
    world.try_create(node, spec.clone()).await.expect("there is nothing wrong with it");
    let again = world.try_create(node, spec.clone()).await.map(|_| ());
    assert_eq!(again, Err(OpenGroupError::AlreadyOpen { group }));
    assert!(answered("closing", host.close(GROUP)).await);
    let again = world.try_create(node, spec).await.map(|_| ());
    assert_eq!(again, Err(OpenGroupError::Exists { group }));
    Ok(())
}

fn machine() -> Box<dyn StateMachine> {
    Box::new(Journal::default())
}

pub(super) async fn g3_the_order_of_members_does_not_matter(trial: Trial) -> Outcome {
    let world = trial.world().await?;
    for (turn, node) in world.nodes().iter().enumerate() {
        let mut nodes = world.nodes().to_vec();
        nodes.rotate_left(turn);
        let spec = GroupSpec::new(GROUP, nodes);
        world.try_create(*node, spec).await.expect("it is created");
    }
    world.propose(GROUP, "one group").await;
    world.settled(GROUP).await;
    let members: Vec<_> =
        world.replicas(GROUP).iter().map(|(_, replica)| replica.membership()).collect();
    assert!(members.iter().all(|one| *one == members[0]), "{members:?}");
    Ok(())
}

pub(super) async fn g3_groups_with_other_first_members_are_told_apart(trial: Trial) -> Outcome {
    let world = trial.world().await?;
    let mut nodes = world.nodes().to_vec();
    let wrong = nodes.swap_remove(1);
    let elsewhere = [nodes[0], wrong, NodeId::must(99)];
    for node in &nodes {
        let spec = GroupSpec::new(GROUP, world.nodes().iter().copied());
        world.try_create(*node, spec).await.expect("it is created");
    }
    world.try_create(wrong, GroupSpec::new(GROUP, elsewhere)).await.expect("it is created");
    world.propose(GROUP, "one group").await;
    let alone = world.replica(wrong, GROUP);
    eventually("both sides notice", || {
        let known = |node: NodeId| world.replica(node, GROUP).status().conflicting == Some(wrong);
        alone.status().conflicting.is_some() && nodes.iter().any(|node| known(*node))
    })
    .await;
    let status = alone.status();
    assert_eq!((status.leader, status.last), (None, LogIndex::default()), "it took part");
    Ok(())
}

pub(super) async fn g4_a_restart_follows_what_is_stored(trial: Trial) -> Outcome {
    let world = trial.world().await?;
    let mut labels = BTreeMap::new();
    for node in world.nodes() {
        let spec = GroupSpec::new(GROUP, world.nodes().iter().copied());
        let spec = spec.kind("journal").label("zone", "a");
        labels.clone_from(&spec.labels);
        world.try_create(*node, spec).await.expect("it is created");
    }
    world.propose(GROUP, "before").await;
    for node in world.nodes() {
        world.stop(*node).await;
        world.start_closed(*node).await;
        let stored = world.host(*node).stored().expect("readable");
        let meta = stored.iter().find(|meta| meta.group == GROUP).expect("it is stored");
        assert_eq!((meta.kind.as_str(), &meta.labels), ("journal", &labels));
        let other = GroupSpec::new(GROUP, [*node]);
        let refused = world.try_create(*node, other).await.map(|_| ());
        assert_eq!(refused, Err(OpenGroupError::Exists { group: GROUP }), "{node:?}");
        let replica = world.open(*node, GROUP).await;
        assert_eq!(replica.membership().voters().count(), world.nodes().len());
        assert_eq!(replica.kind(), "journal");
    }
    assert_eq!(world.settled(GROUP).await, ["before"]);
    Ok(())
}

pub(super) async fn g5_groups_may_have_different_members(trial: Trial) -> Outcome {
    let world = trial.world().await?;
    let nodes = world.nodes();
    let members = [vec![nodes[0]], vec![nodes[0], nodes[1]], vec![nodes[1], nodes[2]]];
    for (id, members) in (1..).zip(&members) {
        world.create_on(GroupId::new(id), members).await;
    }
    for (id, members) in (1..).zip(&members) {
        let group = GroupId::new(id);
        world.propose(group, format!("for {id}")).await;
        assert_eq!(world.settled(group).await, [format!("for {id}")]);
        assert_eq!(world.replicas(group).len(), members.len());
    }
    Ok(())
}

pub(super) async fn g6_a_joiner_opens_empty_and_never_campaigns(trial: Trial) -> Outcome {
    let world = trial.world().await?;
    let [one, two, joiner] = [world.nodes()[0], world.nodes()[1], world.nodes()[2]];
    world.create_on(GROUP, &[one, two]).await;
    let leader = world.leader(GROUP).await;
    // It is asked and gets nothing of the log.
    let tap = world.network()?.tap(move |envelope| {
        let log = matches!(envelope.kind(), MessageKind::Append | MessageKind::Snapshot);
        if envelope.to == joiner && log { Fate::Lose } else { Fate::Deliver }
    });
    let change = MembershipChange::new().add_learner(joiner);
    answered("the addition", leader.change_membership(change)).await.expect("it is added");
    eventually("its replica exists", || world.host(joiner).group(GROUP).is_some()).await;
    let replica = world.replica(joiner, GROUP);
    world.isolate(joiner)?;
    let campaigns = |status: &shardhost_groups::GroupStatus| {
        matches!(status.role, Role::PreCandidate | Role::Candidate)
    };
    let met = replica.wait_for(campaigns, world.election_timeout() * 5).await;
    assert_eq!(met, None, "a joiner campaigns");
    assert_eq!(replica.status().last, LogIndex::new(0), "it is not empty");
    world.links()?.heal();
    drop(tap);
    let last = world.propose(GROUP, "command").await.index;
    reached(&replica, "it has caught up", |status| status.applied >= last).await;
    Ok(())
}

pub(super) async fn g7_the_data_of_another_node_is_refused(trial: Trial) -> Outcome {
    let world = trial.world().await?;
    world.create(GROUP).await;
    let [thief, owner] = [world.nodes()[0], world.nodes()[1]];
    world.stop(thief).await;
    world.stop(owner).await;
    let refusal = world.start_on_data_of(thief, owner).await?;
    let both = refusal.contains(&thief.to_string()) && refusal.contains(&owner.to_string());
    assert!(both, "the refusal does not name both nodes: {refusal}");
    world.start(owner).await;
    world.start(thief).await;
    world.propose(GROUP, "it is still its owner's").await;
    Ok(())
}

pub(super) async fn h1_a_group_serves_where_it_is_led(trial: Trial) -> Outcome {
    let world = trial.world().await?;
    world.create(GROUP).await;
    world.create_on(OTHER, &world.nodes()[..1]).await;
    let leader = world.leader(GROUP).await;
    leader.check_serving().expect("it serves");
    for (node, follower) in world.followers(&leader).await {
        let refused = follower.check_serving().expect_err("it follows");
        assert_eq!(refused.leader.map(|hint| hint.node), Some(leader.node), "{node:?}");
        assert!(refused.to_string().contains("does not serve"), "{refused}");
    }
    let alone = world.leader(OTHER).await;
    alone.check_serving().expect("it serves");
    let group = (*alone).clone();
    assert!(answered("closing", world.host(alone.node).close(OTHER)).await);
    group.check_serving().expect_err("it is closed");
    Ok(())
}
