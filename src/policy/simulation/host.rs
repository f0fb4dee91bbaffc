//! What a host remembers above its worker, and the transfers that it was ordered to make.

use std::sync::Arc;
use std::time::Duration;

use shardhost_groups::core::TransferOutcome;
use shardhost_proto::system as wire;
use tokio::sync::oneshot;

use super::world::Desk;
use crate::catalog::View;
use crate::executor::{Fence, Order, PlannerTerm, Stop, StopScope};
use crate::inputs::report::Memory;

/// Which program a host runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Version {
    /// One that knows of no planner: it neither reports nor takes orders.
    Old,
    #[default]
    Current,
}

/// One process of a node, above its worker.
#[derive(Debug, Default)]
pub(super) struct Host {
    /// Which process; `None`: the node is down.
    pub(super) life: Option<u64>,
    pub(super) version: Version,
    pub(super) memory: Memory,
    pub(super) fence: Fence,
    /// The newest planner term that it knows, for the checks.
    pub(super) heard: PlannerTerm,
    pub(super) stopped: bool,
    /// The catalog as last received.
    pub(super) view: Option<Arc<View>>,
    pub(super) running: Vec<Running>,
    /// For hosts with an injected fault: their first report.
    pub(super) first_report: Option<wire::NodeReport>,
}

#[derive(Debug)]
pub(super) struct Running {
    pub(super) order: Order,
    pub(super) planner: Desk,
    pub(super) since: u64,
    pub(super) answer: oneshot::Receiver<TransferOutcome>,
}

/// What became of a transfer by now.
pub(super) enum Progress {
    Ended(TransferOutcome),
    UnderWay,
    /// Its process died, or no caller waits any more.
    Forgotten,
}

impl Running {
    pub(super) fn look(&mut self, now: u64, longest: Duration) -> Progress {
        match self.answer.try_recv() {
            Ok(outcome) => Progress::Ended(outcome),
            Err(oneshot::error::TryRecvError::Closed) => Progress::Forgotten,
            Err(_) if u128::from(now - self.since) < longest.as_millis() => Progress::UnderWay,
            Err(_) => Progress::Forgotten,
        }
    }
}

impl Host {
    pub(super) fn started(life: Option<u64>, version: Version) -> Self {
        Self { life, version, ..Self::default() }
    }

    pub(super) fn serves(&self) -> bool {
        self.life.is_some() && self.version == Version::Current
    }

    /// As a host reports its local switch.
    pub(super) fn local_stop(&self) -> Option<Stop> {
        let reason = "the local switch".to_owned();
        self.stopped.then_some(Stop { scope: StopScope::Host, reason })
    }
}
