//! What a host asks before it carries out an order: is it of the newest planner that was heard, and
//! does it fit the present? Pure; the transfer itself is gated again below.

use super::observation::Stop;
use super::order::{Epoch, Order};

/// How a group stands where an order for it arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The group's term here.
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
    /// A later planner was heard. The sender should stop: it is not in charge any more.
    #[error(
        "the order is of epoch {given}, and epoch {seen} was heard here: stop giving orders, \
         another planner is in charge"
    )]
    StaleEpoch {
        /// The order's.
        given: Epoch,
        /// The newest that was heard.
        seen: Epoch,
    },
    /// The kill switch is set here.
    #[error("planned moves are stopped {stop}")]
    Stopped {
        /// The switch.
        stop: Stop,
    },
    /// The group is not led here.
    #[error("the group is not led here: plan again with newer reports")]
    NotLeader,
    /// The group's leadership is another one than the plan knew.
    #[error("the order is for term {given}, the group is in term {actual}: plan again")]
    OtherTerm {
        /// The order's.
        given: u64,
        /// The group's.
        actual: u64,
    },
    /// The target restarted since the plan was made.
    #[error(
        "the order is for life {given} of the target, which is in life {actual}: plan again with \
         newer reports"
    )]
    OtherLife {
        /// The order's.
        given: u64,
        /// The target's.
        actual: u64,
    },
}

/// What a host remembers of planners. It need not survive a restart: an order is for one term of a
/// group too, and no term survives one.
#[derive(Clone, Debug, Default)]
pub struct Fence {
    seen: Option<Epoch>,
    stop: Option<Stop>,
}

impl Fence {
    /// The newest epoch that was heard.
    #[must_use]
    pub const fn seen(&self) -> Option<Epoch> {
        self.seen
    }

    /// A planner of this epoch asked for something: a report, or a move.
    ///
    /// # Errors
    /// A later one was heard before. It must get nothing.
    pub fn hear(&mut self, epoch: Epoch) -> Result<(), OrderRefusal> {
        match self.seen {
            Some(seen) if seen > epoch => Err(OrderRefusal::StaleEpoch { given: epoch, seen }),
            _ => {
                self.seen = Some(epoch);
                Ok(())
            }
        }
    }

    /// A kill switch was set, or is set no more.
    pub fn stop(&mut self, stop: Option<Stop>) {
        self.stop = stop;
    }

    /// Whether an order is to be tried.
    ///
    /// # Errors
    /// It is not; the cheapest reason that was found.
    pub fn admit(&mut self, order: &Order, standing: &Standing) -> Result<(), OrderRefusal> {
        self.hear(order.ticket.epoch)?;
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
