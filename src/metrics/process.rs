//! The process, by the names that other programs use.

use std::fmt;
use std::time::SystemTime;

use super::families::{Families, Labels};

/// What cannot be read is left out.
pub(crate) fn write(families: &mut Families<'_>, started: SystemTime) -> fmt::Result {
    if let Some(cpu) = cpu_seconds() {
        families.seconds("process_cpu_seconds", "Processor time of the process.", cpu)?;
    }
    if let Some(bytes) = resident_bytes() {
        families.gauge("process_resident_memory_bytes", "Memory that the process has.", bytes)?;
    }
    if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
        families.gauge("process_open_fds", "Open files of the process.", files.count() as u64)?;
    }
    if let Some(limit) = rustix::process::getrlimit(rustix::process::Resource::Nofile).current {
        families.gauge("process_max_fds", "How many open files the process may have.", limit)?;
    }
    let Ok(started) = started.duration_since(SystemTime::UNIX_EPOCH) else { return Ok(()) };
    let started = [(Labels::new(), started.as_secs_f64())];
    families.gauges(
        "process_start_time_seconds",
        "When the process started, in Unix seconds.",
        started,
    )
}

fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let ticks = cpu_ticks(&stat)?;
    Some(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Of the line of a process: its name, which may hold anything, stands in brackets before the rest.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn resident_bytes() -> Option<u64> {
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = pages.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_process_is_read_whatever_its_name() {
        let line = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 5 100 10";
        assert_eq!(cpu_ticks(line), Some(300));
        assert_eq!(cpu_ticks("7 (a"), None);
        assert!(cpu_seconds().is_some() && resident_bytes().is_some_and(|bytes| bytes > 0));
    }
}
