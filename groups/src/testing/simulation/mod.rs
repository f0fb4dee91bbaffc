//! Whole clusters in one thread, from a seed: the world in which simulations take place.
//!
//! Nodes run the same [`WorkerCore`](crate::worker::WorkerCore) as in production, under a virtual
//! clock, with a network that loses, repeats, delays and partitions, disks that lose what was not
//! synced, state machines that crash with them, and workers that stall. Checkers watch every step.
//!
//! | where | what |
//! |---|---|
//! | `cluster` | the clock, the queue of what happens next, and the nodes that it happens to |
//! | `node`, `machine`, `network` | what a node, its state machines and the network are made of |
//! | `faults` | what goes wrong, and how often |
//! | `checks`, `histories` | what must hold, whatever happens |
//! | `chance` | chance that follows from a seed |
//!
//! It knows no scenarios: whoever uses it lets time pass, does something to the cluster, and asks
//! what came of it. It must not know who plans; whoever simulates a planner stands outside, and
//! reaches in as a host would.

#![expect(clippy::unwrap_used, reason = "a simulation that broke ends with a panic")]

mod chance;
mod checks;
mod cluster;
mod faults;
mod histories;
mod machine;
mod network;
mod node;

pub use chance::Chance;
pub use checks::{Checks, Coverage, Election};
pub use cluster::{Cluster, Shape};
pub use network::{Network, Weather};
