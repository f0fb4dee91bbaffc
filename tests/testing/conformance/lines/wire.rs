//! X: what the transport must not do to the groups, and what peers must not.

use std::future::IntoFuture;

use futures::future::join_all;
use shardhost_proto::log::Entry;
use shardhost_proto::peer::{GroupMessage, MessageKind};
use shardhost_storage::{GroupId, NodeId};

use super::super::world::{answered, eventually, reached};
use super::super::{Outcome, Trial, Unmet};
use super::{GROUP, OTHER};
use crate::network::Trouble;
use shardhost_groups::transport::Inbound;

pub(super) async fn x1_heartbeats_and_votes_do_not_queue_behind_appends(trial: Trial) -> Outcome {
    const LARGE: usize = 64 << 10;
    let world = trial.world().await?;
    world.create(GROUP).await;
    world.create(OTHER).await;
    // One large command takes an election timeout to get through.
    let timeout = world.election_timeout().as_secs_f64();
    let slow = Trouble::none().bulk_bytes_per_second((LARGE as f64 / timeout) as u64);
    // On a busy machine another replica may be elected for another reason, but not again and again.
    for _ in 0..5 {
        let (busy, calm) = (world.leader(OTHER).await, world.leader(GROUP).await);
        if !world.links()?.trouble(slow) {
            return Err(Unmet("bulk lanes that can be slowed down"));
        }
        let writes = (0..4).map(|_| busy.propose(vec![b'x'; LARGE]).into_future());
        let outcomes = answered("slow writes", join_all(writes)).await;
        world.links()?.trouble(Trouble::none());
        let terms = [busy.status().term, calm.status().term];
        if terms == [busy.term, calm.term] && outcomes.iter().all(Result::is_ok) {
            return Ok(());
        }
    }
    panic!("large commands of one group make both elect leaders");
}

pub(super) async fn x2_a_peer_that_takes_nothing_slows_nobody_down(trial: Trial) -> Outcome {
    let world = trial.world().await?;
    world.create(GROUP).await;
    let leader = world.leader(GROUP).await;
    let deaf = world.others(leader.node)[0];
    world.isolate(deaf)?;
    let writes = (0..200).map(|_| leader.propose(vec![b'x'; 8 << 10]).into_future());
    for outcome in answered("writes to the others", join_all(writes)).await {
        outcome.expect("a quorum takes them");
    }
    world.links()?.heal();
    let last = world.propose(GROUP, "last").await.index;
    let replica = world.replica(deaf, GROUP);
    reached(&replica, "it has caught up", |status| status.applied >= last).await;
    Ok(())
}

pub(super) async fn x3_bad_messages_are_refused_one_by_one(trial: Trial) -> Outcome {
    let world = trial.world().await?;
    world.create(GROUP).await;
    let leader = world.leader(GROUP).await;
    let victim = world.others(leader.node)[0];
    let to = world.replica(victim, GROUP).status().replica;
    let good = GroupMessage {
        group: GROUP.get(),
        from_replica: leader.status().replica.get(),
        to_replica: to.get(),
        kind: MessageKind::Heartbeat.into(),
        term: leader.term.get(),
        ..GroupMessage::default()
    };
    let term = leader.term.get();
    let bad = [
        GroupMessage { group: 999, ..good.clone() },
        GroupMessage { to_replica: to.get() + 50, ..good.clone() },
        GroupMessage { from_replica: 77, ..good.clone() },
        GroupMessage { from_replica: to.get(), ..good.clone() },
        GroupMessage { kind: 99, ..good.clone() },
        GroupMessage { kind: 0, ..good.clone() },
        GroupMessage { term: 0, ..good.clone() },
        GroupMessage { term: u64::MAX, ..good.clone() },
        GroupMessage { entries: vec![Entry::default()], ..good.clone() },
        GroupMessage { kind: MessageKind::Append.into(), index: 5, log_term: 0, ..good.clone() },
        GroupMessage { kind: MessageKind::Snapshot.into(), ..good.clone() },
        GroupMessage { kind: MessageKind::TimeoutNow.into(), term: term + 5, ..good.clone() },
    ];
    let host = world.host(victim);
    let unknown = host.stats().workers.unknown_group;
    for from in [leader.node, NodeId::must(88)] {
        host.inbound().deliver(from, bad.to_vec());
    }
    let last = world.propose(GROUP, "after").await.index;
    let replica = world.replica(victim, GROUP);
    let status = reached(&replica, "it goes on", |status| status.applied >= last).await;
    assert_eq!(status.term, leader.status().term, "a bad message moved the term");
    eventually("they are counted", || {
        let workers = host.stats().workers;
        let refused: u64 = workers.refused.values().sum();
        workers.unknown_group > unknown && refused >= bad.len() as u64 - 1
    })
    .await;
    assert!(host.group(GroupId::new(999)).is_none(), "a stranger's message made a group");
    Ok(())
}

pub(super) async fn x4_a_node_is_followed_to_another_address(trial: Trial) -> Outcome {
    let world = trial.world().await?;
    world.create(GROUP).await;
    for node in world.nodes().to_vec() {
        world.stop(node).await;
        world.start_elsewhere(node).await?;
        let last = world.propose(GROUP, format!("without {node}")).await.index;
        let replica = world.replica(node, GROUP);
        reached(&replica, "it is reached", |status| status.applied >= last).await;
    }
    world.settled(GROUP).await;
    Ok(())
}
