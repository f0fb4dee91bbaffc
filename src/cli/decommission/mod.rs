//! `shardhost node decommission`: every replica of a node moves to other nodes, so that it can be stopped
//! for good. Also of a node that is gone.
//!
//! [`choose`] decides where to. Each replacement is recorded in its group, so the command may be stopped
//! and run again at any time; `drain end` and `member fill` take it back.

mod choose;
mod groups;
mod outcome;
mod rules;

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use shardhost_policy::catalog::MAX_DRAIN_MS;
use shardhost_proto::admin::membership_step::Kind;
use shardhost_proto::admin::{
    ChangeMembershipRequest, GroupStatus, HostStatus, KnownNode, ListNodesRequest, MembershipStep,
};
use shardhost_proto::balance::balance_client::BalanceClient;
use shardhost_proto::balance::{DrainRequest, DrainStatus, GetDrainRequest};
use tokio::time::Instant;

use self::choose::{Move, Place, choose};
use self::groups::{Groups, members};
use self::outcome::{Outcome, report, show};
use super::change::unconfirmed;
use super::ended::{PARTLY, code_of};
use super::fill::{Replacement, Step};
use super::group_status::config_index;
use super::reached::{REQUEST_MS, Reached};
use super::rebuild;
use super::ruled::Ruled;
use super::target::{Node, Target, channel, in_time};

/// Between two looks for leaders.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// Replicas that move at a time.
const WINDOW: usize = 16;
/// How long the drain lasts that keeps leaderships away meanwhile: as long as one can.
const DRAIN_MS: u64 = MAX_DRAIN_MS;

/// Which node gives everything away.
#[derive(Clone, Debug, Args)]
pub struct DecommissionArguments {
    /// The node.
    node: u64,
    /// Show where each replica would go, and do nothing. Ends with exit code 3 when some could not go.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    target: Target,
}

/// Moves all replicas of a node, or shows where they would go.
pub async fn run(arguments: &DecommissionArguments) -> anyhow::Result<ExitCode> {
    let DecommissionArguments { node, dry_run, target } = arguments;
    let cluster = Reached::all(target).await?;
    let reason = "the rules for replicas are not known, and nothing is moved without them";
    let ruled = Ruled::look(&cluster, target).await.context(reason)?;
    let survey = Survey::within(&cluster, *node, &ruled, target.timeout()).await?;
    let Survey { mut groups, places } = survey;
    rules::note(&ruled, &mut groups.held, &places);
    let choice = choose(&groups.held, &places, *node);
    let silent = cluster.silent().keys().copied().filter(|silent| silent != node).collect();
    let mut outcome = Outcome::new(choice.stuck.clone(), &groups.unled, silent);
    if *dry_run {
        show(*node, &choice, &outcome, target.json);
        return Ok(outcome.exit_code());
    }
    if let Err(error) = drain(&cluster, *node).await {
        eprintln!("node {node} is not drained, and may take leaderships meanwhile: {error:#}");
    }
    carry_out(&cluster, *node, &choice.moves, target.timeout(), &mut outcome).await;
    // Another command may have given it one meanwhile, or have ended between two of its steps.
    let (after, silent) =
        look_again(&cluster, *node, &ruled, &groups.unled, target.timeout()).await;
    outcome.take_over(*node, &groups.voters, after, cluster.silent().keys().copied().chain(silent));
    outcome.drain = drain_of(&cluster, *node).await;
    report(*node, &outcome, target.json);
    Ok(outcome.exit_code())
}

/// What the nodes that answer say.
struct Survey {
    groups: Groups,
    places: BTreeMap<u64, Place>,
}

impl Survey {
    /// Looks until each group has a leader that answers, and after that time in any case: a node that is
    /// just gone may have led some.
    async fn within(
        cluster: &Reached,
        gone: u64,
        ruled: &Ruled,
        within: Duration,
    ) -> anyhow::Result<Self> {
        let deadline = Instant::now() + within;
        loop {
            let survey = Self::of(cluster, gone, ruled).await?;
            if survey.groups.unled.is_empty() || Instant::now() > deadline {
                return Ok(survey);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn of(cluster: &Reached, gone: u64, ruled: &Ruled) -> anyhow::Result<Self> {
        let groups = Groups::of(&cluster.all_groups().await?, gone, ruled);
        let places = places(cluster).await?;
        if !cluster.knows(gone) {
            bail!("there is no node {gone}; `shardhost node list` shows those that are");
        }
        Ok(Self { groups, places })
    }
}

/// The same at the end, and the nodes that do not answer any more. A group from which a leader was just
/// removed gets another one in a moment; those that had none are not waited for.
async fn look_again(
    cluster: &Reached,
    gone: u64,
    ruled: &Ruled,
    unled: &BTreeSet<u64>,
    within: Duration,
) -> (Groups, BTreeSet<u64>) {
    let deadline = Instant::now() + within;
    loop {
        let (statuses, silent) = cluster.groups().await;
        let groups = Groups::of(&statuses, gone, ruled);
        if groups.unled.is_subset(unled) || Instant::now() > deadline {
            return (groups, silent.into_keys().collect());
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// The nodes that answer, as the catalog knows them, if there is one.
async fn places(cluster: &Reached) -> anyhow::Result<BTreeMap<u64, Place>> {
    let mut known: BTreeMap<u64, KnownNode> = BTreeMap::new();
    if let Some(one) = cluster.nodes().values().find(|one| one.status.has_catalog) {
        let mut admin = one.admin.clone();
        let listed = in_time(&one.address, admin.list_nodes(ListNodesRequest {})).await?;
        known.extend(listed.nodes.into_iter().map(|node| (node.node, node)));
    }
    let place = |(node, one): (&u64, &Node)| (*node, place_of(&one.status, known.get(node)));
    Ok(cluster.nodes().iter().map(place).collect())
}

fn place_of(status: &HostStatus, known: Option<&KnownNode>) -> Place {
    let advertised = status.advertisement.clone().unwrap_or_default();
    let drains = advertised.draining || known.is_some_and(|known| known.draining);
    let closed = match (drains, status.impaired.as_str()) {
        (true, _) => Some("it is draining".to_owned()),
        (false, "") => None,
        (false, why) => Some(why.to_owned()),
    };
    Place {
        has: advertised.capabilities.into_iter().collect(),
        zone: known.map(|known| known.zone.clone()).unwrap_or_default(),
        replicas: status.groups,
        closed,
    }
}

/// Keeps leaderships away from the node while its replicas move, if it answers.
async fn drain(cluster: &Reached, node: u64) -> anyhow::Result<()> {
    let Some(one) = cluster.nodes().get(&node) else { return Ok(()) };
    if one.status.advertisement.as_ref().is_some_and(|advertised| advertised.draining) {
        return Ok(());
    }
    let request = DrainRequest {
        deadline_ms: DRAIN_MS,
        undrain_when_overdue: false,
        owner: "node decommission".to_owned(),
        expires_ms: DRAIN_MS,
        // What cannot move is named by this command.
        accept_stranded: true,
    };
    let mut balance = BalanceClient::new(channel(&one.address)?);
    in_time(&one.address, balance.drain(request)).await.map(drop)
}

/// How the drain of the node is, if it answers.
async fn drain_of(cluster: &Reached, node: u64) -> Option<DrainStatus> {
    let one = cluster.nodes().get(&node)?;
    let mut balance = BalanceClient::new(channel(&one.address).ok()?);
    in_time(&one.address, balance.get_drain(GetDrainRequest {})).await.ok()
}

async fn carry_out(
    cluster: &Reached,
    gone: u64,
    moves: &[Move],
    within: Duration,
    outcome: &mut Outcome,
) {
    let one =
        |one: Move| async move { (one.group, move_replica(cluster, one, gone, within).await) };
    let mut ended = stream::iter(moves.iter().copied()).map(one).buffer_unordered(WINDOW);
    while let Some((group, moved)) = ended.next().await {
        match moved {
            Ok(()) => outcome.moved += 1,
            Err(error) => {
                if code_of(&error) == PARTLY {
                    outcome.continues.insert(group);
                }
                outcome.left.insert(group, format!("{error:#}"));
            }
        }
    }
}

/// Moves one replica, and waits until the new one has its place.
async fn move_replica(
    cluster: &Reached,
    one: Move,
    gone: u64,
    within: Duration,
) -> anyhow::Result<()> {
    let Move { group, new, .. } = one;
    let replacement = Replacement::new(Step { group, old: gone }, new);
    let role = Role::new(one.learns);
    let next = async |leader: &Node, status: &GroupStatus| {
        if !role.learns(status, gone) {
            return replacement.next(leader, status).await;
        }
        let Some(steps) = steps_of_learner(status, gone, new) else { return Ok(true) };
        let (expect, timeout_ms) = (config_index(status), REQUEST_MS);
        let request = ChangeMembershipRequest { group, steps, expect, timeout_ms };
        let changed = leader.admin.clone().change_membership(request).await;
        changed.map_err(|status| unconfirmed(&leader.address, &status))?;
        Ok(false)
    };
    cluster.carry_on(group, within, next).await
}

/// Whether a replica has no vote: an operator may promote it, or take its vote, after the first look.
struct Role {
    learned: Mutex<bool>,
}

impl Role {
    /// As it was at the first look.
    const fn new(learns: bool) -> Self {
        Self { learned: Mutex::new(learns) }
    }

    /// As it is by the status by which the next step is sent, or was when the replica was last there.
    fn learns(&self, status: &GroupStatus, node: u64) -> bool {
        let mut learned = self.learned.lock();
        if let Some(member) = rebuild::member_on(status, node)
            && !member.outgoing_voter
        {
            *learned = rebuild::learns(status, member);
        }
        *learned
    }
}

/// What moves a replica without a vote; `None`: nothing is left to do.
fn steps_of_learner(status: &GroupStatus, gone: u64, new: u64) -> Option<Vec<MembershipStep>> {
    let members = members(status);
    let (has_old, has_new) = (members.contains(&gone), members.contains(&new));
    if has_new && !has_old {
        return None;
    }
    let step =
        |kind: Kind, node| MembershipStep { kind: kind.into(), node, ..MembershipStep::default() };
    let mut steps = vec![step(Kind::Remove, gone)];
    if !has_new {
        steps.insert(0, step(Kind::AddLearner, new));
    }
    Some(steps)
}

#[cfg(test)]
mod tests {
    use shardhost_proto::log::{Member, MemberRole, Membership};

    use super::*;

    fn status(members: &[(u64, MemberRole)]) -> GroupStatus {
        let member = |(node, role): &(u64, MemberRole)| Member {
            node: *node,
            replica: *node,
            role: (*role).into(),
            ..Member::default()
        };
        let members = members.iter().map(member).collect();
        let membership = Some(Membership { members, ..Membership::default() });
        GroupStatus { group: 7, membership, ..GroupStatus::default() }
    }

    /// An operator gives it a vote, or takes it, between the first look and its turn.
    #[test]
    fn a_replica_moves_with_the_vote_that_it_has_when_its_turn_comes() {
        let votes = status(&[(1, MemberRole::Voter), (3, MemberRole::Voter)]);
        let learns = status(&[(1, MemberRole::Voter), (3, MemberRole::Learner)]);
        let gone = status(&[(1, MemberRole::Voter)]);
        let role = Role::new(true);
        assert!(role.learns(&gone, 3), "as at the first look");
        assert!(!role.learns(&votes, 3) && !role.learns(&gone, 3), "it was promoted");
        let mut leaves = votes.clone();
        let leaving = &mut leaves.membership.as_mut().unwrap().members[1];
        (leaving.role, leaving.outgoing_voter) = (MemberRole::Learner.into(), true);
        assert!(!role.learns(&leaves, 3), "it has its vote until the change is over");
        assert!(role.learns(&learns, 3) && role.learns(&gone, 3), "its vote was taken");
    }

    #[test]
    fn a_learner_is_added_and_removed_by_one_change_and_not_twice() {
        use MemberRole::{Learner, Voter};
        let kinds = |members: &[(u64, MemberRole)]| {
            let steps = steps_of_learner(&status(members), 3, 4);
            let kind = |step: &MembershipStep| (step.kind(), step.node);
            steps.map(|steps| steps.iter().map(kind).collect::<Vec<_>>())
        };
        let both = vec![(Kind::AddLearner, 4), (Kind::Remove, 3)];
        assert_eq!(kinds(&[(1, Voter), (3, Learner)]), Some(both));
        let rest = vec![(Kind::Remove, 3)];
        assert_eq!(kinds(&[(1, Voter), (3, Learner), (4, Learner)]), Some(rest));
        assert_eq!(kinds(&[(1, Voter), (4, Learner)]), None);
    }
}
