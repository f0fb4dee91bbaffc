//! Nodes that lack what a group asks for do not lead it. Every host has this policy; it is also the
//! shortest example of one.

use std::fmt::Write as _;

use super::{Candidate, LeadershipPolicy, Opinion, Unfit};

/// Compares the requirement of a group with the advertised capabilities of a node.
#[derive(Clone, Copy, Debug, Default)]
pub struct CapabilityPolicy;

impl CapabilityPolicy {
    /// Its name, which no other policy should have.
    pub const NAME: &str = "capability";
}

impl LeadershipPolicy for CapabilityPolicy {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn may_lead(&self, candidate: &Candidate<'_>) -> Opinion {
        if candidate.requirement.is_empty() {
            return Opinion::Fit;
        }
        let Some(present) = candidate.capabilities else { return Opinion::Unknown };
        let mut lacking = candidate.requirement.lacking(present);
        let Some(first) = lacking.next() else { return Opinion::Fit };
        let mut reason = format!("node {} lacks {first}", candidate.node);
        for name in lacking {
            // Writing into a string cannot fail.
            let _infallible = write!(reason, ", {name}");
        }
        let mode = candidate.requirement.mode;
        Opinion::Unfit(Unfit { policy: self.name(), mode, reason: reason.into() })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use shardhost_storage::{GroupId, NodeId, Requirement};

    use super::*;

    fn opinion(requirement: &Requirement, present: Option<&[&str]>) -> Opinion {
        let present: Option<BTreeSet<String>> =
            present.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
        CapabilityPolicy.may_lead(&Candidate {
            group: GroupId::new(1),
            node: NodeId::must(7),
            is_here: true,
            requirement,
            labels: &BTreeMap::new(),
            kind: "table",
            capabilities: present.as_ref(),
            impaired: None,
        })
    }

    #[test]
    fn a_node_that_has_everything_is_fit() {
        let requirement = Requirement::hard(["fifo", "ssd"]).unwrap();
        assert_eq!(opinion(&requirement, Some(&["gpu", "ssd", "fifo"])), Opinion::Fit);
        assert_eq!(opinion(&Requirement::default(), None), Opinion::Fit);
    }

    #[test]
    fn one_that_said_nothing_is_unknown() {
        let requirement = Requirement::hard(["fifo"]).unwrap();
        assert_eq!(opinion(&requirement, None), Opinion::Unknown);
    }

    #[test]
    fn one_that_lacks_something_is_told_what() {
        for requirement in [Requirement::hard, Requirement::soft] {
            let requirement = requirement(["ssd", "fifo", "gpu"]).unwrap();
            let opinion = opinion(&requirement, Some(&["gpu"]));
            let Opinion::Unfit(unfit) = opinion else { panic!("{opinion:?}") };
            assert_eq!(unfit.to_string(), "node 7 lacks fifo, ssd (capability)");
            assert_eq!(unfit.mode, requirement.mode);
        }
    }
}
