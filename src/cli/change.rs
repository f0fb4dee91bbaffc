//! A change that a node was asked for: it is confirmed, or refused, or its outcome is not known.

use std::time::Duration;

use shardhost_security::channel::is_not_sent;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::ended::partly;
use super::target::said;

/// How much longer than a node may take it is waited for.
const GRACE: Duration = Duration::from_secs(3);
/// How long a host waits at least, whatever the command says: for its replica to come or to go.
const LEAST: Duration = Duration::from_secs(10);

/// Reasons that leave open what becomes of a change, or come after a part of it.
const IN_DOUBT: [&str; 4] = ["OUTCOME_UNKNOWN", "STOPPED", "GROUP_FAILED", "STATE_REMAINS"];

/// The confirmation of a change by a node that may take so long.
///
/// # Errors
/// The refusal, or that the outcome is not known: see [`unconfirmed`].
pub async fn confirmed<T>(
    address: &str,
    within: Duration,
    answer: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> anyhow::Result<T> {
    let answer = answered(address, within, answer).await?;
    answer.map_err(|status| unconfirmed(address, &status))
}

/// The same, for those who read the refusal.
///
/// # Errors
/// There was no answer: the outcome is not known.
pub async fn answered<T>(
    address: &str,
    within: Duration,
    answer: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> anyhow::Result<Result<T, Status>> {
    let within = within.max(LEAST) + GRACE;
    match tokio::time::timeout(within, answer).await {
        Ok(answer) => Ok(answer.map(tonic::Response::into_inner)),
        Err(_) => Err(partly(format!(
            "{address} gives no answer within {within:?}: whether the change takes effect is unknown"
        ))),
    }
}

/// Why a change was not confirmed. It ends the program with exit code 3 when it may take effect.
pub fn unconfirmed(address: &str, status: &Status) -> anyhow::Error {
    let error = said(address, status);
    if is_refused(status) {
        return error;
    }
    match status.code() {
        // The node says itself what it does not know.
        Code::DeadlineExceeded => partly(error.to_string()),
        _ => partly(format!("{error}; whether the change takes effect is unknown")),
    }
}

/// Whether a change was not begun because the leadership went meanwhile: the next leader can be asked.
pub fn is_led_elsewhere(status: &Status) -> bool {
    status.get_error_details().error_info().is_some_and(|info| info.reason == "NOT_LEADER")
}

/// Whether a change surely takes no effect. An error that is not known to be a refusal is none.
pub fn is_refused(status: &Status) -> bool {
    if let Some(info) = status.get_error_details().error_info() {
        return !IN_DOUBT.contains(&info.reason.as_str());
    }
    match status.code() {
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Unimplemented
        | Code::Unauthenticated => true,
        // A node that gives this answer did nothing; a connection that broke gives it, too.
        Code::Unavailable => is_not_sent(status) || std::error::Error::source(status).is_none(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;
    use crate::ended::{PARTLY, code_of};

    fn with_reason(code: Code, reason: &str) -> Status {
        let mut details = ErrorDetails::new();
        details.set_error_info(reason, "shardhost", []);
        Status::with_error_details(code, "words", details)
    }

    #[test]
    fn what_is_not_surely_refused_has_an_unknown_outcome() {
        let refused = [
            with_reason(Code::Unavailable, "NOT_LEADER"),
            with_reason(Code::Aborted, "CONFIG_CHANGE_PENDING"),
            Status::not_found("there is no group 7"),
            Status::unavailable("the server is stopping"),
        ];
        for status in refused {
            assert_eq!(code_of(&unconfirmed("n1", &status)), 1, "{status:?}");
        }
        let unknown = [
            with_reason(Code::DeadlineExceeded, "OUTCOME_UNKNOWN"),
            with_reason(Code::Unavailable, "STOPPED"),
            Status::deadline_exceeded("the change continues"),
            Status::unknown("h2 protocol error"),
            Status::cancelled("the connection ended"),
        ];
        for status in unknown {
            assert_eq!(code_of(&unconfirmed("n1", &status)), PARTLY, "{status:?}");
        }
    }

    #[tokio::test]
    async fn a_request_that_was_not_sent_changes_nothing() {
        let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut admin = crate::target::admin(&unused.to_string()).unwrap();
        let request = shardhost_proto::admin::CancelAdditionRequest::default();
        let status = admin.cancel_addition(request).await.unwrap_err();
        assert!(is_not_sent(&status) && is_refused(&status), "{status:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_does_not_answer_is_not_waited_for_without_end() {
        let never = std::future::pending::<Result<tonic::Response<()>, Status>>();
        let error = confirmed("n1", Duration::from_secs(1), never).await.unwrap_err();
        assert_eq!(code_of(&error), PARTLY);
        assert!(error.to_string().contains("n1 gives no answer within 13s"), "{error}");
    }
}
