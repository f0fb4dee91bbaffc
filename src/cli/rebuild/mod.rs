//! `shardhost member rebuild`: every replica of a node is replaced by a new one on the same node, which
//! gets everything from the others: the node lost its disk, was put back from an older copy, or holds
//! what differs.
//!
//! A node holds one replica of a group, so the old one is removed before the new one is added. Each
//! of the two steps is recorded in the group; the time between them is not. So few groups are between them
//! at a time: where the command is killed, they are all that lack a replica, and the next run names them.

mod course;
mod report;
mod survey;

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use shardhost_proto::admin::membership_step::Kind;
use shardhost_proto::admin::{ChangeMembershipRequest, GroupStatus, MembershipStep};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use self::course::{Course, GRACE, Next};
use self::report::{Failure, Unknown, report, show};
use self::survey::{Old, voters_of};
pub use self::survey::{Shrunk, Survey, learns, member_on, shrunk};
use super::change::is_refused;
use super::ended::PARTLY;
use super::group_status::{config_index, role_of};
use super::output::counted;
use super::reached::{REQUEST_MS, Reached, hand_over};
use super::ruled::Ruled;
use super::serve::Signals;
use super::target::{Node, Target, said};

/// Replicas that are rebuilt at a time: most of them catch up.
const WINDOW: usize = 16;
/// How long a group waits for its place before it is looked at again.
const PLACE_WAIT: Duration = Duration::from_secs(1);
/// Groups without their replica at a time.
const BETWEEN: usize = 2;
/// How much longer than it may take a request is waited for.
const ANSWER_MS: u64 = 3_000;

/// Which replicas are rebuilt.
#[derive(Clone, Debug, Args)]
pub struct RebuildArguments {
    /// The node whose replicas are replaced.
    node: u64,
    /// Only these groups.
    #[arg(long = "group", value_name = "GROUP", value_delimiter = ',')]
    groups: Vec<u64>,
    /// Show which groups that are, and do nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    target: Target,
}

impl RebuildArguments {
    /// One replica.
    pub fn of_group(node: u64, group: u64, target: &Target) -> Self {
        Self { node, groups: vec![group], dry_run: false, target: target.clone() }
    }
}

/// Rebuilds the replicas of a node, or shows which that would be.
pub async fn run(arguments: &RebuildArguments) -> anyhow::Result<ExitCode> {
    let RebuildArguments { node, groups, dry_run, target } = arguments;
    let cluster = Reached::all(target).await?;
    cluster.require(*node)?;
    let ruled = rules(&cluster, target).await;
    let mut survey = Survey::of(&cluster, *node, &ruled).await?;
    if !groups.is_empty() {
        survey = only(survey, groups, *node, &cluster)?;
    }
    let unknown = Unknown::of(&cluster, &survey);
    if *dry_run {
        show(*node, &survey, &unknown, target.json);
        return Ok(unknown.exit_code());
    }
    check_target(&cluster, *node)?;
    let course = Course::new(*node);
    let failed = rebuild_all(&cluster, *node, &survey, &course, target.timeout()).await?;
    let rebuilt = survey.replicas.len() - failed.len();
    // Whatever took a voter from a group, it is named.
    let (after, silent) = cluster.groups().await;
    let selected = |group| groups.is_empty() || groups.contains(&group);
    // Rules may have come meanwhile.
    let ruled = rules(&cluster, target).await;
    let after = Survey::from(&after, *node, &ruled);
    let unknown = unknown.afterwards(&survey, after, &ruled, silent, selected);
    report(*node, rebuilt, &failed, &unknown, target.json);
    // Where nothing was changed, it only failed.
    let changed =
        rebuilt > 0 || failed.values().any(|failure| failure.begun) || unknown.has_shrunk();
    Ok(match (failed.is_empty(), changed) {
        (true, _) => unknown.exit_code(),
        (false, true) => ExitCode::from(PARTLY),
        (false, false) => ExitCode::FAILURE,
    })
}

/// The rules for replicas. A cluster whose catalog does not answer is rebuilt all the same.
async fn rules(cluster: &Reached, target: &Target) -> Ruled {
    Ruled::look(cluster, target).await.unwrap_or_else(|error| {
        eprintln!(
            "the rules for replicas are not known, and groups are compared with each other: {error:#}"
        );
        Ruled::default()
    })
}

/// A node that says itself that something is wrong would take the votes of its replicas and give none
/// back.
fn check_target(cluster: &Reached, node: u64) -> anyhow::Result<()> {
    let impaired = cluster.nodes().get(&node).map_or("", |one| one.status.impaired.as_str());
    match impaired {
        "" => Ok(()),
        why => bail!("node {node} is in no state to be given replicas: {why}"),
    }
}

/// Leaves only the selected groups.
fn only(survey: Survey, groups: &[u64], node: u64, cluster: &Reached) -> anyhow::Result<Survey> {
    let wanted: BTreeSet<u64> = groups.iter().copied().collect();
    let Survey { mut replicas, usual, voters, .. } = survey;
    if let Some(group) = wanted.iter().find(|group| !replicas.contains_key(group)) {
        if !voters.contains_key(group) && cluster.silent().is_empty() {
            bail!("there is no group {group}; `shardhost group list` shows those that are");
        }
        let silent: Vec<String> = cluster.silent().keys().map(ToString::to_string).collect();
        let silent = match silent.is_empty() {
            true => String::new(),
            false => format!(" (of what nodes {} hold nothing is known)", silent.join(", ")),
        };
        bail!(
            "node {node} is no member of group {group}{silent}; `member add {group} {node}` makes it \
             one, also where an earlier run removed its replica and did not come to add another"
        );
    }
    replicas.retain(|group, _| wanted.contains(group));
    Ok(Survey { replicas, short: BTreeMap::new(), usual, voters })
}

async fn rebuild_all(
    cluster: &Reached,
    node: u64,
    survey: &Survey,
    course: &Course,
    within: Duration,
) -> anyhow::Result<BTreeMap<u64, Failure>> {
    let mut signals = Signals::listen()?;
    let places = Semaphore::new(BETWEEN);
    let one = |(group, old): (&u64, &Old)| {
        let usual = survey.usual.get(group).copied().unwrap_or(0);
        let (places, place) = (&places, Mutex::new(None));
        let rebuild =
            Rebuild { cluster, course, node, group: *group, old: *old, usual, places, place };
        async move { (rebuild.group, rebuild.run(within).await) }
    };
    let mut outcomes = stream::iter(&survey.replicas).map(one).buffer_unordered(WINDOW);
    let mut open: BTreeSet<u64> = survey.replicas.keys().copied().collect();
    let mut failed = BTreeMap::new();
    let fails = |group, cause| {
        let (begun, addition) = (course.has_begun(group), course.addition(group));
        Failure { cause, begun, addition }
    };
    loop {
        let next = tokio::select! {
            next = outcomes.next() => next,
            () = signals.next() => {
                if !course.interrupt(Instant::now()) {
                    break;
                }
                eprintln!(
                    "interrupted: groups whose replica may be removed get another one first, for at most \
                     {GRACE:?}; interrupt once more to end at once"
                );
                continue;
            }
        };
        let Some((group, outcome)) = next else { break };
        open.remove(&group);
        if let Err(error) = outcome {
            failed.insert(group, fails(group, format!("{error:#}")));
        }
    }
    // Those that an interruption left where they were.
    failed.extend(open.into_iter().map(|group| (group, fails(group, INTERRUPTED.to_owned()))));
    Ok(failed)
}

const INTERRUPTED: &str = "interrupted";
const FULL: &str = "as many groups as may be are left without their replica, so no more is removed";

/// The replacement of one replica by a new one on its node.
struct Rebuild<'a> {
    cluster: &'a Reached,
    course: &'a Course,
    node: u64,
    group: u64,
    old: Old,
    /// How many voters are expected of it.
    usual: usize,
    places: &'a Semaphore,
    /// Held from before the removal until the new replica is recorded, or this ends.
    place: Mutex<Option<SemaphorePermit<'a>>>,
}

impl Rebuild<'_> {
    /// Waits until the new replica has its place.
    async fn run(&self, within: Duration) -> anyhow::Result<()> {
        let Self { cluster, course, group, .. } = *self;
        if course.is_interrupted() {
            bail!(INTERRUPTED);
        }
        if course.is_full() {
            bail!(FULL);
        }
        let deadline = Instant::now() + within;
        let is_over = || course.is_over(group, deadline, Instant::now());
        let step =
            async |leader: &Node, status: &GroupStatus| self.step(leader, status, deadline).await;
        let done = cluster.carry_on_until(group, is_over, step).await;
        // No other group takes the place of one that is left without its replica.
        if course.end(group, Instant::now())
            && let Some(place) = self.place.lock().take()
        {
            place.forget();
        }
        done.map_err(|error| match (course.is_interrupted(), course.is_gone(group)) {
            (true, _) => error.context(INTERRUPTED),
            (false, true) => error,
            (false, false) => error.context(format!("not in its place after {within:?}")),
        })
    }

    /// Does what comes next; whether that was nothing.
    async fn step(
        &self,
        leader: &Node,
        status: &GroupStatus,
        deadline: Instant,
    ) -> anyhow::Result<bool> {
        let Self { course, node, group, old, .. } = *self;
        let old = course.as_it_is(status, old);
        match course.next(status, old) {
            Next::Done => return Ok(true),
            Next::Wait => {
                self.give_up_place();
                bail!(course.why(status));
            }
            Next::Add => self.add(leader, status, old).await?,
            // A removal that was sent may still come.
            Next::Remove if course.is_due(deadline, Instant::now()) => {}
            Next::Remove if leader.status.node == node => hand_over(leader, group, status).await?,
            Next::Remove => {
                if let Err(error) = self.check(status, old).await {
                    self.give_up_place();
                    return Err(error);
                }
                if !self.take_place().await {
                    bail!("other groups that are without their replica come first");
                }
                let before = course.enter(group, old);
                let removed = change(leader, status, Kind::Remove, node).await;
                if matches!(removed, Err(Unchanged::Refused(_))) && !before {
                    course.refused(group);
                    self.give_up_place();
                }
                removed.map_err(Unchanged::into_error)?;
                // At once: nothing records that it is to be done.
                self.add(leader, &leader.group(group).await?, old).await?;
            }
        }
        Ok(false)
    }

    /// Whether the group can do without its replica for a moment.
    async fn check(&self, status: &GroupStatus, old: Old) -> anyhow::Result<()> {
        check_voters(voters_of(status), old, self.usual)?;
        check_others(self.cluster, status, self.node).await
    }

    /// Leaves the place to another group, unless this one may be without its replica.
    fn give_up_place(&self) {
        if !self.course.is_between(self.group) {
            drop(self.place.lock().take());
        }
    }

    /// Adds the new replica. Once that is confirmed it is recorded.
    async fn add(&self, leader: &Node, status: &GroupStatus, old: Old) -> anyhow::Result<()> {
        self.course.enter(self.group, old);
        let kind = if old.learns { Kind::AddLearner } else { Kind::AddVoter };
        change(leader, status, kind, self.node).await.map_err(Unchanged::into_error)?;
        drop(self.place.lock().take());
        Ok(())
    }

    /// Whether this group is one of the few that may be without their replica. The first that waits is the
    /// first that is; what was looked at may have changed when it was not at once.
    async fn take_place(&self) -> bool {
        if self.place.lock().is_some() {
            return true;
        }
        if let Ok(place) = self.places.try_acquire() {
            *self.place.lock() = Some(place);
            return true;
        }
        let waited = tokio::time::timeout(PLACE_WAIT, self.places.acquire()).await;
        if let Ok(Ok(place)) = waited {
            *self.place.lock() = Some(place);
        }
        false
    }
}

/// A change that was not confirmed.
enum Unchanged {
    /// It was refused, and takes no effect.
    Refused(anyhow::Error),
    /// It may take effect, now or later.
    Unknown(anyhow::Error),
}

impl Unchanged {
    fn of(leader: &Node, status: &tonic::Status) -> Self {
        let error = said(&leader.address, status);
        if is_refused(status) { Self::Refused(error) } else { Self::Unknown(error) }
    }

    fn into_error(self) -> anyhow::Error {
        match self {
            Self::Refused(error) => error,
            Self::Unknown(error) => error.context("its outcome is not known"),
        }
    }
}

/// Changes the configuration that `status` shows, and no other one: what was judged by it is not known of
/// what others made of it meanwhile.
async fn change(
    leader: &Node,
    status: &GroupStatus,
    kind: Kind,
    node: u64,
) -> Result<(), Unchanged> {
    let request = request_of(status, kind, node);
    let mut admin = leader.admin.clone();
    let within = Duration::from_millis(REQUEST_MS + ANSWER_MS);
    let silent = || anyhow::anyhow!("{} does not answer", leader.address);
    let changed = tokio::time::timeout(within, admin.change_membership(request)).await;
    let changed = changed.map_err(|_| Unchanged::Unknown(silent()))?;
    changed.map(drop).map_err(|status| Unchanged::of(leader, &status))
}

fn request_of(status: &GroupStatus, kind: Kind, node: u64) -> ChangeMembershipRequest {
    let step = MembershipStep { kind: kind.into(), node, ..MembershipStep::default() };
    let (group, expect) = (status.group, config_index(status));
    ChangeMembershipRequest { group, steps: vec![step], expect, timeout_ms: REQUEST_MS }
}

/// Whether the group still has the voters that it had when this command looked, and is not left
/// with a single one where more are expected: another command may have removed one, and not
/// added the next yet, as a rebuild of another node does.
fn check_voters(now: usize, old: Old, usual: usize) -> anyhow::Result<()> {
    if old.learns {
        return Ok(());
    }
    if now < old.voters {
        let now = counted(now as u64, "voter");
        bail!("it has {now} now, and had {}: another change comes first", old.voters);
    }
    if now == 2 && usual > 2 {
        bail!(
            "one voter would be left with all that the group holds, where {usual} are expected: add another with \
             `member add` first, unless a rule has one added"
        );
    }
    Ok(())
}

/// Whether the remaining voters can do without the replica: else the removal would leave the group
/// without a quorum until another one comes back. A hibernating group gets no heartbeats, so each
/// voter is asked.
async fn check_others(cluster: &Reached, status: &GroupStatus, node: u64) -> anyhow::Result<()> {
    let others = other_voters(status, node);
    let ask = |other: u64| async move {
        let Some(other) = cluster.nodes().get(&other) else { return false };
        other.group(status.group).await.is_ok_and(|held| takes_part(&held))
    };
    let answers = futures::future::join_all(others.iter().copied().map(ask)).await;
    let live = answers.iter().filter(|takes_part| **takes_part).count();
    enough(live, others.len())
}

fn other_voters(status: &GroupStatus, node: u64) -> Vec<u64> {
    let members = status.membership.iter().flat_map(|all| &all.members);
    let others = members.filter(|member| role_of(member) == "voter" && member.node != node);
    others.map(|member| member.node).collect()
}

/// Whether a replica does its part in the group.
fn takes_part(held: &GroupStatus) -> bool {
    held.role != "failed" && held.doubt.is_empty()
}

/// Whether so many of the other voters are enough.
fn enough(live: usize, others: usize) -> anyhow::Result<()> {
    let needed = others / 2 + 1;
    if others == 0 {
        bail!("it is the only voter: no other replica has its data");
    }
    if live < needed {
        bail!("{live} of the {others} other voters take part, {needed} must");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use shardhost_proto::log::{Member, MemberRole, Membership};

    use super::*;

    /// Node `n` has replica `n`.
    fn status(nodes: &[u64]) -> GroupStatus {
        let voter = |node: &u64| Member {
            node: *node,
            replica: *node,
            role: MemberRole::Voter.into(),
            ..Member::default()
        };
        let members = nodes.iter().map(voter).collect();
        let membership = Some(Membership { members, config_index: 17, ..Membership::default() });
        GroupStatus { group: 7, membership, ..GroupStatus::default() }
    }

    /// Nodes 2 and 3 are rebuilt at once: the second looked at three voters, or at two.
    #[test]
    fn a_group_from_which_somebody_else_took_a_voter_keeps_the_others() {
        let old = |voters| Old { replica: 2, learns: false, voters };
        assert!(check_voters(3, old(3), 3).is_ok());
        let refused = check_voters(2, old(3), 3).unwrap_err();
        assert!(refused.to_string().contains("has 2 voters now, and had 3"), "{refused}");
        let refused = check_voters(2, old(2), 3).unwrap_err();
        assert!(refused.to_string().contains("one voter would be left"), "{refused}");
        assert!(check_voters(2, old(2), 2).is_ok(), "groups of two are as they should be");
        assert!(check_voters(2, Old { learns: true, ..old(3) }, 3).is_ok());
    }

    #[test]
    fn what_was_judged_is_what_is_changed() {
        for kind in [Kind::Remove, Kind::AddVoter] {
            let request = request_of(&status(&[1, 2, 3]), kind, 2);
            assert_eq!((request.group, request.expect), (7, Some(17)));
        }
    }

    #[test]
    fn a_replica_stays_that_the_others_cannot_do_without() {
        assert_eq!(other_voters(&status(&[1, 2, 3]), 3), [1, 2]);
        for (live, others) in [(2, 2), (1, 1), (3, 4), (2, 3)] {
            assert!(enough(live, others).is_ok(), "{live} of {others}");
        }
        for (live, others) in [(0, 0), (1, 2), (0, 1), (2, 4)] {
            assert!(enough(live, others).is_err(), "{live} of {others}");
        }
    }
}
