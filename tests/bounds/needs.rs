//! What some of these tests need of the machine. One that lacks it is noted as skipped, so that it is seen.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::machine;

#[derive(Clone, Copy, Debug)]
pub enum Need {
    /// `/proc`, which says what a process has of files and memory.
    Proc,
    /// A shell that sets limits of open files.
    Limits,
    /// The program that makes a pipe with a name.
    Mkfifo,
}

impl Need {
    /// What is lacking.
    fn lack(self) -> Option<&'static str> {
        let (is_there, why) = match self {
            Self::Proc => (Path::new("/proc/self/fd").is_dir(), "there is no /proc"),
            Self::Limits => {
                (runs("sh", &["-c", "ulimit -n 640"]), "640 open files cannot be allowed")
            }
            Self::Mkfifo => (runs("mkfifo", &["--help"]), "there is no mkfifo"),
        };
        (!is_there).then_some(why)
    }
}

fn runs(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Whether the machine has what a test needs, which is noted.
pub fn are_there(test: &str, needs: &[Need]) -> bool {
    let lacking = needs.iter().find_map(|need| need.lack());
    match lacking {
        None => machine::ran(test),
        Some(why) => machine::skipped(test, why),
    }
    lacking.is_none()
}
