//! The groups that this host holds, and remains of groups.

use std::collections::{BTreeMap, BTreeSet};

use shardhost_groups::{GroupId, GroupStatus, LogIndex, ReplicaId, Role};
use shardhost_storage::Membership;

use super::super::SYSTEM_GROUP;
use super::super::dirty_set::Scope;
use super::Reconciler;
use shardhost_policy::catalog::{Held, HeldState, View};

/// The replicas of some groups, as they were when they were looked at.
#[derive(Debug, Default)]
pub(super) struct Looked {
    pub(super) held: BTreeMap<GroupId, Held>,
    /// The configurations of those that are open.
    pub(super) configs: BTreeMap<GroupId, LogIndex>,
}

impl Reconciler {
    pub(super) fn look(&self, view: &View, scope: &Scope) -> Looked {
        match scope {
            Scope::All => self.all_held(view),
            Scope::Only(groups) => self.held(view, groups.iter().copied()),
        }
    }

    /// The groups that this host holds, and the remains of those that it held.
    fn all_held(&self, view: &View) -> Looked {
        let open = self.host.groups().into_iter().map(|group| group.id());
        let node = self.host.node_id();
        let founded = view.groups().values().filter(|group| group.founders.contains(&node));
        let mut groups: BTreeSet<GroupId> = open.chain(founded.map(|group| group.id)).collect();
        groups.extend(self.host.parked_replicas().into_iter().map(|parked| parked.group));
        groups.extend(self.host.remains());
        self.held(view, groups)
    }

    /// The replicas of these groups on this host, or their remains.
    fn held(&self, view: &View, groups: impl IntoIterator<Item = GroupId>) -> Looked {
        let mut looked = Looked::default();
        for id in groups.into_iter().filter(|id| *id != SYSTEM_GROUP) {
            let held = match self.host.group(id) {
                Some(group) => {
                    let status = group.status();
                    looked.configs.insert(id, status.config_index());
                    Some(held_of(&status))
                }
                None => self.parked(view, id).or_else(|| self.left_of(view, id)),
            };
            looked.held.extend(held.map(|held| (id, held)));
        }
        looked
    }

    /// What was held when it was looked at, where a later view says of what generation the replicas are
    /// that cannot be read.
    pub(super) fn held_anew(
        &self,
        view: &View,
        looked: &Looked,
        groups: &BTreeSet<GroupId>,
    ) -> BTreeMap<GroupId, Held> {
        let mut held = looked.held.clone();
        for id in groups.iter().copied().filter(|id| self.is_unread(*id)) {
            held.extend(self.parked(view, id).map(|one| (id, one)));
        }
        held
    }

    /// Whether not even the id of its replica here can be read.
    pub(super) fn is_unread(&self, id: GroupId) -> bool {
        self.host.parked_replica(id).is_some_and(|parked| parked.replica.is_none())
    }

    /// A replica that could not be opened can be destroyed all the same.
    fn parked(&self, view: &View, id: GroupId) -> Option<Held> {
        let parked = self.host.parked_replica(id)?;
        let intended = || view.groups().get(&id).map(|record| record.incarnation);
        // Of one whose id cannot be read the generation is not known: it may be the one that is meant.
        let incarnation = parked.replica.map(life_of).or_else(intended)?;
        Some(Held { incarnation, state: HeldState::Failed })
    }

    /// The remains of a group that is not open here, if they matter: this node created it, or state
    /// of it remains, which is to be destroyed again.
    fn left_of(&self, view: &View, id: GroupId) -> Option<Held> {
        let node = self.host.node_id();
        let founded = view.groups().get(&id).is_some_and(|one| one.founders.contains(&node));
        let remains = self.host.has_remains(id);
        if !founded && !remains {
            return None;
        }
        let stored = self.host.stored_group(id);
        let tombstone = stored.and_then(|stored| match stored {
            // On its way in or out.
            Some(meta) => Ok(Some((life_of_members(&meta.membership), HeldState::MoveOutcome))),
            None => {
                let left = self.host.tombstone(id)?;
                let state = if remains { HeldState::Failed } else { HeldState::Gone };
                Ok(left.map(|replica| (life_of(replica), state)))
            }
        });
        match tombstone {
            Ok(left) => left.map(|(incarnation, state)| Held { incarnation, state }),
            // A group that is not known to be absent is not created.
            Err(error) => {
                tracing::error!(group = %id, %error, "what is left of a group is not known");
                Some(Held { incarnation: 0, state: HeldState::MoveOutcome })
            }
        }
    }
}

fn held_of(status: &GroupStatus) -> Held {
    let state = match &status.role {
        Role::Leader => HeldState::Leads(status.membership.requirement.clone()),
        Role::Failed(_) => HeldState::Failed,
        Role::Stopped | Role::Removed => HeldState::MoveOutcome,
        _ => unled(status).unwrap_or(HeldState::Follows),
    };
    Held { incarnation: life_of(status.replica), state }
}

/// A voter, as far as it knows, that knows no leader.
fn unled(status: &GroupStatus) -> Option<HeldState> {
    let voter = status.membership.members.get(&status.replica).is_some_and(|member| member.voter);
    let config_index = status.membership.config_index;
    let unled = voter && status.leader.is_none();
    unled.then_some(HeldState::Unled { replica: status.replica, config_index })
}

/// How many lives a group had before the one that a replica belongs to.
pub const fn life_of(replica: ReplicaId) -> u32 {
    (replica.get() >> 32) as u32
}

fn life_of_members(membership: &Membership) -> u32 {
    membership.members.keys().next_back().map_or(0, |replica| life_of(*replica))
}
