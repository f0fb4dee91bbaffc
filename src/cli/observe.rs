//! What the hosts say of their shards, asked from outside as an operator would.
//!
//! A host may hold more groups than shards: what the cluster keeps for itself is looked at on demand only.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, bail};
use futures::future::join_all;
use shardhost_proto::admin::admin_client::AdminClient;
use shardhost_proto::admin::{
    ChecksumReply, ChecksumRequest, GroupStatus, HostStatus, StatusRequest,
};
use shardhost_proto::log::{Member, Membership};
use shardhost_proto::shard_map::{QUEUE_KIND, TABLE_KIND};
use shardhost_security::channel::Channel;
use tokio::time::{Instant, timeout};

use super::group_status::role_of;
use super::target::{admin, all_groups};

/// How long one answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(20);

/// Where a shard is led, and its leader's status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    pub node: u64,
    pub term: u64,
    pub committed: u64,
    pub serving: bool,
    /// The nodes that have a vote, ascending.
    pub voters: Vec<u64>,
    /// The shard's requirement.
    pub requires: BTreeSet<String>,
    /// Whether no change of the members is under way.
    pub settled: bool,
}

impl Leader {
    fn new(node: u64, group: &GroupStatus) -> Self {
        let membership = group.membership.clone().unwrap_or_default();
        let voters = membership.members.iter().filter(|member| role_of(member) == "voter");
        let mut voters: Vec<u64> = voters.map(|member| member.node).collect();
        voters.sort_unstable();
        let settled = voters.len() == membership.members.len() && is_settled(&membership);
        let requires = membership.requirement.unwrap_or_default().capabilities;
        let requires = requires.into_iter().collect();
        let (term, committed, serving) = (group.term, group.committed, group.serving);
        Self { node, term, committed, serving, voters, requires, settled }
    }
}

fn is_settled(membership: &Membership) -> bool {
    let leaves = |member: &Member| member.outgoing_voter;
    membership.incoming.is_none() && !membership.members.iter().any(leaves)
}

/// Asks the hosts.
#[derive(Clone, Debug)]
pub struct Observer {
    channels: BTreeMap<u64, AdminClient<Channel>>,
    /// Shards that there are at least.
    shards: usize,
    /// Whether what the cluster keeps for itself counts, too.
    all: bool,
}

impl Observer {
    /// An observer of the hosts at these addresses, with at least so many shards.
    pub fn new(addresses: &BTreeMap<u64, String>, shards: u64) -> anyhow::Result<Self> {
        let open = |(node, address): (&u64, &String)| anyhow::Ok((*node, admin(address)?));
        let channels = addresses.iter().map(open).collect::<anyhow::Result<_>>()?;
        let shards = usize::try_from(shards).context("too many shards")?;
        Ok(Self { channels, shards, all: false })
    }

    /// A host is reached at this address from now on.
    pub fn set(&mut self, node: u64, address: &str) -> anyhow::Result<()> {
        self.channels.insert(node, admin(address)?);
        Ok(())
    }

    /// The same for all groups, the catalog's too.
    #[must_use]
    pub fn of_all_groups(self) -> Self {
        Self { shards: self.shards + 1, all: true, ..self }
    }

    /// All nodes, also those that do not run.
    pub fn nodes(&self) -> impl Iterator<Item = u64> + '_ {
        self.channels.keys().copied()
    }

    /// The shards of a node; `None` when it does not answer.
    pub async fn shards(&self, node: u64) -> Option<Vec<GroupStatus>> {
        let mut admin = self.channels.get(&node)?.clone();
        let mut groups =
            timeout(ANSWER_TIMEOUT, all_groups(&mut admin)).await.ok()?.ok()?.into_inner();
        groups.retain(|group| self.all || [TABLE_KIND, QUEUE_KIND].contains(&group.kind.as_str()));
        Some(groups)
    }

    /// The shards of all nodes that answer.
    async fn all_shards(&self) -> BTreeMap<u64, Vec<GroupStatus>> {
        let ask = self.nodes().map(|node| async move { Some((node, self.shards(node).await?)) });
        join_all(ask).await.into_iter().flatten().collect()
    }

    /// Each node's status; those that do not answer are left out.
    pub async fn statuses(&self) -> BTreeMap<u64, HostStatus> {
        let ask = |(node, admin): (&u64, &AdminClient<Channel>)| {
            let (node, mut admin) = (*node, admin.clone());
            async move {
                let answer = timeout(ANSWER_TIMEOUT, admin.status(StatusRequest {})).await;
                Some((node, answer.ok()?.ok()?.into_inner()))
            }
        };
        join_all(self.channels.iter().map(ask)).await.into_iter().flatten().collect()
    }

    /// Waits until each shard is led by a node that answers.
    pub async fn await_led(&self, within: Duration) -> anyhow::Result<BTreeMap<u64, Leader>> {
        let (leaders, unled) = self.led_within(within).await;
        let all = self.shards.max(leaders.len() + unled.len());
        if leaders.len() < all {
            bail!("{} of {all} shards are led after {within:?}", leaders.len());
        }
        Ok(leaders)
    }

    /// The leaders of the shards, as soon as each is led by a node that answers, and after that time in
    /// any case; and the shards that are known and have none.
    pub async fn led_within(&self, within: Duration) -> (BTreeMap<u64, Leader>, BTreeSet<u64>) {
        let deadline = Instant::now() + within;
        loop {
            let shards = self.all_shards().await;
            let (leaders, all) = (leaders_of(&shards), self.count(&shards));
            if leaders.len() == all || Instant::now() > deadline {
                let mut unled = groups_of(&shards);
                unled.retain(|group| !leaders.contains_key(group));
                return (leaders, unled);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The number of shards: those that were named, or that any node has a replica of.
    fn count(&self, shards: &BTreeMap<u64, Vec<GroupStatus>>) -> usize {
        groups_of(shards).len().max(self.shards)
    }

    /// Waits until `node` has exactly the replicas that the leaders say, and has applied in each what
    /// was committed when the wait began: what comes meanwhile never ends.
    pub async fn await_caught_up(&self, node: u64, within: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + within;
        let began = self.await_led(within).await?;
        loop {
            let shards = self.all_shards().await;
            let (leaders, all) = (leaders_of(&shards), self.count(&shards));
            let held = shards.get(&node).map(Vec::as_slice).unwrap_or_default();
            let (led, missing) = (leaders.len(), behind(node, held, &leaders, &began));
            if missing == 0 && led == all && shards.contains_key(&node) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!(
                    "node {node} is behind in {missing} of its shards after {within:?}, while {led} \
                     of all {all} are led"
                );
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The checksum of a replica that has applied `min_applied`.
    pub async fn checksum(
        &self,
        node: u64,
        group: u64,
        min_applied: u64,
    ) -> anyhow::Result<ChecksumReply> {
        let mut admin = self.channels.get(&node).context("there is no such node")?.clone();
        let reply = admin.checksum(ChecksumRequest { group, min_applied, timeout_ms: 0 }).await;
        let reply = reply.with_context(|| format!("checksum of group {group} on node {node}"))?;
        Ok(reply.into_inner())
    }
}

/// The shards of which any node has a replica.
fn groups_of(shards: &BTreeMap<u64, Vec<GroupStatus>>) -> BTreeSet<u64> {
    shards.values().flatten().map(|shard| shard.group).collect()
}

/// Of each shard the leader with the highest term: one that was cut off may not know yet that there
/// is another.
fn leaders_of(shards: &BTreeMap<u64, Vec<GroupStatus>>) -> BTreeMap<u64, Leader> {
    let mut leaders: BTreeMap<u64, Leader> = BTreeMap::new();
    for (node, groups) in shards {
        for group in groups.iter().filter(|group| group.role == "leader") {
            let known = leaders.get(&group.group);
            if known.is_none_or(|known| known.term < group.term) {
                leaders.insert(group.group, Leader::new(*node, group));
            }
        }
    }
    leaders
}

/// In how many shards a node lacks its replica or something that was committed when it began, or
/// still has a replica that it should not.
fn behind(
    node: u64,
    held: &[GroupStatus],
    leaders: &BTreeMap<u64, Leader>,
    began: &BTreeMap<u64, Leader>,
) -> usize {
    let votes = leaders.iter().filter(|(_, leader)| leader.voters.contains(&node));
    let expected: BTreeSet<u64> = votes.map(|(group, _)| *group).collect();
    let applied: BTreeMap<u64, u64> = held.iter().map(|one| (one.group, one.applied)).collect();
    let lacks = expected.iter().filter(|group| {
        let needed = began.get(group).map_or(0, |leader| leader.committed);
        applied.get(group).is_none_or(|applied| *applied < needed)
    });
    let too_many = applied.keys().filter(|group| !expected.contains(group));
    lacks.count() + too_many.count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leader(committed: u64, voters: &[u64]) -> Leader {
        let (node, voters, requires) = (voters[0], voters.to_vec(), BTreeSet::new());
        Leader { node, term: 1, committed, serving: true, voters, requires, settled: true }
    }

    fn replica(group: u64, applied: u64) -> GroupStatus {
        GroupStatus { group, applied, ..GroupStatus::default() }
    }

    #[test]
    fn a_node_has_caught_up_when_it_has_applied_its_shards_and_holds_no_others() {
        let began = BTreeMap::from([(7, leader(5, &[1, 2, 3])), (8, leader(3, &[1, 3]))]);
        let leaders = BTreeMap::from([(7, leader(9, &[1, 2])), (8, leader(3, &[1, 3]))]);
        let behind = |node, held: &[GroupStatus]| behind(node, held, &leaders, &began);
        assert_eq!(behind(2, &[replica(7, 5)]), 0, "what came meanwhile is not waited for");
        assert_eq!(behind(2, &[replica(7, 4)]), 1, "it lacks an entry");
        assert_eq!(behind(2, &[]), 1, "it has no replica yet");
        assert_eq!(behind(2, &[replica(7, 5), replica(8, 3)]), 1, "one too many");
        assert_eq!(behind(1, &[replica(7, 5)]), 1);
    }

    #[test]
    fn of_two_that_say_they_lead_the_later_one_counts() {
        let led =
            |term| GroupStatus { group: 7, role: "leader".into(), term, ..Default::default() };
        for (first, second) in [(4, 5), (5, 4)] {
            let shards = BTreeMap::from([(1, vec![led(first)]), (2, vec![led(second)])]);
            assert_eq!(leaders_of(&shards)[&7].term, 5);
        }
    }
}
