//! `shardhost leader why`: who leads a group, whether it serves and why not, and who else could.

mod opinions;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};
use shardhost_proto::admin::voter_fitness::Fitness;
use shardhost_proto::admin::{
    ExplainLeaderRequest, GroupStatus, LeaderExplanation, ShowGroupRequest, VoterFitness,
};
use tonic::Code;

use super::output::{Column, number, table};
use super::requirement::{capabilities_text, draining_text, requirement_json, requirement_text};
use super::target::{Node, Target, admin, promptly};
use opinions::{declined_json, of_replica, of_voters, opinions_json, word};

/// How long a node may take to say whether it holds a replica.
const REPLICA_TIMEOUT: Duration = Duration::from_secs(3);

/// Explains the leadership of a group.
pub async fn why(group: u64, target: &Target) -> anyhow::Result<()> {
    let findings = Findings::gather(group, target).await?;
    if target.json {
        println!("{}", findings.json());
    } else {
        println!("{}", findings.text());
    }
    Ok(())
}

/// What the nodes that were asked say of a group.
#[derive(Debug, Default)]
struct Findings {
    group: u64,
    views: BTreeMap<u64, LeaderExplanation>,
    /// Why others did not answer, by address.
    silent: BTreeMap<String, String>,
    /// Voters' nodes that answer and have no replica that could lead, and why.
    without: BTreeMap<u64, &'static str>,
}

impl Findings {
    /// Asks the leader; while none is found, every node that answers.
    async fn gather(group: u64, target: &Target) -> anyhow::Result<Self> {
        let start = target.node().await?;
        let mut findings = Self { group, ..Self::default() };
        findings.ask(&start).await;
        for address in findings.others(&start, target) {
            if findings.leader().is_some() {
                break;
            }
            match Node::connect(&address).await {
                Ok(node) => findings.ask(&node).await,
                Err(error) => drop(findings.silent.insert(address, format!("{error:#}"))),
            }
        }
        findings.look_for_replicas(&start).await;
        if findings.views.is_empty() {
            let said: Vec<&str> = findings.silent.values().map(String::as_str).collect();
            anyhow::bail!("no node says anything of group {group}: {}", said.join("; "));
        }
        Ok(findings)
    }

    /// Asks the voters' nodes whether they hold what the group takes them to hold: a node that lost
    /// its disk answers, and has nothing.
    async fn look_for_replicas(&mut self, start: &Node) {
        let Some(best) = self.best() else { return };
        let (own, group) = (best.node, self.group);
        let others = best.voters.iter().map(|voter| voter.node).filter(|node| *node != own);
        let asked = others.filter_map(|node| {
            let own = (start.status.node == node).then(|| start.address.clone());
            let address = own.or_else(|| start.address_of(node))?;
            Some(async move { (node, replica_at(&address, group).await) })
        });
        let answers: Vec<_> = asked.collect();
        let answers = futures::future::join_all(answers).await;
        self.without.extend(answers.into_iter().filter_map(|(node, why)| Some((node, why?))));
    }

    async fn ask(&mut self, node: &Node) {
        let mut admin = node.admin.clone();
        let request = ExplainLeaderRequest { group: self.group };
        match promptly(&node.address, admin.explain_leader(request)).await {
            Ok(view) => drop(self.views.insert(node.status.node, view)),
            Err(error) => drop(self.silent.insert(node.address.clone(), format!("{error:#}"))),
        }
    }

    /// The nodes to ask after the first one: the leader that it names, then all others.
    fn others(&self, start: &Node, target: &Target) -> Vec<String> {
        let named = self.views.values().find_map(|view| start.address_of(status(view).leader_node));
        let peers = start.peers().map(|(_, address)| address.to_owned());
        let all = named.into_iter().chain(peers).chain(target.at.iter().cloned());
        let mut seen = BTreeSet::from([String::new(), start.address.clone()]);
        all.filter(|address| seen.insert(address.clone())).collect()
    }

    /// The answer of the leader; of several that believe so, the one of the latest term.
    fn leader(&self) -> Option<&LeaderExplanation> {
        let leaders = self.views.values().filter(|view| status(view).role == "leader");
        leaders.max_by_key(|view| status(view).term)
    }

    /// The view that knows most.
    fn best(&self) -> Option<&LeaderExplanation> {
        self.leader().or_else(|| self.views.values().max_by_key(|view| status(view).committed))
    }

    fn text(&self) -> String {
        let Some(best) = self.best() else { return String::new() };
        let mut lines = vec![match self.leader() {
            Some(leader) => verdict(leader),
            None => self.nobody_leads(),
        }];
        let required = requirement_text(status(best).membership.as_ref());
        lines.push(format!("it requires {required} of its leader"));
        let by = if self.leader().is_some() { "" } else { ", as far as that node knows" };
        lines.push(format!("its voters as node {} sees them{by}:", best.node));
        let rows = best.voters.iter().map(|voter| row(voter, best, self.unfit(voter)));
        lines.push(table(&COLUMNS, rows));
        lines.extend(self.without.iter().map(|(node, why)| {
            let group = self.group;
            format!(
                "node {node} {why}; `shardhost member rebuild {node} --group {group}` gives it a new one"
            )
        }));
        lines.extend(of_voters(best));
        lines.extend(self.views.values().flat_map(of_replica));
        lines.extend(self.silent.values().map(|why| format!("no answer: {why}")));
        lines.extend(advice(self.group, best, &self.without));
        lines.join("\n")
    }

    /// Why a voter cannot lead, whatever it has.
    fn unfit(&self, voter: &VoterFitness) -> Option<&'static str> {
        self.without.get(&voter.node).copied()
    }

    fn nobody_leads(&self) -> String {
        let seen = self.views.values().map(|view| {
            let GroupStatus { role, term, .. } = status(view);
            format!("node {} is {role} in term {}", view.node, number(*term))
        });
        let seen: Vec<String> = seen.collect();
        format!("no node that answers leads group {}: {}", self.group, seen.join(", "))
    }

    fn json(&self) -> Value {
        let Some(best) = self.best() else { return Value::Null };
        let leader = self.leader();
        let answers = self.views.values().map(|view| {
            let GroupStatus { role, term, leader_node, .. } = status(view);
            json!({
                "node": view.node,
                "role": role,
                "term": term,
                "leader_node": leader_node,
                "withheld_ms": view.withheld_ms,
                "passed_timeouts": view.passed_timeouts,
                "max_skipped_timeouts": view.max_skipped_timeouts,
                "next_try_ms": view.next_try_ms,
            })
        });
        json!({
            "group": self.group,
            "leader_node": leader.map(|leader| leader.node),
            "term": status(best).term,
            "serving": leader.is_some_and(|leader| status(leader).serving),
            "caretaker": leader.map(|leader| &status(leader).caretaker).filter(|why| !why.is_empty()),
            "transferring_to_node": status(best).transferring_to_node,
            "requirement": requirement_json(status(best).membership.as_ref()),
            "voters_seen_by_node": best.node,
            "voters": best
                .voters
                .iter()
                .map(|voter| voter_json(voter, self.unfit(voter)))
                .collect::<Vec<_>>(),
            "answers": answers.collect::<Vec<_>>(),
            "no_answer": self.silent,
        })
    }
}

/// Why the replica of a group on a node cannot lead; `None`: it can, or it is not known.
async fn replica_at(address: &str, group: u64) -> Option<&'static str> {
    let mut admin = admin(address).ok()?;
    let asked = admin.show_group(ShowGroupRequest { group });
    match tokio::time::timeout(REPLICA_TIMEOUT, asked).await.ok()? {
        Ok(status) => (status.into_inner().role == "failed").then_some("has a replica that failed"),
        Err(status) => (status.code() == Code::NotFound).then_some("holds no replica"),
    }
}

/// The node's status of its replica; an answer without it counts as unknown.
fn status(view: &LeaderExplanation) -> &GroupStatus {
    static NOTHING: std::sync::LazyLock<GroupStatus> = std::sync::LazyLock::new(Default::default);
    view.status.as_ref().unwrap_or(&NOTHING)
}

/// One sentence about a leader.
fn verdict(leader: &LeaderExplanation) -> String {
    let GroupStatus { group, term, caretaker, serving, transferring_to_node, .. } = status(leader);
    let led = format!("group {group} is led by node {} in term {}", leader.node, number(*term));
    let served = match (serving, caretaker.as_str()) {
        (true, _) => ", and served".to_owned(),
        (false, "") => ", and not served yet: what was written before it led is being applied, \
                        or a policy has not answered"
            .to_owned(),
        (false, reason) => format!(", which serves no users: {reason}"),
    };
    match transferring_to_node {
        0 => led + served.as_str(),
        to => format!("{led}{served}; it is being handed to node {to}"),
    }
}

const COLUMNS: [Column; 6] = [
    Column::Right("node"),
    Column::Left("answers"),
    Column::Left("capabilities"),
    Column::Left("fit"),
    Column::Left("draining"),
    Column::Right("lacks entries"),
];

fn row(voter: &VoterFitness, view: &LeaderExplanation, unfit: Option<&'static str>) -> Vec<String> {
    let leads = voter.node == view.node && status(view).role == "leader";
    let lag = match (leads, voter.installing, voter.lag) {
        (true, ..) => "leads".to_owned(),
        (_, true, _) => "gets a snapshot".to_owned(),
        (_, _, Some(lag)) => number(lag),
        _ => "-".to_owned(),
    };
    vec![
        voter.node.to_string(),
        if voter.live { "yes" } else { "no" }.to_owned(),
        capabilities_text(voter.advertisement.as_ref()),
        unfit.map_or_else(|| fit(voter), |why| format!("no, {why}")),
        draining_text(voter.advertisement.as_ref()).to_owned(),
        lag,
    ]
}

fn fit(voter: &VoterFitness) -> String {
    match voter.fitness() {
        Fitness::Fit => "yes".to_owned(),
        Fitness::Unfit if voter.lacking.is_empty() => "no, see below".to_owned(),
        Fitness::Unfit => format!("no, lacks {}", voter.lacking.join(", ")),
        Fitness::Unknown | Fitness::Unspecified => "unknown".to_owned(),
    }
}

/// Remedies for a leader that serves no users.
fn advice(
    group: u64,
    view: &LeaderExplanation,
    without: &BTreeMap<u64, &'static str>,
) -> Option<String> {
    if status(view).caretaker.is_empty() {
        return None;
    }
    let others = || {
        let others = view.voters.iter().filter(|voter| voter.node != view.node);
        others.filter(|voter| !without.contains_key(&voter.node))
    };
    let fit = |live: bool| -> Vec<String> {
        let fit = others().filter(|voter| voter.fitness() == Fitness::Fit && voter.live == live);
        fit.map(|voter| voter.node.to_string()).collect()
    };
    let (ready, away) = (fit(true), fit(false));
    if !ready.is_empty() {
        let ready = ready.join(", ");
        return Some(format!(
            "what to do: node {ready} could serve it by what it has; look again in a moment, or \
             `shardhost leader transfer {group} --first-fit {ready}` says what is in the way"
        ));
    }
    let start = match away.is_empty() {
        true => String::new(),
        false => format!("start node {}, ", away.join(" or ")),
    };
    Some(format!(
        "what to do: no other voter that answers is known to be fit; {start}give a node what it \
         lacks (`capabilities` in its configuration), add one that has it (`shardhost member add \
         {group}`), or change what is required (`shardhost group require {group}`)"
    ))
}

fn voter_json(voter: &VoterFitness, unfit: Option<&'static str>) -> Value {
    let advertisement = voter.advertisement.as_ref();
    json!({
        "node": voter.node,
        "replica": voter.replica,
        "live": voter.live,
        "capabilities": advertisement.map(|advertisement| &advertisement.capabilities),
        "draining": advertisement.map(|advertisement| advertisement.draining),
        "fitness": word(if unfit.is_some() { Fitness::Unfit } else { voter.fitness() }),
        "unfit": unfit,
        "opinions": opinions_json(voter),
        "declined": declined_json(voter),
        "lacking": voter.lacking,
        "lag": voter.lag,
        "installing": voter.installing,
    })
}

#[cfg(test)]
mod tests {
    use shardhost_proto::admin::NodeAdvertisement;

    use super::*;

    fn voter(node: u64, live: bool, fitness: Fitness) -> VoterFitness {
        let (advertisement, fitness) = (Some(NodeAdvertisement::default()), fitness.into());
        VoterFitness { node, live, advertisement, fitness, ..VoterFitness::default() }
    }

    fn view(
        node: u64,
        role: &str,
        caretaker: &str,
        voters: Vec<VoterFitness>,
    ) -> LeaderExplanation {
        let status = GroupStatus {
            group: 7,
            role: role.into(),
            term: 3,
            serving: role == "leader" && caretaker.is_empty(),
            caretaker: caretaker.into(),
            ..GroupStatus::default()
        };
        LeaderExplanation { node, voters, status: Some(status), ..LeaderExplanation::default() }
    }

    fn findings(views: Vec<LeaderExplanation>) -> Findings {
        let views = views.into_iter().map(|view| (view.node, view)).collect();
        Findings { group: 7, views, ..Findings::default() }
    }

    #[test]
    fn a_voter_whose_disk_is_lost_is_not_called_fit() {
        let voters = vec![voter(1, true, Fitness::Unfit), voter(3, true, Fitness::Fit)];
        let mut found = findings(vec![view(1, "leader", "node 1 lacks fifo", voters)]);
        assert!(found.text().contains("node 3 could serve it"));
        found.without.insert(3, "holds no replica");
        let text = found.text();
        assert!(text.contains("no, holds no replica"), "{text}");
        assert!(text.contains("member rebuild 3 --group 7"), "{text}");
        assert!(!text.contains("node 3 could serve it"), "{text}");
        let json = found.json();
        assert_eq!(json["voters"][1]["fitness"], "unfit", "{json}");
    }

    #[test]
    fn a_served_group_needs_no_advice() {
        let text = findings(vec![view(2, "leader", "", vec![voter(2, true, Fitness::Fit)])]).text();
        assert!(text.starts_with("group 7 is led by node 2 in term 3, and served"), "{text}");
        assert!(!text.contains("what to do"), "{text}");
    }

    #[test]
    fn a_caretaker_is_told_with_its_reason_and_whom_to_start() {
        let voters = vec![voter(1, true, Fitness::Unfit), voter(3, false, Fitness::Fit)];
        let text = findings(vec![view(1, "leader", "node 1 lacks fifo", voters)]).text();
        assert!(text.contains("serves no users: node 1 lacks fifo"), "{text}");
        assert!(text.contains("start node 3, give a node what it lacks"), "{text}");
    }

    #[test]
    fn who_could_take_over_is_named() {
        let voters = vec![voter(1, true, Fitness::Unfit), voter(3, true, Fitness::Fit)];
        let text = findings(vec![view(1, "leader", "node 1 lacks fifo", voters)]).text();
        assert!(text.contains("leader transfer 7 --first-fit 3"), "{text}");
    }

    #[test]
    fn without_a_leader_every_node_says_what_it_is() {
        let found =
            findings(vec![view(1, "follower", "", vec![]), view(2, "candidate", "", vec![])]);
        let text = found.text();
        assert!(text.contains("node 1 is follower in term 3, node 2 is candidate"), "{text}");
        assert_eq!(found.json()["leader_node"], Value::Null);
    }

    #[test]
    fn of_two_that_believe_to_lead_the_later_term_counts() {
        let mut stale = view(1, "leader", "", vec![]);
        stale.status.as_mut().unwrap().term = 2;
        let found = findings(vec![stale, view(2, "leader", "", vec![])]);
        assert_eq!(found.json()["leader_node"], 2);
    }
}
