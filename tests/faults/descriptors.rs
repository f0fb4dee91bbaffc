//! A host that may open no more files: another part of its process, or of its machine, has them all.

use std::time::Duration;

use crate::disks::{led_by_one, others_take_over};

/// Longer than an election and a flush of the state.
const LASTS: Duration = Duration::from_secs(8);

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_can_open_no_file_is_replaced_and_comes_back() {
    let test = "a_leader_that_can_open_no_file_is_replaced_and_comes_back";
    let bytes = 4 << 10;
    let Some((mut cluster, writer, others)) = led_by_one(test, bytes).await else { return };
    for more in [0, 4] {
        cluster.servers.allow_more_files(1, more);
        others_take_over(&cluster, &others).await;
        writer.more(20).await;
        tokio::time::sleep(LASTS).await;
        writer.more(20).await;
        assert!(cluster.servers.ended(1).is_none(), "{}", cluster.servers.log(1));
        cluster.servers.allow_files(1);
        // It takes part again: it can lead everything, and nothing is wrong.
        cluster.lead_all(1).await;
        let well = || async { cluster.findings(2).await == "[]" };
        cluster.servers.until("nothing is wrong", well).await;
        writer.more(20).await;
    }
    assert!(cluster.servers.log(1).contains("the log waits"), "{}", cluster.servers.log(1));
    writer.verify(&others, bytes).await;
}
