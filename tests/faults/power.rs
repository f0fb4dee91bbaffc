//! Disks that lose power: a file system on an image. A loss of power leaves what the file system had
//! written to the image, and nothing that it only kept in memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::disks::Writer;
use crate::machine;

/// Bytes of a disk. The image has holes: it takes what is written.
const SIZE: u64 = 4 << 30;
/// Copies of an image until one was made while nothing was written to it.
const COPIES: usize = 50;
/// A process that got SIGSTOP stops within.
const STOPS_WITHIN: Duration = Duration::from_secs(10);

/// A disk of its own for one host. Detached when dropped.
#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    at: PathBuf,
}

impl Disk {
    /// Makes an empty disk with its image at `image`, and mounts it at `at`. The error says why this
    /// machine cannot.
    pub fn make(image: &Path, at: &Path) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("to mount a disk takes root".to_owned());
        }
        let failed = |error: std::io::Error| format!("{}: {error}", image.display());
        fs::File::create(image).and_then(|file| file.set_len(SIZE)).map_err(failed)?;
        // Without what a kernel writes by and by to a disk that is new.
        let settled = "lazy_itable_init=0,lazy_journal_init=0,nodiscard";
        let made = ["-q", "-F", "-N", "4096", "-J", "size=16", "-E", settled];
        tool("mkfs.ext4", &made, &[image])?;
        fs::create_dir_all(at).map_err(failed)?;
        let disk = Self { image: image.to_owned(), at: at.to_owned() };
        disk.mount()?;
        fs::remove_dir(at.join("lost+found")).map_err(failed)?;
        Ok(disk)
    }

    fn mount(&self) -> Result<(), String> {
        tool("mount", &["-o", "loop,noatime"], &[&self.image, &self.at])
    }

    /// What is on the disk now is all that is left. The process that used it must have stopped, and
    /// must have ended when [`Cut::restart`] is called.
    pub fn cut(&self) -> Cut<'_> {
        let copy = self.image.with_extension("cut");
        let device = self.device();
        for _ in 0..COPIES {
            let before = written(&device);
            tool("cp", &["--sparse=always"], &[&self.image, &copy]).unwrap();
            if written(&device) == before {
                return Cut { disk: self, copy };
            }
        }
        panic!("{device} is written to all the time");
    }

    /// The name of the block device, as `loop3`.
    fn device(&self) -> String {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let at = self.at.to_str().expect("a name in UTF-8");
        let found = mounts.lines().rev().find_map(|line| {
            let mut words = line.split(' ');
            let device = words.next()?;
            (words.next()? == at).then(|| device.trim_start_matches("/dev/").to_owned())
        });
        found.unwrap_or_else(|| panic!("{at} is not mounted"))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Also when a process that was killed has not ended yet.
        if let Err(why) = tool("umount", &["-l"], &[&self.at]) {
            eprintln!("a disk stays mounted: {why}");
        }
    }
}

/// What a loss of power left of a disk.
#[must_use]
pub struct Cut<'a> {
    disk: &'a Disk,
    copy: PathBuf,
}

impl Cut<'_> {
    /// Power is back.
    pub fn restart(self) {
        tool("umount", &[], &[&self.disk.at]).unwrap();
        fs::rename(&self.copy, &self.disk.image).unwrap();
        self.disk.mount().unwrap();
    }
}

/// Sectors that were written to a device, and the writes that are under way.
fn written(device: &str) -> (u64, u64) {
    let text = fs::read_to_string(format!("/sys/block/{device}/stat")).unwrap();
    let numbers: Vec<u64> = text.split_whitespace().map(|word| word.parse().unwrap()).collect();
    (numbers[6], numbers[8])
}

fn tool(name: &str, options: &[&str], paths: &[&Path]) -> Result<(), String> {
    let ended = Command::new(name).args(options).args(paths).output();
    let ended = ended.map_err(|error| format!("{name}: {error}"))?;
    let said = String::from_utf8_lossy(&ended.stderr);
    if ended.status.success() { Ok(()) } else { Err(format!("{name}: {}", said.trim())) }
}

/// Waits until no thread of a process that got SIGSTOP runs any more.
pub async fn stopped(process: u32) {
    let deadline = Instant::now() + STOPS_WITHIN;
    let mut looks = tokio::time::interval(Duration::from_millis(1));
    while !threads_of(process).into_iter().all(|state| matches!(state, 'T' | 'D' | 'Z' | 'X')) {
        assert!(Instant::now() < deadline, "process {process} does not stop");
        looks.tick().await;
    }
}

/// The state of each thread of a process, as the kernel shows it.
fn threads_of(process: u32) -> Vec<char> {
    let Ok(threads) = fs::read_dir(format!("/proc/{process}/task")) else { return Vec::new() };
    let state = |thread: fs::DirEntry| {
        let stat = fs::read_to_string(thread.path().join("stat")).ok()?;
        // The name before it is in brackets, and may have any byte.
        stat.rsplit_once(") ")?.1.chars().next()
    };
    threads.filter_map(Result::ok).filter_map(state).collect()
}

#[test]
fn a_disk_that_loses_power_keeps_what_was_synced_only() {
    let test = "a_disk_that_loses_power_keeps_what_was_synced_only";
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().join("disk");
    let disk = match Disk::make(&directory.path().join("image"), &at) {
        Ok(disk) => disk,
        Err(why) => return machine::skipped(test, &why),
    };
    machine::ran(test);
    let write = |name: &str| {
        let mut file = fs::File::create(at.join(name)).unwrap();
        std::io::Write::write_all(&mut file, &[7; 100_000]).unwrap();
        file
    };
    write("synced").sync_all().unwrap();
    fs::File::open(&at).unwrap().sync_all().unwrap();
    drop(write("not synced"));
    disk.cut().restart();
    assert_eq!(fs::read(at.join("synced")).unwrap(), [7; 100_000]);
    let lost = fs::read(at.join("not synced")).map_or(0, |bytes| bytes.len());
    assert_eq!(lost, 0, "the disk keeps what was never written to it");
}

/// Every host loses power at one moment, under writes, several times.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_when_all_hosts_lose_power() {
    let test = "nothing_acknowledged_is_lost_when_all_hosts_lose_power";
    let Some(mut cluster) = Cluster::new(test, 3, 6, 3).await else { return };
    if let Err(why) = cluster.put_on_disks() {
        return machine::skipped(test, &why);
    }
    cluster.start_all();
    let nodes: Vec<u64> = cluster.nodes().collect();
    let client = cluster.client(&nodes, Duration::from_secs(2)).await;
    cluster.serves_all(&client, Duration::from_secs(60)).await;
    let writer = Writer::start(client.clone(), 200);
    for round in 0..4 {
        writer.more(200).await;
        cluster.lose_power(&nodes).await;
        cluster.start_all();
        let served = cluster.serves_all(&client, Duration::from_secs(60)).await;
        println!("round {round}: served after {served:?}");
    }
    writer.verify(&client, 200).await;
}
