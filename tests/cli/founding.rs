//! Who founds a cluster, and who does not: real processes whose disks are taken away.

use std::path::Path;

use super::process::run;
use super::servers::Servers;

fn exists(directory: &Path, name: &str) -> bool {
    directory.join(name).exists()
}

/// The system group where there is a catalog, and each shard where there is none.
const BOTH: [(&str, &str); 2] =
    [("catalog = true", "founding-system"), ("catalog = false", "founding-shards")];

/// All nodes were started once on other, empty directories: a second cluster of one name. The
/// directories of the first are put back one node at a time.
#[tokio::test(flavor = "multi_thread")]
async fn two_clusters_of_one_name_do_not_become_one_when_directories_are_mixed_up() {
    for (settings, record) in BOTH {
        let mut servers = Servers::new(3, settings, "tables = 4");
        let aside = |servers: &Servers, node: u64, name: &str| {
            servers.data_dir(node).with_file_name(format!("{name}-{node}"))
        };
        for value in ["first", "second"] {
            (1..=3).for_each(|node| servers.start(node, &[]));
            servers.put(1, "key", value).await;
            servers.await_value(1, "key", value).await;
            servers.kill_all().await;
            for node in 1..=3 {
                assert!(exists(&servers.data_dir(node), record));
                let to = aside(&servers, node, value);
                std::fs::rename(servers.data_dir(node), to).unwrap();
            }
        }
        let put = |servers: &Servers, node: u64, value: &str| {
            std::fs::rename(aside(servers, node, value), servers.data_dir(node)).unwrap();
        };
        put(&servers, 1, "first");
        put(&servers, 2, "second");
        put(&servers, 3, "second");
        (1..=3).for_each(|node| servers.start(node, &[]));
        servers.await_value(2, "key", "second").await;
        servers.await_log(1, &["founded on other disks"]).await;
        // The others go where they belong: the first cluster is whole.
        servers.kill_all().await;
        for node in [2, 3] {
            std::fs::rename(servers.data_dir(node), aside(&servers, node, "second")).unwrap();
            put(&servers, node, "first");
        }
        (1..=3).for_each(|node| servers.start(node, &[]));
        servers.await_value(1, "key", "first").await;
    }
}

/// A node that was asked to create its replicas founded nothing itself, and belongs to the cluster
/// of those that asked it.
#[tokio::test(flavor = "multi_thread")]
async fn a_rebuilt_node_does_not_join_a_second_cluster_of_one_name() {
    for (settings, record) in BOTH {
        let mut servers = Servers::new(3, settings, "tables = 4");
        let aside = |servers: &Servers, node: u64, name: &str| {
            servers.data_dir(node).with_file_name(format!("{name}-{node}"))
        };
        for value in ["first", "second"] {
            (1..=3).for_each(|node| servers.start(node, &[]));
            servers.put(1, "key", value).await;
            servers.await_value(1, "key", value).await;
            if value == "first" {
                servers.kill(3).await;
                servers.lose_disk(3);
                servers.start(3, &[]);
                servers.await_log(3, &["holds the groups", "member rebuild"]).await;
                let rebuild = ["member", "rebuild", "3", "--timeout", "60"];
                servers.run(1, &rebuild).await.ok();
                assert!(exists(&servers.data_dir(3), "founding-joined"), "{settings}");
            }
            servers.kill_all().await;
            for node in 1..=3 {
                assert!(exists(&servers.data_dir(node), record));
                let to = aside(&servers, node, value);
                std::fs::rename(servers.data_dir(node), to).unwrap();
            }
        }
        for (node, value) in [(1, "first"), (2, "second"), (3, "first")] {
            std::fs::rename(aside(&servers, node, value), servers.data_dir(node)).unwrap();
            servers.start(node, &[]);
        }
        servers.await_log(2, &["founded on other disks"]).await;
        servers.await_log(3, &["founded on other disks"]).await;
        servers.await_value(3, "key", "first").await;
        let refused = async || {
            let status = servers.status(3).await;
            status["peers"].to_string().contains("founded on other disks")
        };
        servers.until("node 3 refuses node 2", refused).await;
    }
}

/// A bootstrap without a catalog has no meaning for a cluster that has one: not every node takes
/// part in that of the system group.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_gets_a_catalog_keeps_all_its_members() {
    let mut servers = Servers::new(3, "catalog = false", "tables = 4");
    (1..=3).for_each(|node| servers.start(node, &[]));
    servers.put(1, "key", "old").await;
    servers.kill_all().await;
    assert!(exists(&servers.data_dir(3), "founding-shards"));

    servers.settings = "catalog = true".to_owned();
    (1..=2).for_each(|node| servers.start(node, &["--bootstrap-without", "3"]));
    servers.put(1, "key", "new").await;
    assert!(exists(&servers.data_dir(1), "founding-system"));
    servers.start(3, &[]);
    servers.await_log(3, &["founded without the disk of this node"]).await;
    servers.await_value(3, "key", "new").await;
    // Its replicas carry what another loss takes.
    servers.kill(1).await;
    servers.put(3, "key", "carried").await;
    servers.await_value(3, "key", "carried").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_founder_that_lost_its_disk_waits_and_never_founds_a_second_cluster() {
    for (settings, record) in BOTH {
        let mut servers = Servers::new(3, settings, "tables = 4");
        for node in 1..=3 {
            servers.start(node, &[]);
        }
        servers.put(1, "key", "kept").await;
        servers.kill_all().await;
        assert!(exists(&servers.data_dir(1), record));
        servers.lose_disk(1);

        servers.start(1, &[]);
        servers.await_log(1, &["node 2 does not answer", "node 3 does not answer"]).await;
        let status = servers.status(1).await;
        let waits_for = status["founding_waits_for"].as_str().unwrap_or_default();
        assert!(waits_for.contains("node 3 does not answer"), "{status}");
        assert_eq!(status["groups"], 0, "{status}");

        servers.start(2, &[]);
        servers.await_log(1, &["node 2 holds the groups", "member rebuild"]).await;
        servers.start(3, &[]);
        servers.await_value(2, "key", "kept").await;
        let status = servers.status(1).await;
        assert_eq!(status["groups"], 0, "{settings}: {status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_cluster_is_founded_when_its_last_founder_comes_however_often_they_are_killed() {
    for (settings, _) in BOTH {
        let mut servers = Servers::new(3, settings, "tables = 2");
        servers.start(1, &[]);
        servers.start(2, &[]);
        servers.await_log(1, &["node 3 does not answer"]).await;
        servers.kill(1).await;
        servers.start(1, &[]);
        servers.await_log(1, &["node 3 does not answer"]).await;
        assert_eq!(servers.status(1).await["groups"], 0);
        servers.start(3, &[]);
        servers.kill(2).await;
        servers.start(2, &[]);
        servers.put(1, "key", "first").await;
        servers
            .until("nobody waits", || async {
                servers.status(3).await["founding_waits_for"].is_null()
            })
            .await;
        // What is founded needs no agreement any more.
        servers.kill_all().await;
        servers.start(1, &[]);
        servers.start(3, &[]);
        servers.await_value(3, "key", "first").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_founds_without_a_founder_that_then_comes_too_late() {
    for (settings, _) in BOTH {
        let mut servers = Servers::new(3, settings, "tables = 2");
        servers.start(1, &["--bootstrap-without", "3"]);
        servers.start(2, &["--bootstrap-without", "3"]);
        servers.put(1, "key", "by two").await;
        servers.start(3, &[]);
        servers.await_log(3, &["founded without the disk of this node"]).await;
        assert_eq!(servers.status(3).await["groups"], 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_other_founders_can_be_left_out() {
    let arguments = ["serve", "--data-dir", "x", "--bootstrap-without", "7"];
    let ended = run(&arguments).await;
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.stderr.contains("node 7 is not another founder"), "{ended:?}");
}
