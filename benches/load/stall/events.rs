//! One event after the other, each after a calm window.

use std::time::Duration;

use anyhow::bail;

use super::node::{StallAnswer, StallTask};
use super::{Cluster, Event, NODES, StallArguments, VOTERS};

/// Calm before an event at most, however long such events take.
const LONGEST_CALM: Duration = Duration::from_secs(2);

/// An event that was tried.
#[derive(Clone, Debug)]
pub struct Happened {
    pub event: Event,
    /// From when to when, on the clock of this machine; or why it did not happen.
    pub span: Result<(u64, u64), String>,
}

impl Event {
    /// What the events of a kind are called by.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Transfer { .. } => "transfer",
            Self::AddLearner { .. } => "add a learner",
            Self::Promote { .. } => "promote it",
            Self::Remove { .. } => "remove it",
            Self::Replace { .. } => "replace a member",
        }
    }

    /// Whether the members of the group change.
    pub const fn changes_members(self) -> bool {
        !matches!(self, Self::Transfer { .. })
    }
}

/// Lets things happen to a cluster.
pub struct Events<'a> {
    arguments: &'a StallArguments,
    cluster: &'a mut Cluster,
    happened: Vec<Happened>,
}

impl<'a> Events<'a> {
    pub const fn new(arguments: &'a StallArguments, cluster: &'a mut Cluster) -> Self {
        Self { arguments, cluster, happened: Vec::new() }
    }

    /// All events, in order.
    pub async fn run(mut self) -> anyhow::Result<Vec<Happened>> {
        for _ in 0..self.arguments.transfers {
            let leader = self.cluster.leader().await?;
            self.happen(Event::Transfer { to: 1 + leader % VOTERS }).await?;
        }
        for _ in 0..self.arguments.changes {
            self.come_and_go(NODES).await?;
        }
        let (mut old, mut new) = (VOTERS, NODES);
        for _ in 0..self.arguments.replacements {
            self.keep_leadership_from(old).await?;
            self.happen(Event::Replace { old, new }).await?;
            self.await_gone(old).await?;
            (old, new) = (new, old);
        }
        Ok(self.happened)
    }

    /// A node becomes a learner, a voter, and nothing again.
    async fn come_and_go(&mut self, node: u64) -> anyhow::Result<()> {
        self.happen(Event::AddLearner { node }).await?;
        self.happen(Event::Promote { node }).await?;
        self.keep_leadership_from(node).await?;
        self.happen(Event::Remove { node }).await?;
        self.await_gone(node).await
    }

    /// The leader is not the one that goes.
    async fn keep_leadership_from(&mut self, node: u64) -> anyhow::Result<()> {
        let leader = self.cluster.leader().await?;
        if leader != node {
            return Ok(());
        }
        let (group, event) = (self.cluster.group, Event::Transfer { to: 1 });
        match self.cluster.one(leader, StallTask::Do { group, event }).await? {
            StallAnswer::Happened(Ok(_)) => Ok(()),
            other => bail!("node {leader} does not hand over: {other:?}"),
        }
    }

    async fn await_gone(&mut self, node: u64) -> anyhow::Result<()> {
        let group = self.cluster.group;
        self.cluster.one(node, StallTask::AwaitGone { group }).await?;
        Ok(())
    }

    /// How long the longest event of this kind took.
    fn longest(&self, event: Event) -> Duration {
        let same = self.happened.iter().filter(|one| one.event.name() == event.name());
        let spans = same.filter_map(|one| one.span.as_ref().ok());
        Duration::from_nanos(spans.map(|(began, ended)| ended - began).max().unwrap_or(0))
    }

    async fn happen(&mut self, event: Event) -> anyhow::Result<()> {
        // The rest of the event before, then as much calm as the event may take.
        let window = Duration::from_millis(self.arguments.window);
        let calm = window.max(self.longest(event).min(LONGEST_CALM));
        tokio::time::sleep(window + calm).await;
        let (leader, group) = (self.cluster.leader().await?, self.cluster.group);
        let span = match self.cluster.one(leader, StallTask::Do { group, event }).await? {
            StallAnswer::Happened(span) => span,
            other => bail!("node {leader} answered {other:?}"),
        };
        if let Err(reason) = &span {
            tracing::warn!(?event, reason, "an event did not happen");
            // Those that follow from each other would all fail.
            if event.changes_members() {
                bail!("{event:?} failed: {reason}");
            }
        }
        self.happened.push(Happened { event, span });
        Ok(())
    }
}
