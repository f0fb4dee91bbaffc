//! Which groups a node holds a replica of, and which of them are led, by what the nodes say. Pure.

use std::collections::{BTreeMap, BTreeSet};

use shardhost_proto::admin::GroupStatus;

use super::choose::Held;
use crate::rebuild;
use crate::ruled::Ruled;

/// What the nodes that answer say of the groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Groups {
    /// By the leaders.
    pub held: Vec<Held>,
    /// Groups with a replica on the node, as far as is known, and no leader that answers.
    pub unled: BTreeSet<u64>,
    /// Groups without a voter on the node that have fewer voters than is expected, and how many.
    pub short: BTreeMap<u64, usize>,
    /// How many voters each group has.
    pub voters: BTreeMap<u64, usize>,
}

impl Groups {
    /// Those of the nodes' statuses, as the node `gone` has part in them.
    pub fn of(statuses: &[GroupStatus], gone: u64, ruled: &Ruled) -> Self {
        let (mut leaders, mut named) = (BTreeMap::<u64, &GroupStatus>::new(), BTreeSet::new());
        for status in statuses {
            if members(status).contains(&gone) {
                named.insert(status.group);
            }
            let newer = leaders.get(&status.group).is_none_or(|known| known.term < status.term);
            if status.role == "leader" && newer {
                leaders.insert(status.group, status);
            }
        }
        let unled = named.into_iter().filter(|group| !leaders.contains_key(group)).collect();
        let held = leaders.values().filter_map(|status| held_by(status, gone)).collect();
        let rebuild::Survey { short, voters, .. } = rebuild::Survey::from(statuses, gone, ruled);
        Self { held, unled, short, voters }
    }
}

/// The nodes of all members.
pub fn members(status: &GroupStatus) -> BTreeSet<u64> {
    let members = status.membership.iter().flat_map(|membership| &membership.members);
    members.map(|member| member.node).collect()
}

fn held_by(status: &GroupStatus, node: u64) -> Option<Held> {
    let membership = status.membership.as_ref()?;
    let learns = rebuild::learns(status, rebuild::member_on(status, node)?);
    let requires = membership.requirement.clone().unwrap_or_default().capabilities;
    let requires = requires.into_iter().collect();
    Some(Held { group: status.group, members: members(status), learns, requires, allowed: None })
}

#[cfg(test)]
mod tests {
    use shardhost_proto::log::{Member, MemberRole, Membership};

    use super::*;

    fn status(group: u64, role: &str, term: u64, voters: &[u64]) -> GroupStatus {
        let member = |node: &u64| Member {
            node: *node,
            replica: *node,
            role: MemberRole::Voter.into(),
            ..Member::default()
        };
        let members = voters.iter().map(member).collect();
        let membership = Some(Membership { members, ..Membership::default() });
        GroupStatus { group, role: role.to_owned(), term, membership, ..GroupStatus::default() }
    }

    #[test]
    fn a_group_that_names_the_node_is_held_or_without_a_leader() {
        let seen = [
            status(1, "leader", 4, &[1, 2, 3]),
            status(2, "follower", 4, &[1, 2, 3]),
            status(3, "leader", 4, &[1, 2, 4]),
            // One that did not hear of the later leader.
            status(4, "leader", 4, &[1, 2, 3]),
            status(4, "leader", 5, &[1, 2, 4]),
        ];
        let groups = Groups::of(&seen, 3, &Ruled::default());
        assert_eq!(groups.held.iter().map(|held| held.group).collect::<Vec<_>>(), [1]);
        assert_eq!(groups.unled, BTreeSet::from([2]));
        assert_eq!(groups.voters, (1..=4).map(|group| (group, 3)).collect());
    }
}
