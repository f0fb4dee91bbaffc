//! Doing on this host what the catalog intends: creating and destroying replicas, having groups
//! require what they should, draining; and telling the catalog who belongs to the groups led here.
//!
//! What is to be done is decided by [`reconcile`]; here it is carried out. A round is about the groups
//! that changed; everything is compared from time to time, and when something failed, so a host that
//! was away catches up by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;
use shardhost_groups::leadership::{GroupSelector, HookKind, LeadershipEvent};
use shardhost_groups::runtime::{Destruction, MachineFactory};
use shardhost_groups::{GroupId, GroupSpec, GroupStatus, NodeId, ReplicaId, Role};
use shardhost_storage::Membership;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::agenda::{Agenda, Scope};
use super::client::{CatalogClient, CatalogError};
use super::{CatalogView, GroupMachines, SYSTEM_GROUP, now_ms};
use crate::host::Host;
use crate::policy::catalog::{
    Action, DrainIntent, DrainState as IntentState, Held, HeldState, Local, Oddity, Operation,
    RecordKey, Round, Step, View, reconcile, reconcile_only,
};
use crate::policy::drains::Drains;
use crate::policy::{DrainOptions, DrainState, Fallback};

/// However quiet it is, everything is compared this often.
const ROUND_EVERY: Duration = Duration::from_secs(5);
/// After a round in which something could not be done.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// While this node is being drained: between two looks at how far that is.
const DRAIN_LOOK: Duration = Duration::from_millis(100);
/// From what happened to the round about it, so that a burst of changes makes a few rounds.
const GATHER: Duration = Duration::from_millis(10);
/// Steps of one round.
const MAX_STEPS: usize = 4_096;
/// Groups of which a round tells the catalog the members.
const MAX_TOLD: usize = 256;
/// Commands about members under way.
const TOLD_AT_ONCE: usize = 32;

/// Carries out what the catalog intends, until `stop`.
pub(super) async fn keep(
    host: Host,
    client: CatalogClient,
    view: watch::Receiver<CatalogView>,
    machines: Arc<dyn GroupMachines>,
    drains: Arc<Drains>,
    stop: CancellationToken,
) {
    let led = Arc::new(Led::default());
    let noted = Arc::clone(&led);
    let note = move |event: &LeadershipEvent| noted.note(event.group());
    let hook = host.on_leadership(GroupSelector::All, HookKind::Dispatched, note);
    let agenda = Agenda::new(host.node_id(), Instant::now());
    let from = GroupId::new(0);
    let keeper = Keeper { host, client, view, machines, drains, agenda, from, told: 0 };
    stop.run_until_cancelled(keeper.run(&led)).await;
    drop(hook);
}

/// Groups whose leadership changed here since the last round: at most all that are here.
#[derive(Default)]
struct Led {
    groups: Mutex<BTreeSet<GroupId>>,
    noted: Notify,
}

impl Led {
    fn note(&self, group: GroupId) {
        self.groups.lock().insert(group);
        self.noted.notify_one();
    }

    fn take(&self) -> BTreeSet<GroupId> {
        std::mem::take(&mut *self.groups.lock())
    }
}

/// A replica that is to be created, and what makes its state machine.
type Fresh = (GroupSpec, MachineFactory);

struct Keeper {
    host: Host,
    client: CatalogClient,
    view: watch::Receiver<CatalogView>,
    machines: Arc<dyn GroupMachines>,
    drains: Arc<Drains>,
    agenda: Agenda,
    /// Where the next round about everything begins.
    from: GroupId,
    /// Oddities that were told to people, so that they are told once.
    told: usize,
}

impl Keeper {
    async fn run(mut self, led: &Led) {
        loop {
            let known = self.view.borrow_and_update().clone();
            let pause = match known {
                Some(view) => {
                    self.agenda.take_over(&view, Instant::now());
                    self.agenda.add(led.take());
                    self.round(&view).await
                }
                None => ROUND_EVERY,
            };
            tokio::select! {
                changed = self.view.changed() => if changed.is_err() { return },
                () = led.noted.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
            tokio::time::sleep(GATHER).await;
        }
    }

    /// Does what can be done; says when to look again.
    async fn round(&mut self, view: &View) -> Duration {
        let now = Instant::now();
        let scope = self.agenda.next(now, now + ROUND_EVERY);
        let round = self.compare(view, &scope);
        let steps = round.steps.len();
        let failed = self.carry_out(round.steps).await;
        let members = self.tell_members(view, &scope).await;
        let node = self.host.node_id();
        let drain = self.follow_drain(view, view.drains().get(&node).map(AsRef::as_ref)).await;
        let members = members.map(|untold| self.agenda.add(untold));
        let now = Instant::now();
        match (failed, members, round.next) {
            (0, Ok(()), None) => {}
            // A full round that did something goes on at once.
            (0, Ok(()), Some(next)) if steps > 0 => self.go_on(scope, next, now),
            _ => self.agenda.all_by(now + RETRY_AFTER),
        }
        let pause = self.agenda.due(now) - now;
        drain.map_or(pause, |look| look.min(pause))
    }

    fn compare(&mut self, view: &View, scope: &Scope) -> Round {
        let held = match scope {
            Scope::All => self.all_held(view),
            Scope::Only(groups) => self.held(view, groups.iter().copied()),
        };
        let (node, store) = (self.host.node_id(), self.host.store_id());
        let local = Local { node, store, held: &held };
        if let Scope::Only(groups) = scope {
            return reconcile_only(view, local, groups, MAX_STEPS);
        }
        let round = reconcile(view, local, self.from, MAX_STEPS);
        self.from = round.next.unwrap_or(GroupId::new(0));
        self.tell_oddities(&round);
        round
    }

    /// What a round had no room for is looked at by the next one.
    fn go_on(&mut self, scope: Scope, next: GroupId, now: Instant) {
        match scope {
            Scope::All => self.agenda.all_by(now),
            Scope::Only(mut groups) => self.agenda.add(groups.split_off(&next)),
        }
    }

    /// What this host holds, with what is left of groups that it held.
    fn all_held(&self, view: &View) -> BTreeMap<GroupId, Held> {
        let open = self.host.groups().into_iter().map(|group| group.id());
        let node = self.host.node_id();
        let founded = view.groups().values().filter(|group| group.founders.contains(&node));
        let groups: BTreeSet<GroupId> = open.chain(founded.map(|group| group.id)).collect();
        self.held(view, groups)
    }

    /// What this host holds of these groups, or what is left of them if it founded them.
    fn held(
        &self,
        view: &View,
        groups: impl IntoIterator<Item = GroupId>,
    ) -> BTreeMap<GroupId, Held> {
        let node = self.host.node_id();
        let founded = |id| view.groups().get(&id).is_some_and(|one| one.founders.contains(&node));
        let held = |id| match self.host.group(id) {
            Some(group) => Some(held_of(&group.status())),
            None if founded(id) => self.left_of(id),
            None => None,
        };
        let groups = groups.into_iter().filter(|id| *id != SYSTEM_GROUP);
        groups.filter_map(|id| Some((id, held(id)?))).collect()
    }

    /// What the log holds of a group that is not open here.
    fn left_of(&self, id: GroupId) -> Option<Held> {
        let stored = self.host.stored_group(id);
        let tombstone = stored.and_then(|stored| match stored {
            // On its way in or out.
            Some(meta) => Ok(Some((life_of_members(&meta.membership), HeldState::Ending))),
            None => {
                let left = self.host.tombstone(id)?;
                Ok(left.map(|replica| (life_of(replica), HeldState::Gone)))
            }
        });
        match tombstone {
            Ok(left) => left.map(|(incarnation, state)| Held { incarnation, state }),
            // What is not known to be absent is not created.
            Err(error) => {
                tracing::error!(group = %id, %error, "what is left of a group is not known");
                Some(Held { incarnation: 0, state: HeldState::Ending })
            }
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

    /// Carries steps out; says how many failed.
    async fn carry_out(&self, steps: Vec<Step>) -> usize {
        let (mut fresh, mut failed) = (Vec::new(), 0);
        for Step { group, action, reason } in steps {
            let done = match action {
                Action::Create { spec } => {
                    tracing::debug!(%group, %reason, "a replica is created");
                    fresh.push(spec);
                    Ok(())
                }
                Action::Destroy { incarnation } => {
                    tracing::info!(%group, incarnation, %reason, "a replica is destroyed");
                    self.destroy(group, incarnation).await
                }
                Action::SetRequirement { requirement } => match self.host.group(group) {
                    Some(replica) => {
                        let changed = replica.require(requirement, None).await;
                        changed.map(drop).map_err(|error| error.to_string())
                    }
                    None => Ok(()),
                },
            };
            if let Err(error) = done {
                tracing::warn!(%group, %reason, error, "the catalog is not followed; tried again");
                failed += 1;
            }
        }
        failed + self.create(fresh).await
    }

    /// Creates replicas: all with one write, or those that can be, one by one.
    async fn create(&self, specs: Vec<GroupSpec>) -> usize {
        if specs.is_empty() {
            return 0;
        }
        let count = specs.len();
        let fresh = specs.iter().cloned().map(|spec| self.with_machine(spec)).collect();
        if self.host.create_groups_with(fresh).await.is_ok() {
            tracing::info!(count, "replicas are created as the catalog intends");
            return 0;
        }
        let mut failed = 0;
        for spec in specs {
            let (spec, machine) = self.with_machine(spec);
            let group = spec.id;
            if let Err(error) = self.host.create_group_with(spec, machine).await {
                tracing::warn!(%group, %error, "a replica is not created; tried again");
                failed += 1;
            }
        }
        failed
    }

    fn with_machine(&self, spec: GroupSpec) -> Fresh {
        let machines = Arc::clone(&self.machines);
        let (group, kind) = (spec.id, spec.kind.clone());
        (spec, Box::new(move || machines.create(group, &kind)))
    }

    /// Destroys the replica of one generation of the group, and its state with it.
    async fn destroy(&self, group: GroupId, generation: u32) -> Result<(), String> {
        let machines = Arc::clone(&self.machines);
        let clear = move || machines.destroy(group);
        let destruction = Destruction::new(group).generation(generation).clear(clear);
        self.host.destroy_replica(destruction).await.map_err(|error| error.to_string())
    }

    /// Tells the catalog who belongs to the groups that are led here, where it knows otherwise.
    /// Returns the groups that there was no room for.
    async fn tell_members(&self, view: &View, scope: &Scope) -> Result<Vec<GroupId>, CatalogError> {
        let groups = match scope {
            Scope::All => self.host.groups(),
            Scope::Only(ids) => ids.iter().filter_map(|id| self.host.group(*id)).collect(),
        };
        let news = groups.iter().filter_map(|group| news_of_members(view, &group.status()));
        let mut news: Vec<Operation> = news.collect();
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
            // Somebody told it what is newer.
            Ok(_) | Err(CatalogError::Refused(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Drains this node while the catalog intends it. Says when to look again, if soon.
    async fn follow_drain(&self, view: &View, intent: Option<&DrainIntent>) -> Option<Duration> {
        let report = self.drains.report();
        let ours = report.as_ref().and_then(|report| report.intent);
        let goes_on =
            |intent: &&DrainIntent| intent.keeps_leaders_away() && !self.drains.is_ended(intent.id);
        let intent = intent.filter(goes_on);
        match (intent, report) {
            (None, _) => {
                // A view from before the drain does not know that it is over.
                if ours.is_some_and(|ours| ours.begun() <= view.revision()) {
                    tracing::info!("the drain of this node is over; it takes leaderships again");
                    self.drains.end(ours);
                }
                None
            }
            (Some(intent), Some(report)) if ours == Some(intent.id) => {
                match (report.progress.state, intent.state) {
                    (DrainState::Done, IntentState::Draining) if report.progress.left == 0 => {
                        let operation =
                            Operation::FinishDrain { node: intent.node, intent: intent.id };
                        if let Err(error) = self.client.apply(operation).await {
                            tracing::warn!(%error, "the catalog is not told of the end of a drain");
                            return Some(RETRY_AFTER);
                        }
                        None
                    }
                    (DrainState::Running, _) => Some(DRAIN_LOOK),
                    _ => None,
                }
            }
            (Some(intent), _) => {
                self.drains.end(ours);
                let begun = self.drains.begin(
                    options_of(intent),
                    intent.owner.to_string(),
                    Some(intent.id),
                );
                if let Err(error) = begun {
                    tracing::error!(%error, "the drain that the catalog intends does not begin");
                }
                Some(DRAIN_LOOK)
            }
        }
    }
}

fn options_of(intent: &DrainIntent) -> DrainOptions {
    let left = Duration::from_millis(intent.deadline_ms.saturating_sub(now_ms()));
    // Whatever is to happen then, the catalog does, and this node follows.
    DrainOptions::default().deadline(left).fallback(Fallback::KeepDraining)
}

fn held_of(status: &GroupStatus) -> Held {
    let state = match &status.role {
        Role::Leader => HeldState::Leads(status.membership.requirement.clone()),
        Role::Failed(_) => HeldState::Failed,
        Role::Stopped | Role::Removed => HeldState::Ending,
        _ => HeldState::Follows,
    };
    Held { incarnation: life_of(status.replica), state }
}

/// How many lives a group had before the one that a replica belongs to.
pub(super) const fn life_of(replica: ReplicaId) -> u32 {
    (replica.get() >> 32) as u32
}

fn life_of_members(membership: &Membership) -> u32 {
    membership.members.keys().next_back().map_or(0, |replica| life_of(*replica))
}

/// What the catalog is to be told of the members of a group that is led here, if it knows the group
/// with others.
fn news_of_members(view: &View, status: &GroupStatus) -> Option<Operation> {
    let known = view.groups().get(&status.id)?;
    if !status.is_leader() || !status.serving && status.caretaker.is_none() {
        return None;
    }
    let nodes: BTreeSet<NodeId> =
        status.membership.members.values().map(|member| member.node).collect();
    let known_index = known.reported.as_ref().map(|members| members.config_index);
    let config_index = status.config_index();
    let newer = known_index.is_none_or(|known| known < config_index);
    let group = status.id;
    (newer && !nodes.iter().eq(known.members())).then_some(Operation::RecordMembers {
        group,
        config_index,
        nodes,
    })
}
