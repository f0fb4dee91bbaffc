//! What the operating system knows of this process.

use std::fs;
use std::time::Duration;

use anyhow::Context;
use shardhost::groups::clock::{Clock, SystemClock};

/// CPU time of this process, in user and kernel mode.
pub fn cpu_time() -> Duration {
    let Ok(text) = fs::read_to_string("/proc/self/stat") else { return Duration::ZERO };
    // The name of the process may hold spaces; it ends with the last bracket.
    let Some((_, rest)) = text.rsplit_once(')') else { return Duration::ZERO };
    let field = |at: usize| rest.split_whitespace().nth(at).and_then(|text| text.parse().ok());
    let ticks: u64 = field(11).unwrap_or(0) + field(12).unwrap_or(0);
    let per_second = rustix::param::clock_ticks_per_second();
    Duration::from_secs_f64(ticks as f64 / per_second as f64)
}

/// Memory that this process keeps in RAM, in bytes.
pub fn resident_bytes() -> u64 {
    let Ok(text) = fs::read_to_string("/proc/self/statm") else { return 0 };
    let pages = text.split_whitespace().nth(1).and_then(|text| text.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}

/// The most memory that this process kept in RAM since [`forget_peak`], in bytes.
pub fn peak_resident_bytes() -> u64 {
    let Ok(text) = fs::read_to_string("/proc/self/status") else { return 0 };
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

/// Begins a new measurement of the peak.
pub fn forget_peak() {
    // Where the system does not allow it, the peak is that of the whole life.
    fs::write("/proc/self/clear_refs", "5").unwrap_or_default();
}

/// The present moment on the clock of this machine, in nanoseconds: comparable between processes.
pub fn now_ns() -> anyhow::Result<u64> {
    Ok(SystemClock.now().context("the clock cannot be read")?.get())
}
