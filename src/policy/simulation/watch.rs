//! Which replicas are elected, and how often leadership moves, seen by an observer that knows the
//! state of all nodes.

use std::collections::BTreeMap;
use std::sync::Arc;

use shardhost_groups::nodes::Advertisement;
use shardhost_groups::{GroupId, GroupStatus, Membership, NodeId, RequirementMode};
use shardhost_testing::simulation::{Cluster, Election};

use super::checks::demand;

/// After so long without an event the state of a node is known to all: several of the longest
/// election timeouts.
const KNOWN_AFTER_MS: u64 = 8_000;
/// A slower disk is trouble, in milliseconds of a sync.
const SLOW_DISK: u64 = 10;

/// What others depend on about a node.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Condition {
    life: Option<u64>,
    stalled: bool,
    slow: bool,
    advertisement: Option<Advertisement>,
    /// Which nodes it reaches, and which reach it.
    links: Vec<(bool, bool)>,
}

/// What was seen so far.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// What each node truly has.
    advertisements: BTreeMap<NodeId, Advertisement>,
    conditions: BTreeMap<NodeId, (Condition, u64)>,
    memberships: BTreeMap<GroupId, (Arc<Membership>, u64)>,
    /// When the network last had a fault, or any node an event.
    stormy: u64,
    news: u64,
    /// When a node was last ordered to transfer a group.
    ordered: BTreeMap<GroupId, u64>,
    /// Elections that nothing new can explain, by group.
    unexplained: BTreeMap<GroupId, (u64, Vec<Election>)>,
    seen: usize,
    /// Elections of a winner that lacks a hard requirement.
    pub(super) unfit: u64,
    /// Of these, those in which some other voter had it.
    pub(super) rivals: u64,
}

impl Watch {
    /// From here on a node has this, whatever it advertises.
    pub(super) fn has(&mut self, node: NodeId, advertisement: Advertisement) {
        self.advertisements.insert(node, advertisement);
    }

    /// A node was ordered to transfer a group.
    pub(super) fn ordered(&mut self, group: GroupId, now: u64) {
        self.ordered.insert(group, now);
    }

    /// Looks at all nodes, and at the elections since the last look.
    pub(super) fn look(&mut self, cluster: &Cluster, groups: &[GroupId]) -> Result<(), String> {
        let now = cluster.now();
        let weather = cluster.weather;
        if weather.loss > 0 || weather.late > 0 || weather.late_orders > 0 || weather.delay > 30 {
            (self.stormy, self.news) = (now, now);
        }
        for node in cluster.node_ids() {
            let condition = condition(cluster, node, self.advertisements.get(&node));
            let known = self.conditions.get(&node);
            if known.is_none_or(|(known, _)| *known != condition) {
                self.conditions.insert(node, (condition, now));
                self.news = now;
            }
        }
        for group in groups {
            self.look_at_members(cluster, *group);
        }
        let fresh = cluster.checks().elections()[self.seen..].to_vec();
        self.seen += fresh.len();
        for election in fresh {
            self.won_by_one_that_may(cluster, election)?;
            self.not_from_hand_to_hand(cluster, election)?;
        }
        Ok(())
    }

    fn look_at_members(&mut self, cluster: &Cluster, group: GroupId) {
        let statuses =
            cluster.node_ids().into_iter().filter_map(|node| cluster.status(node, group));
        let Some(newest) = statuses.map(|status| &status.membership).max_by_key(|m| m.config_index)
        else {
            return;
        };
        let known = self.memberships.get(&group);
        if known.is_none_or(|(known, _)| known.config_index < newest.config_index) {
            self.memberships.insert(group, (Arc::clone(newest), cluster.now()));
        }
    }

    /// No voter that has what the group strictly requires, and could have won, loses to one that
    /// lacks it.
    fn won_by_one_that_may(&mut self, cluster: &Cluster, election: Election) -> Result<(), String> {
        let Election { group, winner, .. } = election;
        let Some((membership, since)) = self.memberships.get(&group) else { return Ok(()) };
        let requirement = &membership.requirement;
        let advertisement = |node| self.advertisements.get(&node);
        let has = |node| {
            advertisement(node)
                .is_some_and(|one| requirement.lacking(&one.capabilities).next().is_none())
        };
        if requirement.mode != RequirementMode::Hard || has(winner) {
            return Ok(());
        }
        self.unfit += 1;
        let Some(status) = cluster.status(winner, group) else { return Ok(()) };
        let rival = membership.voters().map(|(_, node)| node).find(|node| {
            let rival = cluster.status(*node, group);
            has(*node)
                && *node != winner
                && advertisement(*node).is_some_and(|advertisement| !advertisement.draining)
                && rival.is_some_and(|rival| level(rival, status))
                && self.is_well_known(cluster, *node, membership)
        });
        self.rivals += u64::from(rival.is_some());
        let known = self.longest_known(cluster.now());
        demand(rival.is_none() || *since > known || self.stormy > known, || {
            format!("{election:?} lacks what {group} requires, and {rival:?} has it")
        })
    }

    const fn longest_known(&self, now: u64) -> u64 {
        now.saturating_sub(KNOWN_AFTER_MS)
    }

    /// Nothing happened to a node for long, and it reaches a quorum.
    fn is_well_known(&self, cluster: &Cluster, node: NodeId, membership: &Membership) -> bool {
        let Some((condition, since)) = self.conditions.get(&node) else { return false };
        let voters: Vec<NodeId> = membership.voters().map(|(_, node)| node).collect();
        let reached = |other: &&NodeId| {
            **other == node
                || (cluster.life(**other).is_some()
                    && cluster.stalled_until(**other).is_none()
                    && cluster.network.passes(node, **other)
                    && cluster.network.passes(**other, node))
        };
        let calm = condition.life.is_some() && !condition.stalled && !condition.slow;
        calm && *since <= self.longest_known(cluster.now())
            && voters.iter().filter(reached).count() * 2 > voters.len()
    }

    /// Without news, a group moves to each of its voters at most once unordered.
    fn not_from_hand_to_hand(
        &mut self,
        cluster: &Cluster,
        election: Election,
    ) -> Result<(), String> {
        let group = election.group;
        let Some((membership, since)) = self.memberships.get(&group) else { return Ok(()) };
        let ordered = self.ordered.get(&group).copied().unwrap_or(0);
        let newest = self.news.max(*since).max(ordered);
        let voters = membership.voters().count();
        let (of, unexplained) = self.unexplained.entry(group).or_default();
        if *of != newest {
            (*of, *unexplained) = (newest, Vec::new());
        }
        unexplained.push(election);
        demand(unexplained.len() <= voters, || {
            let now = cluster.now();
            format!("from {newest} until {now} nothing was new, and {group} went {unexplained:?}")
        })
    }
}

/// Whether a voter has all that a winner had when it was elected: the entry of its term is new.
fn level(rival: &GroupStatus, winner: &GroupStatus) -> bool {
    rival.last.get() + 1 >= winner.last.get()
        && rival.membership.config_index >= winner.membership.config_index
}

fn condition(cluster: &Cluster, node: NodeId, advertisement: Option<&Advertisement>) -> Condition {
    let network = &cluster.network;
    let others = cluster.node_ids().into_iter();
    Condition {
        life: cluster.life(node),
        stalled: cluster.stalled_until(node).is_some(),
        slow: cluster.disk_delay(node) > SLOW_DISK,
        advertisement: advertisement.cloned(),
        links: others.map(|one| (network.passes(node, one), network.passes(one, node))).collect(),
    }
}
