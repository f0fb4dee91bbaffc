//! S: snapshots.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use shardhost_proto::peer::MessageKind;
use shardhost_storage::{GroupId, LogIndex, LogPosition, NodeId, ReplicaId};

use super::super::world::{answered, eventually, reached};
use super::super::{DiskFault, Keeps, Leader, Outcome, Plan, Trial, Unmet, World};
use super::{GROUP, OTHER};
use crate::network::Fate;
use shardhost_groups::error::TakeSnapshotError;
use shardhost_groups::runtime::Group;
use shardhost_groups::status::PeerProgress;
use shardhost_groups::transport::Inbound;

/// Snapshots and truncations after few entries.
fn short_logs(plan: &mut Plan) {
    plan.config.snapshot_entries = 50;
    plan.config.log_trail_entries = 10;
    plan.config.log_keep_entries = 20;
}

/// A group whose log begins behind what a follower has that does not run.
async fn with_one_left_behind(trial: &Trial) -> Result<(Arc<World>, NodeId), Unmet> {
    let world = trial.world_with(short_logs).await?;
    world.create(GROUP).await;
    let leader = world.leader(GROUP).await;
    let away = world.others(leader.node)[0];
    world.applied_everywhere(GROUP, world.propose(GROUP, "early").await.index).await;
    world.stop(away).await;
    // A transport may keep what was sent for a while, and deliver it when the node is back.
    let leader = world.leader_among(GROUP, &world.others(away)).await;
    let silent = |peer: &PeerProgress| peer.node == away && !peer.recently_active;
    reached(&leader, "it is known to be away", |s| s.peers.iter().any(silent)).await;
    write_until_truncated(&world, leader.status().last).await;
    Ok((world, away))
}

/// Writes until no log holds the entries behind an index.
async fn write_until_truncated(world: &World, index: LogIndex) {
    let gone = |replica: &Group| replica.status().first > index.next();
    let truncated = || world.replicas(GROUP).iter().all(|(_, replica)| gone(replica));
    world.propose_until(GROUP, "every log is truncated", truncated).await;
}

async fn level(world: &World, node: NodeId) {
    let written = world.nudge(GROUP, "level").await;
    let replica = world.replica(node, GROUP);
    reached(&replica, "it has everything", |status| status.applied >= written).await;
}

pub(super) async fn s1_a_snapshot_is_taken_while_proposals_go_on(trial: Trial) -> Outcome {
    let world = trial.world().await?;
    world.create(GROUP).await;
    let leader = world.leader(GROUP).await;
    world.propose_many(GROUP, "before", 0..10).await;
    let journal = world.journal(leader.node, GROUP);
    journal.hold_views();
    let group = leader.clone();
    let snapshot = tokio::spawn(async move { group.snapshot().await });
    eventually("a view is taken", || journal.counts().open_views > 0).await;
    for _ in 0..30 {
        answered("a proposal", leader.propose("meanwhile")).await.expect("it leads on");
    }
    assert!(!snapshot.is_finished(), "a snapshot without its bytes");
    journal.release();
    let taken = answered("the snapshot", snapshot).await.expect("no panic").expect("it is taken");
    reached(&leader, "it is known", |status| status.snapshot == Some(taken)).await;
    assert!(taken.index < leader.status().applied, "the view is of the moment it was taken in");
    Ok(())
}

pub(super) async fn s2_every_view_is_dropped(trial: Trial) -> Outcome {
    let world = trial.world().await?;
    world.create(GROUP).await;
    let leader = world.leader(GROUP).await;
    leader.propose("command").await.expect("it leads");
    let journal = world.journal(leader.node, GROUP);
    answered("a snapshot", leader.snapshot()).await.expect("it is taken");
    journal.fail_views();
    leader.propose("another").await.expect("it leads");
    let failed = answered("a snapshot", leader.snapshot()).await;
    assert_eq!(failed, Err(TakeSnapshotError::Failed { group: GROUP }));
    journal.release();
    if let Ok(disks) = world.disks()
        && disks.inject(leader.node, DiskFault::NoSpaceForSnapshots)
    {
        let failed = answered("a snapshot", leader.snapshot()).await;
        assert_eq!(failed, Err(TakeSnapshotError::Failed { group: GROUP }));
        disks.heal(leader.node);
    }
    eventually("every view is dropped", || journal.counts().open_views == 0).await;
    assert!(journal.counts().views >= 2, "{:?}", journal.counts());
    Ok(())
}

pub(super) async fn s4_a_damaged_snapshot_restores_nobody(trial: Trial) -> Outcome {
    let (world, away) = with_one_left_behind(&trial).await?;
    let disks = world.disks()?;
    let leader = world.leader(GROUP).await;
    // One that is replaced at this moment cannot be damaged any more.
    eventually("every snapshot is damaged", || {
        let damage =
            |at: &LogPosition| disks.inject(leader.node, DiskFault::DamagedSnapshot(GROUP, *at));
        let kept = disks.snapshots(leader.node, GROUP);
        !kept.is_empty() && kept.iter().filter(|at| damage(at)).count() == kept.len()
    })
    .await;
    world.start(away).await;
    leader.propose("more").await.expect("it leads on");
    // Another one helps; a journal that was given damaged bytes would fail, or differ.
    answered("another snapshot", leader.snapshot()).await.expect("it is taken");
    level(&world, away).await;
    let texts = world.settled(GROUP).await;
    assert_eq!(world.journal(away, GROUP).texts()[..10], texts[..10]);
    Ok(())
}

pub(super) async fn s6_only_snapshots_that_help_are_wanted(trial: Trial) -> Outcome {
    let world = trial.world().await?;
    world.create(GROUP).await;
    let written = world.propose(GROUP, "command").await;
    world.applied_everywhere(GROUP, written.index).await;
    for (node, replica) in world.replicas(GROUP) {
        let inbound = world.host(node).inbound();
        let own = replica.status().replica;
        let at = |index: u64| LogPosition::new(written.term.get(), index);
        let (stale, newer) = (at(written.index.get()), at(written.index.get() + 1_000));
        let stranger = ReplicaId::must(own.get() + 77);
        assert!(inbound.wants_snapshot(GROUP, own, newer).is_some(), "{node:?}");
        assert!(inbound.wants_snapshot(GROUP, own, stale).is_none(), "{node:?}: it has all of it");
        assert!(
            inbound.wants_snapshot(GROUP, stranger, newer).is_none(),
            "{node:?}: another replica"
        );
        assert!(
            inbound.wants_snapshot(GroupId::new(99), own, newer).is_none(),
            "{node:?}: no such group"
        );
    }
    Ok(())
}

pub(super) async fn s7_a_shipment_under_way_delays_no_other_group(trial: Trial) -> Outcome {
    let (world, away) = with_one_left_behind(&trial).await?;
    let tap = world.network()?.tap(|envelope| match envelope.kind() {
        MessageKind::Snapshot => Fate::Hold,
        _ => Fate::Deliver,
    });
    world.start(away).await;
    eventually("a shipment is under way", || tap.held() > 0).await;
    world.create(OTHER).await;
    for number in 0..20 {
        let written = world.propose(OTHER, format!("command{number}")).await.index;
        let replica = world.replica(away, OTHER);
        reached(&replica, "the other group goes on", |status| status.applied >= written).await;
    }
    tap.release();
    level(&world, away).await;
    world.settled(GROUP).await;
    Ok(())
}

pub(super) async fn s8_a_shipment_that_fails_is_made_again(trial: Trial) -> Outcome {
    let (world, away) = with_one_left_behind(&trial).await?;
    let shipped = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&shipped);
    let _tap = world.network()?.tap(move |envelope| {
        let shipment = envelope.kind() == MessageKind::Snapshot;
        let first = shipment && count.fetch_add(1, Ordering::SeqCst) < 2;
        if first { Fate::Lose } else { Fate::Deliver }
    });
    world.start(away).await;
    level(&world, away).await;
    let counts = world.journal(away, GROUP).counts();
    assert!(shipped.load(Ordering::SeqCst) >= 3, "two were lost, the third one arrived");
    assert!(counts.restored >= 1, "{counts:?}");
    world.settled(GROUP).await;
    Ok(())
}

pub(super) async fn s8_a_follower_behind_the_log_gets_a_snapshot(trial: Trial) -> Outcome {
    let (world, away) = with_one_left_behind(&trial).await?;
    let before = world.statuses(GROUP);
    world.start(away).await;
    level(&world, away).await;
    let counts = world.journal(away, GROUP).counts();
    let by_snapshot = counts.restored >= 1;
    assert!(by_snapshot, "nothing in the log could bring it level: {counts:?}{before}");
    assert!(world.replica(away, GROUP).status().snapshot.is_some());
    world.settled(GROUP).await;
    Ok(())
}

pub(super) async fn s9_a_snapshot_that_cannot_be_made_is_tried_again(trial: Trial) -> Outcome {
    let world = trial.world_with(short_logs).await?;
    let node = world.nodes()[0];
    world.create_on(GROUP, &[node]).await;
    let leader = world.leader(GROUP).await;
    let journal = world.journal(node, GROUP);
    journal.fail_views();
    let tried = || journal.counts().views >= 2;
    world.propose_until(GROUP, "it is tried twice", tried).await;
    let status = leader.status();
    assert!(status.serving && status.snapshot.is_none(), "{status:?}");
    journal.release();
    let made = || leader.status().snapshot.is_some();
    world.propose_until(GROUP, "it is made", made).await;
    let Ok(disks) = world.disks() else { return Ok(()) };
    if !disks.inject(node, DiskFault::NoSpaceForSnapshots) {
        return Ok(());
    }
    let (kept, views) = (leader.status().snapshot, journal.counts().views);
    let tried = || journal.counts().views > views + 1;
    world.propose_until(GROUP, "it is tried on a full disk", tried).await;
    assert_eq!(leader.status().snapshot, kept, "made on a full disk");
    disks.heal(node);
    let made = || leader.status().snapshot > kept;
    world.propose_until(GROUP, "it is made when there is room", made).await;
    Ok(())
}

pub(super) async fn s9_a_receiver_without_room_gets_it_later(trial: Trial) -> Outcome {
    let (world, away) = with_one_left_behind(&trial).await?;
    world.start_closed(away).await;
    if !world.disks()?.inject(away, DiskFault::NoSpaceForSnapshots) {
        return Err(Unmet("disks that fill up"));
    }
    world.open(away, GROUP).await;
    world.time_passes(15).await;
    let replica = world.replica(away, GROUP);
    let failed = matches!(replica.status().role, shardhost_groups::Role::Failed(_));
    assert!(!failed, "a full disk is fatal: {:?}", replica.status());
    world.disks()?.heal(away);
    level(&world, away).await;
    Ok(())
}

pub(super) async fn s10_a_follower_a_little_behind_needs_no_snapshot(trial: Trial) -> Outcome {
    let tune = |plan: &mut Plan| {
        plan.keeps = Keeps::Everything;
        plan.config.log_trail_entries = 100;
        plan.config.log_keep_entries = 1;
    };
    let world = trial.world_with(tune).await?;
    world.create(GROUP).await;
    world.propose_many(GROUP, "before", 0..150).await;
    let leader: Leader = world.leader(GROUP).await;
    let away = world.others(leader.node)[0];
    level(&world, away).await;
    world.stop(away).await;
    world.propose_many(GROUP, "meanwhile", 0..50).await;
    let leader = world.leader(GROUP).await;
    let truncated = |status: &shardhost_groups::GroupStatus| status.first.get() > 20;
    reached(&leader, "the log is truncated", truncated).await;
    world.start(away).await;
    level(&world, away).await;
    assert_eq!(world.journal(away, GROUP).counts().restored, 0, "it got a snapshot");
    world.settled(GROUP).await;
    Ok(())
}
