//! Tests of the planner as a whole.

mod brute;
mod build;
mod checker;
mod golden;
mod properties;
mod random;
mod scenarios;
