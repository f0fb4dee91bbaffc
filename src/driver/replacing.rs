//! What a host does with an order to replace, add or remove a member of a group that it leads. The group decides: the order is
//! refused where it does not fit what the leader sees.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use shardhost_groups::{Group, GroupId, GroupStatus, LogIndex, MembershipChange, NodeId, Role};
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
        if let Some(old) = order.step.old().filter(|old| order.gone && self.answers(*old)) {
            return Replaced::Refused(format!("node {old} answers its leader"));
        }
        let step = match next_step(&status.membership, order, |node| self.answers(node)) {
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
            Step::Cancel => {
                let cancelled = group.cancel_addition(Some(expecting)).await;
                return match cancelled {
                    Ok(_) => Replaced::Refused(
                        "an addition to a node that is gone was cancelled".to_owned(),
                    ),
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
            Step::AddVoter { new } => group.change_membership(one.add_voter(new)).await,
            Step::AddLearner { new } => group.change_membership(one.add_learner(new)).await,
            Step::Remove { old } => group.change_membership(one.remove(old)).await,
        };
        match changed {
            Ok(_) => Replaced::Begun,
            Err(error) if error.is_definite() => Replaced::Refused(error.to_string()),
            Err(_) => Replaced::Unknown,
        }
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

    /// Whether a node answers this host.
    fn answers(&self, node: NodeId) -> bool {
        let mut peers = self.host.transport_stats().peers.into_iter();
        node == self.host.node_id() || peers.any(|peer| peer.node == node && peer.live)
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

/// What an order needs of the group next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// It is under way, or done.
    Nothing,
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
    /// An addition to a node that is gone stands in the way.
    Cancel,
}

/// Decides from the membership; an error: why nothing can be done now.
fn next_step(
    membership: &Membership,
    order: Replacement,
    answers: impl Fn(NodeId) -> bool,
) -> Result<Step, String> {
    let member_on = |node: NodeId| membership.members.values().find(|member| member.node == node);
    let incoming =
        membership.incoming.and_then(|incoming| membership.members.get(&incoming.replica));
    match incoming.map(|member| member.node) {
        Some(node) if Some(node) == order.step.new_node() => return Ok(Step::Nothing),
        Some(node) if answers(node) && order.instead_of != Some(node) => {
            return Err(format!("an addition of node {node} is under way"));
        }
        Some(_) => return Ok(Step::Cancel),
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
        Ordered::Add { new, learner } => match member_on(new) {
            None if learner => Ok(Step::AddLearner { new }),
            None => Ok(Step::AddVoter { new }),
            Some(member) if member.voter != learner => Ok(Step::Nothing),
            Some(_) => Err(format!("node {new} is a member already")),
        },
        Ordered::Remove { old } => match member_on(old) {
            None => Ok(Step::Nothing),
            Some(Member { voter: true, .. }) => match outlives(membership, old, answers) {
                true => Ok(Step::Remove { old }),
                false => Err(format!("without node {old} too few of its voters answer")),
            },
            Some(_) => Ok(Step::Remove { old }),
        },
    }
}

/// Whether the voters that are left without a node are enough, and a majority of them answers.
fn outlives(membership: &Membership, old: NodeId, answers: impl Fn(NodeId) -> bool) -> bool {
    let left: Vec<NodeId> =
        membership.voters().map(|(_, node)| node).filter(|node| *node != old).collect();
    left.iter().filter(|node| answers(**node)).count() > left.len() / 2
}

fn order_of(message: &wire::Replacement) -> Result<Replacement, Status> {
    let wire::Replacement { group, old, new, gone, instead_of, learner } = *message;
    let step = match (NodeId::new(old), NodeId::new(new)) {
        (Some(old), Some(new)) => Ordered::Replace { old, new },
        (None, Some(new)) => Ordered::Add { new, learner },
        (Some(old), None) => Ordered::Remove { old },
        (None, None) => {
            return Err(Status::invalid_argument("an order that names no node"));
        }
    };
    let (group, instead_of) = (GroupId::new(group), NodeId::new(instead_of));
    Ok(Replacement { group, step, gone, instead_of })
}

fn outcome_to_wire(group: GroupId, outcome: Replaced) -> wire::ReplaceOutcome {
    let (result, leader, message) = match outcome {
        Replaced::Begun => (ReplaceResult::Begun, None, String::new()),
        Replaced::NotLeader(leader) => (ReplaceResult::NotLeader, leader, String::new()),
        Replaced::Refused(why) => (ReplaceResult::Refused, None, why),
        Replaced::Unknown => (ReplaceResult::Unspecified, None, String::new()),
    };
    let leader_node = leader.map_or(0, NodeId::get);
    wire::ReplaceOutcome { group: group.get(), result: result.into(), leader_node, message }
}

/// An outcome as it came. A result that is not known here is of unknown effect.
pub(super) fn outcome_from_wire(outcome: wire::ReplaceOutcome) -> (GroupId, Replaced) {
    let replaced = match outcome.result() {
        ReplaceResult::Begun => Replaced::Begun,
        ReplaceResult::NotLeader => Replaced::NotLeader(NodeId::new(outcome.leader_node)),
        ReplaceResult::Refused => Replaced::Refused(outcome.message),
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
        assert!(step(&changing, 3, 6).unwrap_err().contains("node 5 is under way"));
    }

    #[test]
    fn an_addition_to_a_node_that_is_gone_makes_room() {
        let mut changing = membership();
        changing.members.insert(replica(5), Member::learner(NodeId::must(9)));
        changing.incoming = Some(Incoming { replica: replica(5), replaces: Some(replica(3)) });
        assert_eq!(step(&changing, 3, 6), Ok(Step::Cancel));
        // So does one that is to be given up, although the node answers.
        changing.members.insert(replica(5), Member::learner(NodeId::must(8)));
        assert_eq!(step(&changing, 3, 6), Ok(Step::Cancel));
    }

    #[test]
    fn a_member_is_added_or_removed_once() {
        let next = |step, answering: fn(NodeId) -> bool| {
            let (group, instead_of) = (GroupId::new(7), None);
            next_step(
                &membership(),
                Replacement { group, step, gone: false, instead_of },
                answering,
            )
        };
        let (all, node) = ((|_| true) as fn(NodeId) -> bool, NodeId::must);
        let (new, learner) = (node(5), true);
        assert_eq!(next(Ordered::Add { new, learner }, all), Ok(Step::AddLearner { new }));
        assert_eq!(next(Ordered::Add { new, learner: false }, all), Ok(Step::AddVoter { new }));
        let there = Ordered::Add { new: node(4), learner };
        assert_eq!(next(there, all), Ok(Step::Nothing));
        assert_eq!(next(Ordered::Add { new: node(3), learner: false }, all), Ok(Step::Nothing));
        assert!(next(Ordered::Add { new: node(4), learner: false }, all).is_err());
        let old = node(3);
        assert_eq!(next(Ordered::Remove { old }, all), Ok(Step::Remove { old }));
        assert_eq!(next(Ordered::Remove { old: node(8) }, all), Ok(Step::Nothing));
        // Of the two voters that are left, one does not answer.
        let refused = next(Ordered::Remove { old }, |node| node != NodeId::must(1));
        assert!(refused.unwrap_err().contains("too few"));
        let old = node(4);
        assert_eq!(next(Ordered::Remove { old }, |_| false), Ok(Step::Remove { old }));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(step(&membership(), 3, 2).unwrap_err().contains("node 2 is a member already"));
        assert!(step(&membership(), 6, 7).unwrap_err().contains("node 6 is no member"));
    }
}
