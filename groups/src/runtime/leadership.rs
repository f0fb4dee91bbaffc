//! Registrations about leadership: listeners, tasks, policies; and this node's advertisement.

use std::sync::Arc;

use super::Groups;
use crate::leadership::{
    HookGuard, HookKind, LeaderAcquired, LeaderLost, LeadershipEvent, LeadershipEvents,
};
use crate::nodes::Advertisement;
use crate::policy::{LeadershipPolicy, PolicyGuard};
use crate::runtime::{LeaderScope, LeaderTaskGuard};
use crate::selector::GroupSelector;

impl Groups {
    /// Calls `hook` for every edge of leadership of these groups on this host, beginning with the
    /// present state. Runs on a separate thread unless `kind` sets otherwise.
    #[track_caller]
    pub fn on_leadership<F>(&self, groups: GroupSelector, kind: HookKind, hook: F) -> HookGuard
    where
        F: Fn(&LeadershipEvent) + Send + Sync + 'static,
    {
        self.shared().hub.register(groups, kind, hook)
    }

    /// Calls `hook` whenever a replica of this host is elected, and for those that lead already.
    #[track_caller]
    pub fn on_leader_acquired<F>(&self, groups: GroupSelector, hook: F) -> HookGuard
    where
        F: Fn(&LeaderAcquired) + Send + Sync + 'static,
    {
        self.on_leadership(groups, HookKind::Dispatched, move |event| {
            if let LeadershipEvent::Acquired(event) = event {
                hook(event);
            }
        })
    }

    /// Calls `hook` whenever a replica of this host stops leading.
    #[track_caller]
    pub fn on_leader_lost<F>(&self, groups: GroupSelector, hook: F) -> HookGuard
    where
        F: Fn(&LeaderLost) + Send + Sync + 'static,
    {
        self.on_leadership(groups, HookKind::Dispatched, move |event| {
            if let LeadershipEvent::Lost(event) = event {
                hook(event);
            }
        })
    }

    /// A stream of leadership, beginning with what is.
    #[must_use]
    pub fn leadership(&self, groups: GroupSelector) -> LeadershipEvents {
        self.shared().hub.events(groups)
    }

    /// Runs a task for every (group, term) that serves here, cancelled when leadership is lost.
    /// For one group never two at once. Must be called within a Tokio runtime.
    pub fn while_leader<F, Fut>(&self, groups: GroupSelector, task: F) -> LeaderTaskGuard
    where
        F: Fn(LeaderScope) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let shared = Arc::downgrade(self.shared());
        let lookup = move |id| shared.upgrade()?.registry.get(&id).map(|group| group.clone());
        crate::runtime::supervise(self.leadership(groups), lookup, task)
    }

    /// Asks `policy` who may lead these groups, until the guard is dropped. Groups that are led
    /// here are looked at anew.
    #[track_caller]
    pub fn register_policy(
        &self,
        groups: GroupSelector,
        policy: impl LeadershipPolicy,
    ) -> PolicyGuard {
        self.shared().policies.register(groups, Arc::new(policy))
    }

    /// Sets this node's advertisement: its groups are evaluated again. The transport has to send it
    /// to the others. [`Groups::impair`] alone sets whether it is impaired.
    pub fn set_advertisement(&self, advertisement: Advertisement) {
        self.shared().impairments.set_advertisement(advertisement, &self.shared().inboxes);
    }
}
