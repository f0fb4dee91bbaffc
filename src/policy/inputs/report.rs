//! A host's report to the planner: the groups that it leads, in columns, so that ten thousand of
//! them are some hundred kilobytes, and nothing at all when nothing changed.
//!
//! Rates are rounded, so that the noise of a steady load does not change every report.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use shardhost_groups::nodes::Advertisement;
use shardhost_groups::{GroupId, GroupStatus, NodeId};
use shardhost_proto::system as wire;
use shardhost_storage::{Requirement, RequirementMode};

use crate::catalog::SYSTEM_GROUP;

/// Moves are reported for this long.
pub const HANDED_FOR: Duration = Duration::from_secs(600);
/// Of so many groups at most; beyond, the oldest is forgotten.
const MAX_HANDED: usize = 100_000;
/// Rates are of at least this much time.
const RATE_OVER: Duration = Duration::from_millis(900);

/// Who reports.
#[derive(Clone, Debug)]
pub struct Speaker {
    pub node: NodeId,
    pub incarnation: u64,
    pub advertisement: Advertisement,
    /// Whether its local switch is set.
    pub stopped: bool,
}

/// Memory from report to report. Pure.
#[derive(Debug, Default)]
pub struct Memory {
    rates: Rates,
    handed: Handed,
}

/// When leaderships were moved from here by order.
#[derive(Debug, Default)]
struct Handed {
    at: BTreeMap<GroupId, Instant>,
}

impl Handed {
    fn note(&mut self, group: GroupId, now: Instant) {
        self.at.retain(|_, at| now.duration_since(*at) < HANDED_FOR);
        if self.at.len() >= MAX_HANDED
            && let Some(oldest) = self.at.iter().min_by_key(|(_, at)| **at).map(|(id, _)| *id)
        {
            self.at.remove(&oldest);
        }
        self.at.insert(group, now);
    }
}

/// Committed entries of the groups that are led here, then and now.
#[derive(Debug, Default)]
pub struct Rates {
    of: BTreeMap<GroupId, Rate>,
}

#[derive(Clone, Copy, Debug)]
struct Rate {
    since: Instant,
    committed: u64,
    per_second: u64,
}

impl Rates {
    /// Operations per second of a group, roughly; 0 until it was asked for twice, a second apart.
    pub fn measure(&mut self, status: &GroupStatus, now: Instant) -> u64 {
        let committed = status.committed.get();
        let known = self.of.entry(status.id);
        let rate = known.or_insert(Rate { since: now, committed, per_second: 0 });
        let passed = now.duration_since(rate.since);
        if passed >= RATE_OVER {
            let done = committed.saturating_sub(rate.committed);
            let exact = u128::from(done) * 1_000 / passed.as_millis().max(1);
            let per_second = roughly(u64::try_from(exact).unwrap_or(u64::MAX));
            *rate = Rate { since: now, committed, per_second };
        }
        rate.per_second
    }

    /// Forgets the groups that are not led here any more.
    pub fn keep(&mut self, leads: &BTreeSet<GroupId>) {
        self.of.retain(|group, _| leads.contains(group));
    }
}

/// The number with its three highest bits.
const fn roughly(number: u64) -> u64 {
    let bits = 64 - number.leading_zeros();
    if bits <= 3 { number } else { (number >> (bits - 3)) << (bits - 3) }
}

impl Handed {
    fn tell(&mut self, now: Instant) -> Vec<wire::Handed> {
        self.at.retain(|_, at| now.duration_since(*at) < HANDED_FOR);
        let ago = |at: &Instant| u64::try_from(now.duration_since(*at).as_millis());
        let tell = |(group, at): (&GroupId, &Instant)| wire::Handed {
            group: group.get(),
            ago_ms: ago(at).unwrap_or(u64::MAX),
        };
        self.at.iter().map(tell).collect()
    }
}

impl Memory {
    /// A leadership was moved away by order.
    pub fn note_moved(&mut self, group: GroupId, now: Instant) {
        self.handed.note(group, now);
    }

    /// The report of these groups; short when it equals the one before.
    pub fn report(
        &mut self,
        speaker: Speaker,
        groups: impl Iterator<Item: Borrow<GroupStatus>>,
        known_digest: u64,
        now: Instant,
    ) -> wire::NodeReport {
        let mut report = wire::NodeReport {
            node: speaker.node.get(),
            incarnation: speaker.incarnation,
            draining: speaker.advertisement.draining,
            impaired: speaker.advertisement.impaired.is_some(),
            capabilities: speaker.advertisement.capabilities.into_iter().collect(),
            planned_moves_stopped: speaker.stopped,
            ..wire::NodeReport::default()
        };
        self.fill(&mut report, speaker.node, groups, now);
        report.digest = digest(&report);
        if report.digest == known_digest {
            report = wire::NodeReport {
                node: report.node,
                incarnation: report.incarnation,
                digest: known_digest,
                unchanged: true,
                ..wire::NodeReport::default()
            };
        }
        // Ages change all the time, so they are not compared.
        report.handed = self.handed.tell(now);
        report
    }

    fn fill(
        &mut self,
        report: &mut wire::NodeReport,
        own: NodeId,
        groups: impl Iterator<Item: Borrow<GroupStatus>>,
        now: Instant,
    ) {
        let mut columns = Columns::new(report, own);
        let mut leads = BTreeSet::new();
        for status in groups {
            let status = status.borrow();
            if status.is_leader() && status.id != SYSTEM_GROUP {
                columns.add(status, self.rates.measure(status, now));
                leads.insert(status.id);
            }
        }
        self.rates.keep(&leads);
    }
}

/// Fills the columns of a report, group by rising group.
struct Columns<'a> {
    report: &'a mut wire::NodeReport,
    own: NodeId,
    last: u64,
    voter_sets: BTreeMap<Vec<u64>, u32>,
    asked: BTreeMap<Vec<String>, u32>,
}

impl<'a> Columns<'a> {
    const fn new(report: &'a mut wire::NodeReport, own: NodeId) -> Self {
        Self { report, own, last: 0, voter_sets: BTreeMap::new(), asked: BTreeMap::new() }
    }

    fn add(&mut self, status: &GroupStatus, operations: u64) {
        let group = status.id.get();
        self.report.groups.push(group.saturating_sub(self.last));
        self.last = group;
        self.report.terms.push(status.term.get());
        let mut nodes: Vec<u64> = status.membership.voters().map(|(_, node)| node.get()).collect();
        nodes.sort_unstable();
        let next = self.voter_sets.len() as u32;
        let set = *self.voter_sets.entry(nodes.clone()).or_insert_with(|| {
            self.report.voter_sets.push(wire::VoterSet { nodes });
            next
        });
        self.report.voter_set.push(set);
        let requirement = self.requirement(&status.membership.requirement);
        self.report.requirement.push(requirement);
        self.report.operations.push(operations);
        self.add_lags(status);
    }

    fn requirement(&mut self, requirement: &Requirement) -> u32 {
        let soft = requirement.mode == RequirementMode::Soft;
        let capabilities: Vec<String> = requirement.capabilities.iter().cloned().collect();
        // Names are never empty, so the empty one marks a soft requirement.
        let mut key = capabilities.clone();
        key.extend(soft.then(String::new));
        let next = self.asked.len() as u32;
        *self.asked.entry(key).or_insert_with(|| {
            self.report.asked.push(wire::Asked { capabilities, soft });
            next
        })
    }

    /// The lags of voters that are not level with their leader.
    fn add_lags(&mut self, status: &GroupStatus) {
        for (replica, node) in status.membership.voters() {
            if node == self.own {
                continue;
            }
            let peer = status.peers.iter().find(|peer| peer.replica == replica);
            let entries = peer.map(|peer| status.last.get().saturating_sub(peer.matched.get()));
            if entries.is_none_or(|entries| entries > LEVEL) {
                let (group, node) = (status.id.get(), node.get());
                self.report.lags.push(wire::Lag { group, node, entries: entries.map(roughly) });
            }
        }
    }
}

/// Entries that a voter may lack and still counts as level: appends that are on their way.
const LEVEL: u64 = 1_024;

fn digest(report: &wire::NodeReport) -> u64 {
    use prost::Message;
    use std::hash::{Hash, Hasher};
    let mut hasher = std::hash::DefaultHasher::new();
    report.encode_to_vec().hash(&mut hasher);
    // Zero means none.
    hasher.finish().max(1)
}

/// A group as its leader reported it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedGroup {
    pub term: u64,
    pub voters: Arc<[NodeId]>,
    /// What it asks of its leader.
    pub requirement: Arc<Requirement>,
    pub operations: u64,
    /// What voters lack; `None`: not known. Those that are not named are level.
    pub lags: Vec<(NodeId, Option<u64>)>,
}

/// A report as it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reported {
    /// Of the process that reported.
    pub incarnation: u64,
    /// Whether it gives its leaderships away.
    pub draining: bool,
    /// Whether it should lead nothing for now.
    pub impaired: bool,
    pub capabilities: BTreeSet<String>,
    /// Whether its local switch stops planned moves.
    pub stopped: bool,
    pub groups: BTreeMap<GroupId, LedGroup>,
}

/// A report that contradicts itself.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the report of node {node} cannot be read: {what}")]
pub struct BadReport {
    node: u64,
    what: &'static str,
}

/// Reads the columns of a report.
pub fn read(report: wire::NodeReport) -> Result<Reported, BadReport> {
    let node = report.node;
    let bad = |what| BadReport { node, what };
    let count = report.groups.len();
    let lengths = [
        report.terms.len(),
        report.voter_set.len(),
        report.requirement.len(),
        report.operations.len(),
    ];
    if lengths != [count; 4] {
        return Err(bad("its columns differ in length"));
    }
    let voter_sets = report.voter_sets.into_iter().map(|set| {
        let nodes: Option<Vec<NodeId>> = set.nodes.into_iter().map(NodeId::new).collect();
        nodes.map(Arc::from).ok_or_else(|| bad("a node has the number 0"))
    });
    let voter_sets: Vec<Arc<[NodeId]>> = voter_sets.collect::<Result<_, _>>()?;
    let asked = report.asked.into_iter().map(|asked| {
        let names = asked.capabilities;
        let made = if asked.soft { Requirement::soft(names) } else { Requirement::hard(names) };
        made.map(Arc::new).map_err(|_| bad("a requirement makes no sense"))
    });
    let asked: Vec<Arc<Requirement>> = asked.collect::<Result<_, _>>()?;
    let (mut groups, mut last) = (BTreeMap::new(), 0_u64);
    for at in 0..count {
        last = last.checked_add(report.groups[at]).ok_or_else(|| bad("a group is too large"))?;
        let voters = voter_sets.get(report.voter_set[at] as usize);
        let requirement = asked.get(report.requirement[at] as usize);
        let (Some(voters), Some(requirement)) = (voters, requirement) else {
            return Err(bad("it points beyond its lists"));
        };
        let group = LedGroup {
            term: report.terms[at],
            voters: Arc::clone(voters),
            requirement: Arc::clone(requirement),
            operations: report.operations[at],
            lags: Vec::new(),
        };
        if groups.insert(GroupId::new(last), group).is_some() {
            return Err(bad("a group is named twice"));
        }
    }
    for lag in report.lags {
        let node = NodeId::new(lag.node).ok_or_else(|| bad("a node has the number 0"))?;
        let group = groups.get_mut(&GroupId::new(lag.group));
        let group =
            group.ok_or_else(|| bad("it reports the lag of a group that it does not name"))?;
        group.lags.push((node, lag.entries));
    }
    Ok(Reported {
        incarnation: report.incarnation,
        draining: report.draining,
        impaired: report.impaired,
        capabilities: report.capabilities.into_iter().collect(),
        stopped: report.planned_moves_stopped,
        groups,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> wire::NodeReport {
        wire::NodeReport {
            node: 2,
            incarnation: 7,
            voter_sets: vec![wire::VoterSet { nodes: vec![1, 2, 3] }],
            asked: vec![wire::Asked { capabilities: vec!["fifo".to_owned()], soft: false }],
            groups: vec![5, 2],
            terms: vec![3, 4],
            voter_set: vec![0, 0],
            requirement: vec![0, 0],
            operations: vec![0, 96],
            lags: vec![wire::Lag { group: 7, node: 3, entries: None }],
            ..wire::NodeReport::default()
        }
    }

    #[test]
    fn a_report_is_read_as_it_was_meant() {
        let read = read(report()).unwrap();
        let (ids, terms): (Vec<_>, Vec<_>) =
            read.groups.iter().map(|(id, group)| (id.get(), group.term)).unzip();
        assert_eq!((ids, terms), (vec![5, 7], vec![3, 4]));
        let second = &read.groups[&GroupId::new(7)];
        assert_eq!(second.lags, [(NodeId::must(3), None)]);
        assert_eq!(*second.requirement, Requirement::hard(["fifo"]).unwrap());
        assert_eq!(second.operations, 96);
    }

    #[test]
    fn a_report_that_contradicts_itself_is_refused() {
        type Spoil = fn(&mut wire::NodeReport);
        let ways: [(Spoil, &str); 6] = [
            (|report| report.terms.truncate(1), "differ in length"),
            (|report| report.voter_set[1] = 1, "beyond its lists"),
            (|report| report.groups[1] = 0, "named twice"),
            (|report| report.groups[1] = u64::MAX, "too large"),
            (|report| report.lags[0].group = 6, "does not name"),
            (|report| report.voter_sets[0].nodes[0] = 0, "number 0"),
        ];
        for (spoil, expected) in ways {
            let mut spoilt = report();
            spoil(&mut spoilt);
            let refused = read(spoilt).unwrap_err().to_string();
            assert!(refused.contains(expected), "{refused}");
        }
    }

    #[test]
    fn rates_keep_three_bits_so_that_noise_is_not_news() {
        assert_eq!([0, 7, 8, 9, 1_000, 1_023, 1_024].map(roughly), [0, 7, 8, 8, 896, 896, 1_024]);
    }
}
