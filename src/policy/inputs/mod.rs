//! What the planner decides from, and what becomes of its orders: pure functions of reports, the catalog
//! and the time that they are given.
//!
//! | where | what |
//! |---|---|
//! | [`report`] | what a host reports, in columns: built and read |
//! | [`planner_inputs`] | knowledge from pass to pass |
//! | [`observe`] | the planner's snapshot from reports and the catalog |
//! | [`view`] | the planner's snapshot from what single hosts know |
//! | [`moves`] | how orders are judged on their host, and their outcomes |
//! | [`clock`] | the planner's clock and pace |

pub mod clock;
pub mod moves;
pub mod observe;
pub mod planner_inputs;
pub mod report;
pub mod view;
