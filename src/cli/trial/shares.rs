//! Whether each host has a fair part: as many as the others, give or take one.

use std::collections::BTreeMap;

use crate::observe::Leader;

/// Whether a part is within one of the average of so many parts that make this sum.
pub const fn is_fair(part: u64, sum: u64, parts: u64) -> bool {
    (part * parts).abs_diff(sum) <= parts
}

/// How many shards each of these nodes leads.
pub fn leads(leaders: &BTreeMap<u64, Leader>, nodes: &[u64]) -> BTreeMap<u64, u64> {
    let mut counts: BTreeMap<u64, u64> = nodes.iter().map(|node| (*node, 0)).collect();
    for leader in leaders.values() {
        *counts.entry(leader.node).or_default() += 1;
    }
    counts
}

/// How many shards each of these nodes has a vote in.
pub fn votes(leaders: &BTreeMap<u64, Leader>, nodes: &[u64]) -> BTreeMap<u64, u64> {
    let mut counts: BTreeMap<u64, u64> = nodes.iter().map(|node| (*node, 0)).collect();
    for voter in leaders.values().flat_map(|leader| &leader.voters) {
        *counts.entry(*voter).or_default() += 1;
    }
    counts
}

/// Whether those that may lead everything lead as much as each other, and `lacking`, which may not,
/// no more than they do.
pub fn are_fair(leads: &BTreeMap<u64, u64>, lacking: Option<u64>) -> bool {
    let capable = || leads.iter().filter(|(node, _)| Some(**node) != lacking);
    let sum: u64 = capable().map(|(_, count)| count).sum();
    let parts = capable().count() as u64;
    let fewest = capable().map(|(_, count)| *count).min().unwrap_or(0);
    let lacking = lacking.and_then(|node| leads.get(&node)).copied().unwrap_or(0);
    capable().all(|(_, count)| is_fair(*count, sum, parts)) && lacking <= fewest + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_within_one_of_the_average_is_fair() {
        let fair = |part| is_fair(part, 32, 3);
        assert_eq!([9, 10, 11, 12].map(fair), [false, true, true, false]);
        assert!(is_fair(16, 48, 3) && is_fair(15, 48, 3) && !is_fair(14, 48, 3));
    }

    #[test]
    fn who_lacks_something_may_lead_less_but_not_more() {
        let fair =
            |one, two, three| are_fair(&BTreeMap::from([(1, one), (2, two), (3, three)]), Some(3));
        assert!(fair(16, 16, 16) && fair(29, 29, 6) && fair(16, 16, 17));
        assert!(!fair(16, 16, 18));
        assert!(!fair(20, 16, 16), "those that may lead everything do not lead as much");
        assert!(!are_fair(&BTreeMap::from([(1, 16), (2, 16), (3, 6)]), None));
    }
}
