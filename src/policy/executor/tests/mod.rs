//! Tests of the executor: part by part, and as a whole.

mod bounds;
mod build;
mod fence;
mod load;
mod modes;
mod orders;
mod pace;
mod properties;
mod records;
mod rounds;
mod simulation;
mod why;
