//! Models of what this project does beyond Raft, checked exhaustively at small sizes.
//!
//! A model states the decisions of a protocol without code, threads or bytes, and the checker visits
//! every state that it can reach. Each model has *guards*, the rules that keep it right. The tests check
//! the model with all guards, and that without any one of them the property fails: a guard that nothing
//! needs, or a property that cannot fail, would show. docs/models.md has the sizes and the numbers of states.

mod checking;
pub mod configurations;
pub mod leases;
pub mod lives;
pub mod prepared_votes;
pub mod quiescence;

pub use checking::{Checkable, Verdict, check};
