//! Which shard gets a replica on a node that joined, and in whose place. Pure.
//!
//! The fullest node gives, until none has two more than the new one. It gives first groups that it
//! cannot lead and the new one can; then those that no other node had better give; and preferably
//! groups that it does not lead at the moment. A node that has the required capability never gives
//! to one that lacks it: a shard never has fewer eligible voters than before.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A shard as its leader sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shard {
    pub group: u64,
    pub voters: Vec<u64>,
    pub leader: u64,
    /// Its requirement.
    pub requires: BTreeSet<String>,
}

/// What each node has.
pub type Nodes = BTreeMap<u64, BTreeSet<String>>;

/// A replica that moves to the new node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub group: u64,
    pub old: u64,
}

/// How good it is that a node gives its replica of a shard away; the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Merit {
    /// It lacks a required capability, and the new one has it.
    Gains,
    Equal,
    /// Another voter had better give: it lacks a required capability.
    Wastes,
}

/// The steps that give `new` its fair part, in the order in which they are chosen.
pub fn choose(shards: &[Shard], nodes: &Nodes, new: u64) -> Vec<Step> {
    let mut held = held(shards, nodes);
    let mut offers = offers(shards, nodes, new);
    let mut given = BTreeSet::new();
    let mut steps = Vec::new();
    while let Some(old) = fullest(&held, &offers, new) {
        let Some(group) = offers.get_mut(&old).and_then(VecDeque::pop_front) else { break };
        if !given.insert(group) {
            continue;
        }
        *held.entry(old).or_default() -= 1;
        *held.entry(new).or_default() += 1;
        steps.push(Step { group, old });
    }
    steps
}

/// How many replicas each node has.
pub fn held(shards: &[Shard], nodes: &Nodes) -> BTreeMap<u64, u64> {
    let mut held: BTreeMap<u64, u64> = nodes.keys().map(|node| (*node, 0)).collect();
    for voter in shards.iter().flat_map(|shard| &shard.voters) {
        *held.entry(*voter).or_default() += 1;
    }
    held
}

/// The node with most replicas among those that have something to give and two more than `new`.
fn fullest(
    held: &BTreeMap<u64, u64>,
    offers: &BTreeMap<u64, VecDeque<u64>>,
    new: u64,
) -> Option<u64> {
    let has = |node: &u64| held.get(node).copied().unwrap_or(0);
    let gives =
        |(node, offers): &(&u64, &VecDeque<u64>)| !offers.is_empty() && has(node) >= has(&new) + 2;
    let givers = offers.iter().filter(gives);
    givers.map(|(node, _)| *node).max_by_key(|node| (has(node), Reverse(*node)))
}

/// What each node could give, the best first.
fn offers(shards: &[Shard], nodes: &Nodes, new: u64) -> BTreeMap<u64, VecDeque<u64>> {
    let mut offers: BTreeMap<u64, Vec<(Merit, bool, u64)>> = BTreeMap::new();
    for shard in shards.iter().filter(|shard| !shard.voters.contains(&new)) {
        for old in &shard.voters {
            if let Some(merit) = merit(shard, *old, nodes, new) {
                let leads = shard.leader == *old;
                offers.entry(*old).or_default().push((merit, leads, shard.group));
            }
        }
    }
    let sorted = offers.into_iter().map(|(node, mut offers)| {
        offers.sort_unstable();
        (node, offers.into_iter().map(|(_, _, group)| group).collect())
    });
    sorted.collect()
}

/// How good a step is; `None`: the shard would have one fewer that may lead it.
fn merit(shard: &Shard, old: u64, nodes: &Nodes, new: u64) -> Option<Merit> {
    let meets = |node: u64| nodes.get(&node).is_some_and(|has| shard.requires.is_subset(has));
    let other_lacks = shard.voters.iter().any(|voter| *voter != old && !meets(*voter));
    match (meets(old), meets(new)) {
        (false, true) => Some(Merit::Gains),
        (true, true) if other_lacks => Some(Merit::Wastes),
        (true, true) | (false, false) => Some(Merit::Equal),
        (true, false) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    /// Three nodes that hold everything, of which the third lacks `fifo`, and an empty fourth.
    fn nodes(fourth: &[&str]) -> Nodes {
        [(1, set(&["fifo"])), (2, set(&["fifo"])), (3, set(&[])), (4, set(fourth))].into()
    }

    fn shards(kind: u64, count: u64, requires: &[&str]) -> Vec<Shard> {
        let shard = |number| Shard {
            group: kind * 1_000 + number,
            voters: vec![1, 2, 3],
            leader: 1 + number % 2,
            requires: set(requires),
        };
        (0..count).map(shard).collect()
    }

    fn after(shards: &[Shard], steps: &[Step], new: u64) -> Vec<Shard> {
        let mut shards = shards.to_vec();
        for step in steps {
            let shard = shards.iter_mut().find(|shard| shard.group == step.group).unwrap();
            let voter = shard.voters.iter_mut().find(|voter| **voter == step.old).unwrap();
            *voter = new;
        }
        shards
    }

    fn counts(shards: &[Shard], nodes: &Nodes) -> Vec<u64> {
        held(shards, nodes).into_values().collect()
    }

    #[test]
    fn all_end_with_as_many_and_the_lacking_one_gives_what_it_cannot_lead() {
        let nodes = nodes(&["fifo"]);
        let all = [shards(1, 32, &[]), shards(2, 32, &["fifo"])].concat();
        let steps = choose(&all, &nodes, 4);
        let after = after(&all, &steps, 4);
        assert_eq!(counts(&after, &nodes), [48, 48, 48, 48]);
        let given = |old| steps.iter().filter(move |step| step.old == old);
        assert!(given(3).all(|step| step.group >= 2_000), "it gives queues: {steps:?}");
        assert!(given(1).chain(given(2)).all(|step| step.group < 2_000), "they keep theirs");
        let capable =
            after.iter().filter(|shard| shard.group >= 2_000 && !shard.voters.contains(&3));
        assert_eq!(capable.count(), 16);
    }

    #[test]
    fn a_node_gives_rather_what_it_does_not_lead() {
        let all = shards(1, 32, &[]);
        let steps = choose(&all, &nodes(&[]), 4);
        assert_eq!(steps.len(), 24);
        let led = |step: &Step| all.iter().any(|s| s.group == step.group && s.leader == step.old);
        assert!(!steps.iter().any(led), "{steps:?}");
    }

    #[test]
    fn a_node_that_lacks_something_takes_it_from_those_that_lack_it_too() {
        let all = shards(2, 32, &["fifo"]);
        let steps = choose(&all, &nodes(&[]), 4);
        assert!(steps.iter().all(|step| step.old == 3), "{steps:?}");
        let nodes = nodes(&[]);
        assert_eq!(counts(&after(&all, &steps, 4), &nodes), [32, 32, 16, 16]);
    }

    #[test]
    fn a_node_that_has_its_part_gets_nothing() {
        let nodes = nodes(&["fifo"]);
        let all = [shards(1, 5, &[]), shards(2, 6, &["fifo"])].concat();
        let filled = after(&all, &choose(&all, &nodes, 4), 4);
        assert_eq!(choose(&filled, &nodes, 4), []);
        let counts = counts(&filled, &nodes);
        assert!(counts.iter().all(|held| held.abs_diff(counts[3]) <= 1), "{counts:?}");
    }

    #[test]
    fn no_shard_gets_two_replicas_on_a_node_nor_loses_one_that_may_lead() {
        for fourth in [&["fifo"][..], &[]] {
            let nodes = nodes(fourth);
            for (tables, queues) in [(0, 1), (1, 0), (3, 9), (9, 3), (1, 40), (40, 1)] {
                let all = [shards(1, tables, &[]), shards(2, queues, &["fifo"])].concat();
                let filled = after(&all, &choose(&all, &nodes, 4), 4);
                for (before, after) in all.iter().zip(&filled) {
                    let may = |shard: &Shard| {
                        shard.voters.iter().filter(|node| nodes[node].contains("fifo")).count()
                    };
                    let different: BTreeSet<_> = after.voters.iter().collect();
                    assert_eq!(different.len(), 3, "{after:?}");
                    let any = before.requires.is_empty();
                    assert!(any || may(after) >= may(before), "{before:?} became {after:?}");
                }
            }
        }
    }
}
