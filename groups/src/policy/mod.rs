//! Who may lead a group: the question, the answers, and the policies that give them.
//!
//! Raft decides who *can* lead. A [`LeadershipPolicy`] decides who *may*: it is asked before a
//! replica campaigns, before it accepts a transfer, when a leader looks for a successor, and when
//! leadership was acquired. `core` acts on the answers; nothing here acts, and nothing here knows
//! of terms, logs or messages.
//!
//! | file | what |
//! |---|---|
//! | `question` | what a policy is asked, and what it may say |
//! | `capability` | the policy that every host has: nodes without a group's capabilities |
//! | `health` | the policy that every host has: nodes and replicas that are impaired |
//! | `admission` | asking the policies about a leadership that was acquired |
//! | `registry` | the policies of a host, and their groups |
//! | `counters` | outcomes, counted by reason |
//! | `reason` | every cause why a leadership is not moved or not taken, by name |

mod admission;
mod capability;
mod caretaker;
mod counters;
mod health;
mod question;
mod reason;
mod registry;

pub use admission::{AdmissionFault, AdmissionRequest};
pub use capability::CapabilityPolicy;
pub use caretaker::Caretaker;
pub use counters::{ByReason, PolicyCounters, PolicyEvent};
pub use health::HealthPolicy;
pub use question::{
    Acquisition, Candidate, Decision, LeadershipPolicy, Opinion, PolicyOpinion, Unfit,
};
pub use reason::RejectReason;
pub use registry::{Policies, PolicyGuard};

use registry::AskedPolicy;
