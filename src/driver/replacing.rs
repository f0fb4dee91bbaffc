//! What a host does with an order to replace, add or remove a member of a group that it leads. The group decides: the order is
//! refused where it does not fit what the leader sees.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use shardhost_groups::{
    Group, GroupId, GroupStatus, LogIndex, MembershipChange, MembershipError, NodeId, PeerProgress,
    Role,
};
use shardhost_proto::system as wire;
use shardhost_proto::system::ReplaceResult;
use shardhost_storage::{Member, Membership};
use tonic::Status;

use super::Inner;
use shardhost_policy::allocator::Step as Ordered;
use shardhost_policy::catalog::{PlannedMoves, View};
use shardhost_policy::inputs::moves::MAX_LAG;

/// Replacements in one request.
pub(super) const MAX_REPLACEMENTS: usize = 256;
/// Orders that are tried side by side.
const SIDE_BY_SIDE: usize = 64;
/// How long one may take to be recorded in its group. Those who ask wait a little longer.
const RECORDED_WITHIN: Duration = Duration::from_millis(2_000);

/// How long an order waits for a leader that does not serve yet: it was handed the leadership a moment ago.
const READY_WITHIN: Duration = Duration::from_millis(500);

/// One member of a group is to be replaced, added or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Replacement {
    pub(super) group: GroupId,
    pub(super) step: Ordered,
    /// It is ordered because the member that goes is gone: not where it answers.
    pub(super) gone: bool,
    /// An addition to this node is given up first: it did not end.
    pub(super) instead_of: Option<NodeId>,
}

/// How an order ended here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Replaced {
    /// It is recorded in the group.
    Begun,
    /// This host does not lead the group; who does, as far as it knows.
    NotLeader(Option<NodeId>),
    Refused(String),
    /// The replica on this node is to catch up first. It was added by another order, or by an operator.
    InTheWay(NodeId),
    /// It was not recorded in time, and may be later.
    Unknown,
}

impl Inner {
    /// Tries the orders of a request, of a planner of this term.
    pub(super) async fn replace_all(
        self: &Arc<Self>,
        request: wire::ReplaceRequest,
    ) -> Result<wire::ReplaceReply, Status> {
        self.hear(request.planner_term)?;
        if request.replacements.len() > MAX_REPLACEMENTS {
            return Err(Status::invalid_argument(format!(
                "{} replacements in one request; at most {MAX_REPLACEMENTS} are taken",
                request.replacements.len()
            )));
        }
        let orders: Result<Vec<_>, _> = request.replacements.iter().map(order_of).collect();
        let outcomes = stream::iter(orders?)
            .map(|order| async move { outcome_to_wire(order.group, self.replace(order).await) })
            .buffer_unordered(SIDE_BY_SIDE)
            .collect()
            .await;
        Ok(wire::ReplaceReply { outcomes })
    }

    /// Tries one order. What is begun is watched until it ended, which is reported then.
    pub(super) async fn replace(&self, order: Replacement) -> Replaced {
        let replaced = self.try_to(order).await;
        if matches!(replaced, Replaced::Begun | Replaced::Unknown) {
            self.news.note(order.group);
        }
        replaced
    }

    async fn try_to(&self, order: Replacement) -> Replaced {
        let Some(group) = self.host.group(order.group) else { return Replaced::NotLeader(None) };
        let status = once_ready(&group).await;
        if status.role != Role::Leader {
            return Replaced::NotLeader(status.leader.map(|hint| hint.node));
        }
        if let Some(old) = order.step.old().filter(|old| order.gone && self.host.hears(*old)) {
            return Replaced::Refused(format!("node {old} answers its leader"));
        }
        let takes_part = |node: NodeId| self.takes_part(&status, node);
        let step = match next_step(&status.membership, order, takes_part) {
            Ok(step) => step,
            Err(why) => return Replaced::Refused(why),
        };
        let seen = status.membership.config_index;
        match tokio::time::timeout(RECORDED_WITHIN, self.execute(&group, step, seen)).await {
            Ok(outcome) => outcome,
            Err(_) => Replaced::Unknown,
        }
    }

    /// `expecting`: the configuration that the step was decided by.
    async fn execute(&self, group: &Group, step: Step, expecting: LogIndex) -> Replaced {
        let one = MembershipChange::new().expecting(expecting);
        let changed = match step {
            Step::Nothing => return Replaced::Begun,
            Step::Wait(node) => return Replaced::InTheWay(node),
            Step::Cancel => {
                let cancelled = group.cancel_addition(Some(expecting)).await;
                return match cancelled {
                    Ok(_) => {
                        Replaced::Refused("an addition that did not end was cancelled".to_owned())
                    }
                    Err(error) => Replaced::Refused(error.to_string()),
                };
            }
            Step::ReplaceVoter { old, .. } | Step::Remove { old } if old == self.host.node_id() => {
                return self.hand_over(group).await;
            }
            Step::ReplaceVoter { old, new } => {
                group.replace_member(old, new, Some(expecting)).await
            }
            Step::ReplaceLearner { old, new } => {
                group.change_membership(one.add_learner(new).remove(old)).await
            }
            Step::AddVoter { new } => return add_voter(group, one.add_voter(new), new).await,
            Step::AddLearner { new } => group.change_membership(one.add_learner(new)).await,
            Step::Remove { old } => group.change_membership(one.remove(old)).await,
        };
        outcome_of(changed)
    }

    /// A leader that gives its replica away transfers first, and names the next one, which is asked then.
    async fn hand_over(&self, group: &Group) -> Replaced {
        if self.planned_moves_are_stopped() {
            return Replaced::Refused("it leads, and planned moves are stopped".to_owned());
        }
        let (own, membership) = (self.host.node_id(), group.membership());
        let voters = membership.voters().map(|(_, node)| node).filter(|node| *node != own);
        match group.transfer_to_first_fit(voters, MAX_LAG).await {
            Ok(moved) => Replaced::NotLeader(Some(moved.to)),
            Err(error) => Replaced::Refused(error.to_string()),
        }
    }

    /// The kill switch, of this host or of the cluster.
    fn planned_moves_are_stopped(&self) -> bool {
        let stopped = |view: &View| view.settings().moves == PlannedMoves::Stopped;
        self.local_stop().is_some() || self.view.borrow().as_deref().is_some_and(stopped)
    }

    /// Whether the replica of a node takes part in a group that is led here, and holds nearly all of its log: one
    /// that failed does not, although its node answers.
    fn takes_part(&self, status: &GroupStatus, node: NodeId) -> bool {
        let is_near = |peer: &PeerProgress| {
            let behind = status.last.get().saturating_sub(peer.matched.get());
            (peer.recently_active || status.hibernating) && behind <= MAX_LAG
        };
        let peer = status.peers.iter().find(|peer| peer.node == node);
        node == self.host.node_id() || self.host.hears(node) && peer.is_some_and(is_near)
    }
}

/// The status of a group, of which a leader that was just elected changes the members in a moment.
async fn once_ready(group: &Group) -> Arc<GroupStatus> {
    let settled = |status: &GroupStatus| {
        status.role != Role::Leader || status.serving || status.caretaker.is_some()
    };
    let status = group.wait_for(settled, READY_WITHIN).await;
    status.unwrap_or_else(|| group.status())
}

fn outcome_of(changed: Result<Arc<Membership>, MembershipError>) -> Replaced {
    match changed {
        Ok(_) => Replaced::Begun,
        Err(error) if error.is_definite() => Replaced::Refused(error.to_string()),
        Err(_) => Replaced::Unknown,
    }
}

/// Adds a voter. The change ends when it has its vote, which may take minutes; it is begun when the group has
/// recorded it.
async fn add_voter(group: &Group, change: MembershipChange, new: NodeId) -> Replaced {
    let recorded = |status: &GroupStatus| incoming_node(&status.membership) == Some(new);
    tokio::select! {
        changed = group.change_membership(change) => outcome_of(changed),
        Some(_) = group.wait_for(recorded, RECORDED_WITHIN) => Replaced::Begun,
    }
}

/// The node of the replica that is to become a voter.
fn incoming_node(membership: &Membership) -> Option<NodeId> {
    let incoming = membership.incoming?;
    membership.members.get(&incoming.replica).map(|member| member.node)
}

/// What an order needs of the group next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// It is under way, or done.
    Nothing,
    /// The replica on this node has to get its vote first, or, of a learner, what the others hold.
    Wait(NodeId),
    ReplaceVoter {
        old: NodeId,
        new: NodeId,
    },
    ReplaceLearner {
        old: NodeId,
        new: NodeId,
    },
    AddVoter {
        new: NodeId,
    },
    AddLearner {
        new: NodeId,
    },
    Remove {
        old: NodeId,
    },
    /// An addition stands in the way that does not end.
    Cancel,
}

/// Decides from the membership; an error: why nothing can be done now.
fn next_step(
    membership: &Membership,
    order: Replacement,
    takes_part: impl Fn(NodeId) -> bool,
) -> Result<Step, String> {
    let member_on = |node: NodeId| membership.members.values().find(|member| member.node == node);
    let replaced = membership.incoming.and_then(|incoming| incoming.replaces);
    let replaced = replaced.and_then(|replica| membership.members.get(&replica));
    let replaced = replaced.map(|member| member.node);
    match incoming_node(membership) {
        Some(node) if Some(node) == order.step.new_node() && replaced == order.step.old() => {
            return Ok(Step::Nothing);
        }
        Some(node) if order.instead_of == Some(node) => return Ok(Step::Cancel),
        Some(node) => return Ok(Step::Wait(node)),
        None => {}
    }
    match order.step {
        Ordered::Replace { old, new } => match (member_on(old), member_on(new)) {
            (None, Some(_)) => Ok(Step::Nothing),
            (None, None) => Err(format!("node {old} is no member any more")),
            (Some(_), Some(_)) => Err(format!("node {new} is a member already")),
            (Some(Member { voter: true, .. }), None) => Ok(Step::ReplaceVoter { old, new }),
            (Some(_), None) => Ok(Step::ReplaceLearner { old, new }),
        },
        Ordered::ReplaceLearner { old, new, has } => {
            let more = count(membership, true) > has as usize;
            match (member_on(old), member_on(new)) {
                (None, Some(_)) => Ok(Step::Nothing),
                (None, None) => Err(format!("node {old} is no member any more")),
                (Some(Member { learner: true, .. }), None) if !more => Ok(Step::AddLearner { new }),
                (Some(Member { learner: true, .. }), Some(Member { learner: true, .. }))
                    if more =>
                {
                    Ok(if takes_part(new) { Step::Remove { old } } else { Step::Nothing })
                }
                _ => Err("its learners are others than was known".to_owned()),
            }
        }
        Ordered::Add { new, learner, wanted } => match member_on(new) {
            None if count(membership, learner) >= wanted as usize => {
                Err("it has as many replicas as it is to have".to_owned())
            }
            None if learner => Ok(Step::AddLearner { new }),
            None => Ok(Step::AddVoter { new }),
            Some(member) if member.voter != learner => Ok(Step::Nothing),
            Some(_) => Err(format!("node {new} is a member already")),
        },
        Ordered::Remove { old, learner, wanted } => match member_on(old) {
            None => Ok(Step::Nothing),
            Some(_) if membership.members.values().any(|member| member.outgoing_voter) => {
                Err("its members change at the moment".to_owned())
            }
            Some(member) if member.voter == learner => {
                Err(format!("node {old} has another part in it than was known"))
            }
            Some(_) if count(membership, learner) <= wanted as usize => {
                Err("it has no more replicas than it is to have".to_owned())
            }
            Some(Member { voter: false, .. }) if takes_part(old) => {
                let mut others = learners_beside(membership, old);
                Ok(others.find(|node| !takes_part(*node)).map_or(Step::Remove { old }, Step::Wait))
            }
            Some(Member { voter: true, .. }) if !outlives(membership, old, takes_part) => {
                Err(format!("without node {old} too few of its voters take part"))
            }
            Some(_) => Ok(Step::Remove { old }),
        },
    }
}

fn learners_beside(membership: &Membership, node: NodeId) -> impl Iterator<Item = NodeId> {
    let members = membership.members.values().filter(|member| member.learner);
    members.map(|member| member.node).filter(move |one| *one != node)
}

fn count(membership: &Membership, learner: bool) -> usize {
    let all = membership.members.values();
    all.filter(|member| if learner { member.learner } else { member.voter }).count()
}

/// Whether a majority of the voters that are left without a node takes part, and no fewer of them than before:
/// one that takes none goes before others do.
fn outlives(membership: &Membership, old: NodeId, takes_part: impl Fn(NodeId) -> bool) -> bool {
    let voters = || membership.voters().map(|(_, node)| node);
    let left = || voters().filter(|node| *node != old);
    let taking = left().filter(|node| takes_part(*node)).count();
    let idle = left().count() - taking;
    taking > left().count() / 2 && (idle == 0 || !takes_part(old))
}

fn order_of(message: &wire::Replacement) -> Result<Replacement, Status> {
    let wire::Replacement { group, old, new, gone, instead_of, learner, wanted } = *message;
    let step = match (NodeId::new(old), NodeId::new(new)) {
        (Some(old), Some(new)) if learner => Ordered::ReplaceLearner { old, new, has: wanted },
        (Some(old), Some(new)) => Ordered::Replace { old, new },
        (None, Some(new)) => Ordered::Add { new, learner, wanted },
        (Some(old), None) => Ordered::Remove { old, learner, wanted },
        (None, None) => {
            return Err(Status::invalid_argument("an order that names no node"));
        }
    };
    let (group, instead_of) = (GroupId::new(group), NodeId::new(instead_of));
    Ok(Replacement { group, step, gone, instead_of })
}

fn outcome_to_wire(group: GroupId, outcome: Replaced) -> wire::ReplaceOutcome {
    let mut told = wire::ReplaceOutcome { group: group.get(), ..wire::ReplaceOutcome::default() };
    let result = match outcome {
        Replaced::Begun => ReplaceResult::Begun,
        Replaced::NotLeader(leader) => {
            told.leader_node = leader.map_or(0, NodeId::get);
            ReplaceResult::NotLeader
        }
        Replaced::Refused(why) => {
            told.message = why;
            ReplaceResult::Refused
        }
        Replaced::InTheWay(node) => {
            told.message = format!("the replica on node {node} is to catch up first");
            told.in_the_way = node.get();
            ReplaceResult::Refused
        }
        Replaced::Unknown => ReplaceResult::Unspecified,
    };
    told.set_result(result);
    told
}

/// An outcome as it came. A result that is not known here is of unknown effect.
pub(super) fn outcome_from_wire(outcome: wire::ReplaceOutcome) -> (GroupId, Replaced) {
    let replaced = match outcome.result() {
        ReplaceResult::Begun => Replaced::Begun,
        ReplaceResult::NotLeader => Replaced::NotLeader(NodeId::new(outcome.leader_node)),
        ReplaceResult::Refused => match NodeId::new(outcome.in_the_way) {
            Some(node) => Replaced::InTheWay(node),
            None => Replaced::Refused(outcome.message),
        },
        ReplaceResult::Unspecified => Replaced::Unknown,
    };
    (GroupId::new(outcome.group), replaced)
}

#[cfg(test)]
mod tests {
    use shardhost_groups::ReplicaId;
    use shardhost_storage::Incoming;

    use super::*;

    fn replica(number: u64) -> ReplicaId {
        ReplicaId::new(number).unwrap()
    }

    /// Voters on nodes 1 to 3 and a learner on node 4.
    fn membership() -> Membership {
        let voters = (1..=3).map(|number| (replica(number), Member::voter(NodeId::must(number))));
        let learner = (replica(4), Member::learner(NodeId::must(4)));
        Membership { members: voters.chain([learner]).collect(), ..Membership::default() }
    }

    fn step(membership: &Membership, old: u64, new: u64) -> Result<Step, String> {
        let (old, new) = (NodeId::must(old), NodeId::must(new));
        let (group, instead_of) = (GroupId::new(7), Some(NodeId::must(8)));
        let step = Ordered::Replace { old, new };
        let order = Replacement { group, step, gone: true, instead_of };
        next_step(membership, order, |node| node != NodeId::must(9))
    }

    #[test]
    fn a_voter_is_replaced_by_a_voter_and_a_learner_by_a_learner() {
        assert_eq!(
            step(&membership(), 3, 5),
            Ok(Step::ReplaceVoter { old: NodeId::must(3), new: NodeId::must(5) })
        );
        assert_eq!(
            step(&membership(), 4, 5),
            Ok(Step::ReplaceLearner { old: NodeId::must(4), new: NodeId::must(5) })
        );
    }

    #[test]
    fn an_order_that_is_done_or_under_way_needs_nothing() {
        assert_eq!(step(&membership(), 6, 2), Ok(Step::Nothing));
        let mut changing = membership();
        changing.members.insert(replica(5), Member::learner(NodeId::must(5)));
        changing.incoming = Some(Incoming { replica: replica(5), replaces: Some(replica(3)) });
        assert_eq!(step(&changing, 3, 5), Ok(Step::Nothing));
        assert_eq!(step(&changing, 3, 6), Ok(Step::Wait(NodeId::must(5))));
        // An operator adds one on the same node, and nothing goes for it.
        changing.incoming = Some(Incoming { replica: replica(5), replaces: None });
        assert_eq!(step(&changing, 3, 5), Ok(Step::Wait(NodeId::must(5))));
    }

    #[test]
    fn an_addition_is_given_up_by_its_name_only() {
        let mut changing = membership();
        changing.members.insert(replica(5), Member::learner(NodeId::must(9)));
        changing.incoming = Some(Incoming { replica: replica(5), replaces: Some(replica(3)) });
        assert_eq!(step(&changing, 3, 6), Ok(Step::Wait(NodeId::must(9))), "it may come back");
        changing.members.insert(replica(5), Member::learner(NodeId::must(8)));
        assert_eq!(step(&changing, 3, 6), Ok(Step::Cancel));
    }

    fn next(step: Ordered, taking_part: fn(NodeId) -> bool) -> Result<Step, String> {
        let (group, instead_of) = (GroupId::new(7), None);
        let order = Replacement { group, step, gone: false, instead_of };
        next_step(&membership(), order, taking_part)
    }

    #[test]
    fn a_member_is_added_once_and_only_where_one_is_wanted() {
        let add = |new, learner, wanted| {
            next(Ordered::Add { new: NodeId::must(new), learner, wanted }, |_| true)
        };
        let new = NodeId::must(5);
        assert_eq!(add(5, true, 2), Ok(Step::AddLearner { new }));
        assert_eq!(add(5, false, 5), Ok(Step::AddVoter { new }));
        assert_eq!(add(4, true, 2), Ok(Step::Nothing));
        assert_eq!(add(3, false, 5), Ok(Step::Nothing));
        assert!(add(4, false, 5).unwrap_err().contains("a member already"));
        // Another change came before.
        for (learner, wanted) in [(false, 3), (true, 1)] {
            assert!(add(5, learner, wanted).unwrap_err().contains("as many replicas"));
        }
    }

    #[test]
    fn a_member_is_removed_only_where_there_are_too_many_and_the_others_take_part() {
        let remove = |old, learner, wanted, taking_part: fn(NodeId) -> bool| {
            next(Ordered::Remove { old: NodeId::must(old), learner, wanted }, taking_part)
        };
        let all: fn(NodeId) -> bool = |_| true;
        let old = NodeId::must(3);
        assert_eq!(remove(3, false, 1, all), Ok(Step::Remove { old }));
        assert_eq!(remove(8, false, 1, all), Ok(Step::Nothing));
        assert_eq!(remove(4, true, 0, |_| false), Ok(Step::Remove { old: NodeId::must(4) }));
        // Another change came before, or the member is another one now.
        assert!(remove(3, false, 3, all).unwrap_err().contains("no more replicas"));
        assert!(remove(4, true, 1, all).unwrap_err().contains("no more replicas"));
        assert!(remove(3, true, 0, all).unwrap_err().contains("another part"));
        // The replica of node 1 failed: it is the one that may go.
        let one_failed: fn(NodeId) -> bool = |node| node != NodeId::must(1);
        assert!(remove(3, false, 1, one_failed).unwrap_err().contains("too few"));
        assert_eq!(remove(1, false, 1, one_failed), Ok(Step::Remove { old: NodeId::must(1) }));
    }

    /// Which is named, so that it goes when it never does.
    #[test]
    fn of_two_learners_none_goes_for_one_that_does_not_take_part() {
        let mut members = membership();
        members.members.insert(replica(5), Member::learner(NodeId::must(5)));
        let remove = |old, idle: &[u64]| {
            let step = Ordered::Remove { old: NodeId::must(old), learner: true, wanted: 1 };
            let order = Replacement { group: GroupId::new(7), step, gone: false, instead_of: None };
            next_step(&members, order, |node| !idle.contains(&node.get()))
        };
        let goes = |old| Ok(Step::Remove { old: NodeId::must(old) });
        assert_eq!(remove(4, &[5]), Ok(Step::Wait(NodeId::must(5))));
        assert_eq!(remove(5, &[5]), goes(5));
        assert_eq!(remove(4, &[]), goes(4));
        assert_eq!(remove(4, &[4, 5]), goes(4));
    }

    #[test]
    fn a_learner_that_runs_goes_when_the_one_in_its_place_takes_part() {
        let (old, new) = (NodeId::must(4), NodeId::must(5));
        let order = Replacement {
            group: GroupId::new(7),
            step: Ordered::ReplaceLearner { old, new, has: 1 },
            gone: false,
            instead_of: None,
        };
        let next = |members: &Membership, caught_up: bool| {
            next_step(members, order, |node| caught_up || node != new)
        };
        let mut members = membership();
        assert_eq!(next(&members, true), Ok(Step::AddLearner { new }));
        members.members.insert(replica(5), Member::learner(new));
        assert_eq!(next(&members, false), Ok(Step::Nothing));
        assert_eq!(next(&members, true), Ok(Step::Remove { old }));
        members.members.remove(&replica(4));
        assert_eq!(next(&members, true), Ok(Step::Nothing));
        // It was there before: nothing takes the place of the other one.
        let two = Replacement { step: Ordered::ReplaceLearner { old, new, has: 2 }, ..order };
        members.members.insert(replica(4), Member::learner(old));
        assert!(next_step(&members, two, |_| true).unwrap_err().contains("others than was known"));
    }

    #[test]
    fn the_wire_carries_orders_and_outcomes() {
        let (old, new) = (NodeId::must(4), NodeId::must(5));
        for outcome in [
            Replaced::Begun,
            Replaced::NotLeader(Some(old)),
            Replaced::NotLeader(None),
            Replaced::Refused("it changes".to_owned()),
            Replaced::InTheWay(new),
            Replaced::Unknown,
        ] {
            let group = GroupId::new(7);
            let sent = outcome_to_wire(group, outcome.clone());
            assert_eq!(outcome_from_wire(sent), (group, outcome));
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(step(&membership(), 3, 2).unwrap_err().contains("node 2 is a member already"));
        assert!(step(&membership(), 6, 7).unwrap_err().contains("node 6 is no member"));
    }
}
