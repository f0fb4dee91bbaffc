//! Deadlines and bounds of a client.

use std::time::Duration;

use shardhost_security::channel::Security;

/// Whether a write that may have taken effect is sent again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Resend {
    /// Always, and it takes effect once: puts, deletes, compare-and-sets, sends and acks are part
    /// of a session, in which the shard recognizes what it applied. To nodes of a version without
    /// sessions nothing is sent again. Receives are not: what a lost answer named comes back when
    /// its visibility ends.
    #[default]
    ExactlyOnce,
    /// Without a session, if it is idempotent: a put, a delete, an ack, a send with a
    /// de-duplication id. A first try that was delayed may take effect after the second was
    /// acknowledged, and then it overwrites later acknowledged writes, also of other clients. So
    /// this is for keys whose writes may be repeated late. `existed` of a put or a delete, or
    /// `stale` of an ack, may be about the first try.
    Idempotent,
    /// Never: the operation fails with [`ClientError::OutcomeUnknown`] instead.
    ///
    /// [`ClientError::OutcomeUnknown`]: super::ClientError::OutcomeUnknown
    Never,
}

/// Settings of a [`super::Client`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientOptions {
    /// How long an operation is tried. Default 10 s.
    pub deadline: Duration,
    /// How long one try of an operation that may be sent again waits for its answer. Default 3 s.
    pub attempt_timeout: Duration,
    /// How long connecting may take. Default 1 s.
    pub connect_timeout: Duration,
    /// Whether writes are sent again when their outcome is unknown. Default
    /// [`Resend::ExactlyOnce`].
    pub resend: Resend,
    /// Operations per connection that may wait to be sent; further ones wait in their callers.
    /// Default 4,096.
    pub max_waiting: usize,
    /// Operations per connection that may wait for their answer. Default 16,384.
    pub max_in_flight: usize,
    /// Operations of one batch. Default 1,024.
    pub max_batch: usize,
    /// How nodes are reached: over TLS, and with which certificate or token. Default: without TLS.
    pub security: Security,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(10),
            attempt_timeout: Duration::from_secs(3),
            connect_timeout: Duration::from_secs(1),
            resend: Resend::ExactlyOnce,
            max_waiting: 4_096,
            max_in_flight: 16_384,
            max_batch: 1_024,
            security: Security::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without a session a put that arrives late would overwrite what another client put since.
    #[test]
    fn what_may_have_taken_effect_is_sent_again_in_a_session_only_unless_it_is_asked_for() {
        assert_eq!(ClientOptions::default().resend, Resend::ExactlyOnce);
        assert_eq!(Resend::default(), Resend::ExactlyOnce);
    }
}
