//! Deadlines and bounds of a client.

use std::time::Duration;

/// Whether an operation that may have taken effect is sent again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Resend {
    /// If doing it twice leaves the state as doing it once does. Two things may surprise: `existed`
    /// of a put or a delete, or `stale` of an ack, may tell of the first try; and a first try that
    /// was held up on its way may still arrive after the second was acknowledged.
    #[default]
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
    /// Whether writes are sent again when their outcome is unknown.
    pub resend: Resend,
    /// Operations per connection that may wait to be sent; further ones wait in their callers.
    /// Default 4,096.
    pub max_waiting: usize,
    /// Operations per connection that may wait for their answer. Default 16,384.
    pub max_in_flight: usize,
    /// Operations of one batch. Default 1,024.
    pub max_batch: usize,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(10),
            attempt_timeout: Duration::from_secs(3),
            connect_timeout: Duration::from_secs(1),
            resend: Resend::Idempotent,
            max_waiting: 4_096,
            max_in_flight: 16_384,
            max_batch: 1_024,
        }
    }
}
