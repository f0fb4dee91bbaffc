//! An operator who changes memberships, whatever else is going on.

use super::*;

impl Cluster {
    pub(super) fn change_something(&mut self) -> Result<(), String> {
        if self.faulty {
            let wait = self.chance.between(200, 1_500);
            self.after(wait, Event::Change);
        }
        let group = self.any_group();
        let leader = self.node_to_ask(group);
        let core = self.nodes[&leader].process.as_ref().and_then(|p| p.core.group(group));
        let Some(membership) = core.map(|core| Arc::clone(&core.status().membership)) else {
            return Ok(());
        };
        let mut chance = self.chance.clone();
        let order = self.draw_order(&membership, &mut chance);
        self.chance = chance;
        self.order_membership(leader, group, order)
    }

    fn draw_order(&self, membership: &Membership, chance: &mut Chance) -> MembershipOrder {
        let members: Vec<NodeId> = membership.members.values().map(|m| m.node).collect();
        let strangers: Vec<NodeId> =
            self.node_ids().into_iter().filter(|id| !members.contains(id)).collect();
        let any = |from: &[NodeId], chance: &mut Chance| {
            chance.pick(from).unwrap_or_else(|| NodeId::must(1))
        };
        // An operator who insists on the vote of a replica that is gone takes the group apart.
        let there =
            |node: &NodeId| !self.shape.lost_disks || !self.nodes[node].disks.machines.is_empty();
        let learners: Vec<NodeId> =
            membership.learners().map(|(_, node)| node).filter(there).collect();
        let (stranger, member) = (any(&strangers, chance), any(&members, chance));
        let learner = any(&learners, chance);
        let change = MembershipChange::new();
        let when = match chance.below(3) {
            0 if !self.shape.lost_disks => CaughtUp::Unchecked,
            lag => CaughtUp::MaxLag(lag * 5),
        };
        let expecting = chance.per_mille(300).then_some(membership.config_index);
        let change = match chance.below(10) {
            0 => return MembershipOrder::Replace { old: member, new: stranger, expecting },
            1 => return MembershipOrder::CancelAddition { expecting },
            2 | 3 => change.add_voter(stranger),
            4 => change.add_learner(stranger),
            5 => change.promote(learner, when),
            6 => change.demote(member),
            7 => change.remove(member),
            8 => change.promote(learner, when).remove(member),
            _ => change.add_learner(stranger).demote(member).promote(learner, when),
        };
        MembershipOrder::Change(match expecting {
            Some(index) => change.expecting(index),
            None => change,
        })
    }
}
