//! Types for the fuzzing of decoders: a target, the values that its corpus begins with, and the
//! targets of this crate. The driver (the test `fuzz` of the workspace) mutates a corpus, bounds
//! what an input may allocate and how long it may take, and names the input that failed.

pub use crate::files::fuzz::snapshot_files;
#[cfg(feature = "rocksdb")]
pub use crate::rocks::fuzz::log_values;

/// One kind of bytes from outside.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Name of the target, and of the folder of its corpus.
    pub name: &'static str,
    /// States what holds of these bytes; panics where it does not.
    pub run: fn(&[u8]),
    /// Values from which the corpus is made, each with a name.
    pub seeds: fn() -> Vec<Seed>,
    /// Bytes of memory that a byte of input may take, beside a fixed part.
    pub memory_factor: usize,
}

/// One value of a corpus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed {
    /// Unique among those of its target: the name of its file.
    pub name: String,
    pub bytes: Vec<u8>,
}

impl Seed {
    /// A value and its name.
    pub fn new(name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self { name: name.into(), bytes: bytes.into() }
    }
}

/// Checks that an error has a useful text.
///
/// # Panics
/// When its text is empty.
pub fn names_what_is_wrong(error: &(impl std::fmt::Display + ?Sized)) {
    let text = error.to_string();
    assert!(text.len() > 8, "an error says too little: {text:?}");
}
