//! The life of one operation: the node that it is sent to, and the reaction to a failure.

use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use shardhost_proto::client::{Failure, FailureReason};
use shardhost_proto::limits::wait_of;
use tokio::time::{Instant, sleep, timeout_at};

use super::backoff::Backoff;
use super::connection::{CallError, Connection, MAX_OPERATION_BYTES};
use super::error::ClientError;
use super::options::{ClientOptions, Resend};
use super::routes::{Located, Routes, Target};
use super::session::{Sessions, Ticket};
use super::wire::{Outgoing, Place, Wire};

/// What doing an operation twice would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nature {
    Read,
    Idempotent,
    /// Twice is not as once.
    Once,
    /// Twice is not as once, and its answer is too large for a shard to keep.
    Receive,
}

/// How an operation is repeated once it may have taken effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Repeat {
    Never,
    Plainly,
    /// As part of a session, by the same number.
    InSession,
}

/// Sends the operations of one kind of shard.
pub(super) struct Caller<W: Wire> {
    routes: Routes,
    connections: DashMap<u64, (String, Connection<W>)>,
    sessions: Sessions,
    options: Arc<ClientOptions>,
}

impl<W: Wire> Caller<W> {
    pub(super) fn new(routes: Routes, options: Arc<ClientOptions>) -> Self {
        Self { routes, connections: DashMap::new(), sessions: Sessions::default(), options }
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
        check_size(W::size(&operation))?;
        let mut trial = Trial::new(self.repeats(nature), nature, self.options.deadline);
        let mut ticket = None;
        let outcome = self.try_until_done(&target, operation, &mut trial, &mut ticket).await;
        // Else a copy may be on its way, and the ticket is given up.
        if let Some(ticket) = ticket.filter(|_| outcome.is_ok() || !trial.in_doubt) {
            ticket.answered();
        }
        outcome
    }

    async fn try_until_done(
        &self,
        target: &Target,
        operation: W::Operation,
        trial: &mut Trial,
        ticket: &mut Option<Ticket>,
    ) -> Result<W::Answer, ClientError> {
        let mut first = None;
        while trial.begin() {
            // Anew for each try: the map of shards may have changed.
            let Some(located) = self.routes.locate(target) else {
                return Err(trial.give_up_for(self.nowhere(target)));
            };
            let Located { shard, place } = located;
            let map = *first.get_or_insert(place.map);
            if map != place.map && matches!(target, Target::Shard(_)) {
                trial.last = "the map of shards changed, and the number of a shard with it".into();
                break;
            }
            let Some(node) = self.routes.target(shard, trial.attempt) else {
                trial.last = "the directory names no node".into();
                break;
            };
            let taken = match self.ticket(place, ticket, trial).await {
                Ok(taken) => taken,
                Err(NoTicket) => break,
            };
            let (session, receipt) = (taken.map(Ticket::session), taken.map(Ticket::receipt));
            let outgoing = Outgoing { place, session, receipt, operation: operation.clone() };
            let until = trial.until(self.options.attempt_timeout);
            let sent = self.call_node(node, outgoing);
            let error = match timeout_at(until, sent).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => error,
                Err(_) => CallError::Lost(format!("node {node} did not answer in time")),
            };
            after_refusal(&self.sessions, ticket, &error);
            trial.note(&error)?;
            self.prepare_next(shard, node, &error, trial).await;
        }
        Err(trial.give_up_now())
    }

    /// The number of a write in the session of its shard, the same for each try there.
    async fn ticket<'t>(
        &self,
        place: Place,
        ticket: &'t mut Option<Ticket>,
        trial: &mut Trial,
    ) -> Result<Option<&'t Ticket>, NoTicket> {
        if trial.repeat != Repeat::InSession {
            return Ok(None);
        }
        if ticket.as_ref().is_some_and(|ticket| ticket.group() != place.group) {
            if trial.in_doubt {
                trial.last = "the key belongs to another shard now, which does not know whether \
                              the write took effect"
                    .into();
                return Err(NoTicket);
            }
            if let Some(unused) = ticket.take() {
                unused.answered();
            }
        }
        if ticket.is_none() {
            match timeout_at(trial.deadline, self.sessions.ticket(place.group)).await {
                Ok(taken) => *ticket = Some(taken),
                Err(_) => {
                    let why = "too many writes to the shard are unanswered, or one that is older \
                               than one that was given up";
                    trial.last = why.into();
                    return Err(NoTicket);
                }
            }
        }
        Ok(ticket.as_ref())
    }

    /// Carries out an operation on the replica of a shard that `node` holds, once.
    pub(super) async fn call_at(
        &self,
        node: u64,
        target: Target,
        operation: W::Operation,
    ) -> Result<W::Answer, ClientError> {
        let mut trial = Trial::new(Repeat::Never, Nature::Read, self.options.deadline);
        let Some(Located { place, .. }) = self.routes.locate(&target) else {
            return Err(self.nowhere(&target));
        };
        if self.routes.address(node).is_none() {
            return Err(ClientError::Invalid {
                message: format!("the cluster has no node {node}"),
            });
        }
        check_size(W::size(&operation))?;
        let outgoing = Outgoing { place, session: None, receipt: None, operation };
        let answer = timeout_at(trial.deadline, self.call_node(node, outgoing)).await;
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                trial.note(&error)?;
                Err(trial.give_up())
            }
            Err(_) => Err(trial.give_up()),
        }
    }

    fn repeats(&self, nature: Nature) -> Repeat {
        match (nature, self.options.resend) {
            (Nature::Read, _) | (Nature::Idempotent, Resend::Idempotent) => Repeat::Plainly,
            (Nature::Idempotent | Nature::Once, Resend::ExactlyOnce)
                if self.routes.understands_sessions() =>
            {
                Repeat::InSession
            }
            _ => Repeat::Never,
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
        outgoing: Outgoing<W::Operation>,
    ) -> Result<W::Answer, CallError> {
        let unknown = || CallError::NotSent(format!("the directory names no node {node}"));
        let address = self.routes.address(node).ok_or_else(unknown)?;
        self.connection(node, address).call(outgoing).await
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

    /// Learns from an error which node leads, and waits as it asks for.
    async fn prepare_next(&self, shard: usize, node: u64, error: &CallError, trial: &mut Trial) {
        match error {
            CallError::Failed(failure) if names_another_leader(failure, node) => {
                self.routes.learn(shard, failure.leader_node, &failure.leader_address);
                // The first hint is followed at once; a chain of them may be a circle.
                if trial.attempt > 1 {
                    trial.pause().await;
                }
            }
            // Nothing is wrong with the node: another number, or session, is taken at once.
            CallError::Failed(failure)
                if failure.reason() == FailureReason::SessionOver && trial.attempt == 1 => {}
            CallError::Failed(failure) if is_passing(failure.reason()) => trial.pause().await,
            _ => {
                self.routes.doubt(shard, node);
                trial.pause().await;
                let refreshed = timeout_at(trial.deadline, self.routes.refresh()).await;
                // At the deadline the trial ends.
                drop(refreshed);
            }
        }
    }
}

/// Refuses what no stream takes: it would break the stream of all others, with each try again.
fn check_size(bytes: usize) -> Result<(), ClientError> {
    if bytes <= MAX_OPERATION_BYTES {
        return Ok(());
    }
    let message =
        format!("the operation has {bytes} bytes, at most {MAX_OPERATION_BYTES} are sent");
    Err(ClientError::Invalid { message })
}

fn names_another_leader(failure: &Failure, asked: u64) -> bool {
    failure.leader_node != 0 && failure.leader_node != asked
}

/// The same node will take it after a while.
const fn is_passing(reason: FailureReason) -> bool {
    matches!(
        reason,
        FailureReason::Overloaded | FailureReason::Transferring | FailureReason::SessionOver
    )
}

/// Takes the ticket of a write away that the shard refuses because of its session, whose number
/// cannot be used any more. The shard names the start of another session where it dropped this one.
/// Where it names none the session lives, and only this number is used up: other writes may wait
/// behind an abandoned one of the session.
fn after_refusal(sessions: &Sessions, ticket: &mut Option<Ticket>, error: &CallError) {
    let CallError::Failed(failure) = error else { return };
    if failure.reason() != FailureReason::SessionOver {
        return;
    }
    let Some(over) = ticket.take() else { return };
    match failure.session_start {
        // No copy of it can take effect any more.
        0 => over.answered(),
        start => sessions.renew(&over, start),
    }
}

/// An operation cannot be part of a session any more; its trial has the cause.
struct NoTicket;

/// The known state of an operation in progress.
struct Trial {
    repeat: Repeat,
    nature: Nature,
    deadline: Instant,
    attempt: usize,
    backoff: Backoff,
    /// An earlier try may have taken effect: nothing that follows makes the operation definite.
    in_doubt: bool,
    last: String,
}

impl Trial {
    fn new(repeat: Repeat, nature: Nature, within: Duration) -> Self {
        Self {
            repeat,
            nature,
            deadline: Instant::now() + wait_of(within),
            attempt: 0,
            backoff: Backoff::new(),
            in_doubt: false,
            last: "it was not tried".into(),
        }
    }

    /// Begins another try, if there is time for one.
    fn begin(&mut self) -> bool {
        if Instant::now() >= self.deadline {
            return false;
        }
        self.attempt += 1;
        true
    }

    /// Until when a try that is sent now may take.
    fn until(&self, attempt_timeout: Duration) -> Instant {
        match self.repeat {
            Repeat::Plainly | Repeat::InSession => {
                self.deadline.min(Instant::now() + wait_of(attempt_timeout))
            }
            Repeat::Never => self.deadline,
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
            // The copy that was refused took no effect. An earlier one may have, whose answer the
            // shard dropped, alone or with the session: this cannot be known any more.
            FailureReason::SessionOver => {
                self.last = message;
                if self.in_doubt { Err(self.give_up_now()) } else { Ok(()) }
            }
            FailureReason::Invalid => Err(self.give_up_for(ClientError::Invalid { message })),
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
        match self.repeat {
            Repeat::Plainly | Repeat::InSession => Ok(()),
            Repeat::Never => Err(self.give_up_now()),
        }
    }

    async fn pause(&mut self) {
        let left = self.deadline.saturating_duration_since(Instant::now());
        sleep(self.backoff.pause().min(left)).await;
    }

    /// The error for a cause that is definite for the newest try: not for the operation, if an
    /// earlier try may have taken effect.
    fn give_up_for(&self, cause: ClientError) -> ClientError {
        match self.in_doubt {
            true => ClientError::OutcomeUnknown { message: cause.to_string() },
            false => cause,
        }
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
    use futures::FutureExt;

    use super::*;

    fn failed(reason: FailureReason) -> CallError {
        CallError::Failed(Failure { reason: reason.into(), ..Failure::default() })
    }

    fn lost() -> CallError {
        CallError::Lost("gone".into())
    }

    fn trial(repeat: Repeat, nature: Nature) -> Trial {
        Trial::new(repeat, nature, Duration::from_secs(60))
    }

    #[tokio::test]
    async fn what_may_have_taken_effect_is_not_sent_again_unless_that_does_no_harm() {
        let unknown =
            [lost(), failed(FailureReason::OutcomeUnknown), failed(FailureReason::GroupFailed)];
        for error in unknown {
            let refused = trial(Repeat::Never, Nature::Once).note(&error).unwrap_err();
            assert!(matches!(refused, ClientError::OutcomeUnknown { .. }), "{error:?}");
            assert!(!refused.is_definite());
            assert_eq!(trial(Repeat::Plainly, Nature::Idempotent).note(&error), Ok(()));
            assert_eq!(trial(Repeat::InSession, Nature::Once).note(&error), Ok(()));
            assert_eq!(trial(Repeat::Plainly, Nature::Read).note(&error), Ok(()));
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
            let mut trial = trial(Repeat::Never, Nature::Once);
            assert_eq!(trial.note(&error), Ok(()), "{error:?}");
            assert!(trial.give_up().is_definite(), "{error:?}");
        }
    }

    #[tokio::test]
    async fn a_refusal_after_an_unknown_outcome_leaves_it_unknown() {
        let mut trial = trial(Repeat::Plainly, Nature::Idempotent);
        assert_eq!(trial.note(&lost()), Ok(()));
        assert_eq!(trial.note(&failed(FailureReason::Overloaded)), Ok(()));
        let invalid = trial.note(&failed(FailureReason::Invalid)).unwrap_err();
        assert!(!invalid.is_definite(), "{invalid}");
        assert!(!trial.give_up_for(ClientError::NoShards { kind: "table" }).is_definite());
        assert!(!trial.give_up().is_definite());
    }

    #[tokio::test]
    async fn a_write_of_a_session_that_is_over_is_definite_only_if_no_copy_is_in_doubt() {
        let over = failed(FailureReason::SessionOver);
        let mut first = trial(Repeat::InSession, Nature::Once);
        assert_eq!(first.note(&failed(FailureReason::NotLeader)), Ok(()));
        assert_eq!(first.note(&over), Ok(()));
        assert!(first.give_up().is_definite());
        let mut second = trial(Repeat::InSession, Nature::Once);
        assert_eq!(second.note(&lost()), Ok(()));
        assert!(matches!(second.note(&over), Err(ClientError::OutcomeUnknown { .. })));
    }

    /// Another write of the session was given up, and a later one must not begin before it is settled:
    /// also after a refusal of the third.
    #[tokio::test]
    async fn a_session_lives_on_after_a_number_of_it_was_refused_as_settled() {
        let (sessions, over) = (Sessions::default(), FailureReason::SessionOver);
        let older = sessions.ticket(7).await;
        let mut refused = Some(sessions.ticket(7).await);
        let settled = Failure { reason: over.into(), session_start: 0, ..Failure::default() };
        after_refusal(&sessions, &mut refused, &CallError::Failed(settled));
        assert!(refused.is_none(), "another try takes another number");
        let next = sessions.ticket(7).now_or_never().expect("nothing was given up");
        assert_eq!((next.session().id, next.session().sequence), (older.session().id, 3));
        drop(next);
        assert!(sessions.ticket(7).now_or_never().is_none(), "it waits for the oldest");
        let dropped = Failure { reason: over.into(), session_start: 77, ..Failure::default() };
        let mut older = Some(older);
        after_refusal(&sessions, &mut older, &CallError::Failed(dropped));
        assert_eq!(sessions.ticket(7).await.session().start, 77);
    }

    #[tokio::test]
    async fn an_unanswered_read_changed_nothing() {
        let mut trial = trial(Repeat::Plainly, Nature::Read);
        assert_eq!(trial.note(&lost()), Ok(()));
        assert!(matches!(trial.give_up(), ClientError::Timeout { .. }));
    }

    #[tokio::test]
    async fn an_invalid_request_is_not_tried_again() {
        let mut trial = trial(Repeat::Plainly, Nature::Read);
        let refused = trial.note(&failed(FailureReason::Invalid)).unwrap_err();
        assert!(matches!(refused, ClientError::Invalid { .. }));
    }
}
