//! What is not as it should be in a cluster, from the status of its nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shardhost::wall_clock::now_ms;
use shardhost_proto::admin::{GroupCount, HostStatus, PeerStatus, ShrunkGroup, Stalled};

use super::super::output::{by_count, counted, number};
use super::Silent;

/// Everything that is not as it should be, in words. Nodes that drain are.
pub(super) fn findings<'a>(
    nodes: impl Iterator<Item = &'a HostStatus>,
    silent: &Silent,
    catalog: Option<String>,
) -> Vec<String> {
    let nodes: Vec<&HostStatus> = nodes.collect();
    let answering: BTreeSet<u64> = nodes.iter().map(|status| status.node).collect();
    let mut found: Vec<String> = Vec::new();
    for (address, (node, why)) in silent {
        found.push(match node {
            0 => format!("{address} does not answer: {why}"),
            node => format!("node {node} at {address} does not answer: {why}"),
        });
    }
    found.extend(catalog);
    let each = |lines: fn(&HostStatus) -> Vec<String>| nodes.iter().flat_map(move |one| lines(one));
    found.extend(each(impairments));
    found.extend(each(unrecovered));
    found.extend(each(clocks));
    found.extend(each(certificates));
    found.extend(each(leaderless));
    found.extend(each(missing));
    found.extend(short(&nodes, &answering));
    found.extend(shrunk(&nodes));
    found.extend(each(caretakers));
    found.extend(each(doubts));
    found.extend(each(alarms));
    found.extend(each(failures));
    found.extend(each(refusals));
    found.extend(one_address_for_two(&nodes));
    found
}

/// Problems of a node, or of the state of its replicas.
fn impairments(status: &HostStatus) -> Vec<String> {
    let node = (!status.impaired.is_empty()).then(|| {
        format!("node {} leads nothing while others can: {}", status.node, status.impaired)
    });
    let replica = |stalled: &Stalled| {
        format!("node {}: the replica of group {}: {}", status.node, stalled.group, stalled.reason)
    };
    node.into_iter().chain(status.stalled.iter().map(replica)).collect()
}

/// Damage by the disk of a node, and what is not recovered.
fn unrecovered(status: &HostStatus) -> Vec<String> {
    let one = |why: &String| {
        format!("node {}: the state is damaged and not recovered: {why}", status.node)
    };
    status.unrecovered.iter().map(one).collect()
}

/// A certificate that is valid for less is a problem.
const CERTIFICATE_ENDS_SOON: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// How long the certificate of a node is valid still; `None`: it has none.
pub(super) fn certificate_left(status: &HostStatus) -> Option<Duration> {
    let ends = Some(status.certificate_ends_ms).filter(|ends| *ends > 0)?;
    Some(Duration::from_millis(ends.saturating_sub(now_ms())))
}

pub(super) fn days(duration: Duration) -> u64 {
    duration.as_secs() / (24 * 60 * 60)
}

/// A certificate that ends soon.
fn certificates(status: &HostStatus) -> Vec<String> {
    let left = certificate_left(status).filter(|left| *left < CERTIFICATE_ENDS_SOON);
    let said = left.map(|left| {
        format!(
            "node {}: its certificate ends in {}; without another one, no other node connects to it then",
            status.node,
            counted(days(left), "day")
        )
    });
    said.into_iter().collect()
}

/// How the wall clock of a node disagrees with those of others.
fn clocks(status: &HostStatus) -> Vec<String> {
    let HostStatus { node, clock, .. } = status;
    (!clock.is_empty()).then(|| format!("node {node}: {clock}")).into_iter().collect()
}

/// Some groups in words, with the first of them; `None`: there are none.
fn some_groups(groups: Option<&GroupCount>, count: impl Fn(u64) -> String) -> Option<String> {
    let groups = groups.filter(|groups| groups.count > 0)?;
    let first: Vec<String> = groups.first.iter().map(u64::to_string).collect();
    let more = if groups.count > first.len() as u64 { ", …" } else { "" };
    Some(format!("{} ({}{more})", count(groups.count), first.join(", ")))
}

/// The groups of which a node knows no leader.
fn leaderless(status: &HostStatus) -> Vec<String> {
    let groups = some_groups(status.leaderless.as_ref(), number);
    let line =
        |groups| format!("node {}: no leader is known of {groups} of its groups", status.node);
    groups.map(line).into_iter().collect()
}

/// The groups of which a node should hold a replica, and holds none.
fn missing(status: &HostStatus) -> Vec<String> {
    let node = status.node;
    let groups =
        some_groups(status.missing.as_ref(), |count| counted(count, "group")).map(|groups| {
            format!(
                "node {node}: the catalog intends replicas of {groups} here, and there are none; \
             if its disk was lost, `shardhost member rebuild {node}` gives it new ones"
            )
        });
    let unread = (status.has_catalog && !status.catalog_known)
        .then(|| format!("node {node}: it has not read the catalog since it started"));
    groups.into_iter().chain(unread).collect()
}

/// The groups that go without a voter, by the node that does not answer their leaders.
fn short(nodes: &[&HostStatus], answering: &BTreeSet<u64>) -> Vec<String> {
    let mut by_node: BTreeMap<u64, u64> = BTreeMap::new();
    for short in nodes.iter().flat_map(|status| &status.short) {
        let groups = short.groups.as_ref().map_or(0, |groups| groups.count);
        *by_node.entry(short.node).or_default() += groups;
    }
    let line = |(node, count): (&u64, &u64)| {
        let how = match answering.contains(node) {
            true => "which does not answer their leaders",
            false => "which does not answer",
        };
        let go = by_count(*count, "goes without its voter", "go without their voter");
        format!("{} {go} on node {node}, {how}", counted(*count, "group"))
    };
    by_node.iter().map(line).collect()
}

/// The groups with fewer voters than they were created with, or than their rules ask for, and how each gets one
/// more. Two nodes may both take themselves for the leader for a moment.
fn shrunk(nodes: &[&HostStatus]) -> Vec<String> {
    let all = || nodes.iter().filter_map(|status| status.shrunk.as_ref());
    let named: BTreeMap<u64, &ShrunkGroup> =
        all().flat_map(|shrunk| &shrunk.first).map(|one| (one.group, one)).collect();
    let hidden: u64 =
        all().map(|shrunk| shrunk.count.saturating_sub(shrunk.first.len() as u64)).sum();
    let more = (hidden > 0).then(|| {
        let have =
            by_count(hidden, "has fewer voters than it was", "have fewer voters than they were");
        format!(
            "{} {have} created with; see `shardhost member list`",
            counted(hidden, "more group")
        )
    });
    named.values().map(|one| shrunk_line(one)).chain(more).collect()
}

fn shrunk_line(shrunk: &ShrunkGroup) -> String {
    let ShrunkGroup { group, created_with, .. } = shrunk;
    let voters = counted(shrunk.voters.into(), "voter");
    if shrunk.ruled {
        return format!(
            "group {group} has {voters}, and its rule asks for {created_with}: `shardhost replicas status --why \
             {group}` says what becomes of it"
        );
    }
    let way_out = match (shrunk.incoming_node, shrunk.learner_node, shrunk.absent_node) {
        (0, 0, 0) => format!("`shardhost member add {group} NODE` adds one"),
        (0, 0, node) => format!("`shardhost member add {group} {node}` adds one"),
        (0, node, _) => {
            format!("`shardhost member promote {group} {node}` gives its learner a vote")
        }
        (node, ..) => format!("the addition of node {node} is under way"),
    };
    format!("group {group} has {voters}, and was created with {created_with}: {way_out}")
}

/// Groups that are led and not served.
fn caretakers(status: &HostStatus) -> Vec<String> {
    let HostStatus { node, caretakers, .. } = status;
    let line = || {
        let are = by_count(*caretakers, "is led here and serves", "are led here and serve");
        format!(
            "node {node}: {} {are} no users; `shardhost leader why GROUP` says why",
            counted(*caretakers, "group")
        )
    };
    (*caretakers > 0).then(line).into_iter().collect()
}

/// What a node waits for before it founds, and what it may have lost, in words.
fn doubts(status: &HostStatus) -> Vec<String> {
    let HostStatus { node, in_doubt, rollback, founding_waits_for, .. } = status;
    let unfounded = (!founding_waits_for.is_empty()).then(|| {
        format!("node {node}: the cluster is not founded by this node: {founding_waits_for}")
    });
    let rolled_back = rollback.as_ref().map(|rollback| {
        format!(
            "node {node}: the data directory was put back from an older copy: node {} saw start {}, \
             the directory knows none after {}; replace its replicas with `shardhost member replace`",
            rollback.by_node, rollback.known_incarnation, rollback.held_incarnation
        )
    });
    let waiting = (*in_doubt > 0).then(|| {
        format!(
            "node {node}: {} may have lost acknowledged writes; each takes part in no \
             election before enough of its peers have said what they hold",
            counted(*in_doubt, "replica")
        )
    });
    unfounded.into_iter().chain(rolled_back).chain(waiting).collect()
}

/// Of which groups a node knows that the replicas differ, in words.
fn alarms(status: &HostStatus) -> Vec<String> {
    let HostStatus { node, differing, differing_groups, .. } = status;
    let shown = differing_groups.iter().map(|group| {
        format!("node {node}: the replicas of group {group} differ, and there is no majority")
    });
    let hidden = differing.saturating_sub(differing_groups.len() as u64);
    let more = (hidden > 0).then(|| {
        let more = counted(hidden, "more group");
        format!("node {node}: so do those of {more}; see `shardhost group show`")
    });
    shown.chain(more).collect()
}

/// Which replicas of a node failed, in words.
fn failures(status: &HostStatus) -> Vec<String> {
    let HostStatus { node, failed, failed_replicas, .. } = status;
    let shown = failed_replicas.iter().map(|one| {
        format!("node {node}: the replica of group {} failed: {}", one.group, one.cause)
    });
    let hidden = failed.saturating_sub(failed_replicas.len() as u64);
    let more = (hidden > 0 && !failed_replicas.is_empty())
        .then(|| format!("node {node}: {} more; see `shardhost group list`", number(hidden)));
    shown.chain(more).collect()
}

/// Which processes the node refuses, and who refuses it, in words.
fn refusals(status: &HostStatus) -> Vec<String> {
    let node = status.node;
    let line = |peer: &PeerStatus| {
        let refused = (!peer.refused.is_empty())
            .then(|| format!("node {} is refused by node {node}: {}", peer.node, peer.refused));
        let refused_by = (!peer.refused_by.is_empty())
            .then(|| format!("node {node} is refused by node {}: {}", peer.node, peer.refused_by));
        [refused, refused_by]
    };
    status.peers.iter().flat_map(line).flatten().collect()
}

/// Where clients or operators are sent for one node and reach another one, or the listener of another one for nodes.
fn one_address_for_two(nodes: &[&HostStatus]) -> Vec<String> {
    let clients = Said {
        who: "clients",
        key: "client-advertise",
        own: |status| &status.client_address,
        of_peer: |peer| &peer.client_address,
    };
    let operators = Said {
        who: "operators",
        key: "admin-advertise",
        own: |status| &status.admin_address,
        of_peer: |peer| &peer.admin_address,
    };
    [clients, operators].iter().flat_map(|said| said.twice(nodes)).collect()
}

/// Where nodes say that others than nodes reach them.
struct Said {
    who: &'static str,
    key: &'static str,
    own: fn(&HostStatus) -> &String,
    of_peer: fn(&PeerStatus) -> &String,
}

impl Said {
    fn twice(&self, nodes: &[&HostStatus]) -> Vec<String> {
        let Self { who, key, own, of_peer } = self;
        let peers = || nodes.iter().flat_map(|status| &status.peers);
        let own = nodes.iter().map(|status| (own(status), status.node));
        let said = peers().map(|peer| (of_peer(peer), peer.node));
        let said: BTreeSet<(&String, u64)> =
            own.chain(said).filter(|(address, _)| !address.is_empty()).collect();
        let for_nodes: BTreeSet<(&String, u64)> =
            peers().map(|peer| (&peer.address, peer.node)).collect();
        let mut found = Vec::new();
        for (address, node) in &said {
            let other_at = |all: &BTreeSet<(&String, u64)>| {
                all.iter()
                    .find(|(at, other)| at == address && other != node)
                    .map(|(_, other)| *other)
            };
            // Each pair is named once.
            let same = other_at(&said).filter(|other| node < other);
            found.extend(same.map(|other| {
                format!(
                    "nodes {node} and {other} both say that {who} reach them at {address}: change `{key}` of the \
                     wrong one"
                )
            }));
            found.extend(other_at(&for_nodes).map(|other| {
                format!(
                    "node {node} says that {who} reach it at {address}, which is where nodes reach node {other}: \
                     change its `{key}`"
                )
            }));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use shardhost_proto::admin::{ShortVoters, ShrunkGroups};

    use super::super::verdict;
    use super::*;

    #[test]
    fn everything_that_is_not_well_is_found_and_nothing_else() {
        let well = HostStatus { node: 1, groups: 65, leaders: 65, ..HostStatus::default() };
        let found = findings([&well].into_iter(), &Silent::new(), None);
        assert!(found.is_empty(), "{found:?}");
        assert!(verdict(1, &found).starts_with("all is well"));

        let groups = |count, first: &[u64]| Some(GroupCount { count, first: first.to_vec() });
        let short = |node, count| ShortVoters { node, groups: groups(count, &[]) };
        let one = HostStatus {
            node: 1,
            leaderless: groups(64, &[0, 7]),
            short: vec![short(3, 20)],
            has_catalog: true,
            catalog_known: true,
            ..HostStatus::default()
        };
        let two = HostStatus {
            node: 2,
            missing: groups(1, &[7]),
            short: vec![short(3, 22)],
            caretakers: 4,
            has_catalog: true,
            ..HostStatus::default()
        };
        let silent = Silent::from([("10.0.0.3:7400".to_owned(), (3, "it hangs".to_owned()))]);
        let catalog = Some("the catalog does not answer".to_owned());
        let found = findings([&one, &two].into_iter(), &silent, catalog);
        let words = [
            "node 3 at 10.0.0.3:7400 does not answer: it hangs",
            "the catalog does not answer",
            "node 1: no leader is known of 64 (0, 7, …) of its groups",
            "node 2: the catalog intends replicas of 1 group (7) here",
            "node 2: it has not read the catalog",
            "42 groups go without their voter on node 3, which does not answer",
            "node 2: 4 groups are led here and serve no users",
        ];
        for (line, words) in found.iter().zip(words) {
            assert!(line.starts_with(words), "{words}: {line}");
        }
        assert_eq!(found.len(), words.len(), "{found:#?}");
        assert_eq!(verdict(2, &found), "NOT WELL: 7 findings; 2 nodes answer");
    }

    #[test]
    fn groups_that_lost_a_voter_are_named_with_the_command_that_adds_one() {
        let shrunk = |group, incoming_node, learner_node, absent_node| ShrunkGroup {
            group,
            voters: 2,
            created_with: 3,
            incoming_node,
            learner_node,
            absent_node,
            ruled: false,
        };
        let first = vec![shrunk(7, 0, 0, 3), shrunk(8, 0, 3, 0), shrunk(9, 3, 3, 0)];
        let ruled = ShrunkGroup { ruled: true, created_with: 5, ..shrunk(10, 4, 4, 0) };
        let first = first.into_iter().chain([ruled]).collect();
        let groups = Some(ShrunkGroups { count: 6, first });
        let status = HostStatus { node: 1, shrunk: groups, ..HostStatus::default() };
        let found = findings([&status].into_iter(), &Silent::new(), None);
        let told = "has 2 voters, and was created with 3:";
        assert_eq!(
            found,
            [
                format!("group 7 {told} `shardhost member add 7 3` adds one"),
                format!("group 8 {told} `shardhost member promote 8 3` gives its learner a vote"),
                format!("group 9 {told} the addition of node 3 is under way"),
                "group 10 has 2 voters, and its rule asks for 5: `shardhost replicas status --why 10` says what becomes \
                 of it"
                    .to_owned(),
                "2 more groups have fewer voters than they were created with; see `shardhost member \
                 list`"
                    .to_owned(),
            ]
        );
    }

    #[test]
    fn whoever_is_refused_and_whoever_refuses_are_named_with_the_cause() {
        let peer = |node, refused: &str, refused_by: &str| PeerStatus {
            node,
            refused: refused.to_owned(),
            refused_by: refused_by.to_owned(),
            ..PeerStatus::default()
        };
        let peers =
            vec![peer(2, "a later start was seen", ""), peer(3, "", "unknown"), peer(4, "", "")];
        let status = HostStatus { node: 1, peers, ..HostStatus::default() };
        assert_eq!(
            refusals(&status),
            [
                "node 2 is refused by node 1: a later start was seen",
                "node 1 is refused by node 3: unknown",
            ]
        );
    }

    #[test]
    fn an_address_that_leads_clients_or_operators_to_another_node_is_named_with_both() {
        type Set = [(&'static str, &'static str, fn(&mut HostStatus, &mut PeerStatus, &str)); 2];
        let all: Set = [
            ("clients", "client-advertise", |status, peer, at| {
                (status.client_address, peer.client_address) = (at.to_owned(), at.to_owned());
            }),
            ("operators", "admin-advertise", |status, peer, at| {
                (status.admin_address, peer.admin_address) = (at.to_owned(), at.to_owned());
            }),
        ];
        for (who, key, set) in all {
            let said = |node, at: &str| {
                let mut status = HostStatus { node, ..HostStatus::default() };
                let address = format!("n{node}:7400");
                let mut peer = PeerStatus { node, address, ..PeerStatus::default() };
                set(&mut status, &mut peer, at);
                (status, peer)
            };
            // The first two answer, and the third does not.
            let found = |at: [&str; 3]| {
                let [(one, first), (two, second), (_, third)] =
                    [(1, at[0]), (2, at[1]), (3, at[2])].map(|(node, at)| said(node, at));
                let one = HostStatus { peers: vec![second, third.clone()], ..one };
                let two = HostStatus { peers: vec![first, third], ..two };
                one_address_for_two(&[&one, &two])
            };
            assert!(found(["n1:7500", "n2:7500", ""]).is_empty());
            let wrong = found(["n1:7500", "n1:7500", "n2:7400"]);
            let named = [
                format!("nodes 1 and 2 both say that {who} reach them at n1:7500"),
                format!(
                    "node 3 says that {who} reach it at n2:7400, which is where nodes reach node 2"
                ),
            ];
            assert_eq!(wrong.len(), named.len(), "{wrong:#?}");
            for (line, words) in wrong.iter().zip(named) {
                assert!(line.starts_with(&words) && line.contains(&format!("`{key}`")), "{line}");
            }
        }
    }

    #[test]
    fn a_damaged_part_that_is_not_recovered_is_told_with_the_cause() {
        let why = vec!["part 3: no room".to_owned()];
        let status = HostStatus { node: 2, unrecovered: why, ..HostStatus::default() };
        let told = "node 2: the state is damaged and not recovered: part 3: no room";
        assert_eq!(unrecovered(&status), [told]);
    }

    #[test]
    fn groups_whose_replicas_differ_are_named() {
        let status = HostStatus {
            node: 2,
            differing: 12,
            differing_groups: vec![7, 9],
            ..HostStatus::default()
        };
        assert_eq!(
            alarms(&status),
            [
                "node 2: the replicas of group 7 differ, and there is no majority",
                "node 2: the replicas of group 9 differ, and there is no majority",
                "node 2: so do those of 10 more groups; see `shardhost group show`",
            ]
        );
        assert!(alarms(&HostStatus::default()).is_empty());
    }
}
