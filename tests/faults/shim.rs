//! Processes whose machine lies: disks that hang, fail or are slow, and wall clocks that are wrong.
//!
//! A [`Shim`] is a library that a process loads before its C library (`shim.c`); [`Faults`] is the page of
//! memory by which a test says what goes wrong in one process, while that runs. A test that drops a
//! [`Faults`] releases what hangs.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

/// Bytes of the page.
const PAGE: u64 = 4096;
/// Where the rules begin, and the bytes of each.
const RULES: u64 = 64;
const RULE: u64 = 512;
/// Where the name of the directory stands in a rule, and how long it may be with the byte that ends it.
const DIRECTORY: u64 = 40;
const DIRECTORY_LENGTH: usize = 472;

/// The compiled library.
pub struct Shim {
    directory: TempDir,
}

/// Which of the rules of a process is meant. They hold side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    Log = 0,
    State = 1,
    Other = 2,
}

/// What happens to operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// They return when the rule is changed.
    Hang,
    /// They fail with this error, as `ENOSPC`.
    Fail(rustix::io::Errno),
    /// They take so much longer.
    Slow(Duration),
}

/// Kinds of operations on files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operations(u32);

impl Operations {
    /// Data that is written, and room that is made for it.
    pub const WRITE: Self = Self(1);
    /// Data that is made durable.
    pub const SYNC: Self = Self(2);
    /// Files that are made, renamed and removed.
    pub const NAMES: Self = Self(4);
    /// Data that is read, also what a real system would know without the disk.
    pub const READ: Self = Self(8);
    /// All that changes something.
    pub const CHANGES: Self = Self(7);

    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What happens to the operations of one process.
pub struct Faults {
    page: File,
    path: PathBuf,
    library: PathBuf,
    /// Which boot the process takes this for.
    boot: PathBuf,
}

impl Shim {
    /// Compiles the library. The error says why this machine cannot.
    pub fn compile() -> Result<Self, String> {
        if !cfg!(all(target_os = "linux", target_env = "gnu")) {
            return Err("the shim needs Linux and glibc".to_owned());
        }
        let directory = TempDir::new().map_err(|error| error.to_string())?;
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/faults/shim.c");
        let compiled = Command::new("cc")
            .args(["-O1", "-shared", "-fPIC", "-w", "-o"])
            .arg(directory.path().join("shim.so"))
            .arg(source)
            .arg("-ldl")
            .output()
            .map_err(|error| format!("there is no C compiler: {error}"))?;
        // A compiler that is there and takes no offence at anything else must take the shim.
        let said = String::from_utf8_lossy(&compiled.stderr);
        assert!(compiled.status.success(), "shim.c does not compile: {said}");
        Ok(Self { directory })
    }

    /// The faults of one process, none at first.
    pub fn faults(&self, name: &str) -> Faults {
        let path = self.directory.path().join(format!("faults-{name}"));
        let page =
            OpenOptions::new().create(true).truncate(true).write(true).read(true).open(&path);
        let page = page.expect("the directory is ours");
        page.set_len(PAGE).expect("a page fits");
        let boot = self.directory.path().join(format!("boot-{name}"));
        let faults = Faults { page, path, library: self.directory.path().join("shim.so"), boot };
        faults.boot_anew();
        faults
    }
}

impl Faults {
    /// What the process must have in its environment.
    pub fn environment(&self) -> [(String, PathBuf); 3] {
        [
            ("LD_PRELOAD".to_owned(), self.library.clone()),
            ("SHARDHOST_TEST_FAULTS".to_owned(), self.path.clone()),
            ("SHARDHOST_TEST_BOOT".to_owned(), self.boot.clone()),
        ]
    }

    /// The process runs after another boot of its machine from its next start on.
    pub fn boot_anew(&self) {
        let id: u128 = rand::random();
        let digits = format!("{id:032x}");
        let parts = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]];
        std::fs::write(&self.boot, format!("{}\n", parts.join("-")))
            .expect("the directory is ours");
    }

    /// From here on this happens to such operations on files under a directory.
    pub fn set(&self, slot: Slot, directory: &Path, operations: Operations, effect: Effect) {
        self.heal(slot);
        let mut name =
            directory.to_str().expect("a name in UTF-8").trim_end_matches('/').as_bytes().to_vec();
        name.push(b'/');
        assert!(name.len() < DIRECTORY_LENGTH, "{} is too long", directory.display());
        name.resize(DIRECTORY_LENGTH, 0);
        let (code, error, delay) = match effect {
            Effect::Hang => (1, 0, 0),
            Effect::Fail(error) => (2, error.raw_os_error(), 0),
            Effect::Slow(by) => (3, 0, u32::try_from(by.as_millis()).expect("less than a month")),
        };
        self.write(slot, DIRECTORY, &name);
        self.write(slot, 4, &operations.0.to_ne_bytes());
        self.write(slot, 8, &error.to_ne_bytes());
        self.write(slot, 12, &delay.to_ne_bytes());
        self.write(slot, 0, &u32::to_ne_bytes(code));
    }

    /// Nothing happens by this rule any more, and what hung returns.
    pub fn heal(&self, slot: Slot) {
        self.write(slot, 0, &0_u32.to_ne_bytes());
    }

    /// What hangs by this rule fails with this error, and so does what comes.
    pub fn fail_what_hangs(&self, slot: Slot, error: rustix::io::Errno) {
        self.write(slot, 8, &error.raw_os_error().to_ne_bytes());
        self.write(slot, 0, &2_u32.to_ne_bytes());
    }

    /// Nothing is wrong any more. The clock is right again, too.
    pub fn heal_all(&self) {
        for slot in [Slot::Log, Slot::State, Slot::Other] {
            self.heal(slot);
        }
        self.shift_clock(0);
    }

    /// The wall clock is so many seconds ahead of the machine's; negative: behind.
    pub fn shift_clock(&self, seconds: i64) {
        let shift = (seconds * 1000).to_ne_bytes();
        self.page.write_all_at(&shift, 0).expect("the page is ours");
    }

    /// Operations that the rule was applied to so far.
    pub fn hits(&self, slot: Slot) -> u64 {
        self.read(slot, 16)
    }

    /// Operations that hang now.
    pub fn hanging(&self, slot: Slot) -> u64 {
        self.read(slot, 24)
    }

    /// A process that was killed while its operations hung left them in the count.
    pub fn forget(&self) {
        self.page.write_all_at(&[0; PAGE as usize], 0).expect("the page is ours");
    }

    fn write(&self, slot: Slot, at: u64, bytes: &[u8]) {
        let at = RULES + slot as u64 * RULE + at;
        self.page.write_all_at(bytes, at).expect("the page is ours");
    }

    fn read(&self, slot: Slot, at: u64) -> u64 {
        let mut bytes = [0; 8];
        let at = RULES + slot as u64 * RULE + at;
        self.page.read_exact_at(&mut bytes, at).expect("the page is ours");
        u64::from_ne_bytes(bytes)
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        self.heal_all();
    }
}
