//! What a host has to do so that it holds what the catalog intends. Pure.
//!
//! **Nothing is destroyed that the catalog does not name.** A replica is destroyed only when the
//! catalog ordered it for its group and its generation. A group that the catalog does not know, or
//! knows in another generation, is left alone and reported: a catalog that was lost, or is older
//! than the replicas, deletes nothing.
//!
//! **Nothing is created twice.** A founder whose disk is younger than the group may have voted
//! with the disk that is gone. It gets no second first replica; its member is to be replaced.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use shardhost_groups::GroupSpec;
use shardhost_storage::{GroupId, LogIndex, NodeId, ReplicaId, Requirement};

use super::record::{EndedGroup, GroupRecord, GroupState, Revision};
use super::view::View;

/// Findings that a round names at most; it counts the others.
pub const MAX_FINDINGS: usize = 100;

/// What a host is and holds.
#[derive(Clone, Copy, Debug)]
pub struct Local<'a> {
    pub node: NodeId,
    /// The identity of its store.
    pub store: u64,
    /// Its replicas, and the groups of which only a tombstone is left, among those that are looked
    /// at; but for the system group, which no catalog names.
    pub held: &'a BTreeMap<GroupId, Held>,
}

/// A replica that a host holds or held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// How many lives the group had before this one.
    pub incarnation: u32,
    pub state: HeldState,
}

/// How a replica is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeldState {
    Creating,
    /// It runs and does not lead.
    Follows,
    /// The same, and it knows no leader. It is a voter as of the configuration that it knows.
    Unled {
        replica: ReplicaId,
        config_index: LogIndex,
    },
    /// It leads, and this is what the group asks of it.
    Leads(Requirement),
    /// It is parked with a fault.
    Failed,
    /// It is being removed or destroyed.
    MoveOutcome,
    /// Only its tombstone is left.
    Gone,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Create the first replica here of a group.
    Create { spec: GroupSpec },
    Destroy {
        /// Of this life and no other.
        incarnation: u32,
    },
    /// Destroy this replica, which is a member no more.
    Leave { replica: ReplicaId },
    /// Propose to the group, which is led here, what it is to ask of its leader.
    SetRequirement { requirement: Requirement },
}

/// Why something is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The node is a founder and holds no replica.
    Founder {
        /// When the group was created.
        founded: Revision,
    },
    /// The end of the group was ordered.
    Ordered { since: Revision },
    /// The end of this life was ordered, and the group is gone or lives again.
    LifeOver {
        /// The number of the life after it, as far as the catalog knows.
        next: u32,
    },
    /// The configuration of this index, later than the one that the replica knows, has no member on this node.
    Replaced { config_index: LogIndex },
    /// The group asks for something else than it is to.
    Differs { asked: Requirement },
}

/// Something to do with a group, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub group: GroupId,
    pub action: Action,
    pub reason: Reason,
}

/// Something that nothing is done about, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub group: GroupId,
    pub oddity: Oddity,
}

/// An irregularity of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Oddity {
    /// The catalog does not know it. Record it in the catalog, or destroy the replica by hand.
    Unknown,
    /// The catalog knows another life of it, and did not order the end of this one. Destroy the
    /// replica by hand if that life is over.
    OtherLife {
        /// The life that is held.
        held: u32,
        /// The life that the catalog knows.
        intended: u32,
    },
    /// The node founded it, and its disk is younger. Replace the member.
    LostReplica {
        /// When the group was created.
        founded: Revision,
        /// Since when the node has this disk.
        store_since: Revision,
    },
}

/// Why a host creates nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Blocked {
    /// The catalog does not know the node. Register it.
    UnknownNode { node: NodeId },
    /// The catalog knows the node with another disk. Register it with this one.
    OtherStore {
        /// The identity of the store here.
        here: u64,
        /// The one that the catalog knows.
        registered: u64,
    },
}

/// What a host has to do in one round.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// What to do, by group, beginning at the cursor and going on from the first group.
    pub steps: Vec<Step>,
    /// What nothing is done about, in the same order; at most [`MAX_FINDINGS`].
    pub findings: Vec<Finding>,
    /// How many more findings there are among the groups that were looked at.
    pub unnamed: usize,
    /// Why nothing is created, although something would be.
    pub blocked: Option<Blocked>,
    /// Where the next round begins; `None`: all groups were looked at.
    pub next: Option<GroupId>,
}

/// Compares the catalog with what a host holds, and returns the steps to take: at most `max_steps`,
/// looking at the groups from `from` on, once around. A full pass ends early; the next one begins
/// at [`Round::next`], so that steps that keep failing delay no others.
#[must_use]
pub fn reconcile(view: &View, local: Local<'_>, from: GroupId, max_steps: usize) -> Round {
    compare(view, local, groups_from(view, local, from), max_steps)
}

/// The same for these groups only, in ascending order. Its result for a group is that of
/// [`reconcile`].
#[must_use]
pub fn reconcile_only(
    view: &View,
    local: Local<'_>,
    groups: &BTreeSet<GroupId>,
    max_steps: usize,
) -> Round {
    compare(view, local, groups.iter().copied(), max_steps)
}

fn compare(
    view: &View,
    local: Local<'_>,
    groups: impl IntoIterator<Item = GroupId>,
    max_steps: usize,
) -> Round {
    let home = Home::new(view, local);
    let mut round = Round::default();
    for group in groups {
        if round.steps.len() >= max_steps {
            round.next = Some(group);
            return round;
        }
        round.add(group, home.look_at(group));
    }
    round
}

/// The groups that this host may have to do something about.
fn groups_from(view: &View, local: Local<'_>, from: GroupId) -> Vec<GroupId> {
    let founded = view.groups().values().filter(|group| group.founders.contains(&local.node));
    let mut groups: Vec<GroupId> =
        founded.map(|group| group.id).chain(local.held.keys().copied()).collect();
    groups.sort_unstable();
    groups.dedup();
    let start = groups.partition_point(|group| *group < from);
    groups.rotate_left(start);
    groups
}

/// The result for one group.
enum Verdict {
    Nothing,
    Do(Action, Reason),
    Odd(Oddity),
    Blocked(Blocked),
}

impl Round {
    fn add(&mut self, group: GroupId, verdict: Verdict) {
        match verdict {
            Verdict::Nothing => {}
            Verdict::Do(action, reason) => self.steps.push(Step { group, action, reason }),
            Verdict::Odd(_) if self.findings.len() == MAX_FINDINGS => self.unnamed += 1,
            Verdict::Odd(oddity) => self.findings.push(Finding { group, oddity }),
            Verdict::Blocked(blocked) => self.blocked = Some(blocked),
        }
    }
}

struct Home<'a> {
    view: &'a View,
    local: Local<'a>,
    /// Since when the node has this disk.
    store_since: Result<Revision, Blocked>,
}

impl<'a> Home<'a> {
    fn new(view: &'a View, local: Local<'a>) -> Self {
        let Local { node, store: here, .. } = local;
        let store_since = match view.nodes().get(&node) {
            None => Err(Blocked::UnknownNode { node }),
            Some(known) if known.store != here => {
                Err(Blocked::OtherStore { here, registered: known.store })
            }
            Some(known) => Ok(known.store_since),
        };
        Self { view, local, store_since }
    }

    fn look_at(&self, group: GroupId) -> Verdict {
        let held = self.local.held.get(&group);
        match (self.view.groups().get(&group), self.view.ended().get(&group), held) {
            (Some(intended), _, None) => self.absent(intended),
            (Some(intended), _, Some(held)) => self.compare(intended, held),
            (None, Some(ended), Some(held)) => end(ended, held),
            (None, None, Some(held)) => unknown(held),
            (None, _, None) => Verdict::Nothing,
        }
    }

    /// A group that is named, and of which nothing is here.
    fn absent(&self, intended: &GroupRecord) -> Verdict {
        let node = self.local.node;
        // A member that was replaced has another replica, which its leader asks.
        let first = intended.founding_members().is_some_and(|first| first.contains(&node));
        let founder = intended.founders.contains(&node) && first;
        if intended.state == GroupState::Destroying || !founder {
            return Verdict::Nothing;
        }
        let founded = intended.founded;
        match self.store_since {
            Err(blocked) => Verdict::Blocked(blocked),
            Ok(store_since) if store_since >= founded => {
                Verdict::Odd(Oddity::LostReplica { founded, store_since })
            }
            Ok(_) => {
                let spec = intended.spec().on_known_disk();
                Verdict::Do(Action::Create { spec }, Reason::Founder { founded })
            }
        }
    }

    fn compare(&self, intended: &GroupRecord, held: &Held) -> Verdict {
        match (&held.state, held.incarnation == intended.incarnation) {
            (HeldState::Creating | HeldState::MoveOutcome, _) | (HeldState::Gone, true) => {
                Verdict::Nothing
            }
            // Of an earlier life, whose ids are not those of this one.
            (HeldState::Gone, false) if held.incarnation < intended.incarnation => {
                self.absent(intended)
            }
            (HeldState::Gone, false) => Verdict::Nothing,
            (_, false) => other_life(intended, held),
            (_, true) if intended.state == GroupState::Destroying => {
                destroy(held, Reason::Ordered { since: intended.revision })
            }
            (HeldState::Leads(asked), true) => requirement(intended, asked),
            (HeldState::Unled { replica, config_index }, true) => {
                self.unled(intended, *replica, *config_index)
            }
            (HeldState::Follows | HeldState::Failed, true) => Verdict::Nothing,
        }
    }

    /// A voter without a leader. Members that left notify each other; where all that it knows left, too, it
    /// learns that from none of them. Replica ids are never given out twice, so what is a voter of an earlier
    /// configuration and not in a later one does not come back.
    fn unled(&self, intended: &GroupRecord, replica: ReplicaId, known: LogIndex) -> Verdict {
        let Some(members) = &intended.reported else { return Verdict::Nothing };
        let config_index = members.config_index;
        if config_index <= known || members.nodes.contains(&self.local.node) {
            return Verdict::Nothing;
        }
        Verdict::Do(Action::Leave { replica }, Reason::Replaced { config_index })
    }
}

fn destroy(held: &Held, reason: Reason) -> Verdict {
    Verdict::Do(Action::Destroy { incarnation: held.incarnation }, reason)
}

fn other_life(intended: &GroupRecord, held: &Held) -> Verdict {
    let next = intended.incarnation;
    if (intended.ended_from..next).contains(&held.incarnation) {
        return destroy(held, Reason::LifeOver { next });
    }
    Verdict::Odd(Oddity::OtherLife { held: held.incarnation, intended: next })
}

/// A replica of a group that is gone.
fn end(ended: &EndedGroup, held: &Held) -> Verdict {
    match held.state {
        HeldState::Creating | HeldState::MoveOutcome | HeldState::Gone => Verdict::Nothing,
        _ if (ended.first..ended.next).contains(&held.incarnation) => {
            destroy(held, Reason::LifeOver { next: ended.next })
        }
        _ => {
            let intended = ended.next;
            Verdict::Odd(Oddity::OtherLife { held: held.incarnation, intended })
        }
    }
}

/// A replica that the catalog does not name.
fn unknown(held: &Held) -> Verdict {
    match held.state {
        HeldState::Gone => Verdict::Nothing,
        _ => Verdict::Odd(Oddity::Unknown),
    }
}

fn requirement(intended: &GroupRecord, asked: &Requirement) -> Verdict {
    let requirement = intended.requirement();
    if requirement == *asked {
        return Verdict::Nothing;
    }
    Verdict::Do(Action::SetRequirement { requirement }, Reason::Differs { asked: asked.clone() })
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Founder { founded } => {
                write!(f, "this node founds the group since revision {founded}")
            }
            Self::Ordered { since } => write!(f, "its end is ordered since revision {since}"),
            Self::LifeOver { next } => {
                write!(f, "its end was ordered; generation {next} comes after it")
            }
            Self::Replaced { config_index } => {
                write!(f, "the configuration of index {config_index} has no member on this node")
            }
            Self::Differs { asked } => write!(f, "the group asks for {asked}"),
        }
    }
}

impl fmt::Display for Oddity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str(
                "the catalog does not know it, as far as this host has read it; it is kept: create it \
                 in the catalog if it is to stay",
            ),
            Self::OtherLife { held, intended } => write!(
                f,
                "generation {held} is held, the catalog knows generation {intended}, as far as this host has read \
                 it; it is kept"
            ),
            Self::LostReplica { founded, store_since } => write!(
                f,
                "founded at revision {founded}, and the disk is here since {store_since}; replace \
                 the member"
            ),
        }
    }
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownNode { node } => {
                write!(f, "the catalog does not know node {node} yet; the node registers itself")
            }
            Self::OtherStore { here, registered } => write!(
                f,
                "store {here:016x} is here, {registered:016x} is registered; the node registers this one"
            ),
        }
    }
}
