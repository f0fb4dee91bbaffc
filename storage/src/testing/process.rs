//! Tests that change what belongs to the whole process.

use std::process::Command;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Set in a process that runs one test only.
const ALONE: &str = "SHARDHOST_TEST_ALONE";

/// Runs the test of this name, of `module_path!()`, in a process of its own and expects it to pass; in
/// that process it says so, and the test is to do its work.
pub fn is_alone(module: &str, test: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let within = module.split_once("::").map_or("", |(_, within)| within);
    let name = format!("{within}::{test}");
    let program = std::env::current_exe().expect("the program of this test");
    let ran = Command::new(program).args([&name, "--exact"]).env(ALONE, "1").output();
    let ran = ran.expect("the program of this test runs");
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success() && said.contains("1 passed"), "{name}: {said}");
    false
}

/// Lets the process open files up to this number; returns what it was.
pub fn limit_files(to: u64) -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let set = setrlimit(Resource::Nofile, Rlimit { current: Some(to), maximum });
    set.expect("a limit within the hard one");
    current.unwrap_or(u64::MAX)
}
