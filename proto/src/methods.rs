//! The calls of all services.

/// Their paths, as `/shardhost.admin.v1.Admin/Status`.
pub const METHODS: &[&str] = include!(concat!(env!("OUT_DIR"), "/methods.rs"));
