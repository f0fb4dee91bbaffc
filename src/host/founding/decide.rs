//! Whether a founder may create the first replicas of a cluster: a state machine without clock, disk
//! or network.
//!
//! Each founder makes durable which disk (`StoreId`) every founder has. Once it knows all of them the
//! set is *recorded* and never changes. It may found when every founder
//! has recorded the same set. The record of a decision outlives restarts.
//!
//! **Invariant:** a store records at most one set. Two foundings with different sets therefore have no
//! store in common: a second one needs every founder to have lost its disk.
//!
//! Reports state what is durable on one store, which only grows. So they may be lost, repeated,
//! reordered, or older than a crash.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use shardhost_storage::NodeId;

use shardhost_proto::hash::xxh64;

/// The number that a log was given when it was created. A node whose disk was lost has another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct StoreId(u64);

impl StoreId {
    pub const fn new(id: u64) -> Self {
        Self(id)
    }
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The store of each founder.
pub(crate) type Stores = BTreeMap<NodeId, StoreId>;

/// How far a founder is. A store goes through the phases in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Not every founder's store is known.
    Gathering,
    /// The stores of all founders are known and do not change.
    Recorded,
    /// Every founder has recorded the same stores: the groups may be created here.
    Decided,
    /// The log holds groups that were not founded by such an agreement: an earlier version founded
    /// them, or this node was added to them.
    Holds,
}

/// The durable state of an initial member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// The log that the record belongs to.
    pub store: StoreId,
    pub phase: Phase,
    /// Who founds. Follows the configuration until the stores are recorded.
    pub founders: BTreeSet<NodeId>,
    /// The store of each founder that reported, this one included.
    pub stores: Stores,
}

impl Record {
    /// A name of the founding, equal on every founder and never 0; `None`: it is not decided.
    pub fn founding(&self) -> Option<u64> {
        if self.phase != Phase::Decided {
            return None;
        }
        let founders = self.stores.iter();
        let bytes: Vec<u8> = founders
            .flat_map(|(node, store)| [node.get(), store.get()])
            .flat_map(u64::to_le_bytes)
            .collect();
        Some(xxh64(&bytes, 0).max(1))
    }
}

/// The report of an initial member about itself; durable there when it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    pub node: NodeId,
    pub record: Record,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Heard {
    /// From the recorded store; the most advanced phase.
    expected: Option<Record>,
    /// The last one from another store, or from a founder that is not in the record.
    other: Option<Record>,
}

/// Whether the groups may be created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// They may, now and at any later time.
    Found,
    /// Not yet, or not at all. Never empty.
    Wait(Vec<Cause>),
}

/// What keeps a founder from founding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// A founder has not reported since this process started.
    NoAnswer { node: NodeId },
    /// An initial member has not received the reports of all others.
    NotReady { node: NodeId },
    /// A founder recorded other stores than this node.
    Disagrees { node: NodeId },
    /// A founder's configuration names other founders.
    OtherFounders { node: NodeId, theirs: BTreeSet<NodeId> },
    /// A founder lost its disk after it had reported.
    DiskReplaced { node: NodeId, known: StoreId, now: StoreId },
    /// A founder remembers another disk of this node.
    OwnDiskReplaced { by: NodeId, known: StoreId, own: StoreId },
    /// The groups exist, and the disk of this node is not one of those that founded them.
    AlreadyFounded { by: NodeId, own: Option<StoreId> },
    /// The record belongs to another log than the one in the data directory.
    LogReplaced { recorded: StoreId, own: StoreId },
    /// The configuration names other founders than those that are recorded.
    FoundersChanged { recorded: BTreeSet<NodeId> },
}

impl Cause {
    /// Whether waiting does not help: an operator has to act.
    pub const fn needs_operator(&self) -> bool {
        !matches!(self, Self::NoAnswer { .. } | Self::NotReady { .. })
    }
}

/// Node ids in a sentence.
pub(crate) fn list(nodes: &BTreeSet<NodeId>) -> String {
    nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAnswer { node } => write!(f, "node {node} does not answer"),
            Self::NotReady { node } => {
                write!(f, "node {node} has not heard from every founder")
            }
            Self::Disagrees { node } => write!(
                f,
                "node {node} recorded other disks of the founders than this node; remove the data \
                 directories of founders that hold no data"
            ),
            Self::OtherFounders { node, theirs } => write!(
                f,
                "node {node} names other founders: {}; make the configurations equal",
                list(theirs)
            ),
            Self::DiskReplaced { node, known, now } => write!(
                f,
                "node {node} has disk {now}, and had disk {known} when it answered first; if no \
                 founder holds data, remove the data directories of all of them"
            ),
            Self::OwnDiskReplaced { by, known, own } => write!(
                f,
                "node {by} remembers disk {known} of this node, which has disk {own}; if no founder \
                 holds data, remove the data directories of all of them"
            ),
            Self::AlreadyFounded { by, own: Some(own) } => write!(
                f,
                "node {by} holds the groups, which were founded with disk {own} of this node; that \
                 disk is lost: `shardhost member rebuild` gives this node new replicas"
            ),
            Self::AlreadyFounded { by, own: None } => write!(
                f,
                "node {by} holds the groups, which were founded without the disk of this node; add \
                 this node to them; where it is a member, `shardhost member rebuild` gives it a new \
                 replica"
            ),
            Self::LogReplaced { recorded, own } => write!(
                f,
                "the data directory has log {own} and a record of log {recorded}; the log is lost: \
                 remove the data directory, start, and have `shardhost member rebuild` give this node \
                 new replicas"
            ),
            Self::FoundersChanged { recorded } => write!(
                f,
                "the founders are recorded as nodes {}; put the configuration back",
                list(recorded)
            ),
        }
    }
}

/// A guard that a test takes away, to show that the simulation notices.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sabotage {
    /// Creates the cluster unless a report says that the groups exist.
    FoundOnSilence,
    /// Founds when the stores of all founders are known here, recorded elsewhere or not.
    FoundWhenKnown,
    /// Lets a founder that comes back with another disk take its place in a recorded set.
    ChangeRecorded,
    /// Forgets the record in a crash.
    ForgetRecord,
}

/// One founder's part in the agreement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Agreement {
    own: NodeId,
    store: StoreId,
    /// As the configuration names them.
    founders: BTreeSet<NodeId>,
    /// Initial members that are not waited for, by an operator's decision.
    without: BTreeSet<NodeId>,
    record: Record,
    heard: BTreeMap<NodeId, Heard>,
    #[cfg(test)]
    pub sabotage: Option<Sabotage>,
}

impl Agreement {
    /// Begins from the durable state. `founders` contains `own`; `without` contains neither `own`
    /// nor a node that is not an initial member.
    pub fn new(
        own: NodeId,
        store: StoreId,
        founders: BTreeSet<NodeId>,
        without: BTreeSet<NodeId>,
        stored: Option<Record>,
    ) -> Self {
        let fresh = || Record {
            store,
            phase: Phase::Gathering,
            founders: founders.clone(),
            stores: Stores::from([(own, store)]),
        };
        let mut record = stored.unwrap_or_else(fresh);
        let reopened = record.phase == Phase::Recorded
            && without.iter().any(|node| record.stores.contains_key(node));
        if reopened && record.store == store {
            // The operator takes the promise back that the record is.
            record.phase = Phase::Gathering;
        }
        if record.phase == Phase::Gathering && record.store == store {
            record.founders.clone_from(&founders);
            record.stores.retain(|node, _| founders.contains(node) && !without.contains(node));
        }
        let mut agreement = Self {
            own,
            store,
            founders,
            without,
            record,
            heard: BTreeMap::new(),
            #[cfg(test)]
            sabotage: None,
        };
        agreement.advance();
        agreement
    }

    /// What must be durable before [`Agreement::report`] is sent.
    pub const fn record(&self) -> &Record {
        &self.record
    }

    /// The report of this initial member.
    pub fn report(&self) -> Report {
        Report { node: self.own, record: self.record.clone() }
    }

    /// The others that are to agree.
    pub fn others(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.founders.iter().copied().filter(|node| *node != self.own)
    }

    /// The log holds the groups.
    pub fn holds_groups(&mut self) {
        if self.record.phase < Phase::Decided && self.record.store == self.store {
            self.record.phase = Phase::Holds;
        }
    }

    /// Takes over the report of another initial member.
    pub fn receive(&mut self, report: Report) {
        let Report { node, record } = report;
        if node == self.own || !self.founders.contains(&node) {
            return;
        }
        if self.admits(node, &record) {
            // A disk that was replaced before anything was recorded is harmless.
            self.record.stores.insert(node, record.store);
        }
        self.hear(node, record);
        self.advance();
    }

    /// Whether a founder's store may be noted: it has founded nothing, and means the same founders.
    fn admits(&self, node: NodeId, record: &Record) -> bool {
        let changes = self.record.phase == Phase::Gathering || self.is_sabotaged_by_change();
        changes
            && self.record.store == self.store
            && record.phase <= Phase::Recorded
            && record.founders == self.founders
            && !self.without.contains(&node)
    }

    fn hear(&mut self, node: NodeId, record: Record) {
        let expected = self.record.stores.get(&node) == Some(&record.store);
        let heard = self.heard.entry(node).or_default();
        if !expected {
            heard.other = Some(record);
            return;
        }
        // Its report from before this node knew that disk.
        heard.other.take_if(|other| other.store == record.store);
        if heard.expected.as_ref().is_none_or(|known| known.phase <= record.phase) {
            heard.expected = Some(record);
        }
    }

    fn advance(&mut self) {
        if self.record.store != self.store || self.record.phase >= Phase::Decided {
            return;
        }
        self.adopt_decision();
        let needed = self.founders.difference(&self.without);
        let complete = needed.into_iter().all(|node| self.record.stores.contains_key(node));
        if self.record.phase == Phase::Gathering && complete {
            self.record.phase = Phase::Recorded;
        }
        if self.record.phase == Phase::Recorded && self.everybody_recorded_the_same() {
            self.record.phase = Phase::Decided;
        }
    }

    /// A founder that has decided knows that this store had recorded the same.
    fn adopt_decision(&mut self) {
        let records = self.heard.values().flat_map(|one| one.expected.iter().chain(&one.other));
        let decided = records.into_iter().find(|record| {
            record.phase == Phase::Decided && record.stores.get(&self.own) == Some(&self.store)
        });
        if let Some(decided) = decided.cloned() {
            self.record = Record { store: self.store, ..decided };
        }
    }

    fn everybody_recorded_the_same(&self) -> bool {
        if self.is_sabotaged_by_haste() {
            return true;
        }
        let others = self.record.stores.keys().filter(|node| **node != self.own);
        others.into_iter().all(|node| {
            let heard = self.heard.get(node).and_then(|heard| heard.expected.as_ref());
            heard.is_some_and(|record| self.agrees(record))
        })
    }

    fn agrees(&self, record: &Record) -> bool {
        matches!(record.phase, Phase::Recorded | Phase::Decided)
            && record.founders == self.record.founders
            && record.stores == self.record.stores
    }

    /// Whether the groups may be created here.
    pub fn verdict(&self) -> Verdict {
        let Record { store: recorded, phase, founders, .. } = &self.record;
        if *recorded != self.store || *phase == Phase::Holds {
            let cause = Cause::LogReplaced { recorded: *recorded, own: self.store };
            return Verdict::Wait(vec![cause]);
        }
        if *phase > Phase::Gathering && *founders != self.founders {
            return Verdict::Wait(vec![Cause::FoundersChanged { recorded: founders.clone() }]);
        }
        if *phase == Phase::Decided {
            return Verdict::Found;
        }
        let mut causes: Vec<Cause> = self.others().filter_map(|node| self.cause_of(node)).collect();
        if self.is_sabotaged_by_silence() {
            causes.retain(|cause| matches!(cause, Cause::AlreadyFounded { .. }));
            return if causes.is_empty() { Verdict::Found } else { Verdict::Wait(causes) };
        }
        if causes.is_empty() {
            causes.push(Cause::NotReady { node: self.own });
        }
        Verdict::Wait(causes)
    }

    /// What this node waits for at another founder; `None`: nothing.
    fn cause_of(&self, node: NodeId) -> Option<Cause> {
        let Some(heard) = self.heard.get(&node) else {
            return (!self.without.contains(&node)).then_some(Cause::NoAnswer { node });
        };
        // Its report about the present disk counts rather than an earlier one.
        let Some(record) = heard.other.as_ref().or(heard.expected.as_ref()) else {
            return Some(Cause::NoAnswer { node });
        };
        let own = record.stores.get(&self.own).copied();
        if record.phase >= Phase::Decided {
            let own = own.filter(|own| *own != self.store);
            return Some(Cause::AlreadyFounded { by: node, own });
        }
        if self.without.contains(&node) {
            return None;
        }
        let recorded = |phase| phase == Phase::Recorded;
        if let Some(known) = own.filter(|own| *own != self.store && recorded(record.phase)) {
            return Some(Cause::OwnDiskReplaced { by: node, known, own: self.store });
        }
        if record.founders != self.founders {
            return Some(Cause::OtherFounders { node, theirs: record.founders.clone() });
        }
        let known = self.record.stores.get(&node).copied();
        let replaced = |known: &StoreId| *known != record.store && recorded(self.record.phase);
        if let Some(known) = known.filter(replaced) {
            return Some(Cause::DiskReplaced { node, known, now: record.store });
        }
        match record.phase {
            Phase::Recorded if self.agrees(record) => None,
            Phase::Recorded if self.record.phase == Phase::Recorded => {
                Some(Cause::Disagrees { node })
            }
            _ => Some(Cause::NotReady { node }),
        }
    }
}

#[cfg(test)]
impl Agreement {
    fn is_sabotaged_by_silence(&self) -> bool {
        self.sabotage == Some(Sabotage::FoundOnSilence)
    }
    fn is_sabotaged_by_haste(&self) -> bool {
        self.sabotage == Some(Sabotage::FoundWhenKnown)
    }
    fn is_sabotaged_by_change(&self) -> bool {
        self.sabotage == Some(Sabotage::ChangeRecorded)
    }
}

#[cfg(not(test))]
#[allow(clippy::unused_self, reason = "tests look at it")]
impl Agreement {
    const fn is_sabotaged_by_silence(&self) -> bool {
        false
    }
    const fn is_sabotaged_by_haste(&self) -> bool {
        false
    }
    const fn is_sabotaged_by_change(&self) -> bool {
        false
    }
}
