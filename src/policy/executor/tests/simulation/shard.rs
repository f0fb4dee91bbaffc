//! One group: who leads it in which term, and how that changes.

use std::collections::{BTreeMap, BTreeSet};

use shardhost_storage::{GroupId, NodeId};

use super::Chance;
use super::host::Host;
use crate::planner::{Group, Requirement, Voter};

pub(super) type Hosts = BTreeMap<NodeId, Host>;

#[derive(Clone, Debug)]
pub(super) struct Shard {
    pub(super) id: GroupId,
    pub(super) voters: BTreeSet<NodeId>,
    pub(super) leader: Option<NodeId>,
    pub(super) term: u64,
    pub(super) requirement: Requirement,
    pub(super) label: Option<String>,
    pub(super) load: u64,
    /// When the present leadership began, if it began by a transfer.
    pub(super) moved_at_ms: Option<u64>,
    /// A transfer that a planner ordered is under way.
    pub(super) transferring: bool,
    pub(super) elect_at_ms: Option<u64>,
    /// Elections with a winner.
    pub(super) elections: u64,
    /// When its members or its requirement last changed.
    pub(super) news_at_ms: u64,
}

impl Shard {
    /// Another replica leads from now on.
    pub(super) fn hand_to(&mut self, to: NodeId, now: u64) {
        self.leader = Some(to);
        self.term += 1;
        self.moved_at_ms = Some(now);
    }

    /// The group's part: it elects a leader, and leaders that must not lead, or whose host drains,
    /// transfer leadership.
    pub(super) fn reflex(&mut self, hosts: &Hosts, now: u64, chance: &mut Chance) {
        match self.leader {
            Some(leader) if hosts[&leader].up && self.voters.contains(&leader) => {
                self.leave_if_it_must(leader, hosts, now, chance);
            }
            Some(_) => {
                self.leader = None;
                self.elect_at_ms = Some(now + chance.between(1_000, 2_000));
            }
            None => self.elect(hosts, now, chance),
        }
    }

    fn leave_if_it_must(&mut self, leader: NodeId, hosts: &Hosts, now: u64, chance: &mut Chance) {
        let host = &hosts[&leader];
        let must = host.draining || !host.has(&self.requirement.capabilities);
        // Slower than in truth, so that planners have something to do about it too.
        if !must || !host.answers(now) || self.transferring || !chance.per_mille(60) {
            return;
        }
        let targets = self.choose(hosts, |host| host.takes(&self.requirement.capabilities, now));
        let others: Vec<NodeId> = targets.into_iter().filter(|node| *node != leader).collect();
        if !others.is_empty() {
            self.hand_to(chance.one_of(&others), now);
        }
    }

    fn choose(&self, hosts: &Hosts, fits: impl Fn(&Host) -> bool) -> Vec<NodeId> {
        self.voters.iter().copied().filter(|node| fits(&hosts[node])).collect()
    }

    fn elect(&mut self, hosts: &Hosts, now: u64, chance: &mut Chance) {
        let up = self.choose(hosts, |host| host.up);
        if self.elect_at_ms.is_none_or(|at| now < at) || up.len() * 2 <= self.voters.len() {
            return;
        }
        let required = &self.requirement.capabilities;
        let rather = self.choose(hosts, |host| host.up && !host.draining && host.has(required));
        let winner = chance.one_of(if rather.is_empty() { &up } else { &rather });
        self.leader = Some(winner);
        self.term += 1;
        self.moved_at_ms = None;
        self.elect_at_ms = None;
        self.elections += 1;
    }

    /// As a host with a replica reports it. Only the leader knows who lacks what, and how its
    /// leadership began.
    pub(super) fn seen_by(&self, host: NodeId, hosts: &Hosts, now: u64, load: u32) -> Group {
        let leads = self.leader == Some(host);
        let lag =
            |node: &NodeId| if hosts[node].up { hosts[node].lag(now) } else { super::host::LAG };
        let voter = |node: &NodeId| Voter { node: *node, lag: leads.then(|| lag(node)) };
        Group {
            id: self.id,
            leader: self.leader,
            last_leader: self.leader,
            term: self.term,
            voters: self.voters.iter().map(voter).collect(),
            requirement: self.requirement.clone(),
            preference: Vec::new(),
            pin: None,
            label: self.label.clone(),
            load: if leads { load } else { 0 },
            moved_at_ms: self.moved_at_ms.filter(|_| leads),
        }
    }
}
