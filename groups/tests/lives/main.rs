//! The life of a group on a host: created, opened, closed, destroyed and created again, by many
//! callers at once.

mod cases;
mod hung;
mod notices;
mod orders;
mod prune;
mod reopen;
mod seeds;
mod world;
