//! The program itself, as real processes on loopback.

mod commands;
mod demo;
mod disks;
mod founding;
mod groups;
mod join;
mod killed;
mod listeners;
mod operations;
mod outcomes;
mod parked;
mod process;
mod recorded;
mod refusals;
mod replicas;
mod requirements;
mod rules;
mod security;
mod servers;
mod shard_map;
mod shards;
mod versions;

#[path = "../faults/machine.rs"]
mod machine;
