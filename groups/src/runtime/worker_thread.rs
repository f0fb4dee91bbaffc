//! The thread of one worker: inputs in, rounds out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, TryRecvError, select};

use shardhost_storage::GroupId;

use super::RuntimeShared;
use super::inbox::{Outlet, peer_bytes};
use crate::activity::Phase;
use crate::completion::Reply;
use crate::core::{Effects, LeaseSign};
use crate::known_bugs::KnownBug;
use crate::lives::Ending;
use crate::policy::PolicyEvent;
use crate::worker::{Input, TICK_SLOTS, WorkerCore};

/// Inputs that one step takes at most, so that ticks and messages are not put off for long.
const INPUTS_PER_ROUND: usize = 4096;
/// How long a worker without anything that ticks waits.
const IDLE_WAIT: Duration = Duration::from_secs(1);

/// Runs a worker until stopped.
pub(super) fn run(shared: &Arc<RuntimeShared>, index: usize, outlet: &Outlet) {
    let own = super::builder::first_advertisement(&shared.config);
    let mut core = WorkerCore::new(own, shared.policies.clone())
        .with_activity(Arc::clone(&shared.activities[index]));
    let activity = Arc::clone(&shared.activities[index]);
    let slot = shared.config.tick / u32::try_from(TICK_SLOTS).unwrap_or(1);
    let mut next_slot = Instant::now() + slot;
    loop {
        let wait = if core.needs_ticks() {
            next_slot.saturating_duration_since(Instant::now())
        } else {
            IDLE_WAIT
        };
        let (stop, began) = take_inputs(shared, &mut core, outlet, wait);
        let now = Instant::now();
        if now >= next_slot {
            activity.enter(Phase::Ticks);
            core.tick_slot();
            // A worker that was late does not catch up: a burst of ticks would be taken for the
            // silence of a leader.
            next_slot = now + slot;
        }
        activity.enter(Phase::Groups);
        let effects = core.finish_step(shared.clock.now());
        activity.enter(Phase::Effects);
        carry_out(shared, index, effects);
        activity.enter(Phase::Waiting);
        shared.rounds.record(began.elapsed());
        if stop {
            core.stop_all();
            carry_out(shared, index, core.finish_step(None));
            return;
        }
        report(shared, index, &core);
    }
}

/// Takes all that waits, or waits for the first. Returns whether the worker is to stop, and when the round
/// began.
fn take_inputs(
    shared: &RuntimeShared,
    core: &mut WorkerCore,
    outlet: &Outlet,
    wait: Duration,
) -> (bool, Instant) {
    let first = match outlet.completions.try_recv() {
        Ok(input) => Some(input),
        Err(TryRecvError::Disconnected) => return (true, Instant::now()),
        Err(TryRecvError::Empty) => match outlet.outside.try_recv() {
            Ok(input) => Some(input),
            Err(_) => wait_for_input(outlet, wait),
        },
    };
    // Whatever the step sends is sent after this moment, and a vote lock that it extends counts
    // from a later one.
    core.begin(shared.clock.now());
    core.activity().enter(Phase::Inputs);
    let began = Instant::now();
    let stop = first.is_some_and(|first| take_all(core, outlet, first));
    (stop, began)
}

/// Takes this one and all that wait. Returns whether the worker is to stop.
fn take_all(core: &mut WorkerCore, outlet: &Outlet, first: Input) -> bool {
    if take(core, outlet, first) {
        return true;
    }
    // On a busy machine others have something for this step too and only wait for a core. On an
    // idle one this costs a microsecond.
    std::thread::yield_now();
    for _ in 1..INPUTS_PER_ROUND {
        let Ok(input) = outlet.completions.try_recv().or_else(|_| outlet.outside.try_recv()) else {
            return false;
        };
        if take(core, outlet, input) {
            return true;
        }
    }
    false
}

fn wait_for_input(outlet: &Outlet, wait: Duration) -> Option<Input> {
    let received = select! {
        recv(outlet.completions) -> input => input.map_err(|_| RecvTimeoutError::Disconnected),
        recv(outlet.outside) -> input => input.map_err(|_| RecvTimeoutError::Disconnected),
        default(wait) => Err(RecvTimeoutError::Timeout),
    };
    received.ok()
}

fn take(core: &mut WorkerCore, outlet: &Outlet, input: Input) -> bool {
    match input {
        Input::Stop => return true,
        Input::Peer { from, messages } => {
            outlet.took_peer_bytes(peer_bytes(&messages));
            core.handle(Input::Peer { from, messages });
        }
        input => core.handle(input),
    }
    false
}

/// Does what a step wants, in the order that [`Effects`] asks for.
fn carry_out(shared: &Arc<RuntimeShared>, worker: usize, effects: Effects) {
    if effects.is_empty() {
        return;
    }
    for event in effects.counted {
        if let PolicyEvent::Froze(stood) = event {
            shared.freezes.record(stood);
        }
    }
    withdraw_leases(shared, &effects.leases);
    for (pending, error) in effects.failed {
        pending.resolve(Err(error));
    }
    answer(effects.read_replies);
    for (id, open_id, status) in effects.statuses {
        with_group(shared, id, open_id, |group| group.publish(status));
    }
    grant_leases(shared, &effects.leases);
    shared.hub.publish(effects.edges);
    answer(effects.transfer_replies);
    answer(effects.membership_replies);
    answer(effects.snapshot_replies);
    answer(effects.barrier_replies);
    answer(effects.drain_replies);
    answer(effects.eligibility_replies);
    for (from, message) in effects.create_requests {
        match shared.parked.is_parked(GroupId::new(message.group)) {
            true => shared.dismissed(from, &message),
            false => shared.create_requests.hand_on(shared.config.node, from, &message),
        }
    }
    for (from, message) in effects.notices {
        shared.dismissed(from, &message);
    }
    for request in effects.admissions {
        shared.admissions.push(request);
    }
    if !effects.messages.is_empty() {
        shared.send(effects.messages);
    }
    if !effects.log.is_empty() || !effects.log.prune.is_empty() {
        shared.activities[worker].enter(Phase::LogQueue);
        shared.log.push(worker, effects.log);
        shared.activities[worker].enter(Phase::Effects);
    }
    for (id, open_id, work) in effects.work {
        with_group(shared, id, open_id, |group| shared.push_work(group, work));
    }
    for shipment in effects.shipments {
        shared.transport.send_snapshot(shipment);
    }
    for ending in effects.closed {
        shared.activities[worker].enter(Phase::LogQueue);
        end(shared, ending);
        shared.activities[worker].enter(Phase::Effects);
    }
}

/// Answers those who asked; that one went away is no error.
fn answer<T>(replies: Vec<(Reply<T>, T)>) {
    for (completion, outcome) in replies {
        completion.send(outcome);
    }
}

/// A reader that sees that a replica failed, stopped or follows finds no lease of it any more.
fn withdraw_leases(shared: &RuntimeShared, leases: &[(GroupId, u64, LeaseSign)]) {
    for (id, open_id, sign) in leases.iter().filter(|(_, _, sign)| !sign.is_lease()) {
        with_group(shared, *id, *open_id, |group| group.lease.publish(*sign));
    }
}

/// A reader that sees a lease sees its leadership, which may have ended in the same step.
fn grant_leases(shared: &RuntimeShared, leases: &[(GroupId, u64, LeaseSign)]) {
    for (id, open_id, sign) in leases {
        with_group(shared, *id, *open_id, |group| {
            if !sign.is_lease() || group.status.load().is_leader() {
                group.lease.publish(*sign);
            }
        });
    }
}

/// A replica stopped. Its end comes when the log writer has passed all that it handed over: else
/// the next opening could read a log without it, and what the log holds back would be sent after
/// that.
fn end(shared: &RuntimeShared, ending: Ending) {
    if shared.config.bugs.has(KnownBug::CloseBeforeLog) {
        return shared.end_machine(ending);
    }
    shared.log.end(ending);
}

fn with_group(
    shared: &RuntimeShared,
    id: GroupId,
    open_id: u64,
    act: impl FnOnce(&Arc<crate::runtime::GroupShared>),
) {
    if let Some(group) = shared.registry.get(&id)
        && group.shared().open_id == open_id
    {
        act(group.shared());
    }
}

fn report(shared: &RuntimeShared, index: usize, core: &WorkerCore) {
    if core.counters().rounds.is_multiple_of(64) || !core.needs_ticks() {
        if let Some(counters) = shared.counters.lock().get_mut(index) {
            counters.clone_from(core.counters());
        }
        if let Some(population) = shared.population.lock().get_mut(index) {
            *population = core.population();
        }
    }
}
