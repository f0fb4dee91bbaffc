//! The program itself, as real processes on loopback.

mod commands;
mod demo;
mod disks;
mod founding;
mod groups;
mod http;
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

#[path = "../support/http.rs"]
mod http_client;
#[path = "../faults/machine.rs"]
mod machine;
