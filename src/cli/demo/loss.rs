//! A host is lost for good: the cluster gives each of its replicas a successor on another host, without a
//! command.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::bail;
use shardhost_policy::catalog::Refusal;

use crate::observe::{Leader, Observer};
use crate::output::{number, seconds};
use crate::planner::Mode;
use crate::replicas;
use crate::target::Target;
use crate::trial::TIMEOUT;
use crate::trial::load::Load;
use crate::trial::nodes::{Layout, Nodes};
use crate::trial::screen::Screen;

/// Seconds after which a host that does not answer is replaced; the default of ten minutes is too long to
/// watch.
const REPLACE_AFTER: u64 = 3;
/// How long the cluster may take to replace everything.
const HEALED_WITHIN: Duration = Duration::from_secs(60);
/// Between two looks at how far it is.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// The group of the catalog.
const CATALOG: u64 = 0;

/// A host that was lost.
#[derive(Clone, Copy, Debug)]
pub struct Loss {
    pub node: u64,
    /// Replicas with a vote that it held, that of the catalog among them.
    pub replicas: u64,
    /// Those that have a successor on another host.
    pub replaced: u64,
    /// From its end until each of its groups had another leader.
    pub led_again: Duration,
    /// From its end until each of its groups had all its voters again, and they had caught up.
    pub healed: Duration,
}

impl Loss {
    /// Whether everything was replaced.
    pub const fn is_healed(&self) -> bool {
        self.replicas > 0 && self.replaced == self.replicas
    }

    /// Forgets one successor: a verdict that is good then is worthless.
    pub const fn forget(&mut self) {
        self.replaced = self.replaced.saturating_sub(1);
    }
}

/// Has replicas moved. A new cluster is raised to the version that knows of that a moment after its founding,
/// once every host answers; its settings may change meanwhile.
async fn switch_on(target: &Target) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        let Err(error) = replicas::switch(Mode::On, Some(REPLACE_AFTER), target).await else {
            return Ok(());
        };
        let passes = matches!(
            error.downcast_ref(),
            Some(Refusal::NeedsVersion { .. } | Refusal::WrongRevision { .. })
        );
        if !passes || began.elapsed() > TIMEOUT {
            return Err(error);
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Ends a host for good, and waits until the cluster has replaced everything that it held.
pub async fn lose(
    node: u64,
    nodes: &mut Nodes,
    layout: &Layout,
    load: &Load,
    screen: &Screen,
) -> anyhow::Result<Loss> {
    nodes.check()?;
    switch_on(&target(nodes)).await?;
    screen.event(format!(
        "from here on a node is replaced that does not answer for {REPLACE_AFTER} s (`shardhost \
         replicas mode on --replace-after {REPLACE_AFTER}`)"
    ));
    let all = Observer::new(&nodes.running(), layout.shards())?.of_all_groups();
    let before = all.await_led(TIMEOUT).await?;
    let led = before.values().filter(|leader| leader.node == node).count() as u64;
    let held = before.values().filter(|leader| leader.voters.contains(&node)).count() as u64;
    nodes.lose(node).await?;
    let (began, written) = (Instant::now(), load.tally.acknowledged());
    screen.event(format!(
        "SIGKILL to node {node}, which never comes back: it leads {} groups and holds {} replicas",
        number(led),
        number(held)
    ));
    let left = Observer::new(&nodes.running(), layout.shards())?.of_all_groups();
    left.await_led(TIMEOUT).await?;
    let led_again = began.elapsed();
    screen.event(format!("every group is led again {} after the loss", seconds(led_again)));
    let lost = Lost { node, before, began };
    let whole = match lost.await_whole(&left, screen).await {
        Ok(whole) => whole,
        Err(error) => bail!("{error:#}; {}", allocator_says(nodes).await),
    };
    nodes.check()?;
    let healed = began.elapsed();
    let (replicas, replaced) = (held, lost.replaced(&whole));
    let writes = number(load.tally.acknowledged() - written);
    screen.event(format!(
        "every group has all its voters again {} after the loss: {} replicas of node {node} were \
         replaced without a command, during {writes} writes",
        seconds(healed),
        number(replaced)
    ));
    Ok(Loss { node, replicas, replaced, led_again, healed })
}

fn target(nodes: &Nodes) -> Target {
    let at = nodes.running().into_values().collect();
    Target { at, json: true, timeout: TIMEOUT.as_secs() }
}

/// What the cluster itself reports about replicas that are not replaced.
async fn allocator_says(nodes: &Nodes) -> String {
    let state = match replicas::state(&target(nodes)).await {
        Ok(state) => state,
        Err(error) => return format!("what the allocator does is not known: {error:#}"),
    };
    let stuck = state.stuck.first();
    let stuck = stuck.map(|one| format!(", for example group {}: {}", one.group, one.why));
    format!(
        "the allocator moves {} replicas, {} wait, {} cannot move{}",
        number(state.moving_total),
        number(state.waiting),
        number(state.stuck_total),
        stuck.unwrap_or_default()
    )
}

/// What the cluster was before.
struct Lost {
    node: u64,
    before: BTreeMap<u64, Leader>,
    began: Instant,
}

impl Lost {
    /// Waits until every group has as many voters as before and all of them have caught up, none of them
    /// on the host that was lost. Gives the groups as they are then.
    async fn await_whole(
        &self,
        left: &Observer,
        screen: &Screen,
    ) -> anyhow::Result<BTreeMap<u64, Leader>> {
        let time_left = || HEALED_WITHIN.saturating_sub(self.began.elapsed());
        let mut catalog = false;
        let whole = loop {
            let (leaders, _) = left.led_within(time_left()).await;
            let broken = self.broken(&leaders);
            if !catalog && !broken.contains(&CATALOG) {
                catalog = true;
                screen.event(format!(
                    "group {CATALOG}, the catalog, has all its voters again {} after the loss",
                    seconds(self.began.elapsed())
                ));
            }
            let Some(one) = broken.first() else { break leaders };
            if time_left().is_zero() {
                let voters = leaders.get(one).map(|leader| &leader.voters);
                let voters =
                    voters.map_or_else(|| "no leader".to_owned(), |v| format!("voters {v:?}"));
                bail!(
                    "node {} was lost, and {} of {} groups are not healed after {HEALED_WITHIN:?}, for \
                     example group {one} with {voters}",
                    self.node,
                    broken.len(),
                    self.before.len()
                );
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        };
        for node in left.nodes() {
            left.await_caught_up(node, time_left()).await?;
        }
        Ok(whole)
    }

    /// The groups that lack a voter, change their members, or have one that was lost.
    fn broken(&self, now: &BTreeMap<u64, Leader>) -> Vec<u64> {
        let is_whole = |group: &u64, before: &Leader| {
            now.get(group).is_some_and(|leader| {
                leader.settled
                    && leader.voters.len() >= before.voters.len()
                    && !leader.voters.contains(&self.node)
            })
        };
        let broken = self.before.iter().filter(|(group, before)| !is_whole(group, before));
        broken.map(|(group, _)| *group).collect()
    }

    /// How many replicas of the host that was lost have a successor.
    fn replaced(&self, now: &BTreeMap<u64, Leader>) -> u64 {
        let broken = self.broken(now);
        let held = self.before.iter().filter(|(_, before)| before.voters.contains(&self.node));
        held.filter(|(group, _)| !broken.contains(group)).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leader(voters: &[u64], settled: bool) -> Leader {
        let (node, voters, requires) = (voters[0], voters.to_vec(), Default::default());
        Leader { node, term: 1, committed: 1, serving: true, voters, requires, settled }
    }

    #[test]
    fn a_group_is_healed_when_it_has_all_its_voters_and_none_of_them_is_lost() {
        let before = [
            (0, leader(&[1, 2, 3], true)),
            (7, leader(&[1, 2, 4], true)),
            (8, leader(&[1, 3, 4], true)),
        ];
        let lost = Lost { node: 2, before: before.clone().into(), began: Instant::now() };
        let now = |catalog: &[u64], settled| {
            let mut now = BTreeMap::from(before.clone());
            now.insert(0, leader(catalog, settled));
            now.insert(7, leader(&[1, 3, 4], true));
            now
        };
        assert_eq!(lost.broken(&before.clone().into()), [0, 7]);
        assert_eq!(lost.broken(&now(&[1, 3], true)), [0], "it was removed, not replaced");
        assert_eq!(lost.broken(&now(&[1, 3, 4], false)), [0], "the change is not over");
        assert_eq!(lost.broken(&BTreeMap::new()), [0, 7, 8], "they have no leader");
        let healed = now(&[1, 3, 4], true);
        assert_eq!((lost.broken(&healed), lost.replaced(&healed)), (vec![], 2));
        assert_eq!(lost.replaced(&now(&[1, 3], true)), 1);
    }
}
