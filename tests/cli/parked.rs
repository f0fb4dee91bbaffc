//! A replica that is left closed at the start, and a command that is skipped.

use shardhost_proto::admin::admin_client::AdminClient;
use shardhost_proto::admin::{EntryReply, LookAtEntryRequest, SkipEntryRequest};

use super::servers::Servers;

const TABLE: &str = "1000000";

async fn last_index(servers: &Servers) -> u64 {
    let shown = servers.run(1, &["group", "show", TABLE, "--json"]).await.json();
    shown["last_index"].as_u64().unwrap()
}

async fn role(servers: &Servers, node: u64) -> String {
    let shown = servers.run(node, &["group", "show", TABLE, "--json"]).await;
    if shown.code != 0 {
        return "does not answer yet".to_owned();
    }
    shown.json()["role"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_gets_past_a_command_with_the_replicas_parked() {
    let mut servers = Servers::new(3, "", "tables = 1\nqueues = 0\n");
    (1..=3).for_each(|node| servers.start(node, &[]));
    servers.put(1, "before", "value").await;
    servers.put(1, "poison", "value").await;
    let index = last_index(&servers).await.to_string();
    servers.kill_all().await;
    // The state machines have applied nothing: whatever they apply comes from the log.
    for node in 1..=3 {
        std::fs::remove_dir_all(servers.data_dir(node).join("state")).unwrap();
    }

    let skip = ["group", "skip", TABLE, "--index", &index];
    let confirm = ["group", "skip", TABLE, "--index", &index, "--confirm"];
    for node in [1, 2] {
        servers.start(node, &["--park", TABLE]);
        servers.await_log(node, &["an operator parked it"]).await;
    }
    servers.until("node 1 answers", || async { role(&servers, 1).await == "failed" }).await;
    let refused = servers.run(1, &confirm).await;
    assert_eq!(refused.code, 1, "node 3 has the command, too: {refused:?}");
    assert!(refused.stderr.contains("--without 3"), "{refused:?}");
    let stranger = ["group", "skip", TABLE, "--index", &index, "--without", "9"];
    assert_eq!(servers.run(1, &stranger).await.code, 1, "it is no member");

    servers.start(3, &["--park", TABLE]);
    servers.until("node 3 answers", || async { role(&servers, 3).await == "failed" }).await;
    let present = ["group", "skip", TABLE, "--index", &index, "--without", "3", "--confirm"];
    let refused = servers.run(1, &present).await;
    assert!(refused.code == 1 && refused.stderr.contains("cannot be left out"), "{refused:?}");
    for node in 1..=3 {
        servers.until("it answers", || async { role(&servers, node).await == "failed" }).await;
    }
    let nothing = servers.run(2, &["group", "skip", TABLE, "--index", "999"]).await;
    assert!(nothing.code == 1 && nothing.stderr.contains("nothing stands at 999"), "{nothing:?}");
    let shown = servers.run(2, &skip).await.ok();
    assert!(shown.contains("would be skipped") && shown.contains("--confirm"), "{shown}");
    assert!(shown.contains("they may have applied more"), "{shown}");
    let parked = servers.run(1, &["group", "show", TABLE]).await.ok();
    assert!(parked.contains("0 on disk"), "its state is gone: {parked}");
    assert_eq!(role(&servers, 1).await, "failed", "it was only shown");

    let skipped = servers.run(2, &confirm).await.ok();
    assert!(skipped.contains("is skipped"), "{skipped}");
    servers.put(1, "after", "value").await;
    servers.await_value(3, "before", "value").await;
    let gone = servers.run(2, &["table", "get", "poison"]).await;
    assert!(!gone.stdout.contains("value"), "{gone:?}");
    for node in 1..=3 {
        servers.until("it runs", || async { role(&servers, node).await != "failed" }).await;
    }
    let again = servers.run(3, &confirm).await.ok();
    assert!(again.contains("there is nothing to skip"), "{again}");
    // What was applied is not skipped.
    let before = (index.parse::<u64>().unwrap() - 1).to_string();
    let refused = servers.run(1, &["group", "skip", TABLE, "--index", &before, "--confirm"]).await;
    assert!(refused.code == 1 && refused.stderr.contains("has applied"), "{refused:?}");
}

/// The index of the command `poison`, in the logs of three nodes whose states are gone; all are parked.
async fn poisoned() -> (Servers, u64) {
    let mut servers = Servers::new(3, "", "tables = 1\nqueues = 0\n");
    (1..=3).for_each(|node| servers.start(node, &[]));
    servers.put(1, "before", "value").await;
    servers.put(1, "poison", "value").await;
    let index = last_index(&servers).await;
    servers.kill_all().await;
    for node in 1..=3 {
        std::fs::remove_dir_all(servers.data_dir(node).join("state")).unwrap();
        servers.start(node, &["--park", TABLE]);
    }
    for node in 1..=3 {
        servers.until("it is parked", || async { role(&servers, node).await == "failed" }).await;
    }
    (servers, index)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_skip_that_was_interrupted_keeps_replicas_closed_over_restarts_until_it_is_repeated() {
    let (mut servers, index) = poisoned().await;
    let group = TABLE.parse().unwrap();
    for (node, steps) in [(1, 1), (2, 2), (3, 1)] {
        let at = format!("http://{}", servers.address(node));
        let mut admin = AdminClient::connect(at).await.unwrap();
        let entry = LookAtEntryRequest { group, index };
        let entry = admin.look_at_entry(entry).await.unwrap().into_inner();
        let EntryReply { term, bytes, checksum, .. } = entry;
        for begin in [true, false].into_iter().take(steps) {
            let request = SkipEntryRequest { group, index, term, bytes, checksum, begin };
            admin.skip_entry(request).await.unwrap();
        }
    }
    servers.kill_all().await;
    for node in 1..=3 {
        servers.start(node, &[]);
        servers.await_log(node, &["not all members have done so"]).await;
        servers.until("it answers", || async { role(&servers, node).await == "failed" }).await;
    }
    let index = index.to_string();
    let confirm = ["group", "skip", TABLE, "--index", &index, "--confirm"];
    let skipped = servers.run(3, &confirm).await.ok();
    assert!(skipped.contains("is skipped"), "{skipped}");
    servers.await_value(1, "before", "value").await;
    servers.put(2, "after", "value").await;
    let gone = servers.run(2, &["table", "get", "poison"]).await;
    assert!(!gone.stdout.contains("value"), "{gone:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_entry_that_a_leader_began_its_term_with_is_not_skipped() {
    let (servers, _) = poisoned().await;
    let first = ["group", "skip", TABLE, "--index", "1", "--confirm"];
    let refused = servers.run(1, &first).await;
    assert!(refused.code == 1 && refused.stderr.contains("a leader began its term"), "{refused:?}");
    for node in 1..=3 {
        assert_eq!(role(&servers, node).await, "failed", "it stays closed");
    }
}
