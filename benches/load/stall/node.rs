//! What a node does in the stall benchmark.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use shardhost::groups::membership::{CaughtUp, MembershipChange, MembershipError};
use shardhost::{Group, GroupId, Host, NodeId};

use super::offer::{Ack, Offer, Offering};
use crate::member::Member;
use crate::part::Part;
use crate::process::now_ns;
use crate::tally::{Counted, Tally};
use crate::task::Task;

use super::Event;

/// How long an event may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Between two tries, and between two measured round trips.
const PAUSE: Duration = Duration::from_millis(5);
/// What a learner may lack when it is promoted.
const MAX_LAG: u64 = 100;

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StallTask {
    Offer(Offer),
    /// Say who leads a group.
    Leader {
        group: u64,
    },
    /// Time rounds of a quorum, for so long.
    RoundTrips {
        group: u64,
        lasting: Duration,
    },
    /// Say how long the writes of the log took since the last time.
    LogWrites,
    /// Let something happen to a group that this node leads.
    Do {
        group: u64,
        event: Event,
    },
    /// Wait until this node holds nothing of a group.
    AwaitGone {
        group: u64,
    },
    /// End the stream; say what was acknowledged.
    Acks,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StallAnswer {
    Done,
    Leader(Option<u64>),
    Took(Counted),
    /// From when to when it took, on the clock of this machine; or why it did not happen.
    Happened(Result<(u64, u64), String>),
    Acks(Vec<Ack>),
}

/// A node's part of the benchmark.
#[derive(Default)]
pub struct StallNode {
    offering: Option<Offering>,
}

impl Task for StallTask {
    const NAME: &'static str = "stall";
    type Answer = StallAnswer;
}

impl Part for StallNode {
    type Task = StallTask;

    async fn execute(&mut self, task: StallTask, node: &mut Member) -> anyhow::Result<StallAnswer> {
        let running = node.running()?;
        let (host, log) = (&running.host, running.parts.as_ref().map(|(_, log)| &**log));
        let group = |id: u64| {
            host.group(GroupId::new(id)).with_context(|| format!("group {id} is not open here"))
        };
        match task {
            StallTask::Offer(offer) => {
                self.offering = Some(Offering::start(host, offer)?);
                Ok(StallAnswer::Done)
            }
            StallTask::Leader { group } => {
                let status = host.group(GroupId::new(group)).map(|group| group.status());
                let led = status.filter(|status| status.serving);
                Ok(StallAnswer::Leader(led.map(|_| host.node_id().get())))
            }
            StallTask::RoundTrips { group: id, lasting } => {
                Ok(StallAnswer::Took(round_trips(&group(id)?, lasting).await?))
            }
            StallTask::LogWrites => {
                Ok(log.map_or(StallAnswer::Done, |log| StallAnswer::Took(log.take_writes())))
            }
            StallTask::Do { group: id, event } => {
                let happened = happen(&group(id)?, event).await;
                Ok(StallAnswer::Happened(happened.map_err(|error| format!("{error:#}"))))
            }
            StallTask::AwaitGone { group } => {
                await_gone(host, GroupId::new(group)).await?;
                Ok(StallAnswer::Done)
            }
            StallTask::Acks => {
                let acks = self.offering.as_mut().map_or_else(Vec::new, Offering::end);
                Ok(StallAnswer::Acks(acks))
            }
        }
    }
}

async fn round_trips(group: &Group, lasting: Duration) -> anyhow::Result<Counted> {
    let mut tally = Tally::new()?;
    let end = Instant::now() + lasting;
    while Instant::now() < end {
        let began = Instant::now();
        let confirmed = group.verify_leader().await;
        tally.count(confirmed.is_ok(), began.elapsed());
        tokio::time::sleep(PAUSE).await;
    }
    Ok(tally.take())
}

async fn happen(group: &Group, event: Event) -> anyhow::Result<(u64, u64)> {
    let began = now_ns()?;
    let change = MembershipChange::new();
    match event {
        Event::Transfer { to } => drop(group.transfer_leadership(Some(node(to)?)).await?),
        Event::AddLearner { node: new } => {
            group.change_membership(change.add_learner(node(new)?)).await?;
        }
        Event::Promote { node: learner } => return promote(group, node(learner)?).await,
        Event::Remove { node: old } => {
            group.change_membership(change.remove(node(old)?)).await?;
        }
        Event::Replace { old, new } => {
            let (old, new) = (node(old)?, node(new)?);
            group.replace_member(old, new, None).await?;
            let replaced = group.wait_for(
                |status| {
                    let members = &status.membership;
                    members.incoming.is_none() && members.replica_on(old).is_none()
                },
                TIMEOUT,
            );
            replaced.await.with_context(|| format!("node {old} is not replaced"))?;
        }
    }
    Ok((began, now_ns()?))
}

fn node(number: u64) -> anyhow::Result<NodeId> {
    NodeId::new(number).context("nodes are numbered from 1")
}

/// Promotes a learner once it has caught up; the event begins with the try that succeeds.
async fn promote(group: &Group, learner: NodeId) -> anyhow::Result<(u64, u64)> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let began = now_ns()?;
        let change = MembershipChange::new().promote(learner, CaughtUp::MaxLag(MAX_LAG));
        match group.change_membership(change).await {
            Ok(_) => return Ok((began, now_ns()?)),
            Err(MembershipError::Behind { .. } | MembershipError::LacksState { .. })
                if Instant::now() < deadline =>
            {
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => bail!(error),
        }
    }
}

async fn await_gone(host: &Host, group: GroupId) -> anyhow::Result<()> {
    let deadline = Instant::now() + TIMEOUT;
    while host.group(group).is_some() || host.stored_group(group)?.is_some() {
        ensure!(Instant::now() < deadline, "the replica of group {group} does not go");
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}
