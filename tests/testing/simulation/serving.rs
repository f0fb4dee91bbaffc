//! Whether leaders serve only where their policies let them, and are asked when another look is
//! requested.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use shardhost_groups::policy::{
    Acquisition, AdmissionRequest, Candidate, Decision, LeadershipPolicy, Opinion,
};
use shardhost_groups::{GroupId, GroupStatus, NodeId};

/// A policy of users that refuses every leadership of its node as long as its switch is on.
#[derive(Debug)]
pub struct SwitchedPolicy(pub Arc<AtomicBool>);

impl LeadershipPolicy for SwitchedPolicy {
    fn name(&self) -> &'static str {
        "switched"
    }
    fn may_lead(&self, _: &Candidate<'_>) -> Opinion {
        Opinion::Fit
    }
    fn asks_on_acquisition(&self) -> bool {
        true
    }
    fn on_acquired(&self, _: &Acquisition) -> Decision {
        match self.0.load(Ordering::Relaxed) {
            true => Decision::Caretaker("switched off".to_owned()),
            false => Decision::Serve,
        }
    }
}

/// The newest question about a leadership, and what is known of its answer.
#[derive(Clone, Copy, Debug)]
struct Asked {
    open_id: u64,
    term: u64,
    question: u64,
    refused: bool,
    /// Another look was requested since.
    outdated: bool,
}

/// What replicas asked their policies.
#[derive(Debug, Default)]
pub struct Serving {
    newest: BTreeMap<(NodeId, GroupId), Asked>,
}

impl Serving {
    /// A leader asks its policies.
    pub(super) fn asked(&mut self, node: NodeId, request: &AdmissionRequest) {
        let (open_id, term, question) = (request.open_id, request.term().get(), request.question);
        let asked = Asked { open_id, term, question, refused: false, outdated: false };
        self.newest.insert((node, request.group), asked);
    }

    pub(super) fn answered(&mut self, node: NodeId, request: &AdmissionRequest, serve: bool) {
        let Some(asked) = self.newest.get_mut(&(node, request.group)) else { return };
        let current = (asked.open_id, asked.term, asked.question)
            == (request.open_id, request.term().get(), request.question);
        if current {
            asked.refused = !serve;
        }
    }

    /// Another look at who may lead is requested.
    pub(super) fn outdated(&mut self, node: NodeId, group: GroupId) {
        if let Some(asked) = self.newest.get_mut(&(node, group)) {
            asked.outdated = true;
        }
    }

    /// The process of a node, or its replica of a group, ended.
    pub(super) fn forget(&mut self, ended: impl Fn(NodeId, GroupId) -> bool) {
        self.newest.retain(|(node, group), _| !ended(*node, *group));
    }

    /// A leader whose policies refused last, or were not asked since another look was requested,
    /// serves no users.
    pub(super) fn check(&self, node: NodeId, status: &GroupStatus) -> Result<(), String> {
        let Some(asked) = self.newest.get(&(node, status.id)) else { return Ok(()) };
        let refused = asked.term == status.term.get() && (asked.refused || asked.outdated);
        if status.serving && refused {
            return Err(format!("{node:?} serves {:?} against its policy: {asked:?}", status.id));
        }
        Ok(())
    }

    /// At the end: the leader has asked since another look was requested.
    pub(super) fn settled(&self, node: NodeId, status: &GroupStatus) -> Result<(), String> {
        match self.newest.get(&(node, status.id)) {
            Some(asked)
                if status.is_leader() && asked.outdated && asked.term == status.term.get() =>
            {
                Err(format!("{node:?} did not ask its policies about {:?} again", status.id))
            }
            _ => Ok(()),
        }
    }
}
