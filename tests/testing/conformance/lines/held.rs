//! A transfer whose order to campaign is held back, so that it stays under way until it is given
//! up.

use shardhost_proto::peer::MessageKind;
use shardhost_storage::NodeId;
use tokio::task::JoinHandle;

use super::super::world::{answered, eventually};
use super::super::{Leader, Unmet, World};
use super::GROUP;
use crate::network::{Fate, Tap};
use shardhost_groups::error::TransferError;
use shardhost_groups::runtime::{Group, Transferred};

/// What a transfer comes to.
pub(super) type TransferOutcome = Result<Transferred, TransferError>;

pub(super) struct HeldTransfer {
    pub(super) leader: Leader,
    pub(super) tap: Tap,
    pub(super) task: JoinHandle<TransferOutcome>,
}

impl HeldTransfer {
    /// Begins one at the leader.
    pub(super) async fn begin(world: &World) -> Result<Self, Unmet> {
        let leader = world.leader(GROUP).await;
        Self::begin_at(world, leader, None).await
    }

    /// Begins one at a leader.
    pub(super) async fn begin_at(
        world: &World,
        leader: Leader,
        to: Option<NodeId>,
    ) -> Result<Self, Unmet> {
        let tap = world.network()?.tap(|envelope| match envelope.kind() {
            MessageKind::TimeoutNow => Fate::Hold,
            _ => Fate::Deliver,
        });
        let group = Group::clone(&leader);
        let task = tokio::spawn(async move { group.transfer_leadership(to).await });
        eventually("the order to campaign is held, or the transfer is over", || {
            tap.held() > 0 || task.is_finished()
        })
        .await;
        Ok(Self { leader, tap, task })
    }

    /// Whether it is under way, and so was since it began. A busy machine may be too late.
    pub(super) fn is_under_way(&self) -> bool {
        self.leader.status().transferring_to.is_some()
    }

    /// Loses the order to campaign, and waits for what the transfer comes to.
    pub(super) async fn lose(self) -> TransferOutcome {
        drop(self.tap);
        answered("the transfer", self.task).await.expect("no panic")
    }

    /// Lets the order to campaign go, and waits for what the transfer comes to.
    pub(super) async fn release(self) -> TransferOutcome {
        self.tap.release();
        answered("the transfer", self.task).await.expect("no panic")
    }
}
