//! K: what a restart does with state machines.

use std::sync::Arc;

use shardhost_storage::NodeId;

use super::super::world::{answered, eventually, reached};
use super::super::{Keeps, Outcome, Plan, Trial, Unmet, World};
use super::GROUP;
use shardhost_groups::membership::MembershipChange;

fn durable(plan: &mut Plan) {
    plan.keeps = Keeps::Everything;
}

/// A one-voter group with some commands.
async fn with_commands(
    trial: &Trial,
    tune: impl FnOnce(&mut Plan),
) -> Result<(Arc<World>, NodeId), Unmet> {
    let world = trial.world_with(tune).await?;
    let node = world.nodes()[0];
    world.create_on(GROUP, &[node]).await;
    world.propose_many(GROUP, "command", 0..30).await;
    Ok((world, node))
}

async fn restart(world: &World, node: NodeId) {
    world.stop(node).await;
    world.start(node).await;
    world.leader(GROUP).await;
}

pub(super) async fn k1_a_fresh_state_machine_is_not_restored(trial: Trial) -> Outcome {
    let (world, node) = with_commands(&trial, durable).await?;
    let leader = world.leader(GROUP).await;
    answered("a snapshot", leader.snapshot()).await.expect("it is taken");
    let before = world.journal(node, GROUP).contents();
    restart(&world, node).await;
    let journal = world.journal(node, GROUP);
    let counts = journal.counts();
    assert_eq!((counts.restored, counts.repeated, counts.lives), (0, 0, 2), "{counts:?}");
    assert_eq!(journal.contents().commands, before.commands);
    Ok(())
}

pub(super) async fn k2_a_stale_state_machine_is_restored(trial: Trial) -> Outcome {
    let short = |plan: &mut Plan| {
        plan.config.snapshot_entries = 50;
        plan.config.log_trail_entries = 10;
    };
    let (world, node) = with_commands(&trial, short).await?;
    let truncated = || world.replica(node, GROUP).status().first.get() > 20;
    world.propose_until(GROUP, "the log is truncated", truncated).await;
    let before = world.journal(node, GROUP).contents();
    restart(&world, node).await;
    let journal = world.journal(node, GROUP);
    let counts = journal.counts();
    assert_eq!((counts.restored, counts.repeated), (1, 0), "{counts:?}");
    assert_eq!(journal.contents().commands, before.commands);
    Ok(())
}

pub(super) async fn k3_no_entry_is_applied_twice(trial: Trial) -> Outcome {
    for keeps in [Keeps::Everything, Keeps::Flushed, Keeps::Nothing] {
        let world = trial.world_with(|plan| plan.keeps = keeps).await?;
        world.create(GROUP).await;
        let mut expected = Vec::new();
        for round in 0..3 {
            expected.extend(world.propose_many(GROUP, &format!("{round}-"), 0..10).await);
            for node in world.nodes() {
                world.journal(*node, GROUP).flush();
            }
            expected.extend(world.propose_many(GROUP, &format!("{round}+"), 0..10).await);
            world.kill_and_start_all().await?;
        }
        assert_eq!(world.settled(GROUP).await, expected, "{keeps:?}");
        for node in world.nodes() {
            let journal = world.journal(*node, GROUP);
            assert_eq!(journal.counts().repeated, 0, "{keeps:?} {node:?}: {journal:?}");
        }
    }
    Ok(())
}

pub(super) async fn k4_volatile_commands_are_replayed_and_move_nothing(trial: Trial) -> Outcome {
    let (world, node) = with_commands(&trial, durable).await?;
    world.propose(GROUP, "volatile one").await;
    world.propose(GROUP, "lasting").await;
    world.propose(GROUP, "volatile two").await;
    let before = world.journal(node, GROUP).contents();
    world.stop(node).await;
    world.start(node).await;
    let journal = world.journal(node, GROUP);
    eventually("they are replayed", || journal.volatile() == ["volatile one", "volatile two"])
        .await;
    world.leader(GROUP).await;
    assert_eq!(journal.contents().commands, before.commands, "replaying changed the state");
    assert_eq!(journal.counts().repeated, 0, "{:?}", journal.counts());
    Ok(())
}

pub(super) async fn k5_changes_of_membership_that_the_machine_has_passed_still_count(
    trial: Trial,
) -> Outcome {
    let world = trial.world_with(durable).await?;
    let [one, two, three] = [world.nodes()[0], world.nodes()[1], world.nodes()[2]];
    world.create_on(GROUP, &[one, two]).await;
    let leader = world.leader(GROUP).await;
    let added = MembershipChange::new().add_learner(three);
    let added = answered("the change", leader.change_membership(added)).await.expect("it is added");
    world.propose_many(GROUP, "behind it", 0..10).await;
    for node in [one, two] {
        let passed = |status: &shardhost_groups::GroupStatus| status.applied > added.config_index;
        reached(&world.replica(node, GROUP), "it passed the change", passed).await;
        world.stop(node).await;
        world.start_closed(node).await;
        let replica = world.open(node, GROUP).await;
        assert_eq!(replica.membership().members, added.members, "{node:?} forgot the change");
    }
    world.propose(GROUP, "it goes on").await;
    Ok(())
}
