//! Opinions of policies on voters, which voters declined a leadership, and which do not campaign.

use std::time::Duration;

use serde_json::{Value, json};
use shardhost_proto::admin::voter_fitness::Fitness;
use shardhost_proto::admin::{LeaderExplanation, PolicyOpinion, VoterFitness};

/// What is forgotten, and when, of voters that declined.
const UNTIL_NEWS: &str = "it is not asked again before there is news of nodes, members or policies";

/// A line for each opinion that keeps a voter from leading, and each voter that declined.
pub fn of_voters(view: &LeaderExplanation) -> Vec<String> {
    let lines = view.voters.iter().flat_map(|voter| {
        let opinions = voter.opinions.iter().filter_map(|one| objection(voter.node, one));
        opinions.chain(declined(voter))
    });
    lines.collect()
}

fn objection(node: u64, one: &PolicyOpinion) -> Option<String> {
    let PolicyOpinion { policy, soft, reason, words, .. } = one;
    match one.fitness() {
        Fitness::Unfit => {
            let mode = if *soft { "if another can" } else { "even if no other can" };
            Some(format!(
                "policy {policy:?} says that node {node} should not lead, {mode}: {words} \
                 [{reason}]"
            ))
        }
        Fitness::Unknown => Some(format!("policy {policy:?} knows nothing of node {node}")),
        Fitness::Fit | Fitness::Unspecified => None,
    }
}

fn declined(voter: &VoterFitness) -> Option<String> {
    let declined = voter.declined.as_ref()?;
    let name = match declined.reason.as_str() {
        "" => String::new(),
        name => format!(" [{name}]"),
    };
    let (node, words) = (voter.node, &declined.words);
    Some(format!("node {node} was asked to lead: {words}{name}; {UNTIL_NEWS}"))
}

/// Whether the replica that answers campaigns, and when a leader that should not lead tries again.
pub fn of_replica(view: &LeaderExplanation) -> Vec<String> {
    let node = view.node;
    let withheld = (view.withheld_ms > 0).then(|| {
        let left = Duration::from_millis(view.withheld_ms);
        format!(
            "node {node} handed the leadership on, and does not stand for election for {left:?} \
             [HANDED_ON]"
        )
    });
    let waits = (view.passed_timeouts > 0 && view.max_skipped_timeouts > 0).then(|| {
        let (passed, max_skipped_timeouts) = (view.passed_timeouts.min(view.max_skipped_timeouts), view.max_skipped_timeouts);
        format!(
            "node {node} should not lead: it let {passed} of {max_skipped_timeouts} election timeouts go by \
             before it stands all the same"
        )
    });
    let tries = view.next_try_ms.map(|left| {
        let left = Duration::from_millis(left);
        format!("node {node} should not lead, and asks others in {left:?}, or when there is news")
    });
    [withheld, waits, tries].into_iter().flatten().collect()
}

/// The opinions of a voter, for programs.
pub fn opinions_json(voter: &VoterFitness) -> Value {
    let opinion = |one: &PolicyOpinion| {
        json!({
            "policy": one.policy,
            "opinion": word(one.fitness()),
            "soft": one.soft,
            "reason": some(&one.reason),
            "words": some(&one.words),
        })
    };
    voter.opinions.iter().map(opinion).collect()
}

/// Whether a voter declined, for programs.
pub fn declined_json(voter: &VoterFitness) -> Value {
    let declined = voter.declined.as_ref();
    declined.map_or(Value::Null, |one| json!({ "reason": some(&one.reason), "words": one.words }))
}

fn some(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// One word for a fitness.
pub const fn word(fitness: Fitness) -> &'static str {
    match fitness {
        Fitness::Fit => "fit",
        Fitness::Unfit => "unfit",
        Fitness::Unknown | Fitness::Unspecified => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use shardhost_proto::admin::DeclinedLeadership;

    use super::*;

    fn view() -> LeaderExplanation {
        let objects = PolicyOpinion {
            policy: "needs-gpu".into(),
            fitness: Fitness::Unfit.into(),
            reason: "POLICY_DECLINED".into(),
            words: "node 3 has no GPU".into(),
            ..PolicyOpinion::default()
        };
        let declined =
            DeclinedLeadership { reason: "DRAINING".into(), words: "node 2 is draining".into() };
        let voters = vec![
            VoterFitness { node: 2, declined: Some(declined), ..VoterFitness::default() },
            VoterFitness { node: 3, opinions: vec![objects], ..VoterFitness::default() },
        ];
        LeaderExplanation { node: 1, voters, ..LeaderExplanation::default() }
    }

    #[test]
    fn who_objects_and_who_declined_is_told_with_name_and_words() {
        let [declined, objects] = &of_voters(&view())[..] else { panic!("two lines") };
        assert!(declined.starts_with("node 2 was asked to lead: node 2 is draining [DRAINING]"));
        assert!(declined.contains("before there is news"), "{declined}");
        let expected = "policy \"needs-gpu\" says that node 3 should not lead, even if no other \
                        can: node 3 has no GPU [POLICY_DECLINED]";
        assert_eq!(objects, expected);
    }

    #[test]
    fn a_replica_that_has_nothing_against_standing_says_nothing() {
        assert_eq!(of_replica(&view()), Vec::<String>::new());
    }

    #[test]
    fn until_when_a_replica_does_not_stand_is_told() {
        let withheld = LeaderExplanation { withheld_ms: 1_500, ..view() };
        assert!(of_replica(&withheld)[0].contains("for 1.5s [HANDED_ON]"), "{withheld:?}");
        let waits = LeaderExplanation { passed_timeouts: 2, max_skipped_timeouts: 3, ..view() };
        assert!(of_replica(&waits)[0].contains("2 of 3 election timeouts"), "{waits:?}");
        let tries = LeaderExplanation { next_try_ms: Some(2_000), ..view() };
        assert!(of_replica(&tries)[0].contains("asks others in 2s"), "{tries:?}");
    }
}
