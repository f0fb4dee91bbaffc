//! P: proposing.

use std::future::{Future, IntoFuture};
use std::sync::Arc;

use bytes::Bytes;
use futures::future::join_all;
use parking_lot::Mutex;
use shardhost_storage::{GroupId, LogIndex, NodeId};

use super::super::world::{answered, blocking, eventually, reached};
use super::super::{Journal, Keeps, Outcome, Trial, World};
use super::held::HeldTransfer;
use super::{GROUP, OTHER};
use shardhost_groups::completion::{ProposalSink, ProposeOutcome};
use shardhost_groups::error::{GroupFault, ProposalRejection, ProposeError, UnknownCause};
use shardhost_groups::leadership::{HookKind, LeadershipEvent};
use shardhost_groups::runtime::{Group, GroupSpec, ReadMode};
use shardhost_groups::selector::GroupSelector;
use shardhost_groups::status::Role;

/// Outcomes by token, as they come.
#[derive(Debug, Default)]
struct Outcomes(Mutex<Vec<(u64, ProposeOutcome)>>);

impl ProposalSink for Outcomes {
    fn complete(&self, token: u64, outcome: ProposeOutcome) {
        self.0.lock().push((token, outcome));
    }
}

impl Outcomes {
    fn len(&self) -> usize {
        self.0.lock().len()
    }

    fn submit(self: &Arc<Self>, group: &Group, commands: impl IntoIterator<Item = &'static str>) {
        let commands = (0..).zip(commands.into_iter().map(Bytes::from));
        group.submit(commands, &(Arc::clone(self) as Arc<dyn ProposalSink>));
    }
}

fn reason_of(outcome: ProposeOutcome) -> ProposalRejection {
    match outcome {
        Err(ProposeError::Rejected { reason, .. }) => reason,
        other => panic!("should have been refused: {other:?}"),
    }
}

pub(super) async fn p1_a_proposal_on_one_voter_is_answered_after_it_is_applied(
    trial: Trial,
) -> Outcome {
    let world = trial.world().await?;
    let node = world.nodes()[0];
    world.create_on(GROUP, &[node]).await;
    let leader = world.leader(GROUP).await;
    for number in 1..=20_usize {
        let applied = answered("the proposal", leader.propose("command")).await.expect("applied");
        assert_eq!(applied.response, number.to_string());
        assert!(applied.index > LogIndex::new(0));
        assert_eq!(applied.term, leader.term);
        assert_eq!(world.journal(node, GROUP).count("command"), number, "applied on return");
    }
    Ok(())
}

pub(super) async fn p2_what_was_acknowledged_is_there_after_close_and_reopen(
    trial: Trial,
) -> Outcome {
    let world = trial.world().await?;
    world.create(GROUP).await;
    let mut expected = world.propose_many(GROUP, "first", 0..20).await;
    for node in world.nodes() {
        assert!(world.host(*node).close(GROUP).await, "it was open");
        assert!(!world.host(*node).close(GROUP).await, "it is closed");
    }
    for node in world.nodes() {
        world.open(*node, GROUP).await;
    }
    expected.extend(world.propose_many(GROUP, "second", 0..5).await);
    assert_eq!(world.settled(GROUP).await, expected);
    Ok(())
}

pub(super) async fn p2_what_was_acknowledged_survives_the_kill_of_every_node(
    trial: Trial,
) -> Outcome {
    let world = trial.world().await?;
    world.create(GROUP).await;
    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    for round in 0..3 {
        world.leader(GROUP).await;
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let (world, acknowledged) = (Arc::clone(&world), Arc::clone(&acknowledged));
                tokio::spawn(write_until_refused(world, format!("{round}-{writer}"), acknowledged))
            })
            .collect();
        let before = acknowledged.lock().len();
        eventually("writes are acknowledged", || acknowledged.lock().len() > before + 20).await;
        world.kill_and_start_all().await?;
        for writer in writers {
            answered("the writer's end", writer).await.expect("it ended");
        }
    }
    let settled = world.settled(GROUP).await;
    for command in acknowledged.lock().iter() {
        let times = settled.iter().filter(|text| *text == command).count();
        assert_eq!(times, 1, "{command} was acknowledged");
    }
    Ok(())
}

/// Proposes one command after the other until one is not acknowledged.
async fn write_until_refused(
    world: Arc<World>,
    prefix: String,
    acknowledged: Arc<Mutex<Vec<String>>>,
) {
    let replicas = world.replicas(GROUP);
    let Some((_, leader)) = replicas.into_iter().find(|(_, replica)| replica.status().serving)
    else {
        return;
    };
    for number in 0.. {
        let command = format!("{prefix}-{number}");
        match answered("a write", leader.propose(command.clone())).await {
            Ok(_) => acknowledged.lock().push(command),
            Err(_) => return,
        }
    }
}

pub(super) async fn p3_every_state_machine_gets_it(trial: Trial) -> Outcome {
    let world = trial.world().await?;
    world.create(GROUP).await;
    let expected = world.propose_many(GROUP, "command", 0..50).await;
    assert_eq!(world.settled(GROUP).await, expected);
    for node in world.nodes() {
        assert_eq!(world.journal(*node, GROUP).texts()[..50], expected[..], "{node:?}");
    }
    Ok(())
}

pub(super) async fn p4_a_dropped_or_late_completion_leaves_nothing_behind(trial: Trial) -> Outcome {
    // Room for ten commands of this length at a time.
    let world =
        trial.world_with(|plan| plan.config.max_inflight_bytes_per_group = 10 * (256 + 8)).await?;
    world.create(GROUP).await;
    let leader = world.leader(GROUP).await;
    let journal = world.journal(leader.node, GROUP);
    journal.hold_apply();
    let late = leader.propose("late....").within(world.ticks(2)).await;
    let cause = UnknownCause::Timeout;
    assert_eq!(late, Err(ProposeError::Unknown { group: GROUP, cause }));
    for _ in 0..9 {
        drop(leader.propose("dropped.").into_future());
    }
    assert_eq!(reason_of(leader.propose("too many").await), ProposalRejection::Busy);
    journal.release();
    eventually("all of them are applied", || journal.count("dropped.") == 9).await;
    assert_eq!(journal.count("late...."), 1);
    let again = (0..10).map(|_| leader.propose("again...").into_future());
    let again = answered("ten proposals", join_all(again)).await;
    assert!(again.iter().all(Result::is_ok), "not all the room is there again: {again:?}");
    Ok(())
}

pub(super) async fn p5_a_follower_refuses_with_a_hint_and_forwards_nothing(
    trial: Trial,
) -> Outcome {
    let world = trial.world().await?;
    world.create(GROUP).await;
    let leader = world.leader(GROUP).await;
    for (node, follower) in world.followers(&leader).await {
        let refused = follower.propose("astray").await.expect_err("followers take nothing");
        assert!(refused.is_definite() && refused.is_retryable(), "{node:?}: {refused}");
        let hint = refused.leader_hint().expect("the leader is known");
        assert_eq!(hint.node, leader.node, "{refused}");
        assert!(refused.to_string().contains(&format!("node {} leads", hint.node)), "{refused}");
    }
    assert_eq!(world.settled(GROUP).await, [""; 0]);
    Ok(())
}

pub(super) async fn p6_a_proposal_during_a_transfer_is_held_until_it_ends(trial: Trial) -> Outcome {
    let world = trial.world().await?;
    world.create(GROUP).await;
    let outcome = loop {
        let held = HeldTransfer::begin(&world).await?;
        let outcomes = Arc::new(Outcomes::default());
        outcomes.submit(&held.leader, ["held"]);
        // Answered in the order of the worker's inbox: the proposal was taken before.
        drop(answered("a look at the leader", held.leader.verify_leader()).await);
        let waited = outcomes.len() == 0 && held.is_under_way();
        drop(held.lose().await);
        eventually("the held proposal ends with the transfer", || outcomes.len() == 1).await;
        if waited {
            break outcomes.0.lock().pop().expect("it ended").1;
        }
    };
    assert!(outcome.as_ref().map_or_else(ProposeError::is_definite, |_| true), "{outcome:?}");
    world.propose(GROUP, "taken").await;
    let settled = world.settled(GROUP).await;
    assert_eq!(settled.last().map(String::as_str), Some("taken"));
    assert_eq!(outcome.is_ok(), settled.contains(&"held".to_owned()), "{settled:?}");
    Ok(())
}

pub(super) async fn p7_completions_fail_before_the_loss_is_told(trial: Trial) -> Outcome {
    let world = trial.world().await?;
    world.create(GROUP).await;
    let leader = world.leader(GROUP).await;
    let outcomes = Arc::new(Outcomes::default());
    let known_at_loss = Arc::new(Mutex::new(None));
    let (seen, told) = (Arc::clone(&outcomes), Arc::clone(&known_at_loss));
    let only = GroupSelector::One(GROUP);
    let _hook = world.host(leader.node).on_leadership(only, HookKind::Inline, move |event| {
        if let LeadershipEvent::Lost(_) = event {
            told.lock().get_or_insert(seen.len());
        }
    });
    world.isolate(leader.node)?;
    outcomes.submit(&leader, ["one", "two", "three"]);
    eventually("the loss is told", || known_at_loss.lock().is_some()).await;
    assert_eq!(
        *known_at_loss.lock(),
        Some(3),
        "completions that had failed when the loss was told"
    );
    for (_, outcome) in outcomes.0.lock().iter() {
        assert!(outcome.as_ref().is_err_and(|error| !error.is_definite()), "{outcome:?}");
    }
    Ok(())
}

pub(super) async fn p8_an_inherited_entry_resolves_nobody_elses_completion(
    trial: Trial,
) -> Outcome {
    let world = trial.world().await?;
    world.create(GROUP).await;
    let old = world.leader(GROUP).await;
    let lonely = Arc::new(Outcomes::default());
    world.isolate(old.node)?;
    lonely.submit(&old, ["lonely one", "lonely two"]);
    let next = world.leader_among(GROUP, &world.others(old.node)).await;
    // These stand where the lonely ones stand on the old leader.
    let winner = answered("a proposal", next.propose("winner")).await.expect("a quorum is there");
    assert_eq!(winner.response, "1");
    world.links()?.heal();
    world.applied_everywhere(GROUP, winner.index).await;
    eventually("the lonely ones end", || lonely.len() == 2).await;
    for (_, outcome) in lonely.0.lock().iter() {
        assert!(outcome.is_err(), "somebody else's entry was taken for it: {outcome:?}");
    }
    assert_eq!(world.settled(GROUP).await, ["winner"]);
    Ok(())
}

pub(super) async fn p9_definite_and_unknown_outcomes_are_what_they_say(trial: Trial) -> Outcome {
    let world = trial.world().await?;
    world.create(GROUP).await;
    let mut outcomes: Vec<(String, ProposeOutcome)> = Vec::new();
    for round in 0..3 {
        let leader = world.leader(GROUP).await;
        let early = propose_everywhere(&world, &format!("{round}-calm")).await;
        world.isolate(leader.node)?;
        let late = propose_everywhere(&world, &format!("{round}-cut")).await;
        world.leader_among(GROUP, &world.others(leader.node)).await;
        world.links()?.heal();
        outcomes.extend(early.into_iter().chain(late));
    }
    let settled = world.settled(GROUP).await;
    let mut kinds = [0; 3];
    for (command, outcome) in &outcomes {
        let times = settled.iter().filter(|text| *text == command).count();
        let (kind, right) = match outcome {
            Ok(_) => (0, times == 1),
            Err(error) if error.is_definite() => (1, times == 0),
            Err(_) => (2, times <= 1),
        };
        assert!(right, "{command} stands there {times} times after {outcome:?}");
        kinds[kind] += 1;
    }
    assert!(kinds.iter().all(|count| *count > 0), "not every kind of outcome came: {kinds:?}");
    Ok(())
}

/// One proposal to each replica, at the same time.
async fn propose_everywhere(world: &World, prefix: &str) -> Vec<(String, ProposeOutcome)> {
    let proposals = world.replicas(GROUP).into_iter().map(|(node, replica)| async move {
        let command = format!("{prefix}-{node}");
        let outcome = answered("a proposal", replica.propose(command.clone())).await;
        (command, outcome)
    });
    join_all(proposals).await
}

pub(super) async fn p10_closing_fails_every_completion_with_the_cause(trial: Trial) -> Outcome {
    let world = trial.world().await?;
    world.create(GROUP).await;
    let stopped = ProposeError::Unknown { group: GROUP, cause: UnknownCause::Stopped };
    for _ in 0..10 {
        let leader = world.leader(GROUP).await;
        let outcomes = Arc::new(Outcomes::default());
        let last = leader.status().last;
        world.isolate(leader.node)?;
        outcomes.submit(&leader, ["one", "two", "three"]);
        let in_log = |status: &shardhost_groups::GroupStatus| status.last.get() >= last.get() + 3;
        reached(&leader, "they are in the log", in_log).await;
        assert!(answered("closing", world.host(leader.node).close(GROUP)).await);
        eventually("every completion ends", || outcomes.len() == 3).await;
        assert_eq!(leader.status().role, Role::Stopped);
        assert_eq!(reason_of(leader.propose("late").await), ProposalRejection::Stopping);
        let ended = std::mem::take(&mut *outcomes.0.lock());
        if ended.iter().all(|(_, outcome)| *outcome == Err(stopped.clone())) {
            return Ok(());
        }
        // On a busy machine it may have stepped down before it was closed.
        let lost = UnknownCause::LeadershipLost;
        let lost = ProposeError::Unknown { group: GROUP, cause: lost };
        let either = |outcome: &ProposeOutcome| {
            outcome.as_ref().is_err_and(|error| *error == stopped || *error == lost)
        };
        assert!(ended.iter().all(|(_, outcome)| either(outcome)), "{ended:?}");
        world.links()?.heal();
        world.open(leader.node, GROUP).await;
    }
    panic!("it always stepped down before it was closed");
}

pub(super) async fn p10_a_failure_fails_every_completion_with_the_cause(trial: Trial) -> Outcome {
    let world = trial.world().await?;
    world.create(GROUP).await;
    let leader = world.leader(GROUP).await;
    let journal = world.journal(leader.node, GROUP);
    journal.hold_apply();
    let outcomes = Arc::new(Outcomes::default());
    outcomes.submit(&leader, ["fail", "one", "two"]);
    reached(&leader, "all are committed", |status| status.apply_backlog() >= 3).await;
    journal.release();
    eventually("every completion ends", || outcomes.len() == 3).await;
    for (_, outcome) in outcomes.0.lock().iter() {
        let error = outcome.as_ref().expect_err("the state machine failed");
        assert!(!error.is_definite(), "{error}");
        assert!(error.to_string().contains("told to fail"), "{error}");
        let by_machine =
            matches!(error, ProposeError::Faulted { fault: GroupFault::StateMachine(_), .. });
        assert!(by_machine, "{error:?}");
    }
    Ok(())
}

pub(super) async fn p10_a_host_that_stops_leaves_nobody_waiting(trial: Trial) -> Outcome {
    let world = trial.world_with(|plan| plan.keeps = Keeps::Everything).await?;
    let node = world.nodes()[0];
    world.create_on(GROUP, &[node]).await;
    for _ in 0..10 {
        let leader = world.leader(GROUP).await;
        let before = leader.status().last.get();
        let callers = [
            tokio::spawn(until_refused(Group::clone(&leader), |group| async move {
                group.propose("command").await.is_ok()
            })),
            tokio::spawn(until_refused(Group::clone(&leader), |group| async move {
                group.read_barrier(ReadMode::Linearizable).await.is_ok()
            })),
            tokio::spawn(until_refused(Group::clone(&leader), |group| async move {
                group.snapshot().await.is_ok()
            })),
            tokio::spawn(until_refused(Group::clone(&leader), |group| async move {
                group.verify_leader().await.is_ok()
            })),
            tokio::spawn(create_until_refused(Arc::clone(&world), node)),
        ];
        let at_work = || leader.status().last.get() > before + 20;
        eventually("they are at work", at_work).await;
        world.stop(node).await;
        for caller in callers {
            answered("a caller when the host is gone", caller).await.expect("no panic");
        }
        world.start_closed(node).await;
        world.open(node, GROUP).await;
    }
    Ok(())
}

async fn until_refused<F: Future<Output = bool>>(group: Group, ask: impl Fn(Group) -> F) {
    while ask(group.clone()).await {
        tokio::task::yield_now().await;
    }
}

async fn create_until_refused(world: Arc<World>, node: NodeId) {
    let host = world.host(node);
    for id in host.stored().map_or(0, |stored| stored.len() as u64) + 1_000.. {
        let (host, spec) = (host.clone(), GroupSpec::new(GroupId::new(id), [node]));
        let create = move || host.create(spec, Box::new(Journal::default())).is_ok();
        if !blocking(create).await {
            return;
        }
    }
}

pub(super) async fn p11_a_halting_apply_stops_that_group_only(trial: Trial) -> Outcome {
    let world = trial.world().await?;
    let node = world.nodes()[0];
    for command in ["fail", "panic"] {
        let group = if command == "fail" { GROUP } else { OTHER };
        world.create_on(group, &[node]).await;
        let leader = world.leader(group).await;
        let before = leader.propose("before").await.expect("applied").index;
        let halted = answered("the halting one", leader.propose(command)).await;
        assert!(matches!(halted, Err(ProposeError::Faulted { .. })), "{halted:?}");
        let failed = |role: &Role| matches!(role, Role::Failed(_));
        reached(&leader, "it failed", |status| failed(&status.role)).await;
        let after = leader.propose("after").await.expect_err("it failed");
        assert!(after.is_definite(), "nothing is written any more: {after}");
        assert!(after.to_string().contains("was told to"), "without its cause: {after}");
        assert_eq!(leader.status().applied, before, "applied does not pass the entry");
        assert_eq!(world.journal(node, group).texts(), ["before"]);
    }
    let third = GroupId::new(3);
    world.create_on(third, &[node]).await;
    world.propose(third, "fine").await;
    Ok(())
}

pub(super) async fn p12_commands_over_a_limit_are_refused_before_anything_is_written(
    trial: Trial,
) -> Outcome {
    let world = trial.world_with(|plan| plan.config.max_command_bytes = 1_000).await?;
    world.create(GROUP).await;
    let leader = world.leader(GROUP).await;
    let before = leader.status().last;
    let large = leader.propose(vec![b'x'; 1_001]).await;
    assert_eq!(reason_of(large), ProposalRejection::TooLarge { size: 1_001, limit: 1_000 });
    assert_eq!(reason_of(leader.propose("").await), ProposalRejection::Empty);
    let wanted = shardhost_storage::Term::new(leader.term.get() + 7);
    let other_term = leader.propose("x").in_term(wanted).await;
    let actual = leader.term;
    assert_eq!(reason_of(other_term), ProposalRejection::TermMismatch { wanted, actual });
    assert_eq!(leader.status().last, before, "something was written");
    leader.propose(vec![b'x'; 1_000]).in_term(leader.term).await.expect("it is within all limits");
    Ok(())
}

pub(super) async fn p12_proposals_over_the_budget_are_refused_and_the_budget_comes_back(
    trial: Trial,
) -> Outcome {
    const COMMAND: usize = 744;
    const CHARGE: usize = COMMAND + shardhost_groups::config::PROPOSAL_OVERHEAD_BYTES;
    let world = trial
        .world_with(|plan| {
            // They would take from the budget of the host.
            plan.others = false;
            plan.config.max_inflight_bytes_per_group = 4 * CHARGE;
            plan.config.max_inflight_bytes = 6 * CHARGE;
        })
        .await?;
    let node = world.nodes()[0];
    let mut held = Vec::new();
    for (group, room) in [(GROUP, 4), (OTHER, 2)] {
        world.create_on(group, &[node]).await;
        let leader = world.leader(group).await;
        world.journal(node, group).hold_apply();
        held.extend((0..room).map(|_| leader.propose(vec![b'x'; COMMAND]).into_future()));
        let before = reached(&leader, "they are committed", |s| s.apply_backlog() == room).await;
        assert_eq!(
            reason_of(leader.propose("one more").await),
            ProposalRejection::Busy,
            "{group:?}"
        );
        assert_eq!(leader.status().last, before.last, "something was written");
    }
    for group in [GROUP, OTHER] {
        world.journal(node, group).release();
    }
    for outcome in answered("all that were held", join_all(held)).await {
        outcome.expect("it was taken before");
    }
    let again = world.leader(GROUP).await;
    again.propose(vec![b'x'; COMMAND]).await.expect("there is room again");
    Ok(())
}
