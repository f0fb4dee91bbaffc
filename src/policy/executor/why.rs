//! Why a group is led where it is and is not moved, from the executor's side: always an answer,
//! also where nothing is planned and where no node reported the group.

use std::fmt;

use serde::{Deserialize, Serialize};
use shardhost_storage::{GroupId, NodeId};

use super::hold::{Hold, Wait};
use super::observation::{Mode, NoPlan};
use super::order::Ticket;
use super::pace::End;
use super::record::Recorded;
use super::status::TroubledNode;
use super::{Executor, ledger};
use crate::planner::{self, Explanation, Tier, ids};
use crate::utc::Utc;

/// The whole answer for one group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Why {
    #[serde(with = "ids::group")]
    pub group: GroupId,
    /// What is being done with it.
    pub answer: Answer,
    /// The last plan's explanation. `None`: there is no plan, or the group is not in it.
    pub explanation: Option<Explanation>,
    /// Voters at which so much failed that they are spared: the plan treats them as if they had
    /// come up a short time ago.
    pub spared: Vec<TroubledNode>,
}

/// What the executor does with a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Answer {
    /// Its host was ordered to transfer it, and did not answer yet.
    UnderWay {
        ticket: Ticket,
        #[serde(with = "ids::node")]
        to: NodeId,
        /// Since when, in milliseconds of the planner's clock.
        since_ms: u64,
    },
    /// The order ended, and both ends have yet to report.
    Unconfirmed {
        ticket: Ticket,
        /// Where it went, if it did.
        #[serde(with = "ids::node")]
        to: NodeId,
    },
    NotPlanned(Hold),
    /// No report names the group: no host that reported has a replica of it.
    NotReported,
    /// It is planned to move, and nothing is carried out.
    WouldMove {
        #[serde(with = "ids::node")]
        to: NodeId,
        tier: Tier,
        hold: Hold,
    },
    /// It is planned to move, and waits.
    Waits {
        #[serde(with = "ids::node")]
        to: NodeId,
        tier: Tier,
        wait: Wait,
    },
    /// The last plan moves it, that was tried or cannot follow, and the next round decides anew.
    NextRound {
        /// Where it was to go.
        #[serde(with = "ids::node")]
        to: NodeId,
    },
    /// The plan's explanation: see [`Why::explanation`].
    AsPlanned,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnderWay { ticket, to, since_ms } => write!(
                f,
                "is moving to node {to} since {} (ticket {ticket}); its host has yet to answer",
                Utc(*since_ms)
            ),
            Self::Unconfirmed { ticket, to } => write!(
                f,
                "counts at node {to} (ticket {ticket}) until both ends reported who leads it"
            ),
            Self::NotPlanned(hold) => write!(f, "is left alone: {hold}"),
            Self::NotReported => f.write_str(
                "is left alone: no host that was heard has a replica of it; look whether its \
                 hosts are up, and at its number",
            ),
            Self::WouldMove { to, tier, hold } => {
                write!(f, "would move to node {to} to improve: {tier}; {hold}")
            }
            Self::Waits { to, tier, wait } => {
                write!(f, "waits to move to node {to} to improve: {tier}; {wait}")
            }
            Self::NextRound { to } => {
                write!(f, "was to move to node {to}; the next round decides anew")
            }
            Self::AsPlanned => f.write_str("is where the plan wants it"),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.answer, &self.explanation) {
            (Answer::AsPlanned, Some(explanation)) => explanation.fmt(f)?,
            (answer, None) => write!(f, "group {} {answer}", self.group)?,
            (answer, Some(explanation)) => {
                write!(f, "group {} {answer}\n{explanation}", self.group)?;
            }
        }
        for TroubledNode { node, state, .. } in &self.spared {
            write!(f, "\n  node {node}: its circuit breaker is {state}")?;
        }
        Ok(())
    }
}

impl Executor {
    /// Why a group is where it is, at this time of the planner's clock. Takes as long as reading
    /// the last snapshot once.
    #[must_use]
    pub fn why(&self, group: GroupId, now_ms: u64) -> Why {
        let now = self.now_ms.max(now_ms);
        let made = self.last.as_ref().and_then(|last| last.made.as_ref().ok());
        // The snapshot was planned, so it is sound.
        let explain = |made: &Recorded| planner::why(&made.snapshot, &made.plan, group).ok();
        let explanation = made.and_then(|made| explain(made).flatten());
        let answer = self.answer(group, explanation.is_some(), now);
        let spared = self.spared(explanation.as_ref(), now);
        Why { group, answer, explanation, spared }
    }

    fn answer(&self, group: GroupId, reported: bool, now: u64) -> Answer {
        if let Some(entry) = self.ledger.get(group) {
            return of_entry(entry);
        }
        if self.mode == Mode::Off && self.last.is_some() {
            return Answer::NotPlanned(Hold::Off);
        }
        match self.last.as_ref().map(|last| &last.made) {
            None => Answer::NotPlanned(Hold::NoRound),
            Some(Err(no_plan)) => Answer::NotPlanned(self.no_plan(no_plan)),
            Some(Ok(_)) if !reported => Answer::NotReported,
            Some(Ok(made)) => self.of_plan(group, made, now),
        }
    }

    /// What it means that the last round made no plan.
    pub(super) fn no_plan(&self, no_plan: &NoPlan) -> Hold {
        match no_plan {
            NoPlan::Off if self.mode == Mode::Off => Hold::Off,
            // It was switched on since.
            NoPlan::Off => Hold::NoRound,
            NoPlan::Snapshot(error) => Hold::Unplannable { error: error.to_string() },
        }
    }

    /// Voters of the group that are spared as targets because too much failed there.
    fn spared(&self, explanation: Option<&Explanation>, now: u64) -> Vec<TroubledNode> {
        let voters = explanation.map_or(&[][..], |explanation| &explanation.voters);
        let troubled = self.troubled(now).into_iter();
        let receives = troubled.filter(|node| node.end == End::Receiver);
        receives.filter(|node| voters.iter().any(|voter| voter.node == node.node)).collect()
    }

    fn of_plan(&self, group: GroupId, made: &Recorded, now: u64) -> Answer {
        if let Some((lane, step)) = self.queue.find(group) {
            let wait = self.waits_for(lane, now);
            return Answer::Waits { to: step.to, tier: step.tier, wait };
        }
        let Some(step) = made.plan.moves.iter().find(|step| step.group == group) else {
            return Answer::AsPlanned;
        };
        let (to, tier) = (step.to, step.tier);
        if let Some(after) = self.ledger.precedes(group) {
            return Answer::Waits { to, tier, wait: Wait::Bundle { after } };
        }
        match self.hold(now) {
            Some(hold) => Answer::WouldMove { to, tier, hold },
            None => Answer::NextRound { to },
        }
    }
}

fn of_entry(entry: &ledger::Entry) -> Answer {
    let (ticket, to) = (entry.order.ticket, entry.order.to);
    if entry.is_running() {
        Answer::UnderWay { ticket, to, since_ms: entry.since_ms }
    } else {
        Answer::Unconfirmed { ticket, to }
    }
}
