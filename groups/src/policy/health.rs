//! Impaired nodes lead nothing while they are impaired: a disk that hangs or fills up, a state
//! machine that stalls. Every host has this policy.

use super::{Candidate, LeadershipPolicy, Opinion, Unfit};

/// Believes a node that advertises that it is impaired.
#[derive(Clone, Copy, Debug, Default)]
pub struct HealthPolicy;

impl HealthPolicy {
    /// Its name, which no other policy should have.
    pub const NAME: &str = "health";
}

impl LeadershipPolicy for HealthPolicy {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn may_lead(&self, candidate: &Candidate<'_>) -> Opinion {
        candidate.impaired.map_or(Opinion::Fit, |impairment| {
            let reason = format!("node {}: {}", candidate.node, impairment.reason).into();
            Opinion::Unfit(Unfit { policy: self.name(), mode: impairment.mode, reason })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use shardhost_storage::{GroupId, NodeId, Requirement, RequirementMode};

    use super::*;
    use crate::nodes::Impairment;
    use crate::policy::RejectReason;

    fn opinion(impaired: Option<&Impairment>) -> Opinion {
        HealthPolicy.may_lead(&Candidate {
            group: GroupId::new(1),
            node: NodeId::must(7),
            is_here: false,
            requirement: &Requirement::default(),
            labels: &BTreeMap::new(),
            kind: "table",
            capabilities: None,
            impaired,
        })
    }

    #[test]
    fn a_node_is_unfit_as_long_as_it_says_that_it_is_impaired() {
        assert_eq!(opinion(None), Opinion::Fit);
        for mode in [RequirementMode::Soft, RequirementMode::Hard] {
            let impairment = Impairment { reason: "the disk is full".into(), mode };
            let Opinion::Unfit(unfit) = opinion(Some(&impairment)) else { panic!("fit") };
            assert_eq!((unfit.mode, unfit.reject_reason()), (mode, RejectReason::Unfit));
            assert!(unfit.to_string().contains("node 7: the disk is full"), "{unfit}");
        }
    }
}
