//! A configuration counts when it is applied, and machines crash.
//!
//! In Raft's proof each change of members counts from the moment it is in the log. In the raft
//! crate, as in most implementations, it counts when it is applied. That is right as long as no
//! replica forgets that a change was committed while others count on the next one.
//!
//! | guard | without it |
//! |---|---|
//! | a replica that acknowledges entries behind a change has stored that the change is committed | two quorums that do not meet |
//! | one change at a time: the next one is proposed when the last one is applied | the same |
//! | a candidate has applied every change that it knows to be committed (raft's own rule) | it is elected by voters of an older configuration |
//! | a candidate's log is at least as new as its voters' | a committed entry is lost |

use stateright::{Model, Property};

/// Members are the bits of a number.
type Voters = u8;

const NODES: usize = 3;
/// Terms, entries of a log, and changes of members that a run may have.
const MAX_TERM: u8 = 3;
const MAX_LOG: usize = 4;

/// Which rules hold.
#[derive(Clone, Copy, Debug)]
pub struct Configurations {
    /// What is acknowledged behind a change is acknowledged with the change's commit stored.
    pub remembers_commits: bool,
    /// A change is proposed when the one before is applied.
    pub one_at_a_time: bool,
    /// A candidate has applied the changes that it knows to be committed.
    pub applies_before_campaign: bool,
    /// Voters compare logs.
    pub compares_logs: bool,
}

impl Configurations {
    /// All rules hold.
    pub const SOUND: Self = Self {
        remembers_commits: true,
        one_at_a_time: true,
        applies_before_campaign: true,
        compares_logs: true,
    };
}

/// An entry: its term, and the voters from there on if it is a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    term: u8,
    change: Option<Voters>,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    term: u8,
    log: Vec<Entry>,
    /// Known to be committed, and what of that is stored.
    commit: usize,
    stored_commit: usize,
    applied: usize,
    /// It leads its term, and this is what it knows that the others hold.
    leads: Option<[usize; NODES]>,
}

/// The cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cluster {
    nodes: [Node; NODES],
    /// All entries ever committed.
    committed: Vec<Entry>,
    /// Another entry was committed in the place of a committed one.
    contradicted: bool,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// A node is elected by these voters.
    Elect(usize, Voters),
    /// A leader appends a change to these voters.
    Change(usize, Voters),
    /// A follower takes all of its leader's log and acknowledges it.
    Replicate(usize, usize),
    /// A leader commits what it may.
    Commit(usize),
    /// A node applies one entry.
    Apply(usize),
    /// A process ends and starts again.
    Crash(usize),
}

const ALL: Voters = (1 << NODES) - 1;

impl Node {
    fn voters(&self) -> Voters {
        let changes = self.log[..self.applied].iter().rev().find_map(|entry| entry.change);
        changes.unwrap_or(ALL)
    }

    fn end(&self) -> (u8, usize) {
        (self.log.last().map_or(0, |entry| entry.term), self.log.len())
    }

    fn is_quorum(&self, of: Voters) -> bool {
        let voters = self.voters();
        (of & voters).count_ones() * 2 > voters.count_ones()
    }

    fn last_change(&self) -> usize {
        let changes = self.log.iter().rposition(|entry| entry.change.is_some());
        changes.map_or(0, |at| at + 1)
    }
}

impl Configurations {
    fn elect(self, cluster: &mut Cluster, who: usize, voters: Voters) -> Option<()> {
        let term = cluster.nodes[who].term + 1;
        let candidate = &cluster.nodes[who];
        let end = candidate.end();
        let unapplied = &candidate.log[candidate.applied..candidate.commit];
        if self.applies_before_campaign && unapplied.iter().any(|entry| entry.change.is_some()) {
            return None;
        }
        for voter in members(voters) {
            let node = &mut cluster.nodes[voter];
            if node.term >= term || (self.compares_logs && voter != who && node.end() > end) {
                return None;
            }
            node.term = term;
            node.leads = None;
        }
        let node = &mut cluster.nodes[who];
        node.log.push(Entry { term, change: None });
        let mut held = [0; NODES];
        held[who] = node.log.len();
        node.leads = Some(held);
        Some(())
    }

    fn change(self, cluster: &mut Cluster, who: usize, voters: Voters) -> Option<()> {
        let node = &mut cluster.nodes[who];
        // With the rule, this is the configuration that is applied.
        let newest = node.log.iter().rev().find_map(|entry| entry.change).unwrap_or(ALL);
        let differs = (newest ^ voters).count_ones() == 1;
        let waits = self.one_at_a_time && node.applied < node.last_change();
        // A leader applies an entry of its term before it changes anything.
        let ready = node.log[..node.applied].last().is_some_and(|entry| entry.term == node.term);
        if !differs || waits || !ready {
            return None;
        }
        node.log.push(Entry { term: node.term, change: Some(voters) });
        let end = node.log.len();
        node.leads.as_mut()?[who] = end;
        Some(())
    }

    fn replicate(self, cluster: &mut Cluster, from: usize, to: usize) -> Option<()> {
        let leader = cluster.nodes[from].clone();
        let node = &mut cluster.nodes[to];
        if node.term > leader.term || (node.term == leader.term && node.leads.is_some()) {
            return None;
        }
        // What is committed here, the leader must hold.
        if leader.log.get(..node.commit) != Some(&node.log[..node.commit]) {
            cluster.contradicted = true;
            return Some(());
        }
        let commit = node.commit.max(leader.commit);
        if node.log == leader.log && node.commit == commit && leader.leads?[to] == leader.log.len()
        {
            return None;
        }
        node.term = leader.term;
        node.leads = None;
        node.log.clone_from(&leader.log);
        node.commit = commit;
        let news = node.log[..commit].iter().rposition(|entry| entry.change.is_some());
        if let Some(change) = news.filter(|_| self.remembers_commits) {
            node.stored_commit = node.stored_commit.max(change + 1);
        }
        cluster.nodes[from].leads.as_mut()?[to] = leader.log.len();
        Some(())
    }

    fn commit(cluster: &mut Cluster, who: usize) -> Option<()> {
        let node = &cluster.nodes[who];
        let held = node.leads?;
        let quorum_holds = |index: usize| {
            let holders = (0..NODES).filter(|at| held[*at] >= index);
            node.is_quorum(holders.fold(0, |all, at| all | 1 << at))
        };
        let own = |index: usize| node.log[index - 1].term == node.term;
        let index = (node.commit + 1..=node.log.len())
            .rev()
            .find(|index| own(*index) && quorum_holds(*index))?;
        cluster.nodes[who].commit = index;
        let log = &cluster.nodes[who].log[..index];
        let known = cluster.committed.len().min(index);
        cluster.contradicted |= log[..known] != cluster.committed[..known];
        if index > cluster.committed.len() {
            cluster.committed = log.to_vec();
        }
        Some(())
    }

    fn apply(cluster: &mut Cluster, who: usize) -> Option<()> {
        let node = &mut cluster.nodes[who];
        if node.applied >= node.commit {
            return None;
        }
        node.applied += 1;
        // What is applied of a change is stored with it.
        if node.log[node.applied - 1].change.is_some() {
            node.stored_commit = node.stored_commit.max(node.applied);
        }
        let member = node.voters() & (1 << who) != 0;
        if !member {
            node.leads = None;
        }
        Some(())
    }

    fn crash(cluster: &mut Cluster, who: usize) -> Option<()> {
        let node = &mut cluster.nodes[who];
        let before = node.clone();
        node.leads = None;
        node.commit = node.stored_commit;
        // State machines may keep nothing by themselves; what is known to be committed is applied anew.
        node.applied = node.stored_commit;
        (*node != before).then_some(())
    }
}

fn members(voters: Voters) -> impl Iterator<Item = usize> {
    (0..NODES).filter(move |at| voters & (1 << at) != 0)
}

impl Model for Configurations {
    type State = Cluster;
    type Action = Step;

    fn init_states(&self) -> Vec<Cluster> {
        let node =
            Node { term: 0, log: Vec::new(), commit: 0, stored_commit: 0, applied: 0, leads: None };
        let nodes = [node.clone(), node.clone(), node];
        vec![Cluster { nodes, committed: Vec::new(), contradicted: false }]
    }

    fn actions(&self, cluster: &Cluster, steps: &mut Vec<Step>) {
        for who in 0..NODES {
            let node = &cluster.nodes[who];
            let own = node.voters() & (1 << who) != 0;
            if own && node.term < MAX_TERM && node.log.len() < MAX_LOG {
                let quorums = (1..=ALL).filter(|q| q & (1 << who) != 0 && node.is_quorum(*q));
                steps.extend(quorums.map(|quorum| Step::Elect(who, quorum)));
            }
            if node.leads.is_some() {
                if node.log.len() < MAX_LOG {
                    steps.extend((1..=ALL).map(|voters| Step::Change(who, voters)));
                }
                let others = (0..NODES).filter(|to| *to != who);
                steps.extend(others.map(|to| Step::Replicate(who, to)));
                steps.push(Step::Commit(who));
            }
            steps.push(Step::Apply(who));
            steps.push(Step::Crash(who));
        }
    }

    fn next_state(&self, last: &Cluster, step: Step) -> Option<Cluster> {
        let mut next = last.clone();
        match step {
            Step::Elect(who, voters) => self.elect(&mut next, who, voters)?,
            Step::Change(who, voters) => self.change(&mut next, who, voters)?,
            Step::Replicate(from, to) => self.replicate(&mut next, from, to)?,
            Step::Commit(who) => Self::commit(&mut next, who)?,
            Step::Apply(who) => Self::apply(&mut next, who)?,
            Step::Crash(who) => Self::crash(&mut next, who)?,
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always("what is committed stays", |_, cluster: &Cluster| {
            !cluster.contradicted
        })]
    }
}
