//! What the rest of a host sees of its worker, and asks of it: for simulations of what stands above
//! the groups.

use super::*;
use shardhost_groups::GroupStatus;
use shardhost_groups::core::TransferOutcome;
use shardhost_groups::nodes::Advertisement;

impl Cluster {
    /// Milliseconds since the beginning.
    pub const fn now(&self) -> u64 {
        self.now
    }

    /// Which process of a node runs. `None`: none does. A later one has a larger number.
    pub fn life(&self, node: NodeId) -> Option<u64> {
        let node = self.nodes.get(&node)?;
        node.process.as_ref().map(|_| node.life)
    }

    /// When the worker of a node, which does nothing at present, continues.
    pub fn stalled_until(&self, node: NodeId) -> Option<u64> {
        self.stalled(node).map(|wait| self.now + wait)
    }

    /// The longest that a sync takes on a node, in milliseconds.
    pub fn disk_delay(&self, node: NodeId) -> u64 {
        self.nodes[&node].disk_delay
    }

    /// The other processes that a node hears.
    pub fn heard_by(&self, node: NodeId) -> &BTreeMap<NodeId, u64> {
        &self.nodes[&node].live
    }

    /// What a node says of itself.
    pub fn advertisement(&self, node: NodeId) -> &Advertisement {
        &self.nodes[&node].advertisement
    }

    /// How a node's replica of a group stands. `None`: the node does not run, or has none.
    pub fn status(&self, node: NodeId, group: GroupId) -> Option<&GroupStatus> {
        Some(self.nodes.get(&node)?.process.as_ref()?.core.group(group)?.status())
    }

    /// Asks a node to hand a group over. The answer comes as time passes; when the process dies
    /// before, there is none.
    ///
    /// # Errors
    /// What a checker found.
    pub fn hand_over(
        &mut self,
        from: NodeId,
        group: GroupId,
        to: TransferTarget,
    ) -> Result<oneshot::Receiver<TransferOutcome>, String> {
        let (completion, answer) = shardhost_groups::completion::answer();
        self.input(from, Input::Transfer { group, request: TransferRequest { to, completion } })?;
        Ok(answer)
    }

    /// Asks a node, which should lead the group, to change its members. What comes of it shows in
    /// the statuses.
    ///
    /// # Errors
    /// What a checker found.
    pub fn change_members(
        &mut self,
        node: NodeId,
        group: GroupId,
        change: MembershipChange,
    ) -> Result<(), String> {
        self.order_membership(node, group, MembershipOrder::Change(change))
    }

    /// An operator gives up an addition that is not finished.
    ///
    /// # Errors
    /// What a checker found.
    pub fn cancel_addition(&mut self, node: NodeId, group: GroupId) -> Result<(), String> {
        self.order_membership(node, group, MembershipOrder::CancelAddition { expecting: None })
    }

    pub(super) fn order_membership(
        &mut self,
        node: NodeId,
        group: GroupId,
        order: MembershipOrder,
    ) -> Result<(), String> {
        self.tell(|| format!("{node:?} is asked: {group:?} {order:?}"));
        let (completion, _forgotten) = shardhost_groups::completion::answer();
        let request = Box::new(MembershipRequest { order, completion });
        self.input(node, Input::ChangeMembership { group, request })
    }

    /// Clients propose so many commands to a node.
    ///
    /// # Errors
    /// What a checker found.
    pub fn write(&mut self, node: NodeId, group: GroupId, commands: u64) -> Result<(), String> {
        self.propose(node, group, commands).map(|_| ())
    }
}
