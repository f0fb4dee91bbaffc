//! The catalog and the rules of its changes. Pure: no clock, no chance, no I/O; what varies comes
//! in commands.
//!
//! Every changed record takes the next revision, and the feed lists which. A refused command
//! changes nothing: each operation checks everything before its first change.
//!
//! No time of day is kept. A command's time is compared with the times in it, and is forgotten: one
//! proposer whose clock is ahead does not make the commands of others look late. Each drain has a
//! separate clock, which begins with that of the command that began it and is advanced by the time
//! that passed on the leader of the system group (`PassTime`): no clock that jumps ends a drain,
//! and its end is an entry of the log like any other change.

mod drains;
mod groups;
mod nodes;
mod rules;
mod shard_map;
mod tokens;
mod version;
mod weight;

use std::collections::VecDeque;
use std::sync::Arc;

use super::command::{Command, Operation, check_limit};
use super::digest::Digest;
use super::error::{Refusal, Subject};
use super::feed::{Compacted, Feed};
use super::record::{Members, PlannedMoves, PlannerMode, Record, RecordKey, Revision, Settings};
use super::reply::{Done, Reply};
use super::view::View;
use super::{MAX_CATALOG_BYTES, convert};

/// The state of the system group: what the cluster intends, and the last changes of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    view: View,
    feed: Feed,
    /// No group that is not listed begins a life below this: the ends that were forgotten.
    ended_floor: u32,
    /// Sum of the weights of all records.
    weight: usize,
}

impl Catalog {
    /// What it holds.
    #[must_use]
    pub const fn view(&self) -> &View {
        &self.view
    }

    /// Which record each revision after `since` changed, the oldest first.
    ///
    /// # Errors
    /// [`Compacted`]: changes since then are not known any more, or were never.
    pub fn changes(
        &self,
        since: Revision,
    ) -> Result<impl Iterator<Item = (Revision, RecordKey)> + '_, Compacted> {
        self.feed.after(since)
    }

    /// Carries out a command, or refuses it and changes nothing.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn apply(&mut self, command: &Command) -> Reply {
        command.check()?;
        self.check_expected(command)?;
        let now_ms = command.now_ms;
        match &command.operation {
            Operation::CreateGroup(new) => self.create_group(new),
            Operation::SetRequirement { group, requirement } => {
                self.set_requirement(*group, requirement)
            }
            Operation::SetPlacement { group, placement } => self.set_placement(*group, placement),
            Operation::RecordMembers {
                group,
                config_index,
                nodes,
                founding,
                learners,
                generation,
            } => {
                let told = Members {
                    config_index: *config_index,
                    nodes: convert::sorted(nodes.clone()),
                    founding: founding.clone().map(convert::sorted),
                    learners: learners.clone().map(convert::sorted),
                };
                self.record_members(*group, told, *generation)
            }
            Operation::DestroyGroup { group, generation } => {
                self.destroy_group(*group, *generation)
            }
            Operation::FinishDestroy { group } => self.finish_destroy(*group),
            Operation::PutNode(new) => self.put_node(new),
            Operation::Advertise { node, incarnation, capabilities } => {
                self.advertise(*node, *incarnation, capabilities)
            }
            Operation::RemoveNode { node } => self.remove_node(*node),
            Operation::SetPlannerMode { mode } => self.set_planner_mode(*mode),
            Operation::SetPlannedMoves { moves, reason } => {
                self.set_planned_moves(*moves, reason, now_ms)
            }
            Operation::BeginDrain(new) => self.begin_drain(new, now_ms),
            Operation::ExtendDrain { node, intent, deadline_ms, expires_ms } => {
                self.extend_drain(*node, *intent, now_ms, *deadline_ms, *expires_ms)
            }
            Operation::FinishDrain { node, intent } => self.finish_drain(*node, *intent),
            Operation::EndDrain { node, intent } => self.end_drain(*node, *intent),
            Operation::Tick => Ok(self.tick(now_ms)),
            Operation::FoundShardMap { map } => self.found_shard_map(map),
            Operation::SetReplicas { replicas } => self.set_replicas(*replicas),
            Operation::RaiseVersion { version, prepared } => self.raise_version(*version, prepared),
            Operation::PutToken(new) => self.put_token(new, now_ms),
            Operation::RemoveToken { id } => self.remove_token(*id),
            Operation::PutRule(rule) => self.put_rule(rule),
            Operation::RemoveRule { name } => self.remove_rule(name),
            Operation::PassTime { node, intent, passed_ms } => {
                self.pass_time(*node, *intent, *passed_ms)
            }
        }
    }

    /// A checksum over everything that is replicated, equal where the states are.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let mut digest = Digest::default();
        digest.add_number(self.view.revision().get());
        digest.add_number(self.ended_floor.into());
        for record in self.view.all() {
            digest.add_message(&convert::record_to_message(&record));
        }
        for key in self.feed.keys() {
            digest.add_message(&convert::key_to(key));
        }
        digest.value()
    }

    /// A catalog of these parts, which come from a snapshot.
    pub(super) fn from_parts(view: View, keys: VecDeque<RecordKey>, ended_floor: u32) -> Self {
        let weight = view.all().map(|record| weight::of(&record)).sum();
        let feed = Feed::new(view.revision(), keys);
        Self { view, feed, ended_floor, weight }
    }

    pub(super) fn last_keys(&self) -> impl ExactSizeIterator<Item = RecordKey> + '_ {
        self.feed.keys()
    }

    pub(super) const fn ended_floor(&self) -> u32 {
        self.ended_floor
    }

    fn check_expected(&self, command: &Command) -> Result<(), Refusal> {
        let (Some(expected), Some(record)) = (command.expected, command.operation.target()) else {
            return Ok(());
        };
        match self.view.revision_of(record) {
            actual if actual == expected => Ok(()),
            actual => Err(Refusal::WrongRevision { record, expected, actual }),
        }
    }

    fn set_planner_mode(&mut self, mode: PlannerMode) -> Reply {
        let settings = Settings { mode, ..self.view.settings().clone() };
        self.store(Record::Settings(Arc::new(settings)))
    }

    fn set_planned_moves(&mut self, moves: PlannedMoves, reason: &str, now_ms: u64) -> Reply {
        let old = self.view.settings();
        let same = old.moves == moves && *old.reason == *reason;
        let since_ms = if same { old.since_ms } else { now_ms };
        let settings = Settings { moves, reason: reason.into(), since_ms, ..old.clone() };
        self.store(Record::Settings(Arc::new(settings)))
    }

    /// Stores a record that is as it is to be but for its revision, which is still the old one:
    /// then one that is as it was is found to be.
    fn store(&mut self, record: Record) -> Reply {
        let old = self.view.record(record.key());
        if old.as_ref() == Some(&record) {
            return Ok(Done::unchanged(record.revision()));
        }
        let before = old.as_ref().map_or(0, weight::of);
        let after = self.weight - before + weight::of(&record);
        check_limit(Subject::CatalogBytes, after, MAX_CATALOG_BYTES)?;
        Ok(Done::changed(self.put(record)))
    }

    /// Stores a record, whatever room it takes: for those that shrink the catalog or must not be
    /// refused.
    fn put(&mut self, mut record: Record) -> Revision {
        let key = record.key();
        self.weight -= self.view.record(key).as_ref().map_or(0, weight::of);
        self.weight += weight::of(&record);
        let revision = self.feed.push(key);
        record.set_revision(revision);
        self.view.put(record);
        revision
    }

    /// Removes a record, which is there.
    fn remove(&mut self, key: RecordKey) -> Revision {
        self.weight -= self.view.record(key).as_ref().map_or(0, weight::of);
        let revision = self.feed.push(key);
        self.view.remove(key);
        self.view.advance(revision);
        revision
    }
}
