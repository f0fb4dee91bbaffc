//! Notes which tests ran that need something of the machine, and which this machine cannot run: a test that
//! is skipped passes, and would not be noticed. `.ci/run` shows the notes afterwards. Of these suites, and of
//! tests/bounds.

use std::fs::File;
use std::io::Write;
use std::path::Path;

/// Where the notes stand, a line each.
fn note(line: &str) {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("machine-tests");
    let notes = File::options().create(true).append(true).open(path);
    // One call: tests run side by side.
    notes.unwrap().write_all(format!("{line}\n").as_bytes()).unwrap();
    // Not `eprintln!`, which is not shown of a test that passes.
    std::io::stderr().lock().write_all(format!("{line}\n").as_bytes()).unwrap();
}

pub fn ran(test: &str) {
    note(&format!("ran: {test}"));
}

pub fn skipped(test: &str, why: &str) {
    note(&format!("skipped: {test}: {why}"));
}
