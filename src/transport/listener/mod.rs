//! The way in for connections: how many there may be, and for how long one may say nothing.
//!
//! A connection is *silent* until its first request is admitted: as a client's ([`admit_clients`]),
//! or as a peer's, whose greeting was valid. Each kind has a separate share, operators too, where it is known
//! who they are, so that no number of clients keeps peers or operators out, and no number of silent connections keeps out either: the oldest silent
//! one makes way for the next. When the share of clients is full, the one of them that had no open request
//! for longest makes way for the next, if that is for a minute: a client that keeps a stream open, or asks
//! once a minute, keeps its place. A client that is not known, which may ask for health alone, stays
//! silent, and its connection ends. Accepting continues whatever fails, at a bounded pace.
//!
//! Operators and clients may have listeners of their own: each counts its connections apart, so none of one
//! listener is in the way of those of another.

mod admit;
mod authorize;
mod served;
mod stream;
mod table;

pub use admit::admit_clients;
pub use authorize::{
    AUDIT, CallRecord, KnownTokens, TokenHolder, Tokens, authorize, caller_of, note_asked,
};
pub use served::{Served, only};
pub use stream::{Accepted, Incoming, incoming, incoming_within};
pub use table::{Connection, ConnectionLimits, ConnectionStats, Connections};
