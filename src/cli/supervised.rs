//! Messages between a supervisor and the hosts that it started, in lines of JSON over standard
//! input and output: a host binds a free port and reports it, so no port is chosen by one process
//! and bound by another.
//!
//! A host that was not released ends when its standard input does: a supervisor that dies leaves
//! nothing behind.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A report of a host.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Report {
    /// It has bound its address and waits for those of the others.
    Listening {
        address: String,
    },
    Started {
        groups: u64,
    },
}

/// An order to a host.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    Start {
        /// Where all nodes listen, this one included.
        nodes: BTreeMap<String, String>,
    },
    /// Continue when the supervisor is gone.
    Release,
}
