//! Whole clusters in one thread, from a seed: the world in which simulations take place.
//!
//! Nodes run the same [`WorkerCore`](shardhost_groups::worker::WorkerCore) as in production, under a virtual
//! clock, with a network that loses, repeats, delays and partitions, disks that lose what was not
//! synced, state machines that crash with them, and workers that stall. Checkers watch every step.
//!
//! | where | what |
//! |---|---|
//! | `cluster` | the clock, the queue of what happens next, and the nodes that it happens to |
//! | `node`, `network` | a node as seeds drive it, and the network between nodes |
//! | `disks`, `machine` | what outlives a process, and how a replica is opened from it; scripts drive these by hand |
//! | `faults` | what goes wrong, and how often |
//! | `checks`, `histories`, `serving` | what must hold, whatever happens |
//! | `chance` | chance that follows from a seed |
//!
//! It knows no scenarios: its user lets time pass, does something to the cluster, and asks for the
//! result. It must not know who plans; a simulated planner is outside, and reaches in as a host
//! would.

#![expect(clippy::unwrap_used, reason = "a simulation that broke ends with a panic")]

mod chance;
mod checks;
mod cluster;
mod disks;
mod faults;
mod histories;
mod machine;
mod network;
mod node;
mod serving;

pub use chance::Chance;
pub use checks::{Checks, Coverage, Election};
pub use cluster::{Cluster, Shape};
pub use disks::{Disks, OpenedReplica};
pub use machine::{Command, Contents, ListMachine, MachineDisk};
pub use network::{Network, Weather};

/// The seeds that a test runs: `ordinary` many, as many as `SIMULATION_SEEDS` says, or the one of
/// `SIMULATION_SEED`.
#[must_use]
pub fn seeds(ordinary: u64) -> std::ops::Range<u64> {
    let read = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    match (read("SIMULATION_SEED"), read("SIMULATION_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, Some(count)) => 0..count,
        (None, None) => 0..ordinary,
    }
}
