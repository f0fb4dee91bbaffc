//! Snapshots between hosts, each on a separate connection, so that they delay nothing else.
//!
//! The sender's first frame is a header with size and checksum. The receiver sets room aside,
//! answers how much it has of this very snapshot from a stream that broke, and gets the rest in
//! chunks. Files are read and written on blocking threads, a few chunks at a time; how many
//! streams run is bounded on both sides, and all that are sent share one rate.
//!
//! | where | what |
//! |---|---|
//! | `shipments` | which snapshots are on their way out; the one report for each |
//! | `ship`, `pump` | streaming one, and going on when its stream breaks; its file as frames |
//! | `receive`, `refusal` | taking one in; why not |
//! | `receptions` | which are being received; dropping those that are not continued |
//! | `writer` | the thread that writes one |
//!
//! The sender does not read a snapshot before it sends it: its bytes are summed up while they
//! pass, and the receiver compares them with the header anyway. No state machine sees a byte that
//! was not checked on this host's disk.

mod pump;
mod receive;
mod receptions;
mod refusal;
mod ship;
mod shipments;
mod writer;

#[cfg(feature = "testing")]
pub(super) use receive::announced;
pub(super) use receive::{Receipts, receive};
pub(super) use receptions::{Receptions, forget_stale};
pub(super) use ship::ship;
pub(super) use shipments::Shipments;

/// Chunks that wait between a file and the network.
const CHUNKS_BETWEEN: usize = 4;
