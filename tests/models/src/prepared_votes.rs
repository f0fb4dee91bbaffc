//! Votes that are written before they are asked for, so that a transfer waits for no disk.
//!
//! Before a leader hands over, it and its target store a vote for the target in the next term. The
//! election then writes nothing.
//!
//! | guard | without it |
//! |---|---|
//! | a prepared vote counts when it is durable | a crash forgets a vote that was given: two leaders in one term |
//! | a vote for another candidate is stored before it is given, whatever was prepared | the same |
//! | a write of an earlier term keeps the prepared vote | it takes back a vote that was given: the same |
//! | writes of one replica become durable in their order | a prepared vote overwrites a later one |

use stateright::{Model, Property};

const NODES: usize = 3;
const MAX_CRASHES: u8 = 1;
const MAX_TERM: u8 = 2;
/// Writes of a replica that are on their way.
const MAX_QUEUE: usize = 2;
/// Who is the target of the transfer.
const TARGET: usize = 1;

/// Which rules hold.
#[derive(Clone, Copy, Debug)]
pub struct PreparedVotes {
    /// Prepared votes count when they are durable.
    pub awaits_disk: bool,
    /// Others are written before they are given.
    pub writes_others: bool,
    /// A write of an earlier term keeps what was prepared.
    pub keeps_prepared: bool,
    /// Writes become durable in their order.
    pub keeps_order: bool,
}

impl PreparedVotes {
    /// All rules hold.
    pub const SOUND: Self =
        Self { awaits_disk: true, writes_others: true, keeps_prepared: true, keeps_order: true };
}

/// A term, and the vote in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct HardState {
    term: u8,
    vote: Option<usize>,
}

/// One replica.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Replica {
    memory: HardState,
    disk: HardState,
    /// Written, and not durable; the oldest first.
    queue: Vec<HardState>,
    /// A vote, and the write that it waits for.
    withheld: Option<(HardState, HardState)>,
    /// The vote that was prepared.
    prepared: Option<HardState>,
}

/// The cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cluster {
    replicas: [Replica; NODES],
    /// Votes that left: by term and candidate, the voters.
    given: [[u8; NODES]; MAX_TERM as usize + 1],
    crashes: u8,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// A replica prepares a vote for the target, which may be itself.
    Prepare(usize, usize),
    /// A voter is asked by a candidate, or campaigns itself.
    Vote(usize, usize, u8),
    /// A write becomes durable: the oldest, or this one.
    Sync(usize, usize),
    /// A process ends and starts again.
    Crash(usize),
}

impl PreparedVotes {
    fn vote(self, cluster: &mut Cluster, voter: usize, candidate: usize, term: u8) -> Option<()> {
        let replica = &mut cluster.replicas[voter];
        let memory = replica.memory;
        let free = term > memory.term || (term == memory.term && memory.vote.is_none());
        let state = HardState { term, vote: Some(candidate) };
        if memory == state && replica.disk == state {
            // A vote is given again to the same candidate.
            cluster.given[usize::from(term)][candidate] |= 1 << voter;
            return Some(());
        }
        if !free || replica.queue.len() == MAX_QUEUE {
            return None;
        }
        let prepared = replica.prepared == Some(state);
        let durable = replica.disk == state;
        let later = replica.prepared.filter(|prepared| prepared.term > term && self.keeps_prepared);
        let other = replica.prepared.is_some() && !prepared && later.is_none();
        replica.memory = state;
        replica.prepared = later;
        replica.withheld = None;
        if prepared && (durable || !self.awaits_disk) || (other && !self.writes_others) {
            cluster.given[usize::from(term)][candidate] |= 1 << voter;
            return Some(());
        }
        let write = later.unwrap_or(state);
        replica.queue.push(write);
        replica.withheld = Some((state, write));
        Some(())
    }

    fn sync(cluster: &mut Cluster, who: usize, at: usize) -> Option<()> {
        let replica = &mut cluster.replicas[who];
        if at >= replica.queue.len() {
            return None;
        }
        let state = replica.queue.remove(at);
        replica.disk = state;
        if let Some((HardState { term, vote: Some(candidate) }, _)) =
            replica.withheld.take_if(|(_, write)| *write == state)
        {
            cluster.given[usize::from(term)][candidate] |= 1 << who;
        }
        Some(())
    }
}

impl Model for PreparedVotes {
    type State = Cluster;
    type Action = Step;

    fn init_states(&self) -> Vec<Cluster> {
        let state = HardState { term: 1, vote: None };
        let replica = Replica { memory: state, disk: state, ..Replica::default() };
        let replicas = [replica.clone(), replica.clone(), replica];
        vec![Cluster { replicas, given: [[0; NODES]; MAX_TERM as usize + 1], crashes: 0 }]
    }

    fn actions(&self, cluster: &Cluster, steps: &mut Vec<Step>) {
        for who in 0..NODES {
            let replica = &cluster.replicas[who];
            let room = replica.queue.len() < MAX_QUEUE;
            if room && replica.prepared.is_none() && replica.memory.term < MAX_TERM {
                steps.push(Step::Prepare(who, TARGET));
            }
            for other in 0..NODES {
                let terms = replica.memory.term..=MAX_TERM;
                steps.extend(terms.map(|term| Step::Vote(who, other, term)));
            }
            let reachable = if self.keeps_order { 1 } else { replica.queue.len() };
            steps.extend((0..reachable).map(|at| Step::Sync(who, at)));
            if cluster.crashes < MAX_CRASHES {
                steps.push(Step::Crash(who));
            }
        }
    }

    fn next_state(&self, last: &Cluster, step: Step) -> Option<Cluster> {
        let mut next = last.clone();
        match step {
            Step::Prepare(who, target) => {
                let replica = &mut next.replicas[who];
                let term = replica.memory.term + 1;
                let prepared = HardState { term, vote: Some(target) };
                replica.prepared = Some(prepared);
                replica.queue.push(prepared);
            }
            Step::Vote(voter, candidate, term) => self.vote(&mut next, voter, candidate, term)?,
            Step::Sync(who, at) => Self::sync(&mut next, who, at)?,
            Step::Crash(who) => {
                let replica = &mut next.replicas[who];
                let disk = replica.disk;
                *replica = Replica { memory: disk, disk, ..Replica::default() };
                next.crashes += 1;
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always("one leader in a term", |_, cluster: &Cluster| {
            cluster.given.iter().all(|term| {
                let elected = term.iter().filter(|voters| voters.count_ones() as usize > NODES / 2);
                elected.count() <= 1
            })
        })]
    }
}
