//! What runs while this host leads the system group: the catalog is tended, leaderships and replicas are
//! moved. And what those share who are asked about it.

use std::sync::Arc;

use parking_lot::Mutex;
use shardhost_groups::GroupId;
use shardhost_groups::selector::GroupSelector;
use shardhost_policy::allocator::AllocatorStatus;
use shardhost_policy::executor::{ExecutorSettings, ExecutorStatus, PlannerTerm};
use shardhost_proto::balance;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::codegen::Bytes;

use super::{Inner, SYSTEM_GROUP, System, allocation, planning, registration};

/// What a leadership of the system group shares with others, for as long as it lasts.
#[derive(Debug)]
pub(super) struct WhileLed<T>(Arc<Mutex<Option<(u64, T)>>>);

impl<T> Default for WhileLed<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T: Clone> WhileLed<T> {
    /// Shares it, for the leadership of this term, until what is returned is dropped.
    pub(super) fn share(&self, term: u64, shared: T) -> Shared<T> {
        *self.0.lock() = Some((term, shared));
        Shared { term, place: Self(Arc::clone(&self.0)) }
    }

    fn get(&self) -> Option<T> {
        self.0.lock().as_ref().map(|(_, shared)| shared.clone())
    }
}

/// See [`WhileLed::share`].
#[derive(Debug)]
#[must_use = "it is taken back when this is dropped"]
pub(super) struct Shared<T> {
    term: u64,
    place: WhileLed<T>,
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // A later leadership may have begun.
        let ended = self.place.0.lock().take_if(|(term, _)| *term == self.term);
        drop(ended);
    }
}

/// While this host leads the system group, it tends the catalog and plans.
pub(super) fn lead_when_elected(
    inner: &Arc<Inner>,
    beginning: registration::Beginning,
    executor: ExecutorSettings,
    stop: CancellationToken,
) {
    let weak = Arc::downgrade(inner);
    let guard = inner.host.while_leader(GroupSelector::One(SYSTEM_GROUP), move |scope| {
        let (weak, beginning, executor) = (weak.clone(), beginning.clone(), executor.clone());
        async move {
            let Some(inner) = weak.upgrade() else { return };
            let (client, view) = (inner.client.clone(), inner.view.subscribe());
            let host = inner.host.clone();
            drop(inner);
            let lost = scope.cancelled;
            let tend = registration::lead(host, client, view, beginning, lost.clone());
            let term = scope.term.get();
            let allocate = allocation::allocate(weak.clone(), term, lost.clone());
            let plan = planning::plan(weak, PlannerTerm::new(term), executor, lost);
            tokio::join!(tend, plan, allocate);
        }
    });
    tokio::spawn(async move {
        stop.cancelled().await;
        drop(guard);
    });
}

impl System {
    /// What the planner is at, where this host leads the system group.
    #[must_use]
    pub fn planner_status(&self) -> Option<ExecutorStatus> {
        let planner = self.inner.planner.get()?;
        let now = planner.clock.now_ms();
        let status = planner.executor.lock().status(now);
        Some(status)
    }

    /// What the allocator is at, where this host leads the system group.
    #[must_use]
    pub fn allocator_status(&self) -> Option<AllocatorStatus> {
        let shared = self.inner.allocator.get()?;
        let status = shared.allocator.lock().status(shared.now_ms());
        Some(status)
    }

    /// The state of the planner, where this host leads the system group, as it travels.
    pub fn planner_reply(
        &self,
        request: &balance::PlannerRequest,
    ) -> Result<balance::PlannerReply, Status> {
        let leader_node = self.known_leader();
        let mut reply = balance::PlannerReply { leader_node, ..Default::default() };
        let Some(planner) = self.inner.planner.get() else { return Ok(reply) };
        let now = planner.clock.now_ms();
        let planner = planner.executor.lock();
        reply.status = bytes_of(serde_json::to_vec(&planner.status(now)))?;
        if let Some(group) = asked_about(request.why_group) {
            reply.why = planner.why(group, now).to_string();
            reply.why_unknown = self.is_unknown(group);
        }
        if request.last_round
            && let Some(last) = planner.recorded().last()
        {
            reply.round = bytes_of(serde_json::to_vec(last))?;
        }
        Ok(reply)
    }

    /// The state of the allocator, where this host leads the system group, as it travels.
    pub fn allocator_reply(
        &self,
        request: &balance::AllocatorRequest,
    ) -> Result<balance::AllocatorReply, Status> {
        let leader_node = self.known_leader();
        let mut reply = balance::AllocatorReply { leader_node, ..Default::default() };
        let Some(shared) = self.inner.allocator.get() else { return Ok(reply) };
        let allocator = shared.allocator.lock();
        reply.status = bytes_of(serde_json::to_vec(&allocator.status(shared.now_ms())))?;
        if let Some(group) = request.why_group.map(GroupId::new) {
            let unread = || "the catalog was not read yet; ask again in a moment".to_owned();
            reply.why = self.view().map_or_else(unread, |view| allocator.why(&view, group));
            reply.why_unknown = self.is_unknown(group);
        }
        Ok(reply)
    }

    /// The node that leads the system group, as far as it is known here; 0: it is not.
    fn known_leader(&self) -> u64 {
        let leader = self.inner.host.group(SYSTEM_GROUP).and_then(|group| group.status().leader);
        leader.map_or(0, |leader| leader.node.get())
    }

    /// Whether the catalog was read and has no such group. It has itself, without a record.
    fn is_unknown(&self, group: GroupId) -> bool {
        group != SYSTEM_GROUP && self.view().is_some_and(|view| !view.groups().contains_key(&group))
    }
}

fn asked_about(group: u64) -> Option<GroupId> {
    (group > 0).then(|| GroupId::new(group))
}

fn bytes_of(written: serde_json::Result<Vec<u8>>) -> Result<Bytes, Status> {
    written.map(Bytes::from).map_err(|error| Status::internal(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_earlier_leadership_takes_nothing_back_from_a_later_one() {
        let place = WhileLed::default();
        let earlier = place.share(1, "earlier");
        let later = place.share(2, "later");
        drop(earlier);
        assert_eq!(place.get(), Some("later"));
        drop(later);
        assert_eq!(place.get(), None);
    }
}
