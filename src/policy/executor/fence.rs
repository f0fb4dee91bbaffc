//! The check of a host before it executes an order: is it from the newest planner known, and does
//! it fit the present state? Pure; the transfer itself is checked again by the leader.

use super::observation::Stop;
use super::order::{Order, PlannerTerm};

/// The state of a group where an order for it arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub term: u64,
    /// Whether the group is led here.
    pub leads: bool,
    /// The life of the order's target that this host knows. `None`: it knows none.
    pub target_incarnation: Option<u64>,
}

/// Why an order is not carried out. Nothing was done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OrderRefusal {
    /// A later planner is known. The sender should stop: it is not in charge any more.
    #[error(
        "the order is of planner term {given}, and planner term {seen} was heard here: stop giving orders, \
         another planner is in charge"
    )]
    StalePlannerTerm {
        given: PlannerTerm,
        /// The newest known.
        seen: PlannerTerm,
    },
    /// No planner can be of that planner_term: planner terms are terms of the system group.
    #[error(
        "the order is of planner term {given}, and the system group is at most in term {most}: no planner \
         gave it"
    )]
    ImpossiblePlannerTerm {
        given: PlannerTerm,
        /// The latest that is believed here.
        most: PlannerTerm,
    },
    /// The kill switch is set here.
    #[error("planned moves are stopped {stop}")]
    Stopped { stop: Stop },
    /// The group is not led here.
    #[error("the group is not led here: plan again with newer reports")]
    NotLeader,
    /// The group's leadership is another one than the plan knew.
    #[error("the order is for term {given}, the group is in term {actual}: plan again")]
    OtherTerm { given: u64, actual: u64 },
    /// The target restarted since the plan was made.
    #[error(
        "the order is for incarnation {given} of the target, which is {actual}: plan again with \
         newer reports"
    )]
    OtherLife { given: u64, actual: u64 },
}

/// A planner term may be ahead of the system group's term, as this host knows it, by this much. A
/// replica of that group learns each term at once, unless it is partitioned.
const TERMS_AHEAD: u64 = 1 << 16;
/// The same where the host has no replica of the system group.
const PLANNER_TERMS_AHEAD: u64 = 1 << 32;
/// A planner asks for reports every few seconds. One that has been silent for this long is no
/// longer in charge, if it ever was.
const FORGOTTEN_AFTER_MS: u64 = 10 * 60 * 1_000;

/// What a host remembers of planners. It need not survive a restart: an order is for one term of a
/// group too, and no term survives one.
///
/// Nothing proves that a planner term is a planner's. One that the system group cannot have reached
/// is refused and not remembered. One that is accepted and then silent gives way, after ten
/// minutes, to the planner that keeps asking. Until then a planner that was replaced gets nothing.
#[derive(Clone, Debug, Default)]
pub struct Fence {
    seen: Option<PlannerTerm>,
    /// When the newest last asked, in milliseconds of a monotonic clock.
    heard_ms: u64,
    /// The term of the system group, where a replica of it is here.
    system_term: Option<u64>,
    stop: Option<Stop>,
}

impl Fence {
    /// The newest planner term known.
    #[must_use]
    pub const fn seen(&self) -> Option<PlannerTerm> {
        self.seen
    }

    /// A planner of this term asked for something: a report, or a move. `now_ms` counts from any
    /// beginning and never goes back.
    ///
    /// # Errors
    /// A later one asked before, or the planner term is impossible. It must get nothing.
    pub fn hear(&mut self, planner_term: PlannerTerm, now_ms: u64) -> Result<(), OrderRefusal> {
        let silent = now_ms.saturating_sub(self.heard_ms) > FORGOTTEN_AFTER_MS;
        let seen = self.seen.filter(|_| !silent);
        if let Some(seen) = seen.filter(|seen| *seen > planner_term) {
            return Err(OrderRefusal::StalePlannerTerm { given: planner_term, seen });
        }
        let most = match self.system_term {
            Some(term) => term.saturating_add(TERMS_AHEAD),
            None => seen.map_or(0, PlannerTerm::get).saturating_add(PLANNER_TERMS_AHEAD),
        };
        if planner_term.get() > most {
            return Err(OrderRefusal::ImpossiblePlannerTerm {
                given: planner_term,
                most: PlannerTerm::new(most),
            });
        }
        self.seen = Some(planner_term);
        self.heard_ms = now_ms;
        Ok(())
    }

    /// The term of the system group as its replica here knows it; `None`: there is none here.
    pub fn system_term(&mut self, term: Option<u64>) {
        self.system_term = term;
    }

    /// A kill switch was set, or is set no more.
    pub fn stop(&mut self, stop: Option<Stop>) {
        self.stop = stop;
    }

    /// Whether an order is to be tried.
    ///
    /// # Errors
    /// It is not; the cheapest reason that was found.
    pub fn admit(
        &mut self,
        order: &Order,
        standing: &Standing,
        now_ms: u64,
    ) -> Result<(), OrderRefusal> {
        self.hear(order.ticket.planner_term, now_ms)?;
        if let Some(stop) = &self.stop {
            return Err(OrderRefusal::Stopped { stop: stop.clone() });
        }
        if !standing.leads {
            return Err(OrderRefusal::NotLeader);
        }
        let (given, actual) = (order.term, standing.term);
        if given != actual {
            return Err(OrderRefusal::OtherTerm { given, actual });
        }
        match standing.target_incarnation {
            Some(actual) if actual != order.to_incarnation => {
                Err(OrderRefusal::OtherLife { given: order.to_incarnation, actual })
            }
            _ => Ok(()),
        }
    }
}
