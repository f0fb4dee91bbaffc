//! Bytes as snapshot files on disk, as what a peer announces and sends, and as names of files.
//!
//! The first byte of an input selects its kind. A reception gets its bytes in pieces, each behind
//! its length.

use std::fs;
use std::io::Read;
use std::path::PathBuf;

use super::trailer::{self, Trailer};
use super::{Name, SnapshotFiles, SnapshotFilesOptions};
use crate::ids::{GroupId, LogPosition, NodeId};
use crate::snapshot::{SnapshotAnnouncement, SnapshotError, SnapshotStore};
use crate::testing::fuzz::{Seed, Target, names_what_is_wrong};

/// A file, unchanged.
const FILE: u8 = 0;
/// The content of a file, whose trailer is right.
const SEALED: u8 = 1;
/// A size, a checksum and pieces that come from a peer.
const ANNOUNCED: u8 = 2;
/// The name of a file.
const NAME: u8 = 3;
const KINDS: u8 = 4;

/// Largest room that an input may have set aside.
const MAX_ROOM_BYTES: u64 = 1 << 20;

const NAMED: Name = Name { group: GroupId::new(7), position: LogPosition::new(2, 300) };

/// The target.
#[must_use]
pub fn snapshot_files() -> Target {
    // Two buffers of 64 KiB and an entry in a map: within the fixed part.
    Target { name: "snapshot_files", run: check, seeds, memory_factor: 64 }
}

fn check(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else { return };
    match kind % KINDS {
        FILE => drop(read_file(rest)),
        SEALED => {
            let sealed = [rest, &trailer_of(rest).encode()].concat();
            assert_eq!(read_file(&sealed).as_deref(), Some(rest), "a whole file is refused");
        }
        ANNOUNCED => receive(rest),
        NAME => {
            let text = String::from_utf8_lossy(rest);
            if let Some(name) = Name::parse(&text) {
                assert_eq!(format!("{name}{}", super::FINISHED), text);
            }
        }
        _ => {}
    }
}

/// A store of this thread, emptied.
fn store() -> (SnapshotFiles, PathBuf) {
    let name = format!("shardhost-fuzz-{}-{:?}", std::process::id(), std::thread::current().id());
    let directory = std::env::temp_dir().join(name);
    fs::create_dir_all(&directory).expect("a directory");
    for file in fs::read_dir(&directory).expect("a directory") {
        fs::remove_file(file.expect("a file").path()).expect("removed");
    }
    let options = SnapshotFilesOptions { bytes_per_second: 0, ..SnapshotFilesOptions::default() };
    (SnapshotFiles::open_with(&directory, options).expect("opened"), directory)
}

fn trailer_of(content: &[u8]) -> Trailer {
    Trailer { name: NAMED, size: content.len() as u64, crc: crc32fast::hash(content) }
}

/// What a file with these bytes is read as; `None`: it is refused, and the error has the cause.
fn read_file(bytes: &[u8]) -> Option<Vec<u8>> {
    let (_, directory) = store();
    let path = directory.join(format!("{NAMED}{}", super::FINISHED));
    fs::write(&path, bytes).expect("written");
    let (store, _) = (reopened(&directory), path);
    let opened = store.open(NAMED.group, NAMED.position);
    let unchecked = store.open_unchecked(NAMED.group, NAMED.position);
    let read = match opened {
        Ok(mut snapshot) => {
            let mut content = Vec::new();
            snapshot.read_to_end(&mut content).expect("a file that was checked is read");
            let kept = bytes.len() - trailer::BYTES;
            assert_eq!(content, bytes[..kept], "other bytes are handed out than were written");
            Some(content)
        }
        Err(error @ SnapshotError::Corrupt { .. }) => {
            names_what_is_wrong(&error);
            None
        }
        Err(error) => panic!("damage is told as something else: {error}"),
    };
    if let Ok(mut snapshot) = unchecked {
        let mut content = Vec::new();
        let whole = snapshot.read_to_end(&mut content).is_ok();
        assert_eq!(whole, read.is_some(), "both ways of reading differ");
    }
    read
}

/// The store as it is opened again: its content counts.
fn reopened(directory: &std::path::Path) -> SnapshotFiles {
    let options = SnapshotFilesOptions { bytes_per_second: 0, ..SnapshotFilesOptions::default() };
    SnapshotFiles::open_with(directory, options).expect("opened")
}

/// Takes pieces; the published snapshot equals the announced one.
fn receive(input: &[u8]) {
    let Some((head, mut rest)) = input.split_first_chunk::<12>() else { return };
    let (size, crc) = head.split_at(8);
    let size = u64::from_be_bytes(size.try_into().expect("eight bytes"));
    let crc = u32::from_be_bytes(crc.try_into().expect("four bytes"));
    // Sizes between the two are as good, and would have real disks full of room.
    let size = if size > u64::MAX / 2 { size } else { size % MAX_ROOM_BYTES };
    let Name { group, position } = NAMED;
    let announced = SnapshotAnnouncement { from: NodeId::must(2), group, position, size, crc };
    let (store, _) = store();
    let mut came = Vec::new();
    let mut reception = match store.receive(announced) {
        Ok(reception) => reception,
        Err(error) => return names_what_is_wrong(&error),
    };
    while let Some((length, behind)) = rest.split_first() {
        let (piece, behind) = behind.split_at(behind.len().min(usize::from(*length)));
        rest = behind;
        if let Err(error) = reception.append(piece) {
            assert!((came.len() + piece.len()) as u64 > size, "{error}");
            return names_what_is_wrong(&error);
        }
        came.extend_from_slice(piece);
        if *length == 0 {
            let kept = reception.pause().expect("paused");
            assert!(kept == 0 || kept == came.len() as u64);
            came.truncate(usize::try_from(kept).expect("what came"));
            reception = store.receive(announced).expect("continued");
            assert_eq!(reception.received(), came.len() as u64);
        }
    }
    let right = came.len() as u64 == size && crc32fast::hash(&came) == crc;
    match reception.finish() {
        Ok(()) => assert!(right, "a snapshot is published that is not what was announced"),
        Err(error) => {
            assert!(!right, "{error}");
            names_what_is_wrong(&error);
        }
    }
    let published = store.open(group, position).is_ok();
    assert_eq!(published, right, "what is not whole is seen");
}

fn seeds() -> Vec<Seed> {
    let content: Vec<u8> = (0..200u8).collect();
    let file = [&content[..], &trailer_of(&content).encode()].concat();
    let announced = |size: u64, crc: u32, pieces: &[&[u8]]| {
        let mut out = vec![ANNOUNCED];
        out.extend_from_slice(&size.to_be_bytes());
        out.extend_from_slice(&crc.to_be_bytes());
        for piece in pieces {
            out.push(u8::try_from(piece.len()).expect("short"));
            out.extend_from_slice(piece);
        }
        out
    };
    let (crc, length) = (crc32fast::hash(&content), content.len() as u64);
    let (front, back) = content.split_at(90);
    let mut other = trailer_of(&content);
    other.name.position = LogPosition::new(9, 9);
    let renamed = [&content[..], &other.encode()].concat();
    vec![
        Seed::new("file", [&[FILE][..], &file].concat()),
        Seed::new("file-cut", [&[FILE][..], &file[..file.len() - 9]].concat()),
        Seed::new("file-of-another-name", [&[FILE][..], &renamed].concat()),
        Seed::new("file-empty", vec![FILE]),
        Seed::new("sealed", [&[SEALED][..], &content].concat()),
        Seed::new("sealed-empty", vec![SEALED]),
        Seed::new("announced", announced(length, crc, &[front, back])),
        Seed::new("announced-paused", announced(length, crc, &[front, &[], back])),
        Seed::new("announced-empty", announced(0, 0, &[])),
        Seed::new("announced-endless", announced(u64::MAX, crc, &[front])),
        Seed::new("announced-too-short", announced(length, crc, &[front])),
        Seed::new("announced-too-long", announced(50, crc, &[front, back])),
        Seed::new("announced-damaged", announced(length, crc ^ 1, &[front, back])),
        Seed::new("name", [&[NAME][..], b"7-300-2.snap"].concat()),
        Seed::new("name-of-none", [&[NAME][..], b"07-300-2.snap"].concat()),
    ]
}
