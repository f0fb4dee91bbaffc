//! The policies of a host, and which groups they are about.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use shardhost_storage::GroupId;

use super::{
    Acquisition, Candidate, CapabilityPolicy, Decision, HealthPolicy, LeadershipPolicy, Opinion,
    PolicyOpinion,
};
use crate::panics::{Foreign, contain};
use crate::selector::GroupSelector;

/// A policy that takes longer than this on a Raft thread is reported.
const INLINE_LIMIT: Duration = Duration::from_millis(1);

/// The policies of a host. Cheap to clone; all clones are the same registry.
#[derive(Clone)]
pub struct Policies {
    shared: Arc<Shared>,
}

struct Shared {
    registered: ArcSwap<Vec<Registered>>,
    /// One change at a time.
    changing: Mutex<u64>,
    /// Grows with every change, and with every demand to ask anew.
    revision: AtomicU64,
    panics: AtomicU64,
    slow: AtomicU64,
}

#[derive(Clone)]
struct Registered {
    number: u64,
    groups: GroupSelector,
    policy: Policy,
    place: &'static Location<'static>,
    foreign: bool,
}

/// A policy of a user, and the name that it had when it was registered.
#[derive(Clone)]
struct Policy {
    name: &'static str,
    asked: Foreign<Arc<dyn LeadershipPolicy>>,
}

impl Policy {
    fn new(policy: Arc<dyn LeadershipPolicy>) -> Self {
        Self { name: policy.name(), asked: Foreign::new("a leadership policy", policy) }
    }
}

impl fmt::Debug for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let registered = self.shared.registered.load();
        f.debug_list().entries(registered.iter().map(|one| one.policy.name)).finish()
    }
}

impl Default for Policies {
    fn default() -> Self {
        Self::new()
    }
}

/// Keeps a policy registered.
#[must_use = "dropping the guard removes the policy"]
#[derive(Debug)]
pub struct PolicyGuard {
    policies: Policies,
    number: u64,
}

impl Drop for PolicyGuard {
    fn drop(&mut self) {
        self.policies.change(|registered| registered.retain(|one| one.number != self.number));
    }
}

/// A policy that wants to be asked when a leadership was acquired.
#[derive(Clone)]
pub struct AskedPolicy {
    policies: Policies,
    policy: Policy,
    place: &'static Location<'static>,
}

impl fmt::Debug for AskedPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.policy.name)
    }
}

impl AskedPolicy {
    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.policy.name
    }

    /// Asks it. `None`: it panicked.
    #[must_use]
    pub fn ask(&self, acquired: &Acquisition) -> Option<Decision> {
        let asked = contain(|| self.policy.asked.on_acquired(acquired));
        asked.map_err(|panic| self.policies.complain(self.policy.name, self.place, &panic)).ok()
    }
}

impl Policies {
    /// The policies of capabilities and of health alone.
    #[must_use]
    pub fn new() -> Self {
        let shared = Shared {
            registered: ArcSwap::default(),
            changing: Mutex::new(0),
            revision: AtomicU64::new(0),
            panics: AtomicU64::new(0),
            slow: AtomicU64::new(0),
        };
        let policies = Self { shared: Arc::new(shared) };
        let own: [Arc<dyn LeadershipPolicy>; 2] =
            [Arc::new(CapabilityPolicy), Arc::new(HealthPolicy)];
        for policy in own {
            policies.add(GroupSelector::All, policy, Location::caller(), false);
        }
        policies
    }

    /// Adds a policy for these groups until the guard is dropped.
    #[track_caller]
    pub fn register(
        &self,
        groups: GroupSelector,
        policy: Arc<dyn LeadershipPolicy>,
    ) -> PolicyGuard {
        let number = self.add(groups, policy, Location::caller(), true);
        PolicyGuard { policies: self.clone(), number }
    }

    fn add(
        &self,
        groups: GroupSelector,
        policy: Arc<dyn LeadershipPolicy>,
        place: &'static Location<'static>,
        foreign: bool,
    ) -> u64 {
        let (mut added, policy) = (0, Policy::new(policy));
        self.change_numbered(|registered, number| {
            added = number;
            registered.push(Registered { number, groups, policy, place, foreign });
        });
        added
    }

    fn change(&self, act: impl FnOnce(&mut Vec<Registered>)) {
        self.change_numbered(|registered, _| act(registered));
    }

    fn change_numbered(&self, act: impl FnOnce(&mut Vec<Registered>, u64)) {
        let mut number = self.shared.changing.lock();
        *number += 1;
        let mut registered = Vec::clone(&self.shared.registered.load());
        act(&mut registered, *number);
        self.shared.registered.store(Arc::new(registered));
        self.shared.revision.fetch_add(1, Ordering::Release);
    }

    /// Grows whenever answers may have changed.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.shared.revision.load(Ordering::Acquire)
    }

    /// Policies that panicked, and answers on Raft threads that took too long, since the start.
    #[must_use]
    pub fn complaints(&self) -> (u64, u64) {
        let Shared { panics, slow, .. } = &*self.shared;
        (panics.load(Ordering::Relaxed), slow.load(Ordering::Relaxed))
    }

    /// The strictest answer of all policies of the group.
    #[must_use]
    pub fn opinion(&self, candidate: &Candidate<'_>) -> Opinion {
        let mut opinion = Opinion::Fit;
        for one in self.shared.registered.load().iter() {
            if one.groups.means(candidate.group, candidate.labels) {
                opinion = opinion.and(self.ask(one, candidate));
            }
        }
        opinion
    }

    /// The opinion of each policy of the group, in the order in which they were registered.
    #[must_use]
    pub fn opinions(&self, candidate: &Candidate<'_>) -> Vec<PolicyOpinion> {
        let registered = self.shared.registered.load();
        let meant =
            registered.iter().filter(|one| one.groups.means(candidate.group, candidate.labels));
        let said = meant.map(|one| PolicyOpinion {
            policy: one.policy.name,
            opinion: self.ask(one, candidate),
        });
        said.collect()
    }

    fn ask(&self, one: &Registered, candidate: &Candidate<'_>) -> Opinion {
        if !one.foreign {
            return one.policy.asked.may_lead(candidate);
        }
        let started = Instant::now();
        let asked = contain(|| one.policy.asked.may_lead(candidate));
        if started.elapsed() > INLINE_LIMIT {
            self.shared.slow.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(policy = one.policy.name, place = %one.place,
                took = ?started.elapsed(), "a leadership policy delays every group of its worker");
        }
        asked.unwrap_or_else(|panic| {
            self.complain(one.policy.name, one.place, &panic);
            Opinion::Unknown
        })
    }

    /// Whether a policy wants to be asked when its group is led here. One that panics does not.
    fn wants_to_be_asked(&self, one: &Registered) -> bool {
        if !one.foreign {
            return one.policy.asked.asks_on_acquisition();
        }
        let asked = contain(|| one.policy.asked.asks_on_acquisition());
        asked.unwrap_or_else(|panic| {
            self.complain(one.policy.name, one.place, &panic);
            false
        })
    }

    fn complain(&self, policy: &'static str, place: &Location<'_>, panic: &str) {
        self.shared.panics.fetch_add(1, Ordering::Relaxed);
        tracing::error!(policy, %place, %panic, "a leadership policy panicked");
    }

    /// Whether any policy of the group wants to be asked when it is led here.
    #[must_use]
    pub fn asks(&self, group: GroupId, labels: &BTreeMap<String, String>) -> bool {
        let registered = self.shared.registered.load();
        let mut meant = registered.iter().filter(|one| one.groups.means(group, labels));
        meant.any(|one| self.wants_to_be_asked(one))
    }

    /// The policies of the group that want to be asked when it is led here, in the order in which
    /// they were registered.
    #[must_use]
    pub fn asked(&self, group: GroupId, labels: &BTreeMap<String, String>) -> Vec<AskedPolicy> {
        let registered = self.shared.registered.load();
        let meant = registered.iter().filter(|one| one.groups.means(group, labels));
        let asked = meant.filter(|one| self.wants_to_be_asked(one));
        let asked = asked.map(|one| AskedPolicy {
            policies: self.clone(),
            policy: one.policy.clone(),
            place: one.place,
        });
        asked.collect()
    }
}

#[cfg(test)]
mod tests {
    use shardhost_storage::{NodeId, Requirement, RequirementMode};

    use super::*;
    use crate::policy::{RejectReason, Unfit};

    /// Answers as set; without an answer it panics.
    #[derive(Debug)]
    struct Says(Option<Opinion>);

    impl LeadershipPolicy for Says {
        fn name(&self) -> &'static str {
            "says"
        }

        fn may_lead(&self, _: &Candidate<'_>) -> Opinion {
            self.0.clone().expect("told to panic")
        }
    }

    fn unfit(mode: RequirementMode) -> Opinion {
        Opinion::Unfit(Unfit { policy: "says", mode, reason: "so it is".into() })
    }

    #[test]
    fn of_several_policies_the_strictest_counts_and_one_that_panics_knows_nothing() {
        let policies = Policies::new();
        let candidate = Candidate {
            group: GroupId::new(1),
            node: NodeId::must(1),
            is_here: true,
            requirement: &Requirement::default(),
            labels: &BTreeMap::new(),
            kind: "table",
            capabilities: None,
            impaired: None,
        };
        let mut guards = Vec::new();
        let (soft, hard) = (unfit(RequirementMode::Soft), unfit(RequirementMode::Hard));
        assert_eq!(policies.opinion(&candidate), Opinion::Fit);
        let steps = [
            (None, Opinion::Unknown),
            (Some(soft.clone()), soft.clone()),
            (Some(hard.clone()), hard.clone()),
            (Some(soft), hard.clone()),
            (Some(Opinion::Fit), hard),
        ];
        for (says, strictest) in steps {
            guards.push(policies.register(GroupSelector::All, Arc::new(Says(says))));
            assert_eq!(policies.opinion(&candidate), strictest);
        }
        assert_eq!(policies.complaints().0, 5, "the panic is counted each time");
        let said: Vec<_> =
            policies.opinions(&candidate).into_iter().map(|one| one.policy).collect();
        assert_eq!(said, ["capability", "health", "says", "says", "says", "says", "says"]);
        drop(guards);
        assert_eq!(policies.opinion(&candidate), Opinion::Fit, "nobody is registered any more");
    }

    /// As a policy does that locks what a panic of its own has poisoned.
    #[derive(Debug)]
    struct Poisoned;

    impl LeadershipPolicy for Poisoned {
        fn name(&self) -> &'static str {
            "poisoned"
        }

        fn may_lead(&self, _: &Candidate<'_>) -> Opinion {
            Opinion::Fit
        }

        fn asks_on_acquisition(&self) -> bool {
            panic!("its lock is poisoned")
        }
    }

    #[test]
    fn a_policy_that_panics_when_it_is_asked_whether_to_ask_is_not_asked() {
        let policies = Policies::new();
        let _guard = policies.register(GroupSelector::All, Arc::new(Poisoned));
        let (group, labels) = (GroupId::new(1), BTreeMap::new());
        assert!(!policies.asks(group, &labels) && policies.asked(group, &labels).is_empty());
        assert_eq!(policies.complaints().0, 2);
    }

    #[test]
    fn what_users_policies_say_is_told_from_a_lack_of_capabilities() {
        let Opinion::Unfit(said) = unfit(RequirementMode::Hard) else { panic!("it is unfit") };
        assert_eq!(said.reject_reason(), RejectReason::PolicyDeclined);
        let lacks = Unfit { policy: CapabilityPolicy::NAME, ..said };
        assert_eq!(lacks.reject_reason(), RejectReason::Incapable);
    }
}
