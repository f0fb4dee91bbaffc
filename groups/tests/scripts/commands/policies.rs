//! Who may lead: what groups require, what nodes say of themselves, and what policies say.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use shardhost_groups::core::{MembershipOrder, MembershipRequest};
use shardhost_groups::nodes::Advertisement;
use shardhost_groups::policy::{Acquisition, Candidate, Decision, LeadershipPolicy, Opinion};
use shardhost_groups::selector::GroupSelector;
use shardhost_groups::worker::Input;
use shardhost_groups::{LogIndex, Membership, NodeId, Requirement, RequirementMode};

use super::arguments::Arguments;
use crate::commands::asking::Asker;
use crate::words;
use crate::world::{Cluster, Done};

/// A policy that says what its script says, once leadership was acquired.
#[derive(Debug)]
struct Scripted {
    decision: Decision,
    /// Panics that come before it decides.
    panics: AtomicU32,
}

impl LeadershipPolicy for Scripted {
    fn name(&self) -> &'static str {
        "scripted"
    }
    fn may_lead(&self, _: &Candidate<'_>) -> Opinion {
        Opinion::Fit
    }
    fn asks_on_acquisition(&self) -> bool {
        true
    }
    fn on_acquired(&self, _: &Acquisition) -> Decision {
        let left =
            self.panics.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        assert!(left.is_err(), "the policy was told to panic");
        self.decision.clone()
    }
}

impl Cluster {
    pub fn require(&mut self, arguments: &mut Arguments<'_>) -> Done {
        let asker = Asker::new(arguments)?;
        let names: Vec<String> = arguments.all("names")?;
        let soft = arguments.flag("soft")?;
        let whoever_meets_it = arguments.flag("even-if-ineligible")?;
        let expecting = arguments.maybe("expecting")?.map(LogIndex::new);
        let mode = if soft { RequirementMode::Soft } else { RequirementMode::Hard };
        let requirement = Requirement { capabilities: names.into_iter().collect(), mode };
        let good =
            |membership: Arc<Membership>| format!("done, {}", words::membership(&membership));
        let completion = self.answers.ask(asker.line("require"), good);
        let order = MembershipOrder::Require { requirement, expecting, whoever_meets_it };
        let request = Box::new(MembershipRequest { order, completion });
        self.input(asker.node, Input::ChangeMembership { group: asker.group, request })
    }

    /// A node says something of itself, and the others that run hear it.
    pub fn advertise(&mut self, arguments: &mut Arguments<'_>) -> Done {
        let (id, draining) = (arguments.node("node")?, arguments.flag("draining")?);
        let capabilities: BTreeSet<String> = arguments.all("names")?.into_iter().collect();
        let silently = arguments.flag("silently")?;
        let advertisement = Advertisement { capabilities, draining, ..Advertisement::default() };
        self.node(id)?.advertisement = advertisement.clone();
        let advertisement = Arc::new(advertisement);
        if self.runs(id) {
            self.input(id, Input::OwnAdvertisement(Arc::clone(&advertisement)))?;
        }
        if silently {
            return Ok(());
        }
        self.tell_advertisement(id)
    }

    /// The others hear what a node says of itself.
    pub fn tell_advertisement(&mut self, id: NodeId) -> Done {
        let advertisement = Arc::new(self.node(id)?.advertisement.clone());
        let incarnation = self.node(id)?.life + 1;
        let others: Vec<NodeId> = self.node_ids().into_iter().filter(|node| *node != id).collect();
        for other in others.into_iter().filter(|other| self.runs(*other)).collect::<Vec<_>>() {
            let advertisement = Arc::clone(&advertisement);
            self.input(other, Input::NodeAdvertisement { node: id, incarnation, advertisement })?;
        }
        Ok(())
    }

    /// From here on a policy of the node is asked about every leadership it acquires.
    pub fn policy(&mut self, arguments: &mut Arguments<'_>) -> Done {
        let id = arguments.node("node")?;
        let reason: String = arguments.maybe("reason")?.unwrap_or_else(|| "so-it-is".to_owned());
        let panics = AtomicU32::new(arguments.maybe("panics")?.unwrap_or(0));
        let decision = match arguments.one::<String>("says")?.as_str() {
            "serve" => Decision::Serve,
            "caretaker" => Decision::Caretaker(reason),
            "decline" => Decision::Decline { reason, targets: arguments.nodes("to")? },
            other => return Err(format!("no policy says {other}")),
        };
        let node = self.node(id)?;
        node.guards.clear();
        node.guards.push(
            node.policies.register(GroupSelector::All, Arc::new(Scripted { decision, panics })),
        );
        Ok(())
    }

    pub fn reevaluate(&mut self, arguments: &mut Arguments<'_>) -> Done {
        let (node, group) = (arguments.node("node")?, arguments.group()?);
        self.input(node, Input::Reevaluate { group })
    }
}
