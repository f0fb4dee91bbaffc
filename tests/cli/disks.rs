//! Disks that are full, damaged or gone, under real processes. A disk of a certain size is a file system
//! in memory that the test mounts: where the machine does not let it, the test says so and ends.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::servers::Servers;
use crate::machine;

const FULL_DISKS: &str = "disks_that_were_full_for_a_while_are_served_again_without_anybodys_doing";

/// A small file system of its own, unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None`: this machine mounts nothing for us.
    fn mount(at: &Path, mib: u64) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let size = format!("size={mib}m");
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at).output();
        let mounted = mount.is_ok_and(|mount| mount.status.success());
        mounted.then(|| Self(at.to_owned()))
    }

    /// Takes all but so many bytes, beside what it took before.
    fn fill(&self, leave: u64) {
        let space = rustix::fs::statvfs(&self.0).unwrap();
        let free = space.f_bavail * space.f_frsize;
        let more = vec![0; usize::try_from(free - leave).unwrap()];
        let ballast = File::options().create(true).append(true).open(self.0.join("ballast"));
        ballast.unwrap().write_all(&more).unwrap();
    }

    fn free(&self) {
        std::fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.0).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} stays mounted", self.0.display());
        }
    }
}

/// Waits until nodes 1 and 2 say this of their disks, to those who ask node 3.
async fn both_say(servers: &Servers, words: &str) {
    let both = || async {
        let shown = servers.run(3, &["status"]).await.stdout;
        let says = |line: &str, node: u64| {
            line.contains(&format!("node {node} leads nothing")) && line.contains(words)
        };
        [1, 2].iter().all(|node| shown.lines().any(|line| says(line, *node)))
    };
    servers.until(&format!("both say: {words}"), both).await;
}

/// How often a host said something new of its disk.
fn news(servers: &Servers, node: u64) -> usize {
    let is_news = |line: &&str| line.contains("impaired") && line.contains("\"space\"");
    servers.log(node).lines().filter(is_news).count()
}

async fn writes(servers: &Servers, node: u64, key: &str) -> bool {
    let put = servers.run(node, &["table", "put", "--timeout", "3", key, "value"]).await;
    put.code == 0
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_that_were_full_for_a_while_are_served_again_without_anybodys_doing() {
    let mut servers = Servers::new(3, "", "tables = 4\nqueues = 0\n");
    let mut disks = Vec::new();
    for node in 1..=3 {
        let Some(disk) = SmallDisk::mount(&servers.data_dir(node), 200) else {
            return machine::skipped(FULL_DISKS, "no file system can be mounted here");
        };
        disks.push(disk);
    }
    machine::ran(FULL_DISKS);
    (1..=3).for_each(|node| servers.start(node, &[]));
    servers.put(1, "before", "value").await;

    // One node: the others serve all there is.
    disks[0].fill(1 << 20);
    servers.await_log(1, &["this host is impaired", "MiB left"]).await;
    for key in 0..20 {
        let at = 2 + key % 2;
        servers.put(at, &format!("one {key}"), "value").await;
    }
    disks[0].free();
    servers.await_log(1, &["no longer impaired"]).await;

    // Two of three have little: they lead nothing, and take what could not be committed without them.
    disks[0].fill(8 << 20);
    disks[1].fill(8 << 20);
    both_say(&servers, "MiB left").await;
    servers.put(3, "little", "value").await;

    // Both take no entries: nothing is acknowledged, no host ends, and afterwards everything is.
    disks[0].fill(1 << 20);
    disks[1].fill(1 << 20);
    both_say(&servers, "takes no entries").await;
    let before = [1, 2].map(|node| news(&servers, node));
    assert!(before.iter().all(|news| *news > 0), "what a host says of its disk is not counted");
    let written = writes(&servers, 3, "two").await;
    // They said nothing else meanwhile, so they took no entries all the time.
    assert_eq!([1, 2].map(|node| news(&servers, node)), before, "a disk has room again");
    assert!(!written, "one disk of three acknowledged a write");
    disks[0].free();
    disks[1].free();
    for key in 0..20 {
        servers.put(3, &format!("two {key}"), "value").await;
    }
    let read = servers.run(3, &["table", "get", "before"]).await;
    assert_eq!((read.code, read.stdout.trim()), (0, "value"), "{read:?}");
    servers.kill_all().await;
    drop(disks);
}

/// What a key holds: bytes that no compression makes smaller.
fn value_of(key: u64) -> String {
    let mut state = key + 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        format!("{state:016x}")
    };
    (0..120).map(|_| next()).collect()
}

const KEYS: u64 = 60;
const TABLES: u64 = 4;

/// Reads every key, from the leader of its shard, until the answer is right.
async fn reads_all(servers: &Servers, node: u64) {
    for key in 0..KEYS {
        servers.await_value(node, &format!("key {key}"), &value_of(key)).await;
    }
}

/// Has a node lead every shard; it takes no leadership before its replica is whole.
async fn lead_all(servers: &Servers, node: u64) {
    for shard in 1_000_000..1_000_000 + TABLES {
        let (shard, to) = (shard.to_string(), node.to_string());
        servers
            .until(&format!("node {node} leads {shard}"), || async {
                servers.run(node, &["leader", "transfer", &shard, "--to", &to]).await.code == 0
            })
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_and_then_a_missing_state_is_made_whole_while_the_others_serve() {
    let mut servers = Servers::new(3, "", &format!("tables = {TABLES}\nqueues = 0\n"));
    (1..=3).for_each(|node| servers.start(node, &[]));
    for key in 0..KEYS {
        servers.put(1, &format!("key {key}"), &value_of(key)).await;
    }
    let state = servers.data_dir(2).join("state");
    let written = || async { tables(&state).len() as u64 >= TABLES };
    servers.until("every shard's state is on disk", written).await;
    servers.kill(2).await;
    let damaged = tables(&state);
    damaged.iter().for_each(|file| damage(file));

    servers.start(2, &[]);
    reads_all(&servers, 1).await;
    // It reads damaged data where it leads, and recovers.
    for shard in 1_000_000..1_000_000 + TABLES {
        drop(servers.run(2, &["leader", "transfer", &shard.to_string(), "--to", "2"]).await);
    }
    reads_all(&servers, 1).await;
    servers.await_log(2, &["was written anew"]).await;
    lead_all(&servers, 2).await;
    reads_all(&servers, 2).await;

    servers.kill(2).await;
    std::fs::remove_dir_all(&state).unwrap();
    servers.start(2, &[]);
    lead_all(&servers, 2).await;
    reads_all(&servers, 2).await;
    servers.kill_all().await;
}

/// The table files under a directory.
fn tables(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(tables(&path));
        } else if path.extension().is_some_and(|extension| extension == "sst") {
            found.push(path);
        }
    }
    found
}

/// Damages a block in the middle of a file.
fn damage(file: &Path) {
    let mut bytes = std::fs::read(file).unwrap();
    let at = bytes.len() / 3;
    bytes[at] ^= 0xff;
    std::fs::write(file, bytes).unwrap();
}
