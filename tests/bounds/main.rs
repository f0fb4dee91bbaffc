//! Descriptors, standard streams, signals and clients that are careless or hostile: none of them stops
//! a host.

#[path = "../faults/machine.rs"]
mod machine;

mod clients;
mod descriptors;
mod host;
mod needs;
mod requests;
mod streams;
mod tls;
mod waiting;
