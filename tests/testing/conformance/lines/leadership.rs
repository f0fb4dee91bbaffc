//! C: events of leadership.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};
use shardhost_storage::{NodeId, Term};

use super::super::world::{answered, eventually, reached};
use super::super::{Leader, Outcome, Trial, World};
use super::GROUP;
use super::held::HeldTransfer;
use shardhost_groups::leadership::{HookGuard, HookKind, LeadershipEvent, LossCause};
use shardhost_groups::selector::GroupSelector;

const ONLY: GroupSelector = GroupSelector::One(GROUP);
const BOTH_KINDS: [HookKind; 2] = [HookKind::Dispatched, HookKind::Inline];

/// The events of listeners, in order.
#[derive(Clone, Default)]
struct Told {
    events: Arc<Mutex<Vec<(NodeId, LeadershipEvent)>>>,
}

impl Told {
    /// Listens on every node of a world.
    fn listen(world: &World, kind: HookKind) -> (Self, Vec<HookGuard>) {
        let told = Self::default();
        let guards = world.nodes().iter().map(|node| told.listen_on(world, *node, kind)).collect();
        (told, guards)
    }

    fn listen_on(&self, world: &World, node: NodeId, kind: HookKind) -> HookGuard {
        let events = Arc::clone(&self.events);
        world.host(node).on_leadership(ONLY, kind, move |event| events.lock().push((node, *event)))
    }

    fn of(&self, node: NodeId) -> Vec<LeadershipEvent> {
        let events = self.events.lock();
        events.iter().filter(|(of, _)| *of == node).map(|(_, event)| *event).collect()
    }

    /// One word for each event of a node.
    fn words(&self, node: NodeId) -> Vec<&'static str> {
        self.of(node).iter().map(word).collect()
    }

    /// Acquired, at most one ready, lost, with one term, which grows; again and again.
    fn assert_alternating(&self, world: &World) {
        for node in world.nodes() {
            let mut led: Option<(Term, bool)> = None;
            let mut newest = Term::default();
            for event in self.of(*node) {
                let fits = match (&event, led) {
                    (LeadershipEvent::Acquired(event), None) => event.term > newest,
                    (LeadershipEvent::Ready(event), Some((term, false))) => event.term == term,
                    // Nothing here keeps a group from its users.
                    (LeadershipEvent::Caretaker(_), _) => false,
                    (LeadershipEvent::Lost(event), Some((term, _))) => event.term == term,
                    _ => false,
                };
                assert!(fits, "{node:?} is told {event:?} after {led:?}: {:?}", self.of(*node));
                newest = event.term();
                led = match event {
                    LeadershipEvent::Acquired(_) | LeadershipEvent::Caretaker(_) => {
                        Some((newest, false))
                    }
                    LeadershipEvent::Ready(_) => Some((newest, true)),
                    LeadershipEvent::Lost(_) => None,
                    other => panic!("an edge of a kind that this suite does not know: {other:?}"),
                };
            }
        }
    }
}

fn word(event: &LeadershipEvent) -> &'static str {
    match event {
        LeadershipEvent::Acquired(_) => "acquired",
        LeadershipEvent::Ready(_) => "ready",
        LeadershipEvent::Caretaker(_) => "caretaker",
        LeadershipEvent::Lost(_) => "lost",
        _ => "of another kind",
    }
}

/// Hands leadership over until it works.
async fn moved(world: &World) -> Leader {
    let before = world.leader(GROUP).await;
    loop {
        let leader = world.leader(GROUP).await;
        if leader.node != before.node {
            return leader;
        }
        drop(answered("a transfer", leader.transfer_leadership(None)).await);
    }
}

pub(super) async fn c1_every_acquisition_reaches_each_listener_once(trial: Trial) -> Outcome {
    let world = trial.world().await?;
    let early = Arc::new(AtomicU64::new(0));
    let mut guards = Vec::new();
    for node in world.nodes() {
        let (host, early) = (world.host(*node), Arc::clone(&early));
        // An inline listener gets the event when the status has it already, and nothing later.
        guards.push(world.host(*node).on_leadership(ONLY, HookKind::Inline, move |event| {
            let status = host.group(GROUP).map(|group| group.status());
            if let LeadershipEvent::Acquired(event) = event
                && !status.is_some_and(|s| s.is_leader() && s.term == event.term)
            {
                early.fetch_add(1, Ordering::SeqCst);
            }
        }));
    }
    let listeners = BOTH_KINDS.map(|kind| Told::listen(&world, kind));
    world.create(GROUP).await;
    for _ in 0..3 {
        moved(&world).await;
    }
    let last = world.leader(GROUP).await;
    for (told, _guards) in &listeners {
        let knows = || told.of(last.node).last().is_some_and(|e| e.term() == last.term);
        eventually("the last acquisition is told", knows).await;
        told.assert_alternating(&world);
        let mut terms = BTreeMap::new();
        for (node, event) in told.events.lock().iter() {
            if let LeadershipEvent::Acquired(event) = event {
                let other = terms.insert(event.term, *node);
                assert_eq!(other, None, "two acquisitions of {:?}", event.term);
            }
        }
        assert!(terms.len() >= 4, "{terms:?}");
    }
    assert_eq!(early.load(Ordering::SeqCst), 0, "told before the status said so");
    Ok(())
}

pub(super) async fn c2_every_loss_is_told_whatever_the_cause(trial: Trial) -> Outcome {
    let world = trial.world().await?;
    let (told, _guards) = Told::listen(&world, HookKind::Dispatched);
    world.create(GROUP).await;
    for cause in [LossCause::Transferred, LossCause::QuorumLost, LossCause::Stopped] {
        let leader = world.leader(GROUP).await;
        match cause {
            LossCause::Transferred => drop(moved(&world).await),
            LossCause::QuorumLost => {
                world.isolate(leader.node)?;
                reached(&leader, "it steps down", |status| !status.is_leader()).await;
                world.links()?.heal();
            }
            _ => assert!(answered("closing", world.host(leader.node).close(GROUP)).await),
        }
        let lost = || told.words(leader.node).last() == Some(&"lost");
        eventually("the loss is told", lost).await;
        let Some(LeadershipEvent::Lost(event)) = told.of(leader.node).last().copied() else {
            panic!("{:?}", told.of(leader.node));
        };
        assert_eq!((event.term, event.cause), (leader.term, cause));
    }
    told.assert_alternating(&world);
    Ok(())
}

pub(super) async fn c2_the_loss_of_a_failed_replica_is_told(trial: Trial) -> Outcome {
    let world = trial.world().await?;
    let (told, _guards) = Told::listen(&world, HookKind::Dispatched);
    world.create(GROUP).await;
    let leader = world.leader(GROUP).await;
    answered("a failure", leader.propose("fail")).await.expect_err("the journal fails");
    eventually("the loss", || told.words(leader.node).last() == Some(&"lost")).await;
    let last = told.of(leader.node).last().copied();
    let Some(LeadershipEvent::Lost(event)) = last else { panic!("{last:?}") };
    assert_eq!(event.cause, LossCause::Fault);
    Ok(())
}

pub(super) async fn c3_when_the_loss_is_told_completions_have_failed_and_the_lease_is_empty(
    trial: Trial,
) -> Outcome {
    let world = trial.world().await?;
    world.create(GROUP).await;
    let leader = world.leader(GROUP).await;
    world.isolate(leader.node)?;
    let waiting = leader.propose("uncertain").into_future();
    let seen = Arc::new(Mutex::new(None));
    let (told, group) = (Arc::clone(&seen), (*leader).clone());
    let _hook = world.host(leader.node).on_leadership(ONLY, HookKind::Inline, move |event| {
        if let LeadershipEvent::Lost(_) = event {
            told.lock().get_or_insert((group.lease(), group.status().is_leader()));
        }
    });
    eventually("the loss is told", || seen.lock().is_some()).await;
    assert_eq!(*seen.lock(), Some((None, false)), "lease, and whether the status says leader");
    let outcome = answered("the completion", waiting).await;
    assert!(outcome.is_err_and(|error| !error.is_definite()));
    Ok(())
}

pub(super) async fn c4_listeners_are_called_in_order_and_a_panic_harms_no_other(
    trial: Trial,
) -> Outcome {
    let world = trial.world().await?;
    let node = world.nodes()[0];
    let mut guards = Vec::new();
    let mut orders = Vec::new();
    for kind in BOTH_KINDS {
        let order = Arc::new(Mutex::new(Vec::new()));
        for number in 0..5 {
            let order = Arc::clone(&order);
            guards.push(world.host(node).on_leadership(ONLY, kind, move |event| {
                if let LeadershipEvent::Acquired(_) = event {
                    assert!(number != 2, "this listener panics");
                    order.lock().push(number);
                }
            }));
        }
        orders.push(order);
    }
    world.create_on(GROUP, &[node]).await;
    world.leader(GROUP).await;
    for order in orders {
        eventually("everybody is told", || order.lock().len() == 4).await;
        assert_eq!(*order.lock(), [0, 1, 3, 4]);
    }
    let panics = world.host(node).stats().hook_panics;
    assert_eq!(panics, 2, "panics of listeners are counted");
    world.propose(GROUP, "the group goes on").await;
    Ok(())
}

pub(super) async fn c5_deregistering_removes_one_listener_also_from_within(
    trial: Trial,
) -> Outcome {
    for kind in BOTH_KINDS {
        let world = trial.world().await?;
        let (told, _guards) = Told::listen(&world, kind);
        let (gone, gone_guards) = Told::listen(&world, kind);
        drop(gone_guards);
        let node = world.nodes()[0];
        let once = Arc::new(AtomicU64::new(0));
        let (count, own) = (Arc::clone(&once), Arc::new(Mutex::new(None)));
        let slot = Arc::clone(&own);
        let guard = world.host(node).on_leadership(ONLY, kind, move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            let guard: Option<HookGuard> = slot.lock().take();
            drop(guard);
        });
        *own.lock() = Some(guard);
        world.create_on(GROUP, &[node]).await;
        eventually("the others are told", || told.words(node) == ["acquired", "ready"]).await;
        assert_eq!(once.load(Ordering::SeqCst), 1, "{kind:?}: told after it went");
        assert!(gone.events.lock().is_empty(), "{kind:?}: told after its guard was dropped");
    }
    Ok(())
}

pub(super) async fn c6_a_registration_is_told_what_is_and_misses_nothing(trial: Trial) -> Outcome {
    let world = trial.world().await?;
    world.create(GROUP).await;
    world.leader(GROUP).await;
    let mut listeners = Vec::new();
    for _ in 0..3 {
        let moving = tokio::spawn({
            let world = Arc::clone(&world);
            async move { moved(&world).await }
        });
        // Some of these fall between two edges.
        while !moving.is_finished() {
            listeners.extend(BOTH_KINDS.map(|kind| Told::listen(&world, kind)));
            tokio::task::yield_now().await;
            listeners.truncate(400);
        }
        answered("the move", moving).await.expect("it moved");
    }
    let leader = world.leader(GROUP).await;
    listeners.extend(BOTH_KINDS.map(|kind| Told::listen(&world, kind)));
    for (told, _guards) in &listeners {
        let knows = || {
            let last = told.of(leader.node).last().copied();
            last.is_some_and(|event| word(&event) == "ready" && event.term() == leader.term)
        };
        eventually("everybody knows who leads", knows).await;
        told.assert_alternating(&world);
        for node in world.others(leader.node) {
            let last = told.words(node).last().copied();
            assert!(matches!(last, None | Some("lost")), "{node:?} leads as well? {last:?}");
        }
    }
    Ok(())
}

pub(super) async fn c7_a_transfer_is_told_when_it_is_done_and_not_when_it_begins(
    trial: Trial,
) -> Outcome {
    let world = trial.world().await?;
    world.create(GROUP).await;
    let leader = world.leader(GROUP).await;
    let (told, _guards) = Told::listen(&world, HookKind::Dispatched);
    eventually("what is, is told", || told.words(leader.node) == ["acquired", "ready"]).await;
    let held = HeldTransfer::begin_at(&world, leader.clone(), None).await?;
    assert_eq!(told.events.lock().len(), 2, "the start of a transfer is told");
    drop(held.release().await);
    let next = moved_from(&world, leader.node).await;
    eventually("lost here", || told.words(leader.node) == ["acquired", "ready", "lost"]).await;
    eventually("acquired there", || told.words(next.node) == ["acquired", "ready"]).await;
    Ok(())
}

/// The leader, if it is not this node; transfers once more if necessary.
async fn moved_from(world: &World, node: NodeId) -> Leader {
    loop {
        let leader = world.leader(GROUP).await;
        if leader.node != node {
            return leader;
        }
        drop(answered("a transfer", leader.transfer_leadership(None)).await);
    }
}

pub(super) async fn c8_edges_alternate_and_nothing_is_told_after_the_shutdown(
    trial: Trial,
) -> Outcome {
    let world = trial.world().await?;
    let (told, _guards) = Told::listen(&world, HookKind::Dispatched);
    world.create(GROUP).await;
    for _ in 0..3 {
        let leader = moved(&world).await;
        world.isolate(leader.node)?;
        reached(&leader, "it steps down", |status| !status.is_leader()).await;
        world.links()?.heal();
    }
    let leader = world.leader(GROUP).await;
    for node in world.nodes() {
        world.stop(*node).await;
    }
    told.assert_alternating(&world);
    for node in world.nodes() {
        let last = told.words(*node).last().copied();
        assert!(matches!(last, None | Some("lost")), "{node:?} is told to lead for ever");
    }
    assert_eq!(told.words(leader.node).last(), Some(&"lost"), "the last loss is told");
    Ok(())
}

pub(super) async fn c9_a_listener_that_blocks_delays_nobody(trial: Trial) -> Outcome {
    let world = trial.world().await?;
    world.create(GROUP).await;
    let leader = world.leader(GROUP).await;
    let gate = Arc::new((Mutex::new(false), Condvar::new()));
    let blocked = Arc::new(AtomicU64::new(0));
    let (entered, closed) = (Arc::clone(&blocked), Arc::clone(&gate));
    let _hook = world.host(leader.node).on_leadership(ONLY, HookKind::Dispatched, move |_| {
        entered.fetch_add(1, Ordering::SeqCst);
        let (open, opened) = &*closed;
        let mut open = open.lock();
        while !*open {
            opened.wait(&mut open);
        }
    });
    eventually("the listener blocks", || blocked.load(Ordering::SeqCst) > 0).await;
    let since = tokio::time::Instant::now();
    while since.elapsed() < world.election_timeout() * 3 {
        answered("a proposal", leader.propose("command")).await.expect("it leads on");
    }
    let status = leader.status();
    assert!(status.is_leader() && status.term == leader.term, "{status:?}");
    let (open, opened) = &*gate;
    *open.lock() = true;
    opened.notify_all();
    Ok(())
}
