//! Doing on this host what the catalog intends: creating and destroying replicas, having groups
//! require what they should, draining; and telling the catalog who belongs to the groups led here.
//!
//! [`reconcile`] decides the steps; here they are executed. A pass concerns the groups that
//! changed. Everything is compared from time to time, and after a failure, so a host that was away
//! catches up.
//!
//! Steps are executed in parallel, and no pass waits for them: for a group whose step is in
//! progress, held up by a state machine, no other step begins, and all other groups continue.
//!
//! A view may be behind. What creates replicas or changes a group is therefore decided once more by the
//! catalog as it is, after the group was looked at, and a change is for the configuration that was seen.

mod looking;
mod members;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;
use shardhost_groups::leadership::{HookKind, LeadershipEvent};
use shardhost_groups::runtime::{Destruction, MachineFactory};
use shardhost_groups::selector::GroupSelector;
use shardhost_groups::{Group, GroupId, GroupSpec, LogIndex};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::looking::Looked;
pub use self::looking::life_of;
use self::members::{is_changing, news_of_members};
use super::client::{CatalogClient, CatalogError};
use super::dirty_set::{DirtySet, Scope};
use super::{CatalogView, GroupMachines, fresh_view};
use crate::driver::DrainState;
use crate::driver::drains::Drains;
use crate::host::Host;
use shardhost_policy::catalog::{
    Action, DrainIntent, DrainState as IntentState, Held, Local, Oddity, Operation, RecordKey,
    Round, Step, View, reconcile, reconcile_only,
};

/// However quiet it is, everything is compared this often.
const ROUND_EVERY: Duration = Duration::from_secs(5);
/// After a round in which something could not be done.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// While this node is being drained: between two looks at how far that is.
const DRAIN_LOOK: Duration = Duration::from_millis(100);
/// From what happened to the round about it, so that a burst of changes makes a few rounds.
const GATHER: Duration = Duration::from_millis(10);
const MAX_STEPS: usize = 4_096;
/// Groups with which something is under way.
const MAX_UNDER_WAY: usize = 16_384;
/// Replicas that are created with one write.
const CREATED_TOGETHER: usize = 512;
/// Groups whose members a pass reports to the catalog.
const MAX_TOLD: usize = 256;
/// Commands about members under way.
const TOLD_AT_ONCE: usize = 32;
/// While members of groups that are led here change: between two looks at whether they still do.
const CHANGING_LOOK: Duration = Duration::from_millis(100);

/// Carries out what the catalog intends, until `stop`.
pub(super) async fn keep(
    host: Host,
    client: CatalogClient,
    view: watch::Receiver<CatalogView>,
    machines: Arc<dyn GroupMachines>,
    drains: Arc<Drains>,
    news: Arc<News>,
    stop: CancellationToken,
) {
    let noted = Arc::clone(&news);
    let note = move |event: &LeadershipEvent| noted.note(event.group());
    let hook = host.on_leadership(GroupSelector::All, HookKind::Dispatched, note);
    let dirty_set = DirtySet::new(host.node_id(), Instant::now());
    let from = GroupId::new(0);
    let (steps, under_way) = (JoinSet::new(), BTreeSet::new());
    let mut reconciler = Reconciler {
        host,
        client,
        view,
        machines,
        drains,
        dirty_set,
        steps,
        under_way,
        changing: BTreeSet::new(),
        from,
        told: 0,
    };
    stop.run_until_cancelled(reconciler.run(&news)).await;
    drop(hook);
}

/// Groups whose leadership changed here since the last round, or a change of whose members was begun: at
/// most all that are here.
#[derive(Debug, Default)]
pub(super) struct News {
    groups: Mutex<BTreeSet<GroupId>>,
    noted: Notify,
}

impl News {
    pub(super) fn note(&self, group: GroupId) {
        self.groups.lock().insert(group);
        self.noted.notify_one();
    }

    fn take(&self) -> BTreeSet<GroupId> {
        std::mem::take(&mut *self.groups.lock())
    }
}

/// A replica that is to be created, and what makes its state machine.
type Fresh = (GroupSpec, MachineFactory);

/// What was done with some groups, or why not: tried again then.
#[derive(Debug)]
struct Ended {
    groups: Vec<GroupId>,
    failed: Option<String>,
}

struct Reconciler {
    host: Host,
    client: CatalogClient,
    view: watch::Receiver<CatalogView>,
    machines: Arc<dyn GroupMachines>,
    drains: Arc<Drains>,
    dirty_set: DirtySet,
    steps: JoinSet<Ended>,
    /// The groups that it is about.
    under_way: BTreeSet<GroupId>,
    /// Those led here whose members changed when they were looked at: what they end as is reported soon.
    changing: BTreeSet<GroupId>,
    /// Where the next round about everything begins.
    from: GroupId,
    /// Irregularities that were logged, so that each is logged once.
    told: usize,
}

impl Reconciler {
    async fn run(&mut self, news: &News) {
        loop {
            let known = self.view.borrow_and_update().clone();
            let pause = match known {
                Some(view) => {
                    self.dirty_set.take_over(&view, Instant::now());
                    self.dirty_set.add(news.take());
                    self.dirty_set.add(std::mem::take(&mut self.changing));
                    self.round(&view).await
                }
                None => ROUND_EVERY,
            };
            tokio::select! {
                changed = self.view.changed() => if changed.is_err() { return },
                () = news.noted.notified() => {}
                Some(ended) = self.steps.join_next() => self.settle(ended),
                () = tokio::time::sleep(pause) => {}
            }
            tokio::time::sleep(GATHER).await;
            while let Some(ended) = self.steps.try_join_next() {
                self.settle(ended);
            }
        }
    }

    /// Executes the steps that are possible; returns when to look again.
    async fn round(&mut self, view: &View) -> Duration {
        let now = Instant::now();
        let node = self.host.node_id();
        let drain = self.follow_drain(view, view.drains().get(&node).map(AsRef::as_ref)).await;
        let scope = self.dirty_set.next(now, now + ROUND_EVERY);
        let looked = self.look(view, &scope);
        let mut round = self.compare(view, &looked, &scope);
        let steps = round.steps.len();
        round.steps.retain(|step| !self.under_way.contains(&step.group));
        self.decide_anew(&mut round.steps, &looked).await;
        self.carry_out(round.steps, &looked.configs);
        let members = self.tell_members(view, &scope).await;
        let now = Instant::now();
        match members.map(|untold| self.dirty_set.add(untold)) {
            Ok(()) => match round.next {
                None => {}
                // A full pass that did something continues at once.
                Some(next) if steps > 0 => self.go_on(scope, next, now),
                Some(_) => self.dirty_set.all_by(now + RETRY_AFTER),
            },
            Err(_) => self.dirty_set.all_by(now + RETRY_AFTER),
        }
        let pause = self.dirty_set.due(now) - now;
        let changing = (!self.changing.is_empty()).then_some(CHANGING_LOOK);
        [drain, changing].into_iter().flatten().fold(pause, Duration::min)
    }

    fn compare(&mut self, view: &View, looked: &Looked, scope: &Scope) -> Round {
        let local = self.local(&looked.held);
        if let Scope::Only(groups) = scope {
            return reconcile_only(view, local, groups, MAX_STEPS);
        }
        let round = reconcile(view, local, self.from, MAX_STEPS);
        self.from = round.next.unwrap_or(GroupId::new(0));
        self.tell_oddities(&round);
        round
    }

    fn local<'a>(&self, held: &'a BTreeMap<GroupId, Held>) -> Local<'a> {
        Local { node: self.host.node_id(), store: self.host.store_id(), held }
    }

    /// The steps that remain when the catalog is asked as it is: a change of it that was acknowledged
    /// before a group was looked at is not undone, and no replica is founded of a member that is
    /// replaced. Ends that were ordered stay ordered, of those replicas whose generation is known.
    async fn decide_anew(&mut self, steps: &mut Vec<Step>, looked: &Looked) {
        let ordered = |step: &Step| {
            matches!(step.action, Action::Destroy { .. }) && !self.is_unread(step.group)
        };
        let depends = |step: &Step| !ordered(step);
        let groups: BTreeSet<GroupId> =
            steps.iter().filter(|step| depends(step)).map(|step| step.group).collect();
        if groups.is_empty() {
            return;
        }
        steps.retain(|step| !depends(step));
        match fresh_view(&self.client, &mut self.view.clone()).await {
            Ok(view) => {
                let held = self.held_anew(&view, looked, &groups);
                let anew = reconcile_only(&view, self.local(&held), &groups, MAX_STEPS);
                steps.extend(anew.steps);
            }
            Err(error) => {
                tracing::warn!(%error, "the catalog is not followed; tried again");
                self.dirty_set.all_by(Instant::now() + RETRY_AFTER);
            }
        }
    }

    /// What a round had no room for is looked at by the next one.
    fn go_on(&mut self, scope: Scope, next: GroupId, now: Instant) {
        match scope {
            Scope::All => self.dirty_set.all_by(now),
            Scope::Only(mut groups) => self.dirty_set.add(groups.split_off(&next)),
        }
    }

    fn tell_oddities(&mut self, round: &Round) {
        let oddities = round.findings.len() + round.unnamed + usize::from(round.blocked.is_some());
        if oddities > 0 && oddities != self.told {
            if let Some(blocked) = &round.blocked {
                tracing::error!(%blocked, "no replicas are created here");
            }
            for finding in &round.findings {
                let (group, oddity) = (finding.group, finding.oddity);
                match oddity {
                    Oddity::Unknown => tracing::info!(%group, %oddity, "left alone"),
                    _ => tracing::warn!(%group, %oddity, "left alone"),
                }
            }
        }
        self.told = oddities;
    }

    /// Begins to carry steps out.
    fn carry_out(&mut self, steps: Vec<Step>, configs: &BTreeMap<GroupId, LogIndex>) {
        let mut fresh = Vec::new();
        for Step { group, action, reason } in steps {
            if self.under_way.len() >= MAX_UNDER_WAY {
                self.dirty_set.all_by(Instant::now() + RETRY_AFTER);
                break;
            }
            self.under_way.insert(group);
            match action {
                Action::Create { spec } => {
                    tracing::debug!(%group, %reason, "a replica is created");
                    fresh.push(spec);
                }
                Action::Destroy { incarnation } => {
                    tracing::info!(%group, incarnation, %reason, "a replica is destroyed");
                    let (host, machines) = (self.host.clone(), Arc::clone(&self.machines));
                    self.begin(group, destroy(host, machines, group, incarnation));
                }
                Action::Leave { replica } => {
                    tracing::info!(%group, %replica, %reason, "a replica is destroyed");
                    let machines = Arc::clone(&self.machines);
                    let clear = move || machines.destroy(group);
                    let (host, leaving) =
                        (self.host.clone(), Destruction::of(group, replica).clear(clear));
                    self.begin(group, async move {
                        host.destroy_replica(leaving).await.map_err(|error| error.to_string())
                    });
                }
                Action::SetRequirement { requirement } => {
                    let (host, seen) = (self.host.clone(), configs.get(&group).copied());
                    self.begin(group, async move {
                        let Some(replica) = host.group(group) else { return Ok(()) };
                        let changed = replica.require(requirement, seen).await;
                        changed.map(drop).map_err(|error| error.to_string())
                    });
                }
            }
        }
        for specs in fresh.chunks(CREATED_TOGETHER) {
            let (host, machines) = (self.host.clone(), Arc::clone(&self.machines));
            self.steps.spawn(create(host, machines, specs.to_vec()));
        }
    }

    fn begin(
        &mut self,
        group: GroupId,
        step: impl Future<Output = Result<(), String>> + Send + 'static,
    ) {
        self.steps.spawn(async move { Ended { groups: vec![group], failed: step.await.err() } });
    }

    /// Work is over; the groups that it was about can be looked at again.
    fn settle(&mut self, ended: Result<Ended, tokio::task::JoinError>) {
        let ended = match ended {
            Ok(ended) => ended,
            Err(error) => {
                tracing::error!(%error, "a step that the catalog intends panicked");
                // Which groups it was about is not known: a step with any of them may begin again,
                // for a group is held by one step at a time anyway.
                self.under_way.clear();
                self.dirty_set.all_by(Instant::now() + RETRY_AFTER);
                return;
            }
        };
        ended.groups.iter().for_each(|group| {
            self.under_way.remove(group);
        });
        if let Some(error) = ended.failed {
            let group = ended.groups.first();
            tracing::warn!(?group, error, "the catalog is not followed; tried again");
            self.dirty_set.all_by(Instant::now() + RETRY_AFTER);
        }
    }

    /// Reports to the catalog the members of the groups that are led here, where its record
    /// differs. Returns the groups that there was no room for. Where members change at the moment, what
    /// they end as is reported soon, and what they are meanwhile when everything is compared.
    async fn tell_members(
        &mut self,
        view: &View,
        scope: &Scope,
    ) -> Result<Vec<GroupId>, CatalogError> {
        let groups = match scope {
            Scope::All => self.host.groups(),
            Scope::Only(ids) => ids.iter().filter_map(|id| self.host.group(*id)).collect(),
        };
        let mut news: Vec<Operation> = Vec::new();
        for status in groups.iter().map(Group::status) {
            let changing = is_changing(&status);
            if changing {
                self.changing.insert(status.id);
            }
            if !changing || *scope == Scope::All {
                news.extend(news_of_members(view, &status));
            }
        }
        let untold = news.split_off(news.len().min(MAX_TOLD));
        let told = news.into_iter().map(|operation| self.tell(operation));
        stream::iter(told).buffer_unordered(TOLD_AT_ONCE).try_collect::<()>().await?;
        let group_of = |operation: &Operation| match operation.target() {
            Some(RecordKey::Group(group)) => Some(group),
            _ => None,
        };
        Ok(untold.iter().filter_map(group_of).collect())
    }

    async fn tell(&self, operation: Operation) -> Result<(), CatalogError> {
        match self.client.apply(operation).await {
            // Another node reported newer ones.
            Ok(_) | Err(CatalogError::Refused(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Drains this node while the catalog intends it. Returns when to look again, if soon.
    async fn follow_drain(&self, view: &View, intent: Option<&DrainIntent>) -> Option<Duration> {
        if let Some(intent) = intent.filter(|intent| self.drains.was_ended_in_doubt(intent)) {
            return self.end_recorded(intent).await;
        }
        let goes_on =
            |intent: &&DrainIntent| intent.keeps_leaders_away() && !self.drains.is_ended(intent.id);
        let Some(intent) = intent.filter(goes_on) else {
            let ours = self.drains.report().and_then(|report| report.intent);
            // A view from before the drain does not know that it is over.
            if ours.is_some_and(|ours| ours.begun() <= view.revision()) {
                tracing::info!("the drain of this node is over; it takes leaderships again");
                self.drains.end(ours);
            }
            return None;
        };
        self.drains.follow(intent);
        if intent.state == IntentState::Drained {
            return None;
        }
        let progress = self.drains.report()?.progress;
        if progress.state == DrainState::Running {
            return Some(DRAIN_LOOK);
        }
        if progress.left > 0 {
            return Some(RETRY_AFTER);
        }
        let operation = Operation::FinishDrain { node: intent.node, intent: intent.id };
        if let Err(error) = self.client.apply(operation).await {
            tracing::warn!(%error, "the end of a drain is not recorded in the catalog");
            return Some(RETRY_AFTER);
        }
        None
    }

    /// Ends a drain in the catalog that turned out to be recorded after an operator ended it here. What is
    /// under way here is another one.
    async fn end_recorded(&self, intent: &DrainIntent) -> Option<Duration> {
        let operation = Operation::EndDrain { node: intent.node, intent: intent.id };
        match self.client.apply(operation).await {
            Ok(_) => {
                tracing::info!("a drain of this node was recorded that had been ended; it is ended")
            }
            // A view from before its end.
            Err(CatalogError::Refused(_)) => {}
            Err(error) => {
                tracing::warn!(%error, "a drain that was ended here is still in the catalog");
                return Some(RETRY_AFTER);
            }
        }
        None
    }
}

/// Creates replicas: all with one write, or those that can be, one by one.
async fn create(host: Host, machines: Arc<dyn GroupMachines>, specs: Vec<GroupSpec>) -> Ended {
    let with_machine = |spec: &GroupSpec| -> Fresh {
        let (machines, spec) = (Arc::clone(&machines), spec.clone());
        let (group, kind) = (spec.id, spec.kind.clone());
        (spec, Box::new(move || machines.create(group, &kind)))
    };
    let (count, groups) = (specs.len(), specs.iter().map(|spec| spec.id).collect());
    if host.create_groups_with(specs.iter().map(with_machine).collect()).await.is_ok() {
        tracing::info!(count, "replicas are created as the catalog intends");
        return Ended { groups, failed: None };
    }
    let mut failed = None;
    for fresh in specs.iter().map(with_machine) {
        let (group, (spec, machine)) = (fresh.0.id, fresh);
        if let Err(error) = host.create_group_with(spec, machine).await {
            tracing::warn!(%group, %error, "a replica is not created; tried again");
            failed.get_or_insert_with(|| error.to_string());
        }
    }
    Ended { groups, failed }
}

/// Destroys the replica of one generation of the group, and its state with it.
async fn destroy(
    host: Host,
    machines: Arc<dyn GroupMachines>,
    group: GroupId,
    generation: u32,
) -> Result<(), String> {
    let clear = move || machines.destroy(group);
    let destruction = Destruction::new(group).generation(generation).clear(clear);
    host.destroy_replica(destruction).await.map_err(|error| error.to_string())
}
