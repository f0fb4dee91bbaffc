//! What can go wrong with an operation of a client.

/// An operation did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Definite. The request is wrong: a key too long, a limit too high. Change it.
    #[error("the request is invalid: {message}")]
    Invalid { message: String },
    /// Definite. The cluster has no shards of this kind.
    #[error("the cluster has no {kind} shards")]
    NoShards { kind: &'static str },
    /// Definite. There is no such shard.
    #[error("there is no shard {shard}; the last one is {last}")]
    NoSuchShard { shard: usize, last: usize },
    /// Definite. No node took the operation before its deadline; the message is the last refusal.
    /// Try again later.
    #[error("no node took the operation in time; the last refusal was: {message}")]
    Unavailable { message: String },
    /// A read, or a wait, that was not answered in time. Nothing changed.
    #[error("there was no answer in time: {message}")]
    Timeout { message: String },
    /// Not definite. The operation may have taken effect or may yet: read to find out.
    #[error("it is unknown whether the operation takes effect: {message}")]
    OutcomeUnknown { message: String },
    /// A node broke the protocol. Not definite for a write.
    #[error("a node answered what was not asked: {message}")]
    Protocol { message: String },
}

impl ClientError {
    /// Whether the operation surely took no effect and never will.
    #[must_use]
    pub const fn is_definite(&self) -> bool {
        !matches!(self, Self::OutcomeUnknown { .. } | Self::Protocol { .. })
    }
}
