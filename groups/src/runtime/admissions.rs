//! Asking policies about leaderships that were acquired, on threads that may block.

use std::collections::HashMap;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::Mutex;
use shardhost_storage::GroupId;

use super::RuntimeShared;
use crate::policy::AdmissionRequest;
use crate::worker::{GroupEvent, Input};

/// So many policies may hang before others have to wait for them.
pub(super) const THREADS: usize = 2;

/// Leaderships that policies are to be asked about. Bounded by the groups of the host: of the
/// questions of one group that wait only the newest is kept, for no answer to another one counts.
#[derive(Debug)]
pub(super) struct AdmissionQueue {
    newest: Mutex<HashMap<GroupId, AdmissionRequest>>,
    turns: Sender<Option<GroupId>>,
}

impl AdmissionQueue {
    pub(super) fn new() -> (Self, Receiver<Option<GroupId>>) {
        let (turns, outlet) = unbounded();
        (Self { newest: Mutex::default(), turns }, outlet)
    }

    pub(super) fn push(&self, request: AdmissionRequest) {
        let group = request.group;
        if self.newest.lock().insert(group, request).is_none() {
            self.send(Some(group));
        }
    }

    fn take(&self, group: GroupId) -> Option<AdmissionRequest> {
        self.newest.lock().remove(&group)
    }

    /// Lets one thread end when everything before was asked.
    pub(super) fn stop_one(&self) {
        self.send(None);
    }

    fn send(&self, turn: Option<GroupId>) {
        if self.turns.send(turn).is_err() {
            tracing::debug!("a leadership was acquired after the policies had ended");
        }
    }
}

/// Asks until stopped.
pub(super) fn run(shared: &Arc<RuntimeShared>, turns: &Receiver<Option<GroupId>>) {
    while let Ok(Some(group)) = turns.recv() {
        let Some(request) = shared.admissions.take(group) else { continue };
        if shared.is_stopping() {
            continue;
        }
        let answer = request.ask();
        let (group, open_id, term) = (request.group, request.open_id, request.term());
        let event = GroupEvent::Admission { term, question: request.question, answer };
        let input = Input::Group { group, open_id, event };
        shared.inboxes[shared.worker_of(group)].complete(input);
    }
}
