//! Events of listeners, their order, and what listeners cannot break.

use std::collections::BTreeSet;
use std::sync::mpsc;

use super::*;
use crate::leadership::EdgeKind;

const GROUP: GroupId = GroupId::new(1);
const OTHER: GroupId = GroupId::new(2);

fn edge(group: GroupId, term: u64, kind: EdgeKind) -> Edge {
    Edge { group, term: Term::new(term), kind }
}

fn acquired(group: GroupId, term: u64) -> Edge {
    edge(group, term, EdgeKind::Acquired)
}

fn ready(group: GroupId, term: u64) -> Edge {
    edge(group, term, EdgeKind::Ready)
}

fn lost(group: GroupId, term: u64) -> Edge {
    edge(group, term, EdgeKind::Lost { cause: LossCause::QuorumLost, successor: None })
}

/// An event as a short word: kind, group, term.
fn word(event: &LeadershipEvent) -> String {
    let kind = match event {
        LeadershipEvent::Acquired(_) => '+',
        LeadershipEvent::Ready(_) => '!',
        LeadershipEvent::Caretaker(_) => '~',
        LeadershipEvent::Lost(_) => '-',
    };
    format!("{}{kind}{}", event.group().get(), event.term().get())
}

type Story = Arc<Mutex<Vec<String>>>;

fn story() -> Story {
    Arc::default()
}

fn told(story: &Story) -> Vec<String> {
    std::mem::take(&mut *story.lock())
}

/// A hook that writes its story.
fn listen(hub: &Arc<LeadershipHub>, kind: HookKind, groups: GroupSelector) -> (HookGuard, Story) {
    let story = story();
    let writes = Arc::clone(&story);
    let guard = hub.register(groups, kind, move |event| writes.lock().push(word(event)));
    (guard, story)
}

/// The labels of a group go with its replica, before the dispatcher comes to its edges.
#[test]
fn a_leadership_is_for_those_whom_its_labels_named_when_it_was() {
    let hub = LeadershipHub::new();
    let zone =
        |value: &'static str| GroupSelector::Label { key: "zone".into(), value: value.into() };
    let labels = |value: &str| BTreeMap::from([("zone".to_owned(), value.to_owned())]);
    let (_guard, of_a) = listen(&hub, HookKind::Dispatched, zone("a"));
    let (_guard, of_b) = listen(&hub, HookKind::Dispatched, zone("b"));
    hub.set_labels(GROUP, labels("a"));
    hub.publish(vec![acquired(GROUP, 5), ready(GROUP, 5), lost(GROUP, 5)]);
    hub.forget_labels(GROUP);
    hub.set_labels(GROUP, labels("b"));
    hub.publish(vec![acquired(GROUP, 6)]);
    dispatch(&hub);
    assert_eq!(told(&of_a), ["1+5", "1!5", "1-5"]);
    assert_eq!(told(&of_b), ["1+6"]);
}

/// Lets the dispatcher do everything that waits, on this thread, without ending it.
fn dispatch(hub: &Arc<LeadershipHub>) {
    hub.stop();
    hub.dispatch();
    hub.state.lock().stopped = false;
}

#[test]
fn a_hook_is_told_what_is_and_then_what_happens() {
    for kind in [HookKind::Inline, HookKind::Dispatched] {
        let hub = LeadershipHub::new();
        hub.publish(vec![acquired(GROUP, 3), ready(GROUP, 3), acquired(OTHER, 5)]);
        let (_guard, story) = listen(&hub, kind, GroupSelector::All);
        hub.publish(vec![lost(GROUP, 3), ready(OTHER, 5)]);
        dispatch(&hub);
        assert_eq!(told(&story), ["1+3", "1!3", "2+5", "1-3", "2!5"], "{kind:?}");
    }
}

#[test]
fn a_leadership_that_ended_is_not_replayed() {
    let hub = LeadershipHub::new();
    hub.publish(vec![acquired(GROUP, 3), ready(GROUP, 3), lost(GROUP, 3)]);
    let (_guard, story) = listen(&hub, HookKind::Inline, GroupSelector::All);
    assert!(told(&story).is_empty());
}

#[test]
fn an_edge_that_is_queued_while_a_hook_registers_is_told_once() {
    let hub = LeadershipHub::new();
    let (_first, earlier) = listen(&hub, HookKind::Dispatched, GroupSelector::All);
    // Queued, not yet dispatched; the second hook gets their outcome by its replay.
    hub.publish(vec![acquired(GROUP, 3), lost(GROUP, 3), acquired(GROUP, 4), ready(GROUP, 4)]);
    let (_second, later) = listen(&hub, HookKind::Dispatched, GroupSelector::All);
    hub.publish(vec![lost(GROUP, 4)]);
    dispatch(&hub);
    assert_eq!(told(&earlier), ["1+3", "1-3", "1+4", "1!4", "1-4"]);
    assert_eq!(told(&later), ["1+4", "1!4", "1-4"], "what was before it registered is past");
}

/// Per group: acquired, at most one ready, lost, and so on.
fn assert_alternates(story: &[String]) {
    let mut standing: BTreeMap<&str, (&str, bool)> = BTreeMap::new();
    for word in story {
        let at = word.find(['+', '!', '-']).unwrap();
        let (group, term) = (&word[..at], &word[at + 1..]);
        let legal = match &word[at..=at] {
            "+" => standing.insert(group, (term, false)).is_none(),
            "!" => standing.insert(group, (term, true)) == Some((term, false)),
            _ => standing.remove(group).is_some_and(|(led, _)| led == term),
        };
        assert!(legal, "{word} in {story:?}");
    }
}

#[test]
fn hooks_are_called_in_the_order_of_their_registration() {
    for kind in [HookKind::Inline, HookKind::Dispatched] {
        let hub = LeadershipHub::new();
        let order = Arc::new(Mutex::new(Vec::new()));
        let guards: Vec<HookGuard> = (0..5)
            .map(|n| {
                let order = Arc::clone(&order);
                hub.register(GroupSelector::All, kind, move |_| order.lock().push(n))
            })
            .collect();
        hub.publish(vec![acquired(GROUP, 1)]);
        dispatch(&hub);
        assert_eq!(*order.lock(), [0, 1, 2, 3, 4], "{kind:?}");
        drop(guards);
    }
}

#[test]
fn selectors_choose_groups() {
    let hub = LeadershipHub::new();
    hub.set_labels(OTHER, BTreeMap::from([("zone".to_owned(), "a".to_owned())]));
    let label = GroupSelector::Label { key: "zone".into(), value: "a".into() };
    let many = GroupSelector::Many(BTreeSet::from([GROUP, GroupId::new(9)]));
    let (_one, by_id) = listen(&hub, HookKind::Inline, GroupSelector::One(GROUP));
    let (_many, by_set) = listen(&hub, HookKind::Inline, many);
    let (_label, by_label) = listen(&hub, HookKind::Inline, label);
    hub.publish(vec![acquired(GROUP, 1), acquired(OTHER, 2)]);
    assert_eq!(told(&by_id), ["1+1"]);
    assert_eq!(told(&by_set), ["1+1"]);
    assert_eq!(told(&by_label), ["2+2"]);
}

#[test]
fn the_labels_of_a_replica_that_ended_are_forgotten_and_its_loss_is_told() {
    for kind in [HookKind::Inline, HookKind::Dispatched] {
        let hub = LeadershipHub::new();
        let zone_a = BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
        hub.set_labels(GROUP, zone_a);
        let label = GroupSelector::Label { key: "zone".into(), value: "a".into() };
        let (_guard, story) = listen(&hub, kind, label);
        hub.publish(vec![acquired(GROUP, 1)]);
        dispatch(&hub);
        hub.forget_labels(GROUP);
        hub.publish(vec![lost(GROUP, 1), acquired(GROUP, 2)]);
        dispatch(&hub);
        assert_eq!(told(&story), ["1+1", "1-1"], "{kind:?}");
        assert!(hub.state.lock().labels.is_empty());
    }
}

#[test]
fn inline_hooks_run_before_publishing_returns_and_dispatched_ones_later() {
    let hub = LeadershipHub::new();
    let (_inline, at_once) = listen(&hub, HookKind::Inline, GroupSelector::All);
    let (_dispatched, later) = listen(&hub, HookKind::Dispatched, GroupSelector::All);
    hub.publish(vec![acquired(GROUP, 1)]);
    assert_eq!(told(&at_once), ["1+1"]);
    assert!(told(&later).is_empty());
    dispatch(&hub);
    assert_eq!(told(&later), ["1+1"]);
}

#[test]
fn a_dropped_guard_ends_the_calls_even_of_what_is_queued() {
    let hub = LeadershipHub::new();
    let (guard, story) = listen(&hub, HookKind::Dispatched, GroupSelector::All);
    hub.publish(vec![acquired(GROUP, 1)]);
    drop(guard);
    hub.publish(vec![lost(GROUP, 1)]);
    dispatch(&hub);
    assert!(told(&story).is_empty());
}

#[test]
fn a_dispatched_hook_may_deregister_itself_and_register_another() {
    let hub = LeadershipHub::new();
    let own: Arc<Mutex<Option<HookGuard>>> = Arc::default();
    let successor: Arc<Mutex<Option<(HookGuard, Story)>>> = Arc::default();
    let calls = Arc::new(AtomicU64::new(0));
    let guard = {
        let (hub, own, successor) = (Arc::clone(&hub), Arc::clone(&own), Arc::clone(&successor));
        let counter = Arc::clone(&calls);
        let target = Arc::clone(&hub);
        hub.register(GroupSelector::All, HookKind::Dispatched, move |_| {
            counter.fetch_add(1, Ordering::Relaxed);
            drop(own.lock().take());
            *successor.lock() = Some(listen(&target, HookKind::Dispatched, GroupSelector::All));
        })
    };
    *own.lock() = Some(guard);
    hub.publish(vec![acquired(GROUP, 1), ready(GROUP, 1), lost(GROUP, 1)]);
    dispatch(&hub);
    assert_eq!(calls.load(Ordering::Relaxed), 1, "it is not called again");
    let (_guard, story) = successor.lock().take().expect("it registered another");
    hub.publish(vec![acquired(GROUP, 2)]);
    dispatch(&hub);
    assert_eq!(told(&story).last().unwrap(), "1+2");
}

#[test]
fn an_inline_hook_may_drop_guards_and_is_not_called_again() {
    let hub = LeadershipHub::new();
    let own: Arc<Mutex<Option<HookGuard>>> = Arc::default();
    let calls = Arc::new(AtomicU64::new(0));
    let (holder, counter) = (Arc::clone(&own), Arc::clone(&calls));
    let guard = hub.register(GroupSelector::All, HookKind::Inline, move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
        drop(holder.lock().take());
    });
    *own.lock() = Some(guard);
    hub.publish(vec![acquired(GROUP, 1), ready(GROUP, 1)]);
    hub.publish(vec![lost(GROUP, 1)]);
    assert_eq!(calls.load(Ordering::Relaxed), 1);
    assert!(hub.state.lock().hooks.is_empty(), "it is forgotten");
}

#[test]
fn an_inline_hook_that_registers_another_is_told_off_and_blocks_nobody() {
    let hub = LeadershipHub::new();
    let target = Arc::clone(&hub);
    let _guard = hub.register(GroupSelector::All, HookKind::Inline, move |_| {
        drop(target.register(GroupSelector::All, HookKind::Dispatched, |_| ()));
    });
    let (_other, story) = listen(&hub, HookKind::Inline, GroupSelector::All);
    hub.publish(vec![acquired(GROUP, 1)]);
    assert_eq!(told(&story), ["1+1"]);
    assert_eq!(hub.complaints().0, 1);
}

#[test]
fn a_hook_may_own_the_guard_of_another() {
    for kind in [HookKind::Inline, HookKind::Dispatched] {
        let hub = LeadershipHub::new();
        let (inner, story) = listen(&hub, kind, GroupSelector::All);
        let outer = hub.register(GroupSelector::All, kind, move |_| {
            let _owned = &inner;
        });
        drop(outer);
        hub.publish(vec![acquired(GROUP, 1)]);
        dispatch(&hub);
        assert!(told(&story).is_empty(), "both are gone ({kind:?})");
    }
}

#[test]
fn a_panic_is_contained_and_counted_and_the_next_hook_is_called() {
    for kind in [HookKind::Inline, HookKind::Dispatched] {
        let hub = LeadershipHub::new();
        let _bad = hub.register(GroupSelector::All, kind, |_| panic!("a hook on purpose"));
        let (_good, story) = listen(&hub, kind, GroupSelector::All);
        hub.publish(vec![acquired(GROUP, 1), lost(GROUP, 1)]);
        dispatch(&hub);
        assert_eq!(told(&story), ["1+1", "1-1"], "{kind:?}");
        assert_eq!(hub.complaints().0, 2, "{kind:?}");
    }
}

#[test]
fn an_overflow_brings_hooks_level_with_the_truth() {
    let hub = LeadershipHub::with_bound(8);
    let (_guard, story) = listen(&hub, HookKind::Dispatched, GroupSelector::All);
    hub.publish(vec![acquired(GROUP, 1), acquired(OTHER, 1)]);
    dispatch(&hub);
    assert_eq!(told(&story), ["1+1", "2+1"]);

    for term in 2..50 {
        hub.publish(vec![lost(GROUP, term - 1), acquired(GROUP, term)]);
        assert!(hub.state.lock().queue.len() <= 8, "the queue is bounded");
    }
    hub.publish(vec![ready(GROUP, 49), lost(OTHER, 1)]);
    let mut all = vec!["1+1".to_owned(), "2+1".to_owned()];
    dispatch(&hub);
    all.extend(told(&story));
    assert_alternates(&all);
    let of = |group: &str| all.iter().rfind(|word| word.starts_with(group)).cloned();
    assert_eq!(of("1"), Some("1!49".to_owned()), "{all:?}");
    assert_eq!(of("2"), Some("2-1".to_owned()), "{all:?}");
    assert!(all.len() < 60, "most were skipped");
}

#[test]
fn a_hook_that_registers_during_an_overflow_is_level_too() {
    let hub = LeadershipHub::with_bound(2);
    let (_first, _) = listen(&hub, HookKind::Dispatched, GroupSelector::All);
    hub.publish(vec![acquired(GROUP, 1), lost(GROUP, 1), acquired(GROUP, 2), ready(GROUP, 2)]);
    let (_second, story) = listen(&hub, HookKind::Dispatched, GroupSelector::All);
    dispatch(&hub);
    assert_eq!(told(&story), ["1+2", "1!2"]);
}

#[test]
fn an_inline_hook_that_takes_too_long_is_counted() {
    let hub = LeadershipHub::new();
    let _slow = hub.register(GroupSelector::All, HookKind::Inline, |_| {
        let started = Instant::now();
        while started.elapsed() <= INLINE_LIMIT * 2 {
            std::hint::spin_loop();
        }
    });
    hub.publish(vec![acquired(GROUP, 1)]);
    assert_eq!(hub.complaints(), (0, 1));
}

#[test]
fn the_dispatcher_tells_everything_before_it_ends() {
    let hub = LeadershipHub::new();
    let (sender, receiver) = mpsc::channel();
    let _guard = hub.register(GroupSelector::All, HookKind::Dispatched, move |event| {
        sender.send(word(event)).unwrap();
    });
    let dispatcher = {
        let hub = Arc::clone(&hub);
        std::thread::spawn(move || hub.dispatch())
    };
    hub.publish((1..100).flat_map(|term| [acquired(GROUP, term), lost(GROUP, term)]).collect());
    hub.stop();
    dispatcher.join().unwrap();
    assert_eq!(receiver.try_iter().count(), 198);
}

async fn next(events: &mut LeadershipEvents) -> String {
    let event = tokio::time::timeout(Duration::from_secs(10), events.recv()).await;
    word(&event.expect("an event in time").expect("the hub lives"))
}

#[tokio::test]
async fn a_stream_begins_with_what_is_and_coalesces_into_the_truth() {
    let hub = LeadershipHub::new();
    hub.publish(vec![acquired(GROUP, 1)]);
    let mut events = hub.events(GroupSelector::All);
    assert_eq!(next(&mut events).await, "1+1");

    // Leaderships begin and end without a look.
    hub.publish((1..100).flat_map(|t| [lost(GROUP, t), acquired(GROUP, t + 1)]).collect());
    hub.publish(vec![ready(GROUP, 100)]);
    assert_eq!(next(&mut events).await, "1-1");
    assert_eq!(next(&mut events).await, "1+100");
    assert_eq!(next(&mut events).await, "1!100");

    hub.publish(vec![lost(GROUP, 100)]);
    assert_eq!(next(&mut events).await, "1-100");
}

#[tokio::test]
async fn a_stream_does_not_tell_of_a_leadership_that_came_and_went() {
    let hub = LeadershipHub::new();
    let mut events = hub.events(GroupSelector::All);
    hub.publish(vec![acquired(GROUP, 1), lost(GROUP, 1), acquired(OTHER, 7)]);
    assert_eq!(next(&mut events).await, "2+7");
}
