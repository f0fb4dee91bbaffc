//! `shardhost group create`: every voter is asked to create its replica.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use shardhost_proto::admin::{CreateGroupRequest, GroupStatus};
use tonic::Code;

use super::change::{answered, is_refused, unconfirmed};
use super::ended::{PARTLY, code_of, partly, senseless};
use super::group_status::{group_json, members};
use super::output::whole_in;
use super::target::{Node, Target};

/// Which group, and where.
#[derive(Debug, Args)]
pub struct CreateArguments {
    /// Number of the group.
    group: u64,
    /// Kind of its state machine: table or queue.
    #[arg(long)]
    kind: String,
    /// The nodes, by number.
    #[arg(long, value_delimiter = ',', required = true)]
    voters: Vec<u64>,
    /// How many lives the group had before, all destroyed.
    #[arg(long, default_value_t = 0, value_parser = whole_in::<u32>(0..=u64::from(u32::MAX)))]
    incarnation: u32,
    #[command(flatten)]
    target: Target,
}

/// Creates a group. A voter that has its replica already is no error, so that a command that was
/// interrupted can be run again. Voters that do not answer are named: the others make the group
/// without them.
pub async fn create(arguments: &CreateArguments) -> anyhow::Result<()> {
    let CreateArguments { group, kind, voters, incarnation, target } = arguments;
    let mut named = BTreeSet::new();
    if let Some(twice) = voters.iter().find(|voter| !named.insert(**voter)) {
        return Err(senseless(format!("node {twice} is named twice among the voters")));
    }
    let request = CreateGroupRequest {
        group: *group,
        kind: kind.clone(),
        voters: voters.clone(),
        incarnation: *incarnation,
        ..CreateGroupRequest::default()
    };
    let asked = Asked::all(&request, target).await?;
    let led = target.leader_of(*group).await;
    let (leader, status) = led.map_err(|error| asked.ended_by(*group, error))?;
    check_created(&request, &status).map_err(|error| asked.ended_by(*group, error))?;
    if target.json {
        println!("{}", group_json(&status));
    } else {
        println!("group {group} is created and led by node {}", leader.status.node);
    }
    asked.lacking().map_or(Ok(()), |lacking| Err(partly(lacking)))
}

/// What the voters answered.
#[derive(Debug, Default)]
struct Asked {
    /// These have their replica.
    done: Vec<u64>,
    /// These have none, and the catalog has a group of that number: the leader shows which one that is.
    without: Vec<u64>,
    /// Of these it is not known, and why.
    open: BTreeMap<u64, anyhow::Error>,
}

/// What became of a replica that a voter was to create.
enum Answer {
    Created,
    /// There is a group of that number, and it has no replica there.
    Elsewhere,
    Refused(anyhow::Error),
    Unknown(anyhow::Error),
}

impl Asked {
    /// Fails when a voter refuses, and when none did what it was asked for.
    async fn all(request: &CreateGroupRequest, target: &Target) -> anyhow::Result<Self> {
        let start = target.node().await?;
        // All are known before any is asked.
        let address_of = |voter: &u64| Ok((*voter, start.known_address(*voter)?));
        let addresses: Vec<_> =
            request.voters.iter().map(address_of).collect::<anyhow::Result<_>>()?;
        let mut asked = Self::default();
        for (voter, address) in addresses {
            match create_at(&address, request, target).await {
                Answer::Created => asked.done.push(voter),
                Answer::Elsewhere => asked.without.push(voter),
                Answer::Unknown(error) => drop(asked.open.insert(voter, error)),
                Answer::Refused(error) => return Err(asked.ended_by(request.group, error)),
            }
        }
        match (asked.is_unheard_of(), asked.lacking()) {
            (true, Some(lacking)) if asked.changed_nothing() => Err(anyhow::anyhow!(lacking)),
            (true, Some(lacking)) => Err(partly(lacking)),
            _ => Ok(asked),
        }
    }

    /// Whether no voter did, or may yet do, what it was asked for.
    fn changed_nothing(&self) -> bool {
        self.done.is_empty() && self.open.values().all(|error| code_of(error) != PARTLY)
    }

    /// No voter that answered knows of the group.
    fn is_unheard_of(&self) -> bool {
        self.done.is_empty() && self.without.is_empty()
    }

    /// How the command ends with this error: what was done before is said, too.
    fn ended_by(&self, group: u64, error: anyhow::Error) -> anyhow::Error {
        if self.changed_nothing() {
            return error;
        }
        let lacking = self.lacking().map(|lacking| format!("; {lacking}")).unwrap_or_default();
        let made = match self.done.as_slice() {
            [] => String::new(),
            done => format!("nodes {done:?} have their replica of group {group}, but "),
        };
        partly(format!("{made}{error:#}{lacking}"))
    }

    /// Where no replica was confirmed; `None`: everywhere one was.
    fn lacking(&self) -> Option<String> {
        let one = |(node, why): (&u64, &anyhow::Error)| format!("node {node} ({why:#})");
        let all: Vec<String> = self.open.iter().map(one).collect();
        let then = match (self.changed_nothing(), self.is_unheard_of()) {
            (true, true) => {
                "nothing was created or recorded: run this again when one of them answers"
            }
            (false, true) => {
                "whether the group was recorded is unknown: run this again when one of them answers"
            }
            (_, false) => {
                "a cluster with a catalog makes it when that node is back, in one without run this again then"
            }
        };
        (!all.is_empty()).then(|| format!("no replica was confirmed by {}: {then}", all.join(", ")))
    }
}

/// There is a group of that number already, and the voter may have a replica of it.
async fn found(node: &Node, request: &CreateGroupRequest) -> Answer {
    match node.group(request.group).await {
        Ok(status) if !members(&status).is_empty() => match check_created(request, &status) {
            Ok(()) => Answer::Created,
            Err(error) => Answer::Refused(error),
        },
        // The leader shows which one that is.
        Ok(_) => Answer::Created,
        Err(_) => Answer::Elsewhere,
    }
}

async fn create_at(address: &str, request: &CreateGroupRequest, target: &Target) -> Answer {
    let mut node = match Node::connect(address).await {
        Ok(node) => node,
        Err(error) => return Answer::Unknown(error),
    };
    let created = node.admin.create_group(request.clone());
    match answered(address, target.timeout(), created).await {
        Ok(Ok(_)) => Answer::Created,
        Ok(Err(status)) if status.code() == Code::AlreadyExists => found(&node, request).await,
        Ok(Err(status)) if is_refused(&status) => Answer::Refused(unconfirmed(address, &status)),
        Ok(Err(status)) => Answer::Unknown(unconfirmed(address, &status)),
        Err(error) => Answer::Unknown(error),
    }
}

/// A group of that number may have been there before, or another operator created it meanwhile.
fn check_created(asked: &CreateGroupRequest, found: &GroupStatus) -> anyhow::Result<()> {
    let voters: BTreeSet<u64> = asked.voters.iter().copied().collect();
    let nodes: BTreeSet<u64> = members(found).iter().map(|member| member.node).collect();
    let generation = found.replica >> 32;
    let is_asked = asked.incarnation == 0 || u64::from(asked.incarnation) == generation;
    if found.kind == asked.kind && nodes == voters && is_asked {
        return Ok(());
    }
    anyhow::bail!(
        "there is a group {} already, of kind {}, on nodes {nodes:?}, generation {generation}: it was not \
         changed; take another number, or look at it with `shardhost group show {}`",
        asked.group,
        found.kind,
        asked.group
    )
}

#[cfg(test)]
mod tests {
    use shardhost_proto::log::{Member, Membership};

    use super::*;

    #[test]
    fn a_replica_that_is_missing_comes_later_only_if_the_group_was_recorded() {
        let asked = |done: &[u64], error: anyhow::Error| Asked {
            done: done.to_vec(),
            open: [(3, error)].into(),
            ..Asked::default()
        };
        let silent = || anyhow::anyhow!("10.0.0.3:7400 cannot be reached");
        for (asked, words) in [
            (asked(&[], silent()), "nothing was created or recorded"),
            (asked(&[], partly("no answer")), "whether the group was recorded is unknown"),
            (asked(&[1, 2], silent()), "makes it when that node is back"),
        ] {
            let lacking = asked.lacking().unwrap();
            assert!(lacking.contains(words), "{lacking}");
        }
        assert_eq!(Asked { done: vec![1], ..Asked::default() }.lacking(), None);
        let known = Asked { without: vec![1], ..asked(&[], silent()) };
        assert!(known.lacking().unwrap().contains("makes it when that node is back"));
    }

    /// Its replicas moved: no voter holds one, and none was created.
    #[test]
    fn a_group_that_is_elsewhere_is_refused_and_not_half_done() {
        let error = || anyhow::anyhow!("there is a group 9 already");
        let ended = |done: &[u64]| {
            let asked = Asked { done: done.to_vec(), without: vec![3], ..Asked::default() };
            let ended = asked.ended_by(9, error());
            (code_of(&ended), ended.to_string())
        };
        assert_eq!(ended(&[]), (1, "there is a group 9 already".to_owned()));
        let (code, words) = ended(&[1, 2]);
        assert_eq!((code, words.contains("nodes [1, 2] have")), (PARTLY, true), "{words}");
    }

    #[test]
    fn another_group_of_the_number_is_no_success() {
        let asked = CreateGroupRequest {
            group: 9,
            kind: "table".to_owned(),
            voters: vec![2, 1],
            ..CreateGroupRequest::default()
        };
        let found = |kind: &str, nodes: &[u64], generation: u64| {
            let member = |(at, node): (usize, &u64)| Member {
                replica: (generation << 32) + at as u64 + 1,
                node: *node,
                ..Member::default()
            };
            let members = nodes.iter().enumerate().map(member).collect();
            GroupStatus {
                kind: kind.to_owned(),
                replica: (generation << 32) + 1,
                membership: Some(Membership { members, ..Membership::default() }),
                ..GroupStatus::default()
            }
        };
        assert!(check_created(&asked, &found("table", &[1, 2], 0)).is_ok());
        assert!(check_created(&asked, &found("table", &[1, 2], 3)).is_ok(), "none was asked for");
        for other in [found("queue", &[1, 2], 0), found("table", &[1, 2, 3], 0)] {
            let error = check_created(&asked, &other).unwrap_err().to_string();
            assert!(error.contains("there is a group 9 already"), "{error}");
        }
        let seventh = CreateGroupRequest { incarnation: 7, ..asked };
        assert!(check_created(&seventh, &found("table", &[1, 2], 3)).is_err());
        assert!(check_created(&seventh, &found("table", &[1, 2], 7)).is_ok());
    }
}
