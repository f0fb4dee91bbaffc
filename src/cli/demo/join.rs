//! A host joins: it gets its fair part of the replicas, and then of the leaderships.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::bail;

use crate::fill;
use crate::observe::Observer;
use crate::output::{number, seconds};
use crate::target::Target;
use crate::trial::TIMEOUT;
use crate::trial::balance::until_fair;
use crate::trial::nodes::{Layout, Nodes};
use crate::trial::screen::Screen;
use crate::trial::shares::{is_fair, leads, votes};

/// A host that joined.
#[derive(Clone, Debug)]
pub struct Joined {
    pub node: u64,
    /// What it and the others held and led then.
    pub shares: Shares,
    /// From its start until it had all its replicas.
    pub filled: Duration,
    /// From then until it led its part.
    pub balanced: Duration,
}

/// Starts a host that holds nothing, and waits until it holds and leads its part.
pub async fn join(
    node: u64,
    nodes: &mut Nodes,
    layout: &Layout,
    observer: &Observer,
    screen: &Screen,
) -> anyhow::Result<Joined> {
    let began = Instant::now();
    nodes.check()?;
    nodes.restart(node).await?;
    let process = nodes.process_ids().get(&node).copied().unwrap_or(0);
    screen.event(format!("node {node} joins, and holds nothing (process {process})"));
    let at = nodes.addresses().values().cloned().collect();
    let target = Target { at, json: true, timeout: TIMEOUT.as_secs() };
    let filled = fill::fill(node, &target).await?;
    if let Some((group, error)) = filled.failed.first_key_value() {
        bail!("node {node} did not get group {group}: {error}");
    }
    observer.await_caught_up(node, TIMEOUT).await?;
    let (took, gained) = (began.elapsed(), number(filled.gained));
    let (all, took_s) = (number(layout.shards()), seconds(took));
    screen.event(format!("node {node} holds {gained} of {all} shards after {took_s}"));
    let (balanced, leads) = spread(layout.lacking(), observer, screen).await?;
    let shares = Shares { leads, ..Shares::look(node, layout, observer).await? };
    Ok(Joined { node, shares, filled: took, balanced })
}

/// Waits until each host leads a fair part, and returns how long that took, and the parts.
pub async fn spread(
    lacking: Option<u64>,
    observer: &Observer,
    screen: &Screen,
) -> anyhow::Result<(Duration, BTreeMap<u64, u64>)> {
    let began = Instant::now();
    let leads = until_fair(observer, lacking, TIMEOUT).await?;
    let took = began.elapsed();
    let each = leads.iter().map(|(node, count)| format!("{count} by node {node}"));
    let each = each.collect::<Vec<_>>().join(", ");
    screen.event(format!("leaderships are spread {} later: {each}", seconds(took)));
    Ok((took, leads))
}

/// What every host holds and leads.
#[derive(Clone, Debug)]
pub struct Shares {
    joined: u64,
    /// Who may not lead everything.
    lacking: Option<u64>,
    votes: BTreeMap<u64, u64>,
    leads: BTreeMap<u64, u64>,
}

impl Shares {
    /// Looks at it.
    pub async fn look(joined: u64, layout: &Layout, observer: &Observer) -> anyhow::Result<Self> {
        let leaders = observer.await_led(TIMEOUT).await?;
        let nodes: Vec<u64> = observer.nodes().collect();
        let (votes, leads) = (votes(&leaders, &nodes), leads(&leaders, &nodes));
        Ok(Self { joined, lacking: layout.lacking(), votes, leads })
    }

    /// Shards of which a node holds a replica.
    pub fn held_by(&self, node: u64) -> u64 {
        self.votes.get(&node).copied().unwrap_or(0)
    }

    /// Shards that a node leads.
    pub fn led_by(&self, node: u64) -> u64 {
        self.leads.get(&node).copied().unwrap_or(0)
    }

    /// Whether the host that joined has its part of both, give or take one.
    pub fn are_fair(&self) -> bool {
        let (held, led) = (self.held_by(self.joined), self.led_by(self.joined));
        let all_held = self.votes.values().sum();
        let capable = || self.leads.iter().filter(|(node, _)| Some(**node) != self.lacking);
        let all_led = capable().map(|(_, count)| count).sum();
        let fair = is_fair(held, all_held, self.votes.len() as u64)
            && is_fair(led, all_led, capable().count() as u64);
        fair && held > 0 && led > 0
    }

    /// Forgets what the host that joined got: a verdict that is good then is worthless.
    pub fn forget(&mut self) {
        self.votes.insert(self.joined, 0);
        self.leads.insert(self.joined, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_fair_when_replicas_and_leaderships_are() {
        let shares = |held, led| Shares {
            joined: 4,
            lacking: Some(3),
            votes: [(1, 48), (2, 48), (3, 48), (4, held)].into(),
            leads: [(1, 20), (2, 20), (3, 4), (4, led)].into(),
        };
        assert!(shares(48, 20).are_fair() && shares(47, 21).are_fair());
        assert!(!shares(46, 20).are_fair() && !shares(48, 18).are_fair());
        let mut forgotten = shares(48, 20);
        forgotten.forget();
        assert!(!forgotten.are_fair());
    }
}
