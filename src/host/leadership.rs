//! Leadership listeners, the node's advertisement, and registered policies.
//!
//! What follows from it is decided by the groups; here it is only passed on, to them and to the
//! peers.

use std::sync::Arc;

use shardhost_groups::leadership::{
    HookGuard, HookKind, LeaderAcquired, LeaderLost, LeadershipEvent, LeadershipEvents,
};
use shardhost_groups::nodes::{Advertisement, Impairment};
use shardhost_groups::policy::{LeadershipPolicy, PolicyGuard};
use shardhost_groups::runtime::{LeaderScope, LeaderTaskGuard};
use shardhost_groups::selector::GroupSelector;
use shardhost_groups::{GroupId, HostFault};
use shardhost_storage::{CapabilityError, NodeId, requirement::capability_names};
use tokio::sync::watch;

use super::{Host, HostConfig, HostInner};

/// The advertisement of a host when it starts.
pub(super) fn first_advertisement(config: &HostConfig) -> Result<Advertisement, CapabilityError> {
    let capabilities = capability_names(config.capabilities.iter().cloned())?;
    Ok(Advertisement { capabilities, ..Advertisement::default() })
}

impl Host {
    /// Calls `hook` for every edge of leadership of these groups here, beginning with the present
    /// state.
    #[track_caller]
    pub fn on_leadership<F>(&self, groups: GroupSelector, kind: HookKind, hook: F) -> HookGuard
    where
        F: Fn(&LeadershipEvent) + Send + Sync + 'static,
    {
        self.inner.groups.on_leadership(groups, kind, hook)
    }
    /// Calls `hook` whenever a replica of this host is elected, and for those that lead already.
    #[track_caller]
    pub fn on_leader_acquired<F>(&self, groups: GroupSelector, hook: F) -> HookGuard
    where
        F: Fn(&LeaderAcquired) + Send + Sync + 'static,
    {
        self.inner.groups.on_leader_acquired(groups, hook)
    }
    /// Calls `hook` whenever a replica of this host stops leading.
    #[track_caller]
    pub fn on_leader_lost<F>(&self, groups: GroupSelector, hook: F) -> HookGuard
    where
        F: Fn(&LeaderLost) + Send + Sync + 'static,
    {
        self.inner.groups.on_leader_lost(groups, hook)
    }
    /// A stream of leadership, beginning with the present state.
    #[must_use]
    pub fn leadership(&self, groups: GroupSelector) -> LeadershipEvents {
        self.inner.groups.leadership(groups)
    }
    /// Runs a task for every (group, term) that serves here, cancelled when leadership is lost.
    pub fn while_leader<F, Fut>(&self, groups: GroupSelector, task: F) -> LeaderTaskGuard
    where
        F: Fn(LeaderScope) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.inner.groups.while_leader(groups, task)
    }

    /// Asks `policy` who may lead these groups, until the guard is dropped. Groups that are led
    /// here are looked at anew.
    ///
    /// A policy is asked on the node that it is registered on, about that node and others:
    /// register it on every node.
    #[track_caller]
    pub fn register_policy(
        &self,
        groups: GroupSelector,
        policy: impl LeadershipPolicy,
    ) -> PolicyGuard {
        self.inner.groups.register_policy(groups, policy)
    }

    /// Has the policies of a group asked anew who may lead it. False: the group is not open here,
    /// or is being closed.
    pub fn reevaluate(&self, id: GroupId) -> bool {
        self.group(id).is_some_and(|group| group.reevaluate().is_ok())
    }

    /// Sets the capabilities of this node. The groups here are evaluated again at once, the peers
    /// learn it with the next heartbeat. A leadership that requires a capability that this node no
    /// longer has is transferred to a node that has it.
    ///
    /// It lasts until the host stops: a start begins with [`HostConfig::capabilities`].
    ///
    /// # Errors
    /// [`CapabilityError`]; nothing changed.
    pub fn set_capabilities<N: Into<String>>(
        &self,
        names: impl IntoIterator<Item = N>,
    ) -> Result<(), CapabilityError> {
        let capabilities = capability_names(names)?;
        self.change_advertisement(|advertisement| advertisement.capabilities = capabilities);
        Ok(())
    }

    /// Sets whether this node is draining: others take its leaderships before it takes theirs.
    pub fn set_draining(&self, draining: bool) {
        self.change_advertisement(|advertisement| advertisement.draining = draining);
    }

    /// Declares that this node should lead nothing for now, for a reason of this source, or that
    /// the reason is gone. Its leaderships are transferred to others; its replicas continue to
    /// follow.
    pub fn impair(&self, source: &'static str, cause: Option<Impairment>) {
        self.inner.groups.impair(source, cause);
    }

    /// From here on the replicas of this host take no entries of their leaders, or take them again.
    pub fn take_entries(&self, takes: bool) {
        self.inner.groups.take_entries(takes);
    }

    /// Ends this host because of a fault that its state machines share: see [`Groups::fail`].
    ///
    /// [`Groups::fail`]: shardhost_groups::Groups::fail
    pub fn fail(&self, fault: &HostFault) {
        self.inner.groups.fail(fault);
    }

    /// Why this node should lead nothing for now: a cause set by [`Host::impair`], or a log that
    /// hangs.
    #[must_use]
    pub fn impairment(&self) -> watch::Receiver<Option<Impairment>> {
        self.inner.groups.impairment()
    }

    /// Advertises to the peers why this node should lead nothing, for the lifetime of the host.
    pub(super) fn tell_impairments(&self) -> impl Future<Output = ()> + Send + 'static {
        let (mut impairment, stop) = (self.impairment(), self.inner.stop.clone());
        let inner = Arc::downgrade(&self.inner);
        async move {
            loop {
                let impaired = impairment.borrow_and_update().clone();
                let Some(inner) = inner.upgrade() else { return };
                inner.change_advertisement(|advertisement| advertisement.impaired = impaired);
                drop(inner);
                tokio::select! {
                    changed = impairment.changed() => if changed.is_err() { return },
                    () = stop.cancelled() => return,
                }
            }
        }
    }

    /// The advertisement of this node.
    #[must_use]
    pub fn advertisement(&self) -> Advertisement {
        self.inner.advertisement.lock().clone()
    }

    /// The last advertisement of a peer; `None`: none was received since this host started.
    #[must_use]
    pub fn peer_advertisement(&self, node: NodeId) -> Option<Advertisement> {
        self.inner.transport.advertisement_of(node)
    }

    fn change_advertisement(&self, change: impl FnOnce(&mut Advertisement)) {
        self.inner.change_advertisement(change);
    }
}

impl HostInner {
    fn change_advertisement(&self, change: impl FnOnce(&mut Advertisement)) {
        let mut advertisement = self.advertisement.lock();
        let before = advertisement.clone();
        change(&mut advertisement);
        if *advertisement != before {
            tracing::info!(capabilities = ?advertisement.capabilities, draining = advertisement.draining,
                impaired = ?advertisement.impaired, "the node says something else of itself");
            self.groups.set_advertisement(advertisement.clone());
            self.transport.set_advertisement(&advertisement);
        }
    }
}
