//! A replica that is left closed at the start, and a command that is skipped.

use rustix::process::Signal;
use shardhost_proto::admin::admin_client::AdminClient;
use shardhost_proto::admin::{
    BeginSkipRequest, EntryReply, LookAtEntryRequest, OpenReplicaRequest, SkipEntryRequest,
};
use tonic::transport::Channel;
use tonic::{Code, Status};

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

async fn runs(servers: &Servers, node: u64) -> bool {
    !["failed", "does not answer yet"].contains(&&*role(servers, node).await)
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
    let refused = servers.run(1, &["group", "skip", TABLE, "--index", "0"]).await;
    assert!(refused.stderr.contains("entries from index 1 on"), "{refused:?}");
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

/// One member, asked for single steps of a skip.
struct Member {
    admin: AdminClient<Channel>,
    group: u64,
    index: u64,
}

impl Member {
    async fn of(servers: &Servers, node: u64, index: u64) -> Self {
        let at = format!("http://{}", servers.address(node));
        let admin = AdminClient::connect(at).await.unwrap();
        Self { admin, group: TABLE.parse().unwrap(), index }
    }

    async fn look(&mut self) -> EntryReply {
        let Self { group, index, .. } = *self;
        let entry = self.admin.look_at_entry(LookAtEntryRequest { group, index }).await;
        entry.unwrap().into_inner()
    }

    async fn begin(&mut self, entry: EntryReply) -> Result<(), Status> {
        let Self { group, index, .. } = *self;
        let EntryReply { term, bytes, checksum, .. } = entry;
        let request = BeginSkipRequest { group, index, term, bytes, checksum };
        self.admin.begin_skip(request).await.map(drop)
    }

    async fn skip(&mut self, entry: EntryReply) -> Result<(), Status> {
        let Self { group, index, .. } = *self;
        let EntryReply { term, bytes, checksum, .. } = entry;
        let raise_to = self.look().await.current_term + 1;
        let request =
            SkipEntryRequest { group, index, term, bytes, checksum, raise_to, older: false };
        self.admin.skip_entry(request).await.map(drop)
    }

    async fn open(&mut self) -> Result<(), Status> {
        let Self { group, index, .. } = *self;
        self.admin
            .open_replica(OpenReplicaRequest { group, index, abandoned: false })
            .await
            .map(drop)
    }
}

/// Carries out the first steps of a skip at some nodes, each with how many.
async fn interrupted(servers: &Servers, index: u64, steps: &[(u64, usize)]) -> EntryReply {
    let entry = Member::of(servers, 1, index).await.look().await;
    for (node, steps) in steps {
        let mut member = Member::of(servers, *node, index).await;
        member.begin(entry).await.unwrap();
        if *steps > 1 {
            member.skip(entry).await.unwrap();
        }
    }
    entry
}

#[tokio::test(flavor = "multi_thread")]
async fn a_skip_that_was_interrupted_keeps_replicas_closed_over_restarts_until_it_is_repeated() {
    let (mut servers, index) = poisoned().await;
    interrupted(&servers, index, &[(1, 1), (2, 2), (3, 1)]).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_skip_that_begun_at_some_members_is_taken_back_by_a_command() {
    let (mut servers, index) = poisoned().await;
    let wrong = interrupted(&servers, index, &[(1, 1), (2, 1)]).await;
    let refused = Member::of(&servers, 1, index).await.open().await.expect_err("it is not skipped");
    assert!(refused.message().contains("--abandon"), "{refused:?}");
    servers.kill_all().await;
    for node in 1..=3 {
        servers.start(node, &[]);
    }
    for node in [1, 2] {
        servers.await_log(node, &["not all members have done so"]).await;
        servers.until("it answers", || async { role(&servers, node).await == "failed" }).await;
    }
    servers.until("it runs", || runs(&servers, 3)).await;
    let refused = Member::of(&servers, 3, index).await.begin(wrong).await.expect_err("it runs");
    assert!(refused.code() == Code::FailedPrecondition && refused.message().contains("--abandon"));

    // Neither it nor another one can be carried out, and the operator reads why and what to do.
    let (index, before) = (index.to_string(), (index - 1).to_string());
    let blocked = servers.run(3, &["group", "skip", TABLE, "--index", &before]).await;
    assert!(blocked.code == 1 && blocked.stderr.contains("cannot begin"), "{blocked:?}");
    let what_to_do = format!("--index {index} --confirm");
    assert!(
        blocked.stderr.contains(&what_to_do) && blocked.stderr.contains("--abandon"),
        "{blocked:?}"
    );
    let refused = servers.run(3, &["group", "skip", TABLE, "--index", &index, "--confirm"]).await;
    assert!(refused.code == 1 && refused.stderr.contains("--abandon"), "{refused:?}");

    let abandon = ["group", "skip", TABLE, "--index", &index, "--abandon"];
    let abandoned = servers.run(3, &abandon).await.ok();
    assert!(abandoned.contains("its skip is abandoned"), "{abandoned}");
    servers.await_value(1, "poison", "value").await;
    servers.put(2, "after", "value").await;
    let again = servers.run(3, &abandon).await;
    assert!(again.code == 1 && again.stderr.contains("nothing to abandon"), "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_skip_that_one_member_carried_out_is_not_taken_back() {
    let (servers, index) = poisoned().await;
    interrupted(&servers, index, &[(1, 1), (2, 2), (3, 1)]).await;
    let index = index.to_string();
    let abandon = ["group", "skip", TABLE, "--index", &index, "--abandon"];
    let refused = servers.run(1, &abandon).await;
    assert!(refused.code == 1 && refused.stderr.contains("node 2 has skipped"), "{refused:?}");
    for node in 1..=3 {
        assert_eq!(role(&servers, node).await, "failed", "it stays closed");
    }
    let confirm = ["group", "skip", TABLE, "--index", &index, "--confirm"];
    servers.run(1, &confirm).await.ok();
    servers.put(2, "after", "value").await;
}

/// Node 3 is down while the others end the skip, and finds its note when it is back.
async fn done_without_three_which_comes_back(servers: &mut Servers, confirm: &[&str]) {
    servers.kill(3).await;
    servers.run(1, &[confirm, &["--without", "3"]].concat()).await.ok();
    servers.put(1, "after", "value").await;

    servers.start(3, &[]);
    servers.await_log(3, &["not all members have done so"]).await;
    servers.until("it answers", || async { role(servers, 3).await == "failed" }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_was_left_out_skips_the_command_when_it_comes_back() {
    let (mut servers, number) = poisoned().await;
    let entry = interrupted(&servers, number, &[(1, 2), (2, 2), (3, 1)]).await;
    let index = number.to_string();
    let confirm = ["group", "skip", TABLE, "--index", &index, "--confirm"];
    done_without_three_which_comes_back(&mut servers, &confirm).await;
    // Those that run are done with it, whichever step they are asked for.
    let mut member = Member::of(&servers, 1, number).await;
    member.begin(entry).await.expect("it has skipped it");
    member.skip(entry).await.expect("it has skipped it");
    let refused = member.begin(EntryReply { term: entry.term + 1, ..entry }).await;
    assert_eq!(refused.expect_err("another entry").code(), Code::FailedPrecondition);

    let skipped = servers.run(2, &confirm).await.ok();
    assert!(skipped.contains("is skipped"), "{skipped}");
    servers.await_value(3, "after", "value").await;
    servers.until("it runs", || runs(&servers, 3)).await;
    assert!(Member::of(&servers, 3, number).await.look().await.empty);
}

/// The command was on its way to that member: an earlier leader may send it until the member is in a later term.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_without_the_command_that_was_left_out_enters_the_term_when_it_comes_back() {
    let mut servers = Servers::new(3, "", "tables = 1\nqueues = 0\n");
    (1..=3).for_each(|node| servers.start(node, &[]));
    servers.put(1, "before", "value").await;
    servers.kill(3).await;
    servers.put(1, "poison", "value").await;
    let number = last_index(&servers).await;
    servers.kill_all().await;
    for node in 1..=3 {
        std::fs::remove_dir_all(servers.data_dir(node).join("state")).unwrap();
        servers.start(node, &["--park", TABLE]);
    }
    for node in 1..=3 {
        servers.until("it is parked", || async { role(&servers, node).await == "failed" }).await;
    }
    interrupted(&servers, number, &[(1, 1), (2, 1), (3, 1)]).await;
    let noted = Member::of(&servers, 3, number).await.look().await;
    assert!(!noted.present && noted.skipping == Some(number), "it was down: {noted:?}");
    let index = number.to_string();
    let confirm = ["group", "skip", TABLE, "--index", &index, "--confirm"];
    done_without_three_which_comes_back(&mut servers, &confirm).await;
    let mut member = Member::of(&servers, 3, number).await;
    let refused = member.open().await.expect_err("it may still come");
    assert!(refused.message().contains("may still send it"), "{refused:?}");
    assert_eq!(member.look().await, noted, "nothing was changed");
    let skipped = servers.run(2, &confirm).await.ok();
    assert!(skipped.contains("is skipped"), "{skipped}");
    servers.await_value(3, "after", "value").await;
    let skipped = async || Member::of(&servers, 3, number).await.look().await.empty;
    servers.until("it has the empty entry", skipped).await;
    let gone = servers.run(3, &["table", "get", "poison"]).await;
    assert!(!gone.stdout.contains("value"), "{gone:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_entry_is_skipped_where_that_was_not_begun() {
    let (servers, index) = poisoned().await;
    let mut member = Member::of(&servers, 1, index).await;
    // As a command of an earlier version asks, which begins by another call.
    let entry = member.look().await;
    let refused = member.skip(entry).await.expect_err("it was not begun");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert_eq!(member.look().await, entry, "nothing was changed");
}

/// Two members whose state machines `poison` would fail, and are parked. The state of node 1 is ahead of its log, so
/// its replica cannot be opened.
async fn poisoned_beside_one_that_cannot_be_opened() -> (Servers, u64) {
    let mut servers = Servers::new(3, "", "tables = 1\nqueues = 0\n");
    (1..=3).for_each(|node| servers.start(node, &[]));
    servers.put(1, "before", "value").await;
    servers.kill(1).await;
    servers.put(2, "later", "value").await;
    // A follower applies it after the leader has answered.
    let applied = || async {
        let got = servers.run(2, &["table", "get", "later", "--stale", "2"]).await;
        got.code == 0 && got.stdout.contains("value")
    };
    servers.until("node 2 applied it", applied).await;
    // What it has applied is on its disk when it ends in order.
    servers.signal(2, Signal::TERM);
    servers.end(2).await;
    let (from, to) = (servers.data_dir(2).join("state"), servers.data_dir(1).join("state"));
    std::fs::remove_dir_all(&to).unwrap();
    let copied = std::process::Command::new("cp").arg("-r").args([from, to]).status().unwrap();
    assert!(copied.success());

    servers.start(2, &[]);
    servers.put(2, "poison", "value").await;
    let shown = servers.run(2, &["group", "show", TABLE, "--json"]).await.json();
    let index = shown["last_index"].as_u64().unwrap();
    servers.kill_all().await;
    servers.start(1, &[]);
    servers.await_log(1, &["the replica is parked"]).await;
    for node in [2, 3] {
        std::fs::remove_dir_all(servers.data_dir(node).join("state")).unwrap();
        servers.start(node, &["--park", TABLE]);
    }
    for node in 1..=3 {
        servers.until("it is parked", || async { role(&servers, node).await == "failed" }).await;
    }
    (servers, index)
}

async fn two_and_three_run_without_poison(servers: &Servers) {
    servers.put(2, "after", "value").await;
    servers.await_value(3, "before", "value").await;
    let gone = servers.run(2, &["table", "get", "poison"]).await;
    assert!(!gone.stdout.contains("value"), "{gone:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_cannot_be_opened_keeps_no_other_one_closed() {
    let (servers, index) = poisoned_beside_one_that_cannot_be_opened().await;
    let index = index.to_string();
    let confirm = ["group", "skip", TABLE, "--index", &index, "--confirm"];
    let most = servers.run(2, &confirm).await;
    assert!(most.code == 3 && most.stderr.contains("not all run"), "{most:?}");
    let named = most.stderr.contains("node 1:") && !most.stderr.contains("node 2:");
    assert!(named && most.stderr.contains("member replace"), "{most:?}");
    two_and_three_run_without_poison(&servers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_cannot_be_opened_may_be_left_out() {
    let (servers, index) = poisoned_beside_one_that_cannot_be_opened().await;
    let index = index.to_string();
    let without =
        |node| ["group", "skip", TABLE, "--index", &*index, "--confirm", "--without", node];
    let refused = servers.run(2, &without("3")).await;
    assert!(refused.code == 1 && refused.stderr.contains("cannot be left out"), "{refused:?}");
    let skipped = servers.run(2, &without("1")).await.ok();
    assert!(skipped.contains("is skipped"), "{skipped}");
    two_and_three_run_without_poison(&servers).await;
}
