//! Suites for those who write a store of their own: what the groups rely on, as tests.
//!
//! | where | what |
//! |---|---|
//! | [`log_store`] | the rules of [`crate::LogStore`] |
//! | [`snapshot_store`] | the rules of [`crate::SnapshotStore`] |
//! | [`fixtures`] | short words for what such tests write and read |
//! | [`fuzz`] | what the fuzzing of decoders works with (with feature `rocksdb`) |
//!
//! Both suites want a *subject*: a new store, and a way to let its host die and start again. They
//! cannot know what a crash does to the bytes of a particular store; tests of that (a torn tail,
//! damage, a full disk) are its maker's.
//!
//! Only with feature `testing`.

pub mod fixtures;
#[cfg(feature = "rocksdb")]
pub mod fuzz;
pub mod log_store;
pub mod snapshot_store;

/// Names the test that panics, for suites that run as one.
struct Running(&'static str);

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the rule that does not hold: {}", self.0);
        }
    }
}
