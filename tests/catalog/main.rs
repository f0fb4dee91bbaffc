//! The catalog at work, on real hosts and sockets: groups are created and destroyed as it intends,
//! drains outlive processes, leaders spread automatically, and all else continues without it.

mod cluster;
mod drains;
mod groups;
#[path = "../support/in_process.rs"]
mod in_process;
mod orders;
mod planning;
mod replicas;
