//! Disks that fill up and states that are lost, on any node and for long, while others are down and
//! members are removed.

use super::*;

/// Milliseconds for which what lasts does.
const LASTING: u64 = 60_000;
/// Milliseconds after which the group must be served, and have its states back.
const WITHIN: u64 = 22_000;

/// The node that the end of a run concerns.
struct Cast {
    /// Its machine stands still, or it loses its state.
    impaired: NodeId,
    /// Who is down for a while before, and lacks what is written meanwhile.
    behind: Vec<NodeId>,
    /// Who is down from then on.
    gone: Vec<NodeId>,
}

impl Cluster {
    /// There is no room on a node for so many milliseconds, over restarts too.
    pub fn fill_disk(&mut self, id: NodeId, length: u64) {
        self.tell(|| format!("{id:?} has a full disk for {length} ms"));
        let until = self.now + length;
        if let Some(node) = self.nodes.get_mut(&id) {
            node.full_until = until;
        }
    }

    /// No snapshot arrives anywhere for so many milliseconds.
    pub fn ship_nothing(&mut self, length: u64) {
        self.tell(|| format!("no snapshot arrives for {length} ms"));
        self.ships_nothing_until = self.now + length;
    }

    /// Nodes that lead something, whether they serve or not.
    pub(in super::super) fn any_leader(&self) -> Option<NodeId> {
        let groups = || (1..=self.shape.groups).map(GroupId::new);
        let leads = |id: NodeId, group| self.status(id, group).is_some_and(|s| s.is_leader());
        self.node_ids().into_iter().find(|id| groups().any(|group| leads(*id, group)))
    }

    /// Whether a replica of the group is without its state, as far as is known.
    pub(super) fn lacks_states(&mut self, group: GroupId) -> bool {
        let mut known = std::mem::take(&mut self.without_state);
        known.retain(|(id, group)| {
            let node = &self.nodes[id];
            let there = node.disks.machines.contains_key(group);
            there && self.status(*id, *group).is_none_or(|status| status.stalled.is_some())
        });
        self.without_state = known;
        self.without_state.iter().any(|(_, of)| *of == group)
    }

    /// A process dies and loses the states of its groups, where no other replica is without.
    pub(in super::super) fn lose_any_state(&mut self, id: NodeId, down: u64) {
        let groups: Vec<GroupId> = (1..=self.shape.groups).map(GroupId::new).collect();
        let groups: Vec<GroupId> =
            groups.into_iter().filter(|group| self.others_have_the_state(id, *group)).collect();
        if groups.is_empty() {
            return;
        }
        self.crash(id, usize::MAX);
        groups.into_iter().for_each(|group| self.lose_state(id, group));
        self.checks.lost_states += 1;
        self.restart_later(id, down);
    }

    /// Another voter has the state, and no change is under way that could remove it.
    fn others_have_the_state(&mut self, id: NodeId, group: GroupId) -> bool {
        if self.lacks_states(group) {
            return false;
        }
        let Some(status) = self.leader_of(group).and_then(|leader| self.status(leader, group))
        else {
            return false;
        };
        let membership = &status.membership;
        let settled = status.pending_change.is_none() && membership.incoming.is_none();
        let mut others = membership.voters().filter(|(_, node)| *node != id);
        settled && others.any(|(_, node)| self.nodes[&node].disks.machines.contains_key(&group))
    }

    /// One voter's machine stands still, or has no state, and gets none until the end. Others are
    /// down for a while, members change, and former members go. The group is served by a voter that can, all
    /// the same, and a state that is lost comes back.
    ///
    /// # Errors
    /// It is not, or a checker found something.
    pub(super) fn something_lasts(&mut self) -> Result<(), String> {
        self.pass(8_000)?;
        let group = GroupId::new(1);
        let mut chance = self.chance.clone();
        chance.draw();
        let cast = self.draw_cast(group, &mut chance)?;
        let Some(cast) = cast else { return Ok(()) };
        self.clients_work(true);
        let loses = chance.per_mille(500) && self.others_have_the_state(cast.impaired, group);
        if loses {
            self.ship_nothing(chance.between(0, 16_000));
            self.lose_any_state(cast.impaired, 50);
        } else {
            self.fill_disk(cast.impaired, LASTING);
        }
        // From here on the log of that replica begins where it does: a replica that falls behind now can be caught up.
        self.pass(chance.between(500, 2_000))?;
        for node in &cast.behind {
            self.crash(*node, usize::MAX);
        }
        self.pass(chance.between(500, 4_000))?;
        let removes = chance.per_mille(300);
        self.change_meanwhile(group, &cast, removes, &mut chance)?;
        self.pass(chance.between(50, 1_500))?;
        self.goes_on(group, "while some are behind", &cast, loses)?;
        if !removes {
            for node in &cast.gone {
                self.crash(*node, usize::MAX);
            }
            for node in &cast.behind {
                self.restart_later(*node, chance.between(0, 500));
            }
        }
        self.chance = chance;
        self.pass(WITHIN)?;
        let outcome = self.is_as_it_should(group, &cast, loses);
        self.clients_work(false);
        outcome
    }

    /// Draws who is who, such that a quorum answers all the time. `None`: there are too few voters.
    fn draw_cast(&self, group: GroupId, chance: &mut Chance) -> Result<Option<Cast>, String> {
        let leader = self.leader_of(group);
        let status = leader.and_then(|leader| self.status(leader, group));
        let status = status.ok_or_else(|| format!("not led: {}", self.describe(group)))?;
        if status.membership.is_joint() || status.membership.incoming.is_some() {
            return Ok(None);
        }
        let mut voters: Vec<NodeId> = status.membership.voters().map(|(_, node)| node).collect();
        let spared = voters.len().saturating_sub(1) / 2;
        if spared == 0 || voters.len() < 2 * spared + 1 {
            return Ok(None);
        }
        let mut draw = |voters: &mut Vec<NodeId>| {
            let at = usize::try_from(chance.below(voters.len() as u64)).unwrap_or(0);
            voters.swap_remove(at)
        };
        let impaired = draw(&mut voters);
        let behind = (0..spared).map(|_| draw(&mut voters)).collect();
        let gone = (0..spared).map(|_| draw(&mut voters)).collect();
        Ok(Some(Cast { impaired, behind, gone }))
    }

    fn change_meanwhile(
        &mut self,
        group: GroupId,
        cast: &Cast,
        removes: bool,
        chance: &mut Chance,
    ) -> Result<(), String> {
        let Some(leader) = self.leader_of(group) else { return Ok(()) };
        let order = if removes {
            MembershipChange::new().remove(cast.behind[0])
        } else if chance.per_mille(500) {
            let members = self.status(leader, group).map(|status| Arc::clone(&status.membership));
            let spare = self.node_ids().into_iter().find(|node| {
                members.as_ref().is_some_and(|members| members.replica_on(*node).is_none())
            });
            let Some(spare) = spare else { return Ok(()) };
            MembershipChange::new().add_learner(spare)
        } else {
            return Ok(());
        };
        self.change_members(leader, group, order)
    }

    /// Writes are acknowledged, whatever becomes of the state of one replica.
    fn goes_on(
        &mut self,
        group: GroupId,
        when: &str,
        cast: &Cast,
        loses: bool,
    ) -> Result<(), String> {
        let before = self.checks.acknowledged();
        self.pass(6_000)?;
        if self.checks.acknowledged() > before {
            return Ok(());
        }
        let impaired = cast.impaired;
        let what = if loses { "lost its state" } else { "stands still" };
        Err(format!("no write succeeds {when}, {impaired:?} {what}: {}", self.describe(group)))
    }

    fn is_as_it_should(&mut self, group: GroupId, cast: &Cast, loses: bool) -> Result<(), String> {
        let impaired = cast.impaired;
        let Some(leader) = self.leader_of(group) else {
            return Err(format!("nobody serves beside {impaired:?}: {}", self.describe(group)));
        };
        if !loses && leader == impaired {
            return Err(format!("{leader:?} serves and stands still: {}", self.describe(group)));
        }
        let stalled = self.status(impaired, group).map(|status| status.stalled.is_some());
        if loses && stalled != Some(false) {
            let all = self.describe(group);
            return Err(format!("{impaired:?} has no state again: {stalled:?} {all}"));
        }
        self.goes_on(group, "at the end", cast, loses)
    }
}
