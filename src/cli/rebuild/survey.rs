//! Which replicas a node has, and which groups may lack one there: what is known of that, and what
//! is not.

use std::collections::BTreeMap;

use shardhost_proto::admin::GroupStatus;
use shardhost_proto::log::{Member, Membership};

use crate::group_status::role_of;
use crate::reached::Reached;
use crate::ruled::Ruled;

/// A replica that is to be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Old {
    pub replica: u64,
    /// It has no vote, is to get none, and nor does its successor.
    pub learns: bool,
    /// Voters that the group had when it was looked at, with this one if it is one.
    pub voters: usize,
}

impl Old {
    /// The command that adds its successor, when it is removed.
    pub fn addition(self, group: u64, node: u64) -> String {
        let learner = if self.learns { " --learner" } else { "" };
        format!("shardhost member add {group} {node}{learner}")
    }
}

/// What the nodes that answer say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// The replicas that the node has, by group.
    pub replicas: BTreeMap<u64, Old>,
    /// Groups in which the node has no vote, nor is to get one, and that have fewer voters than is expected:
    /// by group, how many. An earlier run may have removed one and not added its successor, which nothing
    /// records. A group from which no member was ever removed is none of them, nor is one that gets what it
    /// lacks by a rule.
    pub short: BTreeMap<u64, usize>,
    /// How many voters are expected of each group: as many as its rule asks for, as it has had from the
    /// beginning, or as most groups without a rule have.
    pub usual: BTreeMap<u64, usize>,
    /// How many voters each group has that any node has a replica of.
    pub voters: BTreeMap<u64, usize>,
}

/// A group by the newest configuration that any node knows.
#[derive(Clone, Copy, Debug)]
struct Newest {
    index: u64,
    here: Option<Old>,
    voters: usize,
    /// A member was removed since the group was created.
    lost: bool,
}

impl Survey {
    /// Asks every node that was reached.
    pub async fn of(cluster: &Reached, node: u64, ruled: &Ruled) -> anyhow::Result<Self> {
        Ok(Self::from(&cluster.all_groups().await?, node, ruled))
    }

    /// What those statuses show.
    pub fn from(statuses: &[GroupStatus], node: u64, ruled: &Ruled) -> Self {
        let mut newest: BTreeMap<u64, Newest> = BTreeMap::new();
        for status in statuses {
            let Some(one) = Newest::of(status, node) else { continue };
            let known = newest.entry(status.group).or_insert(one);
            if one.index > known.index {
                *known = one;
            }
        }
        let usual = expected(&newest, ruled);
        let here = |(group, one): (&u64, &Newest)| Some((*group, one.here?));
        let lacking = newest.iter().filter(|(_, one)| one.here.is_none_or(|here| here.learns));
        let lacking = lacking.filter(|(group, one)| one.lost && !ruled.is_completed(**group));
        let short = lacking.filter(|(group, one)| is_short(one.voters, usual[group]));
        let short = short.map(|(group, one)| (*group, one.voters)).collect();
        let voters = newest.iter().map(|(group, one)| (*group, one.voters)).collect();
        Self { replicas: newest.iter().filter_map(here).collect(), short, usual, voters }
    }
}

impl Newest {
    fn of(status: &GroupStatus, node: u64) -> Option<Self> {
        let membership = status.membership.as_ref()?;
        let voters = voters_of(status);
        let here = member_on(status, node).map(|member| Old {
            replica: member.replica,
            learns: learns(status, member),
            voters,
        });
        Some(Self { index: membership.config_index, here, voters, lost: lost_a_member(membership) })
    }
}

/// Whether a member has no vote and is to get none. One that catches up is to vote: another run, or
/// another command, added it.
pub fn learns(status: &GroupStatus, member: &Member) -> bool {
    let incoming = status.membership.as_ref().and_then(|membership| membership.incoming.as_ref());
    let becomes_voter = incoming.is_some_and(|incoming| incoming.replica == member.replica);
    role_of(member) == "learner" && !becomes_voter
}

/// How many voters a group has.
pub fn voters_of(status: &GroupStatus) -> usize {
    let members = status.membership.iter().flat_map(|all| &all.members);
    members.filter(|member| role_of(member) == "voter").count()
}

/// The member on a node.
pub fn member_on(status: &GroupStatus, node: u64) -> Option<&Member> {
    status.membership.iter().flat_map(|all| &all.members).find(|member| member.node == node)
}

/// Whether a member was ever removed. Replicas are numbered from 1 in each generation, and no number is given
/// out twice.
fn lost_a_member(membership: &Membership) -> bool {
    let numbers = membership.members.iter().map(|member| member.replica);
    let newest = numbers.chain([membership.newest_replica]).max().unwrap_or(0);
    u64::from(newest as u32) > membership.members.len() as u64
}

/// How many voters are expected of each group. A group is not compared with those that have their number by
/// a rule; the only one that has no rule, as the catalog may be, is to have an odd number.
fn expected(newest: &BTreeMap<u64, Newest>, ruled: &Ruled) -> BTreeMap<u64, usize> {
    let unruled = || newest.iter().filter(|(group, _)| ruled.voters(**group).is_none());
    let usual = match (unruled().count(), unruled().next()) {
        (1, Some((_, one))) => one.voters | 1,
        _ => usual(unruled().map(|(_, one)| one.voters)),
    };
    let of = |(group, one): (&u64, &Newest)| {
        let unruled = if one.lost { usual } else { one.voters };
        (*group, ruled.voters(*group).unwrap_or(unruled))
    };
    newest.iter().map(of).collect()
}

/// The number that is met most often; of two such the larger one. 0: there is none.
fn usual(voters: impl Iterator<Item = usize>) -> usize {
    let mut met: BTreeMap<usize, usize> = BTreeMap::new();
    voters.for_each(|voters| *met.entry(voters).or_default() += 1);
    met.into_iter().max_by_key(|(voters, times)| (*times, *voters)).map_or(0, |(voters, _)| voters)
}

/// Whether so many voters are one less than intended, as far as numbers show: fewer than is expected, or an
/// even number where an odd one is. A single one where more than two are expected is intended: no run leaves
/// that.
const fn is_short(voters: usize, usual: usize) -> bool {
    let intended = voters == 1 && usual > 2;
    !intended && (voters < usual || (voters.is_multiple_of(2) && !usual.is_multiple_of(2)))
}

/// A group that has fewer voters than it had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shrunk {
    pub before: usize,
    pub now: usize,
}

/// The groups that have fewer voters than before.
pub fn shrunk(before: &BTreeMap<u64, usize>, now: &BTreeMap<u64, usize>) -> BTreeMap<u64, Shrunk> {
    let both = before.iter().filter_map(|(group, before)| {
        let shrunk = Shrunk { before: *before, now: *now.get(group)? };
        (shrunk.now < shrunk.before).then_some((*group, shrunk))
    });
    both.collect()
}

#[cfg(test)]
mod tests {
    use shardhost_policy::catalog::{Name, ReplicaRule, Selection, Subject};
    use shardhost_proto::log::{Incoming, MemberRole};

    use super::*;

    fn group(group: u64, config_index: u64, voters: &[u64], learners: &[u64]) -> GroupStatus {
        let member = |node: &u64, role: MemberRole| Member {
            node: *node,
            replica: *node,
            role: role.into(),
            ..Member::default()
        };
        let voters = voters.iter().map(|node| member(node, MemberRole::Voter));
        let learners = learners.iter().map(|node| member(node, MemberRole::Learner));
        let members = voters.chain(learners).collect();
        // That many nodes have had a replica.
        let newest_replica = if config_index == 0 { 0 } else { 5 };
        let membership =
            Membership { config_index, members, newest_replica, ..Membership::default() };
        let membership = Some(membership);
        GroupStatus { group, membership, ..GroupStatus::default() }
    }

    fn survey(seen: &[GroupStatus], node: u64) -> Survey {
        Survey::from(seen, node, &Ruled::default())
    }

    #[test]
    fn a_group_that_an_earlier_run_left_without_its_voter_is_told_apart_by_their_number() {
        let seen = [
            group(1, 5, &[1, 2, 3], &[]),
            group(2, 9, &[1, 2], &[]),
            // The status of a node that does not know of the removal yet.
            group(2, 5, &[1, 2, 3], &[]),
            group(3, 5, &[1, 2, 4], &[3]),
            group(6, 5, &[1, 2], &[3]),
            group(4, 5, &[1, 2, 4], &[]),
            group(5, 5, &[1, 2, 4, 5], &[]),
        ];
        let survey = survey(&seen, 3);
        let (voter, learner) = (
            Old { replica: 3, learns: false, voters: 3 },
            Old { replica: 3, learns: true, voters: 3 },
        );
        let lone = Old { voters: 2, ..learner };
        assert_eq!(survey.replicas, BTreeMap::from([(1, voter), (3, learner), (6, lone)]));
        assert_eq!(survey.short, BTreeMap::from([(2, 2), (5, 4), (6, 2)]));
        assert!(survey.usual.values().all(|usual| *usual == 3), "{survey:?}");
        assert_eq!(learner.addition(3, 3), "shardhost member add 3 3 --learner");
    }

    /// The replica that another run added.
    #[test]
    fn a_learner_that_is_to_vote_is_replaced_by_a_voter() {
        let mut catches_up = group(1, 7, &[1, 2], &[3]);
        let incoming = Some(Incoming { replica: 3, replaces: 0 });
        catches_up.membership.as_mut().unwrap().incoming = incoming;
        let seen = [catches_up, group(2, 7, &[1, 2], &[3]), group(3, 7, &[1, 2, 3], &[])];
        let survey = survey(&seen, 3);
        assert_eq!(survey.replicas[&1], Old { replica: 3, learns: false, voters: 2 });
        assert_eq!(survey.replicas[&2], Old { replica: 3, learns: true, voters: 2 });
    }

    /// Whatever the others have.
    #[test]
    fn a_group_that_lost_a_voter_since_the_first_look_is_found() {
        let counted = |counts: &[(u64, usize)]| counts.iter().copied().collect::<BTreeMap<_, _>>();
        let before = counted(&[(1, 3), (2, 3), (3, 1), (4, 5), (6, 2)]);
        let now = counted(&[(1, 3), (2, 2), (3, 1), (5, 1), (6, 3)]);
        let lost = BTreeMap::from([(2, Shrunk { before: 3, now: 2 })]);
        assert_eq!(shrunk(&before, &now), lost, "group 4 was destroyed, group 5 created");
    }

    #[test]
    fn a_group_that_was_created_with_one_voter_lacks_none() {
        let seen =
            [group(1, 0, &[1, 2, 3], &[]), group(2, 0, &[1, 2, 3], &[]), group(3, 0, &[1], &[])];
        let survey = survey(&seen, 4);
        assert_eq!((survey.short, survey.voters[&3]), (BTreeMap::new(), 1));
    }

    #[test]
    fn groups_that_all_have_two_voters_lack_none() {
        let seen = [group(1, 0, &[1, 2], &[]), group(2, 0, &[2, 4], &[])];
        assert_eq!(survey(&seen, 3).short, BTreeMap::new());
        assert_eq!(survey(&[], 3), Survey::default());
    }

    /// The catalog was created with two voters, and a rule gives all other groups three, one after the other.
    #[test]
    fn a_group_is_compared_with_what_is_meant_for_it() {
        let rule = ReplicaRule {
            name: Name::new(Subject::Rule, "all").unwrap(),
            groups: Selection::All,
            voters: Some(3),
            learners: None,
            zones: Box::default(),
            capabilities: Box::default(),
        };
        let ruled = |is_kept| Ruled::with([7, 8, 9].map(|group| (group, rule.clone())), is_kept);
        let three = |number| group(number, 9, &[1, 2, 4], &[]);
        let seen = |catalog: GroupStatus| {
            vec![catalog, three(7), group(8, 9, &[1, 2], &[]), group(9, 0, &[1, 2], &[])]
        };
        let created = group(0, 0, &[1, 2], &[]);
        let grows = Survey::from(&seen(created.clone()), 3, &ruled(true));
        assert_eq!(grows.short, BTreeMap::new());
        assert_eq!(grows.usual, BTreeMap::from([(0, 2), (7, 3), (8, 3), (9, 3)]));
        let stays = Survey::from(&seen(created), 3, &ruled(false));
        assert_eq!(stays.short, BTreeMap::from([(8, 2)]), "no rule gives it another one");
        // A run removed the third voter of the catalog.
        let lost = group(0, 9, &[1, 2], &[]);
        assert_eq!(Survey::from(&seen(lost), 3, &ruled(true)).short, BTreeMap::from([(0, 2)]));
        let moved = group(0, 9, &[1, 2, 4], &[]);
        let five = Ruled::with([(7, ReplicaRule { voters: Some(5), ..rule.clone() })], true);
        assert_eq!(Survey::from(&[moved, three(7)], 3, &five).short, BTreeMap::new());
    }
}
