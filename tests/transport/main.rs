//! The gRPC transport over real sockets on loopback: what arrives, what is refused, who lives.

mod addresses;
mod advertisements;
mod fixture;
mod greetings;
mod hostile;
mod lanes;
mod life;
mod snapshot_streams;
mod snapshots;
