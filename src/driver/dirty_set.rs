//! Which groups the reconciler compares next: those that changed, and from time to time all. Pure.
//!
//! A change of the catalog, or of a leadership here, concerns few groups, and a host may hold ten
//! thousand. Changes that are missed, or steps that failed, are found when all are compared.

use std::collections::BTreeSet;
use std::sync::Arc;

use shardhost_groups::{GroupId, NodeId};
use tokio::time::Instant;

use super::CatalogView;
use shardhost_policy::catalog::{RecordKey, View};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    All,
    Only(BTreeSet<GroupId>),
}

/// Groups to compare.
#[derive(Debug)]
pub(super) struct DirtySet {
    node: NodeId,
    /// The catalog as it was when groups were put on the dirty_set last.
    seen: CatalogView,
    groups: BTreeSet<GroupId>,
    all_at: Instant,
}

impl DirtySet {
    pub(super) fn new(node: NodeId, now: Instant) -> Self {
        Self { node, seen: None, groups: BTreeSet::new(), all_at: now }
    }

    /// Takes over what changed in the catalog since the last view.
    pub(super) fn take_over(&mut self, view: &Arc<View>, now: Instant) {
        let own = |view: &View| view.record(RecordKey::Node(self.node));
        match self.seen.take() {
            Some(seen) if own(&seen) == own(view) => self.groups.extend(view.groups_unlike(&seen)),
            // What this node may create depends on what the catalog knows of it.
            _ => self.all_at = now,
        }
        self.seen = Some(Arc::clone(view));
    }

    /// These groups are to be compared.
    pub(super) fn add(&mut self, groups: impl IntoIterator<Item = GroupId>) {
        self.groups.extend(groups);
    }

    /// Everything is to be compared then at the latest.
    pub(super) fn all_by(&mut self, at: Instant) {
        self.all_at = self.all_at.min(at);
    }

    /// The groups to compare now; all again at `all_again` at the latest.
    pub(super) fn next(&mut self, now: Instant, all_again: Instant) -> Scope {
        let groups = std::mem::take(&mut self.groups);
        if now < self.all_at {
            return Scope::Only(groups);
        }
        self.all_at = all_again;
        Scope::All
    }

    /// When there is something to compare.
    pub(super) fn due(&self, now: Instant) -> Instant {
        if self.groups.is_empty() { self.all_at } else { now }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use shardhost_policy::catalog::{
        Catalog, Command, Name, NewGroup, NewNode, Operation, Subject,
    };

    const NODE: NodeId = NodeId::must(1);

    fn run(catalog: &mut Catalog, operation: Operation) {
        catalog.apply(&Command::new(1, operation)).unwrap();
    }

    fn put_node(catalog: &mut Catalog, id: NodeId, store: u64) {
        let address = format!("10.0.0.{id}:7400");
        run(catalog, Operation::PutNode(NewNode { id, address, zone: None, weight: 1, store }));
    }

    fn create(catalog: &mut Catalog, groups: std::ops::Range<u64>) {
        for group in groups {
            let kind = Name::new(Subject::Kind, "table").unwrap();
            run(catalog, Operation::CreateGroup(NewGroup::new(GroupId::new(group), kind, [NODE])));
        }
    }

    fn view(catalog: &Catalog) -> Arc<View> {
        Arc::new(catalog.view().clone())
    }

    fn groups(numbers: impl IntoIterator<Item = u64>) -> BTreeSet<GroupId> {
        numbers.into_iter().map(GroupId::new).collect()
    }

    /// A catalog of a thousand groups, all of which were compared a moment ago.
    fn settled(now: Instant, again: Instant) -> (Catalog, DirtySet) {
        let mut catalog = Catalog::default();
        put_node(&mut catalog, NODE, 101);
        create(&mut catalog, 1..1_000);
        let mut dirty_set = DirtySet::new(NODE, now);
        dirty_set.take_over(&view(&catalog), now);
        assert_eq!(dirty_set.next(now, again), Scope::All);
        (catalog, dirty_set)
    }

    fn times() -> (Instant, Instant) {
        let now = Instant::now();
        (now, now + Duration::from_secs(5))
    }

    #[tokio::test]
    async fn of_a_thousand_groups_only_those_that_changed_are_compared() {
        let (now, again) = times();
        let (mut catalog, mut dirty_set) = settled(now, again);
        assert_eq!(dirty_set.due(now), again);
        create(&mut catalog, 1_000..1_002);
        run(&mut catalog, Operation::DestroyGroup { group: GroupId::new(5), generation: None });
        dirty_set.take_over(&view(&catalog), now);
        dirty_set.add(groups([7]));
        assert_eq!(dirty_set.due(now), now);
        assert_eq!(dirty_set.next(now, again), Scope::Only(groups([5, 7, 1_000, 1_001])));
        assert_eq!(dirty_set.due(now), again);
    }

    #[tokio::test]
    async fn a_change_that_is_about_no_group_compares_none() {
        let (now, again) = times();
        let (mut catalog, mut dirty_set) = settled(now, again);
        put_node(&mut catalog, NodeId::must(2), 102);
        dirty_set.take_over(&view(&catalog), now);
        assert_eq!(dirty_set.next(now, again), Scope::Only(BTreeSet::new()));
    }

    #[tokio::test]
    async fn everything_is_compared_when_the_catalog_knows_this_node_otherwise() {
        let (now, again) = times();
        let (mut catalog, mut dirty_set) = settled(now, again);
        put_node(&mut catalog, NODE, 555);
        dirty_set.take_over(&view(&catalog), now);
        assert_eq!(dirty_set.next(now, again), Scope::All);
    }

    #[tokio::test]
    async fn everything_is_compared_again_in_time_whatever_changed() {
        let (now, again) = times();
        let (mut catalog, mut dirty_set) = settled(now, again);
        create(&mut catalog, 1_000..1_001);
        dirty_set.take_over(&view(&catalog), now);
        assert_eq!(dirty_set.next(again, again), Scope::All, "it is among them");
        dirty_set.all_by(now);
        assert_eq!(dirty_set.next(now, again), Scope::All, "something failed");
    }
}
