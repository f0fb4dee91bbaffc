//! Reports to the catalog that have one source only: each host about itself, and the leader of the
//! system group the first content of a new catalog, the passing of time, and that a group is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};
use shardhost_groups::{GroupId, NodeId};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::client::{CatalogClient, CatalogError};
use super::drain_clocks::DrainClocks;
use super::shard_map::{self, Agreement};
use super::versions::Raising;
use super::{CatalogView, NodeFacts};
use crate::host::Host;
use shardhost_policy::catalog::{
    Advertisement, GroupRecord, GroupState, Name, NewGroup, NewNode, NodeRecord, Operation,
    PlannerMode, REPLICAS_MOVED, Refusal, ReplicaSettings, Revision, Subject, UNKNOWN_STORE, View,
};
use shardhost_proto::shard_map::ShardMap;

/// Between two comparisons of this node's record with its state.
const COMPARE_EVERY: Duration = Duration::from_secs(2);
/// Between two looks of the leader of the system group, when nothing changes.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Between two looks at least.
const LOOK_PAUSE: Duration = Duration::from_millis(50);
/// Ends of groups that are looked at together.
const MAX_ENDED_AT_ONCE: usize = 1_024;
/// Commands under way when a new catalog is filled.
const CREATED_AT_ONCE: usize = 256;

/// Logs a problem when it begins or changes, and not while it lasts.
#[derive(Default)]
struct Trouble {
    told: Option<String>,
}

impl Trouble {
    fn tell(&mut self, outcome: Result<(), CatalogError>, what: &'static str) {
        let error = outcome.err().map(|error| error.to_string());
        if let Some(error) = &error
            && self.told.as_ref() != Some(error)
        {
            tracing::warn!(error, what);
        }
        self.told = error;
    }
}

/// Keeps the catalog's record of this node true, until `stop`.
pub(super) async fn register(
    host: Host,
    client: CatalogClient,
    mut view: watch::Receiver<CatalogView>,
    planner_inputs: NodeFacts,
    removed: watch::Sender<bool>,
    stop: CancellationToken,
) {
    let keep = async {
        let mut trouble = Trouble::default();
        loop {
            let known = view.borrow_and_update().clone();
            if let Some(view) = known {
                let compared = compare(&host, &client, &view, &planner_inputs).await;
                let is_removed =
                    CatalogError::Refused(Refusal::NodeRemoved { node: host.node_id() });
                if compared.as_ref().is_err_and(|error| *error == is_removed) {
                    removed.send_replace(true);
                }
                trouble.tell(compared, "the catalog does not know this node as it is");
            }
            // A change of anything may be one of this node's record; at most so often.
            tokio::time::sleep(COMPARE_EVERY / 20).await;
            let changed = tokio::time::timeout(COMPARE_EVERY, view.changed()).await;
            if changed.is_ok_and(|changed| changed.is_err()) {
                return;
            }
        }
    };
    stop.run_until_cancelled(keep).await;
}

async fn compare(
    host: &Host,
    client: &CatalogClient,
    view: &View,
    planner_inputs: &NodeFacts,
) -> Result<(), CatalogError> {
    let node = host.node_id();
    let known = view.nodes().get(&node).map(AsRef::as_ref);
    let record = new_node(host, known, planner_inputs)?;
    if known.is_none_or(|known| !is_as(known, &record)) {
        // What operators changed stays: a view may be from before that.
        let seen = known.map_or_else(Revision::default, |known| known.revision);
        match client.apply_expecting(seen, Operation::PutNode(record)).await {
            Ok(_) => {}
            Err(CatalogError::Refused(Refusal::WrongRevision { .. })) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    let (incarnation, capabilities) = (host.incarnation(), names(host)?);
    let advertisement = known.and_then(|known| known.advertisement.as_ref());
    let said = |advertisement: &Advertisement| {
        advertisement.incarnation == incarnation
            && advertisement.capabilities.iter().eq(&capabilities)
    };
    if !advertisement.is_some_and(said) {
        match client.apply(Operation::Advertise { node, incarnation, capabilities }).await {
            // The view is of a catalog that still knew it: whether it was removed, the registration says.
            Err(CatalogError::Refused(Refusal::UnknownNode { .. })) => {
                let record = new_node(host, None, planner_inputs)?;
                client.apply_expecting(Revision::default(), Operation::PutNode(record)).await?;
            }
            Err(error) => return Err(error),
            Ok(_) => {}
        }
    }
    Ok(())
}

fn names(host: &Host) -> Result<BTreeSet<Name>, Refusal> {
    let advertisement = host.advertisement();
    advertisement.capabilities.iter().map(|name| Name::new(Subject::Capability, name)).collect()
}

/// This node's record from its configuration. Changes of operators in the catalog stay: zone and
/// weight come from the configuration only while the node is new.
fn new_node(
    host: &Host,
    known: Option<&NodeRecord>,
    planner_inputs: &NodeFacts,
) -> Result<NewNode, Refusal> {
    let zone =
        planner_inputs.zone.as_deref().map(|zone| Name::new(Subject::Zone, zone)).transpose()?;
    let id = host.node_id();
    // A node that was announced and never seen is new.
    let known = known.filter(|known| known.store != UNKNOWN_STORE);
    Ok(NewNode {
        id,
        address: host.directory().address(id).unwrap_or_else(|| host.address().to_string()),
        zone: known.map_or(zone, |known| known.zone.clone()),
        weight: known.map_or(planner_inputs.weight, |known| known.weight),
        store: host.store_id(),
    })
}

fn is_as(known: &NodeRecord, new: &NewNode) -> bool {
    *known.address == *new.address && known.store == new.store
}

/// What a new catalog begins with.
#[derive(Clone, Debug)]
pub(super) struct Beginning {
    /// Whether leaderships are moved for balance.
    pub(super) planner: PlannerMode,
    /// Whether replicas are moved automatically.
    pub(super) replicas: Option<ReplicaSettings>,
    pub(super) shard_map: Option<ShardMap>,
    /// The groups that there are to be.
    pub(super) groups: Vec<NewGroup>,
}

/// What the leader of the system group does for the catalog, until `lost`.
pub(super) async fn lead(
    host: Host,
    client: CatalogClient,
    mut view: watch::Receiver<CatalogView>,
    beginning: Beginning,
    lost: CancellationToken,
) {
    let work = async {
        let mut trouble = Trouble::default();
        let (complete, created) = (None, Revision::default());
        let (clocks, told_mismatch) = (DrainClocks::default(), false);
        let last_outcome = GroupId::new(0);
        let mut tender = Tender {
            host,
            client,
            beginning,
            clocks,
            complete,
            created,
            told_mismatch,
            last_outcome,
            raising: Raising::default(),
        };
        loop {
            let known = view.borrow_and_update().clone();
            if let Some(view) = known {
                trouble.tell(tender.tend(&view).await, "the catalog is not tended");
            }
            tokio::time::sleep(LOOK_PAUSE).await;
            let changed = tokio::time::timeout(LOOK_EVERY, view.changed()).await;
            if changed.is_ok_and(|changed| changed.is_err()) {
                return;
            }
        }
    };
    lost.run_until_cancelled(work).await;
}

/// What the leader of the system group remembers from look to look.
struct Tender {
    host: Host,
    client: CatalogClient,
    beginning: Beginning,
    clocks: DrainClocks,
    /// The view in which nothing was to be done for any group.
    complete: CatalogView,
    /// The last change that was made for groups. A view from before it lacks them.
    created: Revision,
    /// A configuration that contradicts the catalog is logged once.
    told_mismatch: bool,
    /// The last group that was looked at on its way out.
    last_outcome: GroupId,
    raising: Raising,
}

impl Tender {
    async fn tend(&mut self, view: &Arc<View>) -> Result<(), CatalogError> {
        self.begin_settings(view).await?;
        self.raising.look(&self.host, &self.client, view).await?;
        self.begin_replicas(view).await?;
        for (drain, passed_ms) in self.clocks.due_reports(view, Instant::now()) {
            let (node, intent) = (drain.node, drain.id);
            let operation = Operation::PassTime { node, intent, passed_ms };
            match self.client.apply_expecting(drain.revision, operation).await {
                Ok(done) => self.clocks.told(node, done.revision, passed_ms),
                // Another command changed it meanwhile.
                Err(CatalogError::Refused(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let looked_at = self.complete.as_ref().is_some_and(|one| Arc::ptr_eq(one, view));
        if looked_at || view.revision() < self.created {
            return Ok(());
        }
        announce_founders(&self.host, &self.client, view, &self.beginning).await?;
        let outcome = finish_ends(&self.client, view, &mut self.last_outcome).await?;
        let groups = if self.may_create(view).await? { &self.beginning.groups[..] } else { &[] };
        let absent: Vec<&NewGroup> = groups.iter().filter(|new| is_absent(view, new)).collect();
        let able = absent.iter().filter(|new| founders_are_known(view, new));
        let able = able.map(|new| NewGroup::clone(new)).collect();
        self.created = create(&self.client, able).await?;
        self.complete = (outcome == 0 && absent.is_empty()).then(|| Arc::clone(view));
        Ok(())
    }

    /// Whether the groups of the configuration belong to the map of shards of the catalog.
    async fn may_create(&mut self, view: &View) -> Result<bool, CatalogError> {
        let Some(configured) = &self.beginning.shard_map else { return Ok(true) };
        match shard_map::found(&self.client, view, configured).await? {
            Agreement::Same => Ok(true),
            Agreement::Differs(mismatch) => {
                if !std::mem::replace(&mut self.told_mismatch, true) {
                    tracing::error!(%mismatch, "no shards are created from this configuration");
                }
                Ok(false)
            }
        }
    }

    /// Once the version of the cluster allows it. What operators set stays.
    async fn begin_replicas(&self, view: &View) -> Result<(), CatalogError> {
        let settings = view.settings();
        let Some(replicas) = self.beginning.replicas else { return Ok(()) };
        if settings.replicas.is_some() || settings.cluster_version < REPLICAS_MOVED {
            return Ok(());
        }
        let operation = Operation::SetReplicas { replicas };
        match self.client.apply_expecting(settings.revision, operation).await {
            Ok(_) | Err(CatalogError::Refused(Refusal::WrongRevision { .. })) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn begin_settings(&self, view: &View) -> Result<(), CatalogError> {
        if view.settings().revision != Revision::default() {
            return Ok(());
        }
        let mode = self.beginning.planner;
        let operation = Operation::SetPlannerMode { mode };
        match self.client.apply_expecting(Revision::default(), operation).await {
            Ok(_) | Err(CatalogError::Refused(Refusal::WrongRevision { .. })) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Registers founders that were never here, so that groups begin without waiting for them. They say
/// themselves who they are when they come.
async fn announce_founders(
    host: &Host,
    client: &CatalogClient,
    view: &View,
    beginning: &Beginning,
) -> Result<(), CatalogError> {
    let founders = beginning.groups.iter().flat_map(|new| &new.founders);
    let founders: BTreeSet<NodeId> = founders.copied().collect();
    for id in founders.into_iter().filter(|id| !view.nodes().contains_key(id)) {
        let Some(address) = host.directory().address(id) else { continue };
        let new = NewNode { id, address, zone: None, weight: 1, store: UNKNOWN_STORE };
        match client.apply_expecting(Revision::default(), Operation::PutNode(new)).await {
            // Another one was faster.
            Ok(_) | Err(CatalogError::Refused(Refusal::WrongRevision { .. })) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Has groups forgotten that are gone from every node that may have held them. Returns how many are
/// on their way out.
async fn finish_ends(
    client: &CatalogClient,
    view: &View,
    last: &mut GroupId,
) -> Result<usize, CatalogError> {
    // Round and round: some wait for a node that is down.
    let later = view.groups().range((Bound::Excluded(*last), Bound::Unbounded));
    let earlier = view.groups().range(..=*last);
    let groups = later.chain(earlier).map(|(_, group)| group);
    let outcome = groups.filter(|group| group.state == GroupState::Destroying);
    let outcome: Vec<_> = outcome.take(MAX_ENDED_AT_ONCE).collect();
    *last = outcome.last().map_or(GroupId::new(0), |group| group.id);
    let mut asked: BTreeMap<NodeId, Vec<&GroupRecord>> = BTreeMap::new();
    for group in &outcome {
        for node in holders_of(view, group) {
            asked.entry(node).or_default().push(group);
        }
    }
    let mut still_held: BTreeSet<GroupId> = BTreeSet::new();
    for (node, groups) in asked {
        let ids: Vec<GroupId> = groups.iter().map(|group| group.id).collect();
        let gone = client.gone(node, &ids).await.ok();
        let held = groups.into_iter().filter(|group| may_be_held(group, node, gone.as_deref()));
        still_held.extend(held.map(|group| group.id));
    }
    for group in outcome.iter().filter(|group| !still_held.contains(&group.id)) {
        let operation = Operation::FinishDestroy { group: group.id };
        match client.apply_expecting(group.revision, operation).await {
            Ok(_) | Err(CatalogError::Refused(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(outcome.len())
}

/// The nodes that may hold a replica: those that founded the group, and its members.
fn holders_of(view: &View, group: &GroupRecord) -> BTreeSet<NodeId> {
    let nodes = group.founders.iter().chain(group.members()).copied();
    nodes.filter(|node| view.nodes().contains_key(node)).collect()
}

/// Whether the end of a group waits for a node that named what is gone there, or did not answer. A member
/// that does not answer may hold its replica. One that is a member no more was replaced, and may have been
/// stopped for good: when it comes back it finds the end of that generation.
fn may_be_held(group: &GroupRecord, node: NodeId, gone: Option<&[GroupId]>) -> bool {
    gone.map_or_else(|| group.members().contains(&node), |gone| !gone.contains(&group.id))
}

/// Whether a group is neither there nor over.
fn is_absent(view: &View, new: &NewGroup) -> bool {
    !view.groups().contains_key(&new.id) && !view.ended().contains_key(&new.id)
}

fn founders_are_known(view: &View, new: &NewGroup) -> bool {
    new.founders.iter().all(|node| view.nodes().contains_key(node))
}

/// Creates groups, many commands at a time. Returns the last change of it.
async fn create(client: &CatalogClient, groups: Vec<NewGroup>) -> Result<Revision, CatalogError> {
    let commands = groups.into_iter().map(|new| create_one(client.clone(), new));
    let created = stream::iter(commands).buffer_unordered(CREATED_AT_ONCE);
    created.try_fold(Revision::default(), |last, one| async move { Ok(last.max(one)) }).await
}

async fn create_one(client: CatalogClient, new: NewGroup) -> Result<Revision, CatalogError> {
    match client.apply(Operation::CreateGroup(new)).await {
        Ok(done) => Ok(done.revision),
        Err(CatalogError::Refused(Refusal::GroupExists { founded, .. })) => Ok(founded),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use shardhost_groups::LogIndex;
    use shardhost_policy::catalog::{Catalog, Command};

    use super::*;

    /// Group 7 of nodes 1 to 3, of which node 3 was replaced by node 4.
    fn group() -> GroupRecord {
        let mut catalog = Catalog::default();
        let mut run = |operation| catalog.apply(&Command::new(1_000, operation)).unwrap();
        for number in 1..=4 {
            let (id, address) = (NodeId::must(number), format!("n{number}:1"));
            run(Operation::PutNode(NewNode { id, address, zone: None, weight: 1, store: number }));
        }
        let (id, kind) = (GroupId::new(7), Name::new(Subject::Kind, "table").unwrap());
        run(Operation::CreateGroup(NewGroup::new(id, kind, [1, 2, 3].map(NodeId::must))));
        run(Operation::RecordMembers {
            group: id,
            config_index: LogIndex::new(9),
            nodes: [1, 2, 4].map(NodeId::must).into(),
            founding: Some([1, 2].map(NodeId::must).into()),
            learners: None,
            generation: None,
        });
        catalog.view().groups()[&id].as_ref().clone()
    }

    #[test]
    fn the_end_of_a_group_waits_for_its_members_and_for_no_node_that_is_none_any_more() {
        let group = group();
        let held = |node, gone: Option<&[GroupId]>| may_be_held(&group, NodeId::must(node), gone);
        assert!(held(4, None), "a member that does not answer");
        assert!(!held(3, None), "it was replaced, and may be gone for good");
        for node in [3, 4] {
            assert!(held(node, Some(&[])), "node {node} says that it holds one");
            assert!(!held(node, Some(&[group.id])), "node {node} says that it holds none");
        }
    }
}
