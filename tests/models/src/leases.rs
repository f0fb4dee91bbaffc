//! Leases, transfers that fail, and processes that restart.
//!
//! | guard | without it |
//! |---|---|
//! | a lease counts from the sending of the heartbeat that was acknowledged | an acknowledgement that was long on its way extends it beyond the vote lock |
//! | it is not longer than the vote lock | a voter elects another leader while it is valid |
//! | it is void during a transfer | the target campaigns, and vote locks do not hold it up |
//! | after a failed transfer the target must have acknowledged a later heartbeat | TimeoutNow is still on its way |
//! | TimeoutNow from before a heartbeat that was acknowledged is refused | the same |
//! | after a restart a voter is locked for a full vote lock | it forgot which replica it is locked for |
//! | TimeoutNow for an earlier incarnation of the replica is refused | a restarted target follows it, and has forgotten what it acknowledged |
//!
//! Clocks run at one speed here; the margin for drift is arithmetic. Messages are never lost, but may take
//! for ever, which is the same.

use std::collections::BTreeSet;

use stateright::{Model, Property};

const NODES: usize = 3;
const MAX_TIME: u8 = 4;
const MAX_TERM: u8 = 2;
/// Heartbeats of a leader, and transfers, that a run may have.
const MAX_HEARTBEATS: u8 = 2;
const MAX_TRANSFERS: u8 = 1;
const VOTE_LOCK: u8 = 2;

/// Which rules hold.
#[derive(Clone, Copy, Debug)]
pub struct Leases {
    /// A lease counts from the sending of the heartbeat.
    pub counts_from_sending: bool,
    /// Ticks that a lease lasts; sound up to the length of the vote lock.
    pub length: u8,
    /// It is void during a transfer.
    pub void_in_transfer: bool,
    /// After a failed transfer its target must answer anew.
    pub awaits_target: bool,
    /// Late orders to campaign are refused.
    pub refuses_late_orders: bool,
    /// A restarted voter is locked.
    pub locked_after_restart: bool,
    /// Orders name the incarnation that they are for.
    pub names_incarnation: bool,
}

impl Leases {
    /// All rules hold.
    pub const SOUND: Self = Self {
        counts_from_sending: true,
        length: VOTE_LOCK,
        void_in_transfer: true,
        awaits_target: true,
        refuses_late_orders: true,
        locked_after_restart: true,
        names_incarnation: true,
    };
}

/// What a leader knows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Leader {
    /// When the newest acknowledged heartbeat was sent, by follower; zero: none.
    acks: [u8; NODES],
    /// Acknowledgements of heartbeats count that were sent after this.
    void_until: u8,
    /// Whose acknowledgement is needed beside a quorum's.
    owed_by: u8,
    transfers_to: Option<usize>,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    term: u8,
    locked_until: u8,
    /// The newest heartbeat that it acknowledged in its term was sent then.
    acknowledged: u8,
    incarnation: u8,
    leads: Option<Leader>,
}

/// What is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Message {
    /// From a leader to a follower, sent at a time.
    Heartbeat { from: usize, to: usize, term: u8, sent: u8 },
    /// The acknowledgement of a heartbeat that was sent then.
    Ack { from: usize, to: usize, term: u8, sent: u8 },
    /// An order to campaign.
    TimeoutNow { to: usize, term: u8, sent: u8, incarnation: u8 },
}

/// The cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cluster {
    now: u8,
    nodes: [Node; NODES],
    messages: BTreeSet<Message>,
    heartbeats: u8,
    transfers: u8,
    restarted: bool,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Time passes.
    Tick,
    /// A leader sends heartbeats.
    Beat(usize),
    /// A heartbeat or an acknowledgement arrives.
    Arrive(Message),
    /// TimeoutNow arrives, and its target is elected with the vote of another node.
    Obey(Message, usize),
    /// A node is elected after its timeout, with the vote of another one.
    Elect(usize, usize),
    /// A leader hands over to a follower.
    Transfer(usize, usize),
    /// It gives that up.
    GiveUp(usize),
    /// A process ends and starts again.
    Restart(usize),
}

impl Cluster {
    fn win(&mut self, who: usize, voter: usize) -> Option<()> {
        let term = self.nodes[who].term + 1;
        if term > MAX_TERM || self.nodes[voter].term >= term {
            return None;
        }
        for node in [who, voter] {
            self.nodes[node].term = term;
            self.nodes[node].acknowledged = 0;
            self.nodes[node].leads = None;
        }
        let fresh = Leader { acks: [0; NODES], void_until: 0, owed_by: 0, transfers_to: None };
        self.nodes[who].leads = Some(fresh);
        Some(())
    }
}

impl Leases {
    fn holds_lease(self, cluster: &Cluster, who: usize) -> bool {
        let Some(leader) = &cluster.nodes[who].leads else { return false };
        if leader.transfers_to.is_some() && self.void_in_transfer {
            return false;
        }
        let counts = |ack: u8| ack > leader.void_until || (ack > 0 && !self.void_in_transfer);
        let owed = (0..NODES).filter(|at| leader.owed_by & (1 << at) != 0);
        if self.awaits_target && owed.into_iter().any(|at| !counts(leader.acks[at])) {
            return false;
        }
        // With three voters one more is a quorum.
        leader.acks.iter().any(|ack| counts(*ack) && cluster.now < ack + self.length)
    }

    fn arrive(self, cluster: &mut Cluster, message: Message) -> Option<()> {
        let now = cluster.now;
        cluster.messages.remove(&message);
        match message {
            Message::Heartbeat { from, to, term, sent } => {
                let node = &mut cluster.nodes[to];
                if term < node.term || (term == node.term && node.leads.is_some()) {
                    return Some(());
                }
                if term > node.term {
                    (node.term, node.acknowledged, node.leads) = (term, 0, None);
                }
                node.locked_until = now + VOTE_LOCK;
                node.acknowledged = node.acknowledged.max(sent);
                cluster.messages.insert(Message::Ack { from: to, to: from, term, sent });
            }
            Message::Ack { from, to, term, sent } => {
                let node = &mut cluster.nodes[to];
                if let Some(leader) = node.leads.as_mut().filter(|_| node.term == term) {
                    let counts = if self.counts_from_sending { sent } else { now };
                    leader.acks[from] = leader.acks[from].max(counts);
                }
            }
            Message::TimeoutNow { .. } => return None,
        }
        Some(())
    }

    fn obey(self, cluster: &mut Cluster, message: Message, voter: usize) -> Option<()> {
        let Message::TimeoutNow { to, term, sent, incarnation } = message else { return None };
        cluster.messages.remove(&message);
        let node = &cluster.nodes[to];
        let late = node.acknowledged > sent && self.refuses_late_orders;
        let other = node.incarnation != incarnation && self.names_incarnation;
        if node.term != term || late || other {
            return None;
        }
        cluster.win(to, voter)
    }

    fn transfer(cluster: &mut Cluster, who: usize, to: usize) -> Option<()> {
        let (now, incarnation) = (cluster.now, cluster.nodes[to].incarnation);
        let term = cluster.nodes[who].term;
        let leader = cluster.nodes[who].leads.as_mut()?;
        leader.transfers_to = Some(to);
        leader.void_until = now;
        leader.owed_by |= 1 << to;
        cluster.transfers += 1;
        cluster.messages.insert(Message::TimeoutNow { to, term, sent: now, incarnation });
        Some(())
    }

    fn restart(self, cluster: &mut Cluster, who: usize) {
        let now = cluster.now;
        let node = &mut cluster.nodes[who];
        node.leads = None;
        node.acknowledged = 0;
        node.incarnation += 1;
        node.locked_until = if self.locked_after_restart { now + VOTE_LOCK } else { 0 };
        cluster.restarted = true;
    }
}

impl Model for Leases {
    type State = Cluster;
    type Action = Step;

    fn init_states(&self) -> Vec<Cluster> {
        let node = Node { term: 1, locked_until: 0, acknowledged: 0, incarnation: 0, leads: None };
        let mut nodes = [node.clone(), node.clone(), node];
        nodes[0].leads =
            Some(Leader { acks: [0; NODES], void_until: 0, owed_by: 0, transfers_to: None });
        let messages = BTreeSet::new();
        let (heartbeats, transfers, restarted) = (0, 0, false);
        vec![Cluster { now: 1, nodes, messages, heartbeats, transfers, restarted }]
    }

    fn actions(&self, cluster: &Cluster, steps: &mut Vec<Step>) {
        if cluster.now < MAX_TIME {
            steps.push(Step::Tick);
        }
        let others = |who: usize| (0..NODES).filter(move |at| *at != who);
        for who in 0..NODES {
            let node = &cluster.nodes[who];
            if let Some(leader) = &node.leads {
                if cluster.heartbeats < MAX_HEARTBEATS {
                    steps.push(Step::Beat(who));
                }
                if leader.transfers_to.is_some() {
                    steps.push(Step::GiveUp(who));
                } else if cluster.transfers < MAX_TRANSFERS {
                    steps.extend(others(who).map(|to| Step::Transfer(who, to)));
                }
            } else {
                steps.extend(others(who).map(|voter| Step::Elect(who, voter)));
            }
            if !cluster.restarted {
                steps.push(Step::Restart(who));
            }
        }
        for message in &cluster.messages {
            match message {
                Message::TimeoutNow { to, .. } => {
                    steps.extend(others(*to).map(|voter| Step::Obey(*message, voter)));
                }
                _ => steps.push(Step::Arrive(*message)),
            }
        }
    }

    fn next_state(&self, last: &Cluster, step: Step) -> Option<Cluster> {
        let mut next = last.clone();
        match step {
            Step::Tick => next.now += 1,
            Step::Beat(from) => {
                let (term, sent) = (next.nodes[from].term, next.now);
                let others = (0..NODES).filter(|to| *to != from);
                next.messages.extend(others.map(|to| Message::Heartbeat { from, to, term, sent }));
                next.heartbeats += 1;
            }
            Step::Arrive(message) => self.arrive(&mut next, message)?,
            Step::Obey(message, voter) => self.obey(&mut next, message, voter)?,
            Step::Elect(who, voter) => {
                let free = |at: usize| next.now >= next.nodes[at].locked_until;
                if !free(who) || !free(voter) {
                    return None;
                }
                next.win(who, voter)?;
            }
            Step::Transfer(who, to) => Self::transfer(&mut next, who, to)?,
            Step::GiveUp(who) => {
                let now = next.now;
                let leader = next.nodes[who].leads.as_mut()?;
                leader.transfers_to = None;
                leader.void_until = now;
            }
            Step::Restart(who) => self.restart(&mut next, who),
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always(
            "a lease excludes later leaders",
            |model: &Self, cluster: &Cluster| {
                let leaders = |who: &usize| cluster.nodes[*who].leads.is_some();
                (0..NODES).filter(|who| model.holds_lease(cluster, *who)).all(|who| {
                    let later = |at: usize| cluster.nodes[at].term > cluster.nodes[who].term;
                    !(0..NODES).filter(leaders).any(later)
                })
            },
        )]
    }
}
