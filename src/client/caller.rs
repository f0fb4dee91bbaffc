//! The life of one operation: whom it is sent to, and what is done about a failure.

use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use shardhost_proto::client::{Failure, FailureReason};
use tokio::time::{Instant, sleep, timeout_at};

use super::backoff::Backoff;
use super::connection::{CallError, Connection};
use super::error::ClientError;
use super::options::{ClientOptions, Resend};
use super::routes::{Located, Routes, Target};
use super::wire::{Place, Wire};

/// What doing an operation twice would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nature {
    /// Changes nothing.
    Read,
    /// Twice is as once.
    Idempotent,
    /// Twice is not as once.
    Once,
}

/// Sends the operations of one kind of shard.
pub(super) struct Caller<W: Wire> {
    routes: Routes,
    connections: DashMap<u64, (String, Connection<W>)>,
    options: Arc<ClientOptions>,
}

impl<W: Wire> Caller<W> {
    pub(super) fn new(routes: Routes, options: Arc<ClientOptions>) -> Self {
        Self { routes, connections: DashMap::new(), options }
    }

    pub(super) const fn routes(&self) -> &Routes {
        &self.routes
    }

    pub(super) fn options(&self) -> &ClientOptions {
        &self.options
    }

    /// Carries out an operation on a shard, wherever it is led.
    pub(super) async fn call(
        &self,
        target: Target,
        operation: W::Operation,
        nature: Nature,
    ) -> Result<W::Answer, ClientError> {
        let mut trial = Trial::new(self.resends(nature), nature, self.options.deadline);
        let mut first = None;
        while let Some(until) = trial.next(self.options.attempt_timeout) {
            // Anew for each try: the map of shards may have changed.
            let Some(located) = self.routes.locate(&target) else {
                return Err(self.nowhere(&target));
            };
            let Located { shard, place } = located;
            let map = *first.get_or_insert(place.map);
            if map != place.map && matches!(target, Target::Shard(_)) {
                trial.last = "the map of shards changed, and the number of a shard with it".into();
                break;
            }
            let Some(node) = self.routes.target(shard, trial.attempt) else {
                let message = "the directory names no node".into();
                return Err(ClientError::Unavailable { message });
            };
            let sent = self.call_node(node, place, operation.clone());
            let error = match timeout_at(until, sent).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => error,
                Err(_) => CallError::Lost(format!("node {node} did not answer in time")),
            };
            trial.note(&error)?;
            self.prepare_next(shard, node, &error, &mut trial).await;
        }
        Err(trial.give_up())
    }

    /// Carries out an operation on the replica of a shard that `node` holds, once.
    pub(super) async fn call_at(
        &self,
        node: u64,
        target: Target,
        operation: W::Operation,
    ) -> Result<W::Answer, ClientError> {
        let mut trial = Trial::new(Resend::Never, Nature::Read, self.options.deadline);
        let Some(Located { place, .. }) = self.routes.locate(&target) else {
            return Err(self.nowhere(&target));
        };
        let answer = timeout_at(trial.deadline, self.call_node(node, place, operation)).await;
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                trial.note(&error)?;
                Err(trial.give_up())
            }
            Err(_) => Err(trial.give_up()),
        }
    }

    fn resends(&self, nature: Nature) -> Resend {
        match nature {
            Nature::Read => Resend::Idempotent,
            Nature::Idempotent => self.options.resend,
            Nature::Once => Resend::Never,
        }
    }

    /// Why there is no shard for an operation.
    fn nowhere(&self, target: &Target) -> ClientError {
        match (self.routes.len().checked_sub(1), target) {
            (Some(last), Target::Shard(shard)) => ClientError::NoSuchShard { shard: *shard, last },
            _ => ClientError::NoShards { kind: W::KIND },
        }
    }

    async fn call_node(
        &self,
        node: u64,
        place: Place,
        operation: W::Operation,
    ) -> Result<W::Answer, CallError> {
        let unknown = || CallError::NotSent(format!("the directory names no node {node}"));
        let address = self.routes.address(node).ok_or_else(unknown)?;
        self.connection(node, address).call(place, operation).await
    }

    fn connection(&self, node: u64, address: String) -> Connection<W> {
        if let Some(known) = self.connections.get(&node)
            && known.0 == address
        {
            return known.1.clone();
        }
        let start = || (address.clone(), Connection::start(address.clone(), self.options.clone()));
        let mut entry = self.connections.entry(node).or_insert_with(start);
        if entry.0 != address {
            *entry = start();
        }
        entry.1.clone()
    }

    /// Learns what an error tells about the leader, and waits as it asks for.
    async fn prepare_next(&self, shard: usize, node: u64, error: &CallError, trial: &mut Trial) {
        match error {
            CallError::Failed(failure) if names_another_leader(failure, node) => {
                self.routes.learn(shard, failure.leader_node, &failure.leader_address);
                // The first hint is followed at once; a chain of them may be a circle.
                if trial.attempt > 1 {
                    trial.pause().await;
                }
            }
            CallError::Failed(failure) if is_passing(failure.reason()) => trial.pause().await,
            _ => {
                self.routes.doubt(shard, node);
                trial.pause().await;
                let refreshed = timeout_at(trial.deadline, self.routes.refresh()).await;
                // At the deadline the trial ends by itself.
                drop(refreshed);
            }
        }
    }
}

fn names_another_leader(failure: &Failure, asked: u64) -> bool {
    failure.leader_node != 0 && failure.leader_node != asked
}

/// The same node will take it after a while.
const fn is_passing(reason: FailureReason) -> bool {
    matches!(reason, FailureReason::Overloaded | FailureReason::Transferring)
}

/// What is known of an operation under way.
struct Trial {
    resend: Resend,
    nature: Nature,
    deadline: Instant,
    /// Tries so far.
    attempt: usize,
    backoff: Backoff,
    /// An earlier try may have taken effect: nothing that follows makes the operation definite.
    in_doubt: bool,
    last: String,
}

impl Trial {
    fn new(resend: Resend, nature: Nature, within: Duration) -> Self {
        Self {
            resend,
            nature,
            deadline: Instant::now() + within,
            attempt: 0,
            backoff: Backoff::new(),
            in_doubt: false,
            last: "it was not tried".into(),
        }
    }

    /// Until when the next try may take; `None` when there is no time for one.
    fn next(&mut self, attempt_timeout: Duration) -> Option<Instant> {
        let now = Instant::now();
        if now >= self.deadline {
            return None;
        }
        self.attempt += 1;
        match self.resend {
            Resend::Idempotent => Some(self.deadline.min(now + attempt_timeout)),
            Resend::Never => Some(self.deadline),
        }
    }

    /// Takes note of a failed try; an error when there is to be no other.
    fn note(&mut self, error: &CallError) -> Result<(), ClientError> {
        match error {
            CallError::NotSent(message) => self.last.clone_from(message),
            CallError::Lost(message) => return self.doubt(message.clone()),
            CallError::Empty => {
                let message = "an empty reply".to_owned();
                return Err(ClientError::Protocol { message });
            }
            CallError::Failed(failure) => return self.note_failure(failure),
        }
        Ok(())
    }

    fn note_failure(&mut self, failure: &Failure) -> Result<(), ClientError> {
        let message = failure.message.clone();
        match failure.reason() {
            FailureReason::NotLeader
            | FailureReason::Overloaded
            | FailureReason::Transferring
            | FailureReason::NotServing
            | FailureReason::WrongMap
            | FailureReason::UnknownGroup => {
                self.last = message;
                Ok(())
            }
            FailureReason::Invalid => Err(ClientError::Invalid { message }),
            FailureReason::OutcomeUnknown
            | FailureReason::GroupFailed
            | FailureReason::Unspecified => self.doubt(message),
        }
    }

    fn doubt(&mut self, message: String) -> Result<(), ClientError> {
        self.last = message;
        if self.nature != Nature::Read {
            self.in_doubt = true;
        }
        match self.resend {
            Resend::Idempotent => Ok(()),
            Resend::Never => Err(self.give_up_now()),
        }
    }

    async fn pause(&mut self) {
        let left = self.deadline.saturating_duration_since(Instant::now());
        sleep(self.backoff.pause().min(left)).await;
    }

    fn give_up(mut self) -> ClientError {
        self.give_up_now()
    }

    fn give_up_now(&mut self) -> ClientError {
        let message = std::mem::take(&mut self.last);
        match self.nature {
            Nature::Read => ClientError::Timeout { message },
            _ if self.in_doubt => ClientError::OutcomeUnknown { message },
            _ => ClientError::Unavailable { message },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(reason: FailureReason) -> CallError {
        CallError::Failed(Failure { reason: reason.into(), ..Failure::default() })
    }

    fn lost() -> CallError {
        CallError::Lost("gone".into())
    }

    fn trial(resend: Resend, nature: Nature) -> Trial {
        Trial::new(resend, nature, Duration::from_secs(60))
    }

    #[tokio::test]
    async fn what_may_have_taken_effect_is_not_sent_again_unless_twice_is_as_once() {
        let unknown =
            [lost(), failed(FailureReason::OutcomeUnknown), failed(FailureReason::GroupFailed)];
        for error in unknown {
            let refused = trial(Resend::Never, Nature::Once).note(&error).unwrap_err();
            assert!(matches!(refused, ClientError::OutcomeUnknown { .. }), "{error:?}");
            assert!(!refused.is_definite());
            assert_eq!(trial(Resend::Idempotent, Nature::Idempotent).note(&error), Ok(()));
            assert_eq!(trial(Resend::Idempotent, Nature::Read).note(&error), Ok(()));
        }
    }

    #[tokio::test]
    async fn what_was_surely_refused_is_sent_again() {
        let refusals = [
            CallError::NotSent("refused".into()),
            failed(FailureReason::NotLeader),
            failed(FailureReason::Overloaded),
            failed(FailureReason::Transferring),
            failed(FailureReason::NotServing),
            failed(FailureReason::UnknownGroup),
            failed(FailureReason::WrongMap),
        ];
        for error in refusals {
            let mut trial = trial(Resend::Never, Nature::Once);
            assert_eq!(trial.note(&error), Ok(()), "{error:?}");
            assert!(trial.give_up().is_definite(), "{error:?}");
        }
    }

    #[tokio::test]
    async fn a_refusal_after_an_unknown_outcome_leaves_it_unknown() {
        let mut trial = trial(Resend::Idempotent, Nature::Idempotent);
        assert_eq!(trial.note(&lost()), Ok(()));
        assert_eq!(trial.note(&failed(FailureReason::Overloaded)), Ok(()));
        assert!(!trial.give_up().is_definite());
    }

    #[tokio::test]
    async fn an_unanswered_read_changed_nothing() {
        let mut trial = trial(Resend::Idempotent, Nature::Read);
        assert_eq!(trial.note(&lost()), Ok(()));
        assert!(matches!(trial.give_up(), ClientError::Timeout { .. }));
    }

    #[tokio::test]
    async fn an_invalid_request_is_not_tried_again() {
        let mut trial = trial(Resend::Idempotent, Nature::Read);
        let refused = trial.note(&failed(FailureReason::Invalid)).unwrap_err();
        assert!(matches!(refused, ClientError::Invalid { .. }));
    }
}
