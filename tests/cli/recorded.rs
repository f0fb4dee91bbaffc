//! Data directories of landed versions open, with all that was acknowledged.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::process::Node;

/// tests/recorded/README.md says how they were made.
fn recorded() -> Vec<PathBuf> {
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/recorded");
    let files = std::fs::read_dir(all).unwrap().map(|entry| entry.unwrap().path());
    let is_one = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "gz");
    files.filter(is_one).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_landed_versions_wrote_opens() {
    let recorded = recorded();
    assert!(!recorded.is_empty());
    for archive in recorded {
        let directory = TempDir::new().unwrap();
        let mut unpack = Command::new("tar");
        unpack.arg("-xzf").arg(&archive).arg("-C").arg(directory.path());
        assert!(unpack.status().unwrap().success(), "{}", archive.display());
        let data = directory.path().display().to_string();
        // What it writes in turn opens, too.
        for round in 0..2 {
            let node = Node::start(&data, &[]).await;
            opens_with_all(&node, round, &archive).await;
            node.stop().await;
        }
    }
}

async fn opens_with_all(node: &Node, round: u32, archive: &Path) {
    let shown = archive.display();
    for key in 1..=5 {
        let read = node.run(&["table", "get", &format!("k{key}"), "--timeout", "60"]).await;
        assert_eq!(read.ok().trim(), format!("v{key}"), "{shown}");
    }
    assert_eq!(node.run(&["table", "get", "k6"]).await.code, 1, "{shown}");
    let messages = node.run(&["queue", "peek", "--json"]).await.json();
    let bodies: Vec<&str> = messages["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|message| message["body"].as_str().unwrap())
        .collect();
    assert_eq!(bodies, ["one", "two"], "{shown}");
    node.await_leading("77").await;
    let snapshots = node.run(&["snapshot", "list", "1000000", "--json"]).await;
    assert!(snapshots.ok().contains("index"), "{shown}");
    // It takes writes, over the same log.
    node.run(&["table", "put", "round", &round.to_string()]).await.ok();
    assert_eq!(node.run(&["table", "get", "round"]).await.ok().trim(), round.to_string());
}
