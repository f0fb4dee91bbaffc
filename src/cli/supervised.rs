//! What a supervisor and the hosts that it started say to each other, in lines of JSON over
//! standard input and output: a host binds a free port itself and says which, so no port is
//! chosen by one process and bound by another.
//!
//! A host that was not released ends when its standard input does: a supervisor that dies leaves
//! nothing behind.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a host says.
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

/// What a host is told.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    Start {
        /// Where all nodes listen, this one included.
        nodes: BTreeMap<String, String>,
    },
    /// Go on when the supervisor is gone.
    Release,
}
