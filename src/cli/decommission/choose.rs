//! Which node gets each replica of a node that is to hold none. Pure.
//!
//! A group goes to a node that holds no replica of it, in a zone that the group is in least, and there to
//! the node with fewest replicas. A replica that may lead its group goes to a node that may: the group
//! never has fewer eligible voters than before. Groups with the fewest choices are decided first.

use std::collections::{BTreeMap, BTreeSet};

/// A group that has a replica on the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    pub group: u64,
    /// The nodes of all members.
    pub members: BTreeSet<u64>,
    /// The replica has no vote, and its successor gets none.
    pub learns: bool,
    /// What the group requires of its leader.
    pub requires: BTreeSet<String>,
    /// `None`: no rule counts for it.
    pub allowed: Option<Allowed>,
}

/// What a rule says of the replicas of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    pub rule: String,
    pub nodes: BTreeSet<u64>,
}

/// A node that answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub has: BTreeSet<String>,
    /// What fails together with it; empty: nothing is known.
    pub zone: String,
    pub replicas: u64,
    /// Why it takes none.
    pub closed: Option<String>,
}

/// A replica that moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    pub group: u64,
    pub new: u64,
    pub learns: bool,
}

/// Where the replicas of a node go, and why others have no place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    pub moves: Vec<Move>,
    pub stuck: BTreeMap<u64, String>,
}

/// Decides for all groups that `gone` holds.
pub fn choose(groups: &[Held], places: &BTreeMap<u64, Place>, gone: u64) -> Choice {
    let mut places = places.clone();
    let own = places.remove(&gone);
    let mut choice = Choice::default();
    let mut open: Vec<(Vec<u64>, &Held)> = Vec::new();
    for held in groups {
        match candidates(held, &places, own.as_ref()) {
            Ok(nodes) => open.push((nodes, held)),
            Err(why) => drop(choice.stuck.insert(held.group, why)),
        }
    }
    open.sort_by_key(|(nodes, held)| (nodes.len(), held.group));
    for (nodes, held) in open {
        let rank =
            |node: &u64| (neighbors(held, *node, gone, &places), places[node].replicas, *node);
        let Some(new) = nodes.into_iter().min_by_key(rank) else { continue };
        places.entry(new).or_default().replicas += 1;
        choice.moves.push(Move { group: held.group, new, learns: held.learns });
    }
    choice.moves.sort_by_key(|one| one.group);
    choice
}

/// The nodes that may take the replica; an error: why there is none.
fn candidates(
    held: &Held,
    places: &BTreeMap<u64, Place>,
    own: Option<&Place>,
) -> Result<Vec<u64>, String> {
    let free: Vec<u64> =
        places.keys().copied().filter(|node| !held.members.contains(node)).collect();
    if free.is_empty() {
        return Err("every other node that answers holds a replica of it".to_owned());
    }
    let closed = |node: &u64| places[node].closed.as_ref().map(|why| format!("node {node}: {why}"));
    let fit: Vec<u64> = free.iter().copied().filter(|node| closed(node).is_none()).collect();
    if fit.is_empty() {
        let why: Vec<String> = free.iter().filter_map(closed).collect();
        return Err(format!("no node takes it: {}", why.join("; ")));
    }
    let fit = match &held.allowed {
        None => fit,
        Some(Allowed { rule, nodes }) => {
            let allowed: Vec<u64> = fit.into_iter().filter(|node| nodes.contains(node)).collect();
            if allowed.is_empty() {
                return Err(format!(
                    "rule {rule} allows no other node; `shardhost replicas rule list` shows it"
                ));
            }
            allowed
        }
    };
    let meets = |place: &Place| held.requires.is_subset(&place.has);
    // Of a node that does not answer it is not known what it had.
    if held.learns || own.is_some_and(|own| !meets(own)) {
        return Ok(fit);
    }
    let able: Vec<u64> = fit.into_iter().filter(|node| meets(&places[node])).collect();
    match able.is_empty() {
        true => {
            let names: Vec<&str> = held.requires.iter().map(String::as_str).collect();
            Err(format!("no other node has what its leader needs: {}", names.join(", ")))
        }
        false => Ok(able),
    }
}

/// How many other members share the zone of a node.
fn neighbors(held: &Held, node: u64, gone: u64, places: &BTreeMap<u64, Place>) -> usize {
    let zone = &places[&node].zone;
    let others = held.members.iter().filter(|member| **member != gone);
    let zones = others.filter_map(|member| places.get(member)).map(|place| &place.zone);
    zones.filter(|other| !zone.is_empty() && *other == zone).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn held(group: u64, members: &[u64], requires: &[&str]) -> Held {
        let (members, requires) = (members.iter().copied().collect(), set(requires));
        Held { group, members, requires, learns: false, allowed: None }
    }

    fn place(zone: &str, replicas: u64, has: &[&str]) -> Place {
        Place { has: set(has), zone: zone.to_owned(), replicas, closed: None }
    }

    #[test]
    fn replicas_are_spread_over_the_nodes_that_hold_fewest() {
        let places: BTreeMap<u64, Place> =
            (1..=6).map(|node| (node, place("", if node < 4 { 12 } else { 0 }, &[]))).collect();
        let groups: Vec<Held> = (0..12).map(|group| held(group, &[1, 2, 3], &[])).collect();
        let choice = choose(&groups, &places, 1);
        assert_eq!((choice.moves.len(), choice.stuck.len()), (12, 0));
        for node in 4..=6 {
            assert_eq!(choice.moves.iter().filter(|one| one.new == node).count(), 4);
        }
    }

    #[test]
    fn a_zone_that_the_group_is_in_already_is_taken_last() {
        let places = [
            (1, place("a", 1, &[])),
            (2, place("b", 1, &[])),
            (3, place("c", 1, &[])),
            (4, place("b", 0, &[])),
            (5, place("a", 9, &[])),
        ];
        let choice = choose(&[held(7, &[1, 2, 3], &[])], &places.into(), 1);
        assert_eq!(choice.moves, [Move { group: 7, new: 5, learns: false }]);
    }

    #[test]
    fn a_replica_that_may_lead_goes_where_it_may() {
        let mut places = BTreeMap::from([
            (1, place("", 1, &["fifo"])),
            (2, place("", 1, &["fifo"])),
            (3, place("", 1, &[])),
            (4, place("", 0, &[])),
            (5, place("", 9, &["fifo"])),
        ]);
        let group = [held(7, &[1, 2, 3], &["fifo"])];
        let new = |choice: Choice| choice.moves.first().map(|one| one.new);
        assert_eq!(new(choose(&group, &places, 1)), Some(5));
        // The one that may not goes anywhere.
        assert_eq!(new(choose(&group, &places, 3)), Some(4));
        places.remove(&5);
        let stuck = choose(&group, &places, 1).stuck;
        assert!(stuck[&7].contains("fifo"), "{stuck:?}");
        // A node that does not answer may have had it.
        places.remove(&1);
        let stuck = choose(&group, &places, 1).stuck;
        assert!(stuck[&7].contains("fifo"), "{stuck:?}");
    }

    #[test]
    fn a_group_without_another_place_stays_and_says_why() {
        let mut places: BTreeMap<u64, Place> =
            (1..=3).map(|node| (node, place("", 1, &[]))).collect();
        let group = [held(7, &[1, 2, 3], &[])];
        let stuck = choose(&group, &places, 1).stuck;
        assert!(stuck[&7].contains("every other node that answers"), "{stuck:?}");
        let closed = Some("it is draining".to_owned());
        places.insert(4, Place { closed, ..Place::default() });
        let stuck = choose(&group, &places, 1).stuck;
        assert!(stuck[&7].contains("node 4: it is draining"), "{stuck:?}");
    }

    #[test]
    fn a_replica_goes_where_its_rule_allows_or_stays() {
        let places: BTreeMap<u64, Place> =
            (1..=5).map(|node| (node, place("", node, &[]))).collect();
        let with = |nodes: &[u64]| {
            let nodes = nodes.iter().copied().collect();
            let allowed = Some(Allowed { rule: "near".to_owned(), nodes });
            choose(&[Held { allowed, ..held(7, &[1, 2, 3], &[]) }], &places, 1)
        };
        assert_eq!(with(&[1, 2, 5]).moves, [Move { group: 7, new: 5, learns: false }]);
        assert!(with(&[1, 2, 3]).stuck[&7].contains("rule near allows no other node"));
    }

    /// The group that fits one node only is decided before the one that fits both.
    #[test]
    fn the_fewest_choices_are_decided_first() {
        let places = BTreeMap::from([
            (1, place("", 2, &[])),
            (2, place("", 2, &[])),
            (3, place("", 0, &[])),
            (4, place("", 0, &[])),
        ]);
        let groups = [held(1, &[1, 2], &[]), held(2, &[1, 2, 4], &[])];
        let moves = choose(&groups, &places, 1).moves;
        assert_eq!(moves.iter().map(|one| one.new).collect::<Vec<_>>(), [4, 3]);
    }
}
