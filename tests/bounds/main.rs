//! Descriptors, standard streams, signals and clients that are careless or hostile: none of them stops
//! a host.

mod clients;
mod descriptors;
mod host;
mod requests;
mod streams;
mod waiting;
