//! Asking policies about leaderships that were acquired, on threads that may block.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::RuntimeShared;
use crate::policy::AdmissionRequest;
use crate::worker::{GroupEvent, Input};

/// So many policies may hang before others have to wait for them.
pub(super) const THREADS: usize = 2;

/// Leaderships that policies are to be asked about. Bounded by the groups of the host: a replica
/// asks once per leadership.
#[derive(Debug)]
pub(super) struct AdmissionQueue(Sender<Option<AdmissionRequest>>);

impl AdmissionQueue {
    pub(super) fn new() -> (Self, Receiver<Option<AdmissionRequest>>) {
        let (sender, receiver) = unbounded();
        (Self(sender), receiver)
    }

    pub(super) fn push(&self, request: AdmissionRequest) {
        self.send(Some(request));
    }

    /// Lets one thread end when everything before was asked.
    pub(super) fn stop_one(&self) {
        self.send(None);
    }

    fn send(&self, request: Option<AdmissionRequest>) {
        if self.0.send(request).is_err() {
            tracing::debug!("a leadership was acquired after the policies had ended");
        }
    }
}

/// Asks until it is told to stop.
pub(super) fn run(shared: &Arc<RuntimeShared>, requests: &Receiver<Option<AdmissionRequest>>) {
    while let Ok(Some(request)) = requests.recv() {
        if shared.is_stopping() {
            continue;
        }
        let answer = request.ask();
        let (group, epoch, term) = (request.group, request.epoch, request.term());
        let event = GroupEvent::Admission { term, answer };
        let input = Input::Group { group, epoch, event };
        shared.inboxes[shared.worker_of(group)].complete(input);
    }
}
