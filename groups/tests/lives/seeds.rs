//! Many callers do everything with a few groups at once, and go away while they wait. Whatever
//! they do: what was acknowledged survives, a vote is given once, what is open is stored, and
//! every group can be used afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use shardhost_groups::known_bugs::{KnownBug, KnownBugs};
use shardhost_groups::runtime::Destruction;
use shardhost_groups::{Group, GroupId, GroupSpec, Groups, NodeId, OpenGroupError};
use tokio::runtime::Runtime;

use crate::world::{Around, Dice, Words, ask_for_vote, host};

/// Groups of this host alone, which take writes.
const ALONE: [u64; 2] = [1, 2];
/// A group with two candidates elsewhere, who ask for votes.
const VOTER: u64 = 3;
const CALLERS: usize = 5;
const STEPS: usize = 40;
const STUCK: Duration = Duration::from_secs(30);
/// How long a replica may take to hear of a candidate. What it writes then may take longer.
const HEARD: Duration = Duration::from_millis(5);
const SEEDS: u64 = 12;

/// Words that were acknowledged, by group and replica.
type Ledger = Mutex<BTreeMap<(GroupId, u64), BTreeSet<String>>>;

#[derive(Clone)]
struct Trial {
    groups: Groups,
    around: Arc<Around>,
    dice: Arc<Dice>,
    ledger: Arc<Ledger>,
    words: Arc<AtomicU64>,
    term: Arc<AtomicU64>,
    problems: Arc<Mutex<Vec<String>>>,
}

impl Trial {
    fn new(seed: u64, bugs: KnownBugs) -> Self {
        let dice = Arc::new(Dice::new(seed));
        let around = Around::new(&dice);
        let groups = host(&around, bugs);
        Self {
            groups,
            around,
            dice,
            ledger: Arc::default(),
            words: Arc::default(),
            term: Arc::new(AtomicU64::new(5)),
            problems: Arc::default(),
        }
    }

    fn complain(&self, problem: impl Into<String>) {
        self.problems.lock().unwrap().push(problem.into());
    }

    fn any_group(&self) -> GroupId {
        GroupId::new(1 + self.dice.roll(VOTER))
    }

    fn spec(&self, id: GroupId) -> GroupSpec {
        let nodes = if id.get() == VOTER { 1..=3 } else { 1..=1 };
        // Ids that were destroyed are refused; so is a creation beside another one.
        let tombstone = self.groups.tombstone(id).unwrap();
        let generation = tombstone.map_or(0, |replica| (replica.get() >> 32) as u32 + 1);
        GroupSpec::new(id, nodes.map(NodeId::must)).incarnation(generation)
    }

    async fn create(&self, id: GroupId) {
        let (groups, dice, spec) = (self.groups.clone(), Arc::clone(&self.dice), self.spec(id));
        let create = move || match dice.roll(2) {
            0 => groups.create(spec, Words::new(&dice)).map(drop),
            _ => {
                let make = move || Ok(Words::new(&dice) as _);
                groups.create_or_open(spec, Box::new(make)).map(drop)
            }
        };
        self.blocking(create).await;
    }

    async fn open(&self, id: GroupId) {
        let (groups, dice) = (self.groups.clone(), Arc::clone(&self.dice));
        let open = move || match dice.roll(2) {
            0 => groups.open(id, Words::new(&dice)).map(drop),
            _ => groups.open_with(id, Box::new(move || Ok(Words::new(&dice) as _))).map(drop),
        };
        self.blocking(open).await;
    }

    /// Runs something that blocks. It may be refused, but not fail.
    async fn blocking(&self, run: impl FnOnce() -> Result<(), OpenGroupError> + Send + 'static) {
        let outcome = self.in_time(tokio::task::spawn_blocking(run)).await;
        if let Some(Ok(Err(error @ OpenGroupError::Faulted { .. }))) = outcome {
            self.complain(error.to_string());
        }
    }

    async fn close(&self, id: GroupId) {
        self.maybe_cancelled(self.groups.close(id)).await;
    }

    async fn destroy(&self, id: GroupId) {
        let mut destruction = Destruction::new(id);
        if self.dice.roll(3) == 0 {
            destruction = destruction.generation(u32::MAX);
        }
        self.maybe_cancelled(self.groups.destroy_replica(destruction)).await;
    }

    /// Drops the future after a few polls, or waits for it.
    async fn maybe_cancelled<T>(&self, future: impl Future<Output = T>) {
        let mut future = pin!(future);
        let polls = self.dice.roll(5);
        if polls == 4 {
            self.in_time(future).await;
            return;
        }
        for _ in 0..polls {
            if futures::poll!(future.as_mut()).is_ready() {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    async fn in_time<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let outcome = tokio::time::timeout(STUCK, future).await.ok();
        if outcome.is_none() {
            self.complain("a step is stuck");
        }
        outcome
    }

    /// Proposes a word. The answer must hold whatever was acknowledged before.
    async fn write(&self, group: &Group) -> bool {
        let of = (group.id(), group.status().replica.get());
        let before = self.ledger.lock().unwrap().get(&of).cloned().unwrap_or_default();
        let word = format!("w{}", self.words.fetch_add(1, Ordering::Relaxed));
        let proposal = group.propose(word.clone()).within(STUCK / 2);
        let Some(Ok(applied)) = self.in_time(proposal.into_future()).await else { return false };
        let text = String::from_utf8_lossy(&applied.response).into_owned();
        let held: BTreeSet<String> = text.split_whitespace().map(str::to_owned).collect();
        if !before.is_subset(&held) {
            let lost: Vec<_> = before.difference(&held).collect();
            self.complain(format!("{of:?}: {lost:?} were acknowledged and are gone"));
        }
        self.ledger.lock().unwrap().entry(of).or_default().insert(word);
        true
    }

    /// A candidate asks for a vote.
    fn vote(&self, candidate: u64, term: u64) {
        let Some(group) = self.groups.group(GroupId::new(VOTER)) else { return };
        ask_for_vote(&self.groups, group.id(), group.status().replica.get(), candidate, term);
    }

    /// Two candidates ask for a vote in one term, and between the two the replica is closed and
    /// opened. It is a fresh one, if no other caller is in the way: one that may have voted before
    /// would let the second candidate wait.
    async fn votes(&self) {
        let id = GroupId::new(VOTER);
        if self.dice.roll(2) == 0 {
            self.in_time(self.groups.destroy(id)).await;
        }
        self.create(id).await;
        let term = self.term.fetch_add(1, Ordering::Relaxed);
        let first = 2 + self.dice.roll(2);
        self.vote(first, term);
        if let Some(group) = self.groups.group(id) {
            // It may be another one by now, which never hears of the term.
            group.wait_for(|status| status.term.get() >= term, HEARD).await;
        }
        self.in_time(self.groups.close(id)).await;
        self.open(id).await;
        self.vote(5 - first, term);
    }

    async fn step(&self) {
        let id = self.any_group();
        match self.dice.roll(16) {
            0..3 => self.create(id).await,
            3 => drop(futures::join!(self.create(id), self.create(id))),
            4..6 => self.open(id).await,
            6 => drop(futures::join!(self.close(id), self.close(id), self.open(id))),
            7..9 => self.close(id).await,
            9 => self.destroy(id).await,
            10 => drop(futures::join!(self.destroy(id), self.create(id), self.open(id))),
            11..14 => self.votes().await,
            _ => self.use_group(id).await,
        }
    }

    async fn use_group(&self, id: GroupId) {
        let Some(group) = self.groups.group(id) else { return };
        if id.get() != VOTER {
            self.write(&group).await;
        }
        if self.dice.roll(4) == 0 {
            self.maybe_cancelled(group.snapshot()).await;
        }
    }

    /// Opens or creates the group. A destruction whose caller went away may still be under way.
    async fn start(&self, id: GroupId) -> Option<Group> {
        let deadline = Instant::now() + STUCK;
        while Instant::now() < deadline {
            if self.groups.is_stored(id).unwrap() {
                self.open(id).await;
            } else {
                self.create(id).await;
            }
            if let Some(group) = self.groups.group(id) {
                return Some(group);
            }
        }
        None
    }

    /// When all callers are gone: each group can be used, and has what it acknowledged.
    async fn settle(&self, id: GroupId) {
        self.in_time(self.groups.close(id)).await;
        if self.groups.group(id).is_some() {
            self.complain(format!("{id:?} is closed and can be found"));
        }
        let Some(group) = self.start(id).await else {
            return self.complain(format!("{id:?} can neither be opened nor created"));
        };
        if !self.groups.is_stored(id).unwrap() {
            self.complain(format!("{id:?} is open and not stored"));
        }
        if id.get() == VOTER {
            return;
        }
        let serves = group.wait_for(|status| status.serving, STUCK).await.is_some();
        if !serves || !self.write(&group).await {
            self.complain(format!("{id:?} does not serve: {:?}", group.status().role));
        }
    }
}

/// What was found to be wrong, and how many votes were given.
fn run(seed: u64, bugs: KnownBugs) -> (Vec<String>, usize) {
    let trial = Trial::new(seed, bugs);
    let runtime = Runtime::new().unwrap();
    runtime.block_on(async {
        let caller = |trial: Trial| async move {
            for _ in 0..STEPS {
                trial.step().await;
            }
        };
        let callers = (0..CALLERS).map(|_| tokio::spawn(caller(trial.clone())));
        for caller in futures::future::join_all(callers).await {
            caller.unwrap();
        }
        for id in ALONE.into_iter().chain([VOTER]) {
            trial.settle(GroupId::new(id)).await;
        }
    });
    if let Some(fault) = trial.groups.health().borrow().clone() {
        trial.complain(format!("the host failed: {fault}"));
    }
    trial.groups.shutdown();
    let mut problems = std::mem::take(&mut *trial.problems.lock().unwrap());
    problems.extend(trial.around.double_votes());
    (problems, trial.around.votes())
}

#[test]
fn many_callers_at_once_break_no_promise_and_leave_no_group_stuck() {
    let mut votes = 0;
    for seed in 0..SEEDS {
        let (problems, given) = run(seed, KnownBugs::none());
        votes += given;
        assert!(problems.is_empty(), "seed {seed}: {problems:#?}");
    }
    println!("{votes} votes were given over {SEEDS} seeds");
    assert!(votes > 10, "nothing was tried: {votes} votes");
}

/// The seeds notice when a close does not wait for the log writer.
#[test]
fn a_close_that_does_not_wait_for_the_log_writer_is_noticed() {
    let bugs = KnownBugs::from([KnownBug::CloseBeforeLog]);
    let found = (0..SEEDS * 2).find_map(|seed| {
        let (problems, _) = run(seed, bugs);
        problems.first().map(|first| format!("seed {seed}: {first}"))
    });
    println!("{found:?}");
    assert!(found.is_some(), "no seed notices it");
}
