//! Whose directory it is: what RocksDB's store refuses to open, and with which words.

use std::fs;

use shardhost_storage::{Identity, LogError, NodeId, RocksStore};

use crate::fixtures::{GROUP, OnDisk, create, identity, open, small, write_all};
use crate::images::image;

fn store() -> OnDisk {
    let mut subject = OnDisk::default();
    write_all(subject.rocks(), [create(GROUP)]);
    subject.close();
    subject
}

fn refusal(subject: &OnDisk, identity: Identity) -> LogError {
    let opened = RocksStore::open(subject.path(), identity, small());
    opened.map(|_| ()).expect_err("not ours")
}

#[test]
fn a_store_of_another_cluster_or_node_is_foreign() {
    let mut subject = store();
    let strangers = [
        Identity { cluster: "other".to_owned(), ..identity() },
        Identity { node: NodeId::must(2), ..identity() },
    ];
    for stranger in strangers {
        let message = match refusal(&subject, stranger) {
            error @ LogError::Foreign { .. } => error.to_string(),
            other => panic!("{other}"),
        };
        for words in ["node 1 of cluster \"test\"", "this host is the log of node"] {
            assert!(message.contains(words), "{message}");
        }
    }
    subject.open().expect("still ours");
}

#[test]
fn a_database_without_its_identity_file_is_refused() {
    let subject = store();
    fs::remove_file(subject.path().join("identity")).expect("removed");
    let refused = refusal(&subject, identity());
    assert!(matches!(refused, LogError::LostPast { .. }), "{refused}");
    assert!(refused.to_string().contains("identity file"), "{refused}");
}

#[test]
fn an_identity_file_without_its_database_is_refused() {
    for file in ["db", "db/CURRENT"] {
        let subject = store();
        let path = subject.path().join(file);
        let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        removed.expect("removed");
        let refused = refusal(&subject, identity());
        assert!(matches!(refused, LogError::LostPast { .. }), "{refused}");
    }
}

#[test]
fn a_damaged_identity_file_is_refused() {
    let subject = store();
    let path = subject.path().join("identity");
    let mut bytes = fs::read(&path).expect("a file");
    bytes[20] ^= 1;
    fs::write(&path, bytes).expect("written");
    let refused = refusal(&subject, identity());
    assert!(matches!(refused, LogError::Corrupt { .. }), "{refused}");
}

#[test]
fn a_database_of_another_store_of_ours_is_refused() {
    let (first, second) = (store(), store());
    fs::remove_dir_all(first.path().join("db")).expect("removed");
    fs::rename(second.path().join("db"), first.path().join("db")).expect("moved");
    let refused = refusal(&first, identity());
    assert!(matches!(refused, LogError::Foreign { .. }), "{refused}");
}

#[test]
fn a_directory_with_files_of_somebody_else_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("photos"), "").expect("written");
    let refused = open(directory.path()).map(|_| ()).expect_err("not ours");
    assert!(matches!(refused, LogError::Foreign { .. }), "{refused}");
    assert!(refused.to_string().contains("photos"), "{refused}");
    assert_eq!(fs::read_dir(directory.path()).expect("a directory").count(), 2, "and the lock");
}

#[test]
fn a_fresh_mount_and_a_missing_directory_are_new_stores() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mount, missing) = (directory.path().join("mount"), directory.path().join("a/b"));
    fs::create_dir_all(mount.join("lost+found")).expect("created");
    for path in [mount, missing] {
        let store = open(&path).expect("a new store");
        write_all(&store, [create(GROUP)]);
    }
}

#[test]
fn a_store_that_is_open_is_locked() {
    let subject = OnDisk::default();
    let path = subject.path().display().to_string();
    assert_eq!(open(subject.path()).map(|_| ()), Err(LogError::Locked { path }));
}

#[test]
fn a_missing_or_damaged_file_of_the_database_is_refused() {
    // Opening twice brings what was in the log file into table files.
    let mut subject = store();
    subject.open().expect("ours");
    subject.close();
    for (file, damage) in
        [(".sst", "gone"), (".sst", "cut"), ("MANIFEST", "flipped"), ("CURRENT", "flipped")]
    {
        let image = image(subject.path());
        let files = fs::read_dir(image.path().join("db")).expect("a database");
        let name = |path: &std::path::Path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().contains(file))
        };
        let path = files.map(|file| file.expect("a file").path()).find(|path| name(path));
        let path = path.expect("such a file");
        let mut bytes = fs::read(&path).expect("a file");
        match damage {
            "gone" => fs::remove_file(&path).expect("removed"),
            "cut" => fs::write(&path, &bytes[..bytes.len() / 2]).expect("written"),
            _ => {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 0x20;
                fs::write(&path, &bytes).expect("written");
            }
        }
        let refused = open(image.path()).map(|_| ()).expect_err(damage);
        let fits = matches!(refused, LogError::Corrupt { .. } | LogError::Io { .. });
        assert!(fits && refused.to_string().contains("/db"), "{file} {damage}: {refused}");
    }
}
