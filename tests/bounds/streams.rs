//! Standard streams without a reader, and signals.

use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

use super::host::{Host, TIMEOUT, command, end, rest, send, serve};
use super::needs::{Need, are_there};

/// More lines than a pipe holds, at this level of the log.
const LOUD: &str = "trace";
const WRITES: usize = 300;

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nobody_reads_does_not_hold_up_the_host() {
    let directory = TempDir::new().unwrap();
    let mut host = Host::start(directory.path(), "", LOUD);
    for number in 0..WRITES {
        host.serves(&format!("unread {number}")).await;
    }
    // It is read at last, and the reader learns what is missing.
    let stderr = host.stderr.take().unwrap();
    let reader = std::thread::spawn(move || rest(stderr));
    host.serves("read").await;
    host.signal(Signal::TERM);
    let log = tokio::task::spawn_blocking(|| reader.join().unwrap()).await.unwrap();
    assert!(log.len() > 64 * 1024, "{} bytes", log.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_closed_does_not_end_the_host() {
    let directory = TempDir::new().unwrap();
    let mut host = Host::start(directory.path(), "", LOUD);
    drop(host.stderr.take());
    for number in 0..20 {
        host.serves(&format!("closed {number}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_whose_terminal_goes_away_goes_on() {
    let directory = TempDir::new().unwrap();
    let mut host = Host::start(directory.path(), "", "error");
    host.signal(Signal::HUP);
    host.serves("after the first").await;
    host.signal(Signal::HUP);
    host.serves("after the second").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_told_to_stop_while_it_starts_ends_at_once() {
    if !are_there(
        "a_host_that_is_told_to_stop_while_it_starts_ends_at_once",
        &[Need::Mkfifo, Need::Proc],
    ) {
        return;
    }
    let directory = TempDir::new().unwrap();
    // It is never written to: a start that takes for ever.
    let made = Command::new("mkfifo").arg(directory.path().join("shard-map")).status().unwrap();
    assert!(made.success());
    let mut child = serve(directory.path(), "", "info");
    let (process, stderr) = (child.id(), child.stderr.take().unwrap());
    // It listens for signals before it starts anything: once it is asleep it does.
    let wait = || {
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        status.lines().any(|line| {
            line.strip_prefix("SigCgt:")
                .is_some_and(|mask| u64::from_str_radix(mask.trim(), 16).unwrap() >> 14 & 1 == 1)
        })
    };
    while !wait() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    send(process, Signal::TERM);
    let status = tokio::task::spawn_blocking(move || end(&mut child, Duration::from_secs(5)));
    let status = status.await.unwrap();
    assert_eq!(status.code(), Some(0), "{}", rest(stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_whose_output_nobody_reads_ends_quietly() {
    let directory = TempDir::new().unwrap();
    let host = Host::start(directory.path(), "", "error");
    let at = ["--at", host.address.as_str()];
    for arguments in [&["group", "list"][..], &["status"], &["member", "list", "0"]] {
        let mut command = command(&[arguments, &at[..]].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let stderr = child.stderr.take().unwrap();
        let status = end(&mut child, TIMEOUT);
        let said = rest(stderr);
        assert_eq!((status.code(), said.as_str()), (Some(141), ""), "{arguments:?}");
    }
}

#[test]
fn a_log_level_that_is_none_is_refused() {
    let mut command = command(&["status", "--at", "127.0.0.1:1"]);
    let child = command.env("SHARDHOST_LOG", "shardhost=loud").stderr(Stdio::piped()).output();
    let ended = child.unwrap();
    assert_eq!(ended.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&ended.stderr).contains("SHARDHOST_LOG"), "{ended:?}");
}
