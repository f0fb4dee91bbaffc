//! Snapshots between hosts, each on a connection of its own, so that they delay nothing else.
//!
//! A stream is a header with size and checksum, then chunks. Files are read and written on
//! blocking threads, a few chunks at a time; how many streams run is bounded on both sides.

mod receive;
mod ship;

pub(super) use receive::receive;
pub(super) use ship::ship;

/// Chunks that wait between a file and the network.
const CHUNKS_BETWEEN: usize = 4;
