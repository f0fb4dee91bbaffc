//! What operators do to a whole cluster: a node is filled, all nodes are restarted.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::process::{Supervised, await_gone, run, start, until};

/// How many replicas each of four nodes holds.
async fn held(cluster: &Supervised) -> Vec<u64> {
    let at: Vec<&String> = cluster.addresses().values().collect();
    let mut held = Vec::new();
    for address in at {
        let listed = run(&["group", "list", "--at", address, "--json"]).await.json();
        let groups = listed["groups"].as_array().unwrap();
        let shards =
            groups.iter().filter(|group| group["kind"] == "table" || group["kind"] == "queue");
        held.push(shards.count() as u64);
    }
    held
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_joined_is_filled_with_its_part_and_a_second_time_with_nothing() {
    let directory = TempDir::new().unwrap();
    let cluster = Supervised::with_spares(directory.path(), 4, 4, 1).await;
    cluster.run(&["table", "put", "color", "blue"]).await.ok();

    let shown = cluster.run(&["member", "fill", "4", "--dry-run", "--json"]).await.json();
    assert_eq!(shown["steps"].as_array().unwrap().len(), 6, "{shown}");
    assert_eq!(shown["after"], serde_json::json!({ "1": 6, "2": 6, "3": 6, "4": 6 }));
    assert_eq!(held(&cluster).await, [8, 8, 8, 0], "a dry run changes nothing");
    // Questions about groups can be asked where no replica is.
    let at = &cluster.addresses()[&4];
    for ask in [&["member", "list", "1000000"][..], &["group", "show", "1000000"]] {
        run(&[ask, &["--at", at]].concat()).await.ok();
    }
    let began = Instant::now();
    let unknown = run(&["member", "list", "7", "--at", at, "--timeout", "60"]).await;
    assert!(unknown.code == 1 && unknown.stderr.contains("group 7"), "{unknown:?}");
    assert!(
        began.elapsed() < Duration::from_secs(30),
        "nobody knows it, and it is waited all the same"
    );

    let filled = cluster.run(&["member", "fill", "4", "--json", "--timeout", "60"]).await.json();
    assert_eq!(filled["gained"], 6, "{filled}");
    assert_eq!(filled["failed"], serde_json::json!({}));
    let again = cluster.run(&["member", "fill", "4", "--json"]).await.json();
    assert_eq!(again["gained"], 0, "{again}");
    assert_eq!(cluster.run(&["table", "get", "color"]).await.ok().trim(), "blue");
}

/// A node lost its disk: its replicas do not come back by themselves, for they voted. One command gives it
/// new ones, the system group's included, and they carry what another loss takes.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lost_its_disk_gets_all_its_replicas_anew_by_one_command() {
    let directory = TempDir::new().unwrap();
    let mut cluster = Supervised::start(directory.path(), 3, 1).await;
    for key in 0..12 {
        cluster.run(&["table", "put", &format!("k{key}"), &format!("v{key}")]).await.ok();
    }
    cluster.kill(3).await;
    std::fs::remove_dir_all(directory.path().join("node-3")).unwrap();
    cluster.restart(3).await;
    assert_eq!(held(&cluster).await, [4, 4, 0]);
    // It answers, and is not called fit.
    let finds = |status: &Value| status["findings"].to_string().contains("member rebuild 3");
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let sick = cluster.run(&["status", "--json"]).await;
        assert_eq!(sick.code, 1, "{sick:?}");
        if finds(&sick.json()) {
            break;
        }
        assert!(Instant::now() < deadline, "{sick:?}");
    }
    let why = cluster.run(&["leader", "why", "1000000", "--json"]).await.json();
    let lost = why["voters"].as_array().unwrap().iter().find(|voter| voter["node"] == 3).unwrap();
    assert_eq!((&lost["fitness"], &lost["unfit"]), (&"unfit".into(), &"holds no replica".into()));

    let filled = cluster.run(&["member", "fill", "3", "--timeout", "60"]).await;
    assert!(filled.code == 1 && filled.stderr.contains("member rebuild 3"), "{filled:?}");
    let planned = cluster.run(&["member", "rebuild", "3", "--dry-run", "--json"]).await.json();
    assert_eq!(planned["groups"].as_array().unwrap().len(), 5, "{planned}");
    let rebuild = &["member", "rebuild", "3", "--json", "--timeout", "60"];
    let rebuilt = cluster.run(rebuild).await.json();
    let expected = serde_json::json!({
        "node": 3, "rebuilt": 5, "failed": {}, "to_run": [], "silent_nodes": [], "short_groups": {},
    });
    assert_eq!(rebuilt, expected);
    assert_eq!(held(&cluster).await, [4, 4, 4]);

    // The same for one group whose replica is in order.
    let group = &planned["groups"][1].to_string();
    cluster.run(&["member", "replace", group, "3", "3", "--timeout", "60"]).await.ok();

    // And for one of a group that was destroyed and created again.
    let create = ["group", "create", "77", "--kind", "table", "--voters", "1,2,3"];
    cluster.run(&create).await.ok();
    cluster.run(&["group", "destroy", "77", "--expect", "0"]).await.ok();
    cluster.run(&[&create[..], &["--timeout", "60"]].concat()).await.ok();
    cluster.run(&["member", "replace", "77", "3", "3", "--timeout", "60"]).await.ok();

    // As after a run that ended between the removal of the old replica and the addition of the new one,
    // which nothing records.
    cluster.change_member("remove", group, 3).await;
    let missed = cluster.run(rebuild).await;
    assert_eq!(missed.code, 3, "{missed:?}");
    assert_eq!(missed.json()["short_groups"], serde_json::json!({ group: 2 }), "{missed:?}");
    let told = cluster.run(&["member", "rebuild", "3", "--timeout", "60"]).await;
    let command = format!("`shardhost member add {group} 3`");
    assert!(told.code == 3 && told.stdout.contains(&command), "{told:?}");
    cluster.change_member("add", group, 3).await;

    cluster.kill(1).await;
    // Groups that only the node holds that is down are not known.
    let partial = cluster.run(&["member", "rebuild", "3", "--dry-run", "--json"]).await;
    assert_eq!(partial.code, 3, "{partial:?}");
    assert_eq!(partial.json()["silent_nodes"], serde_json::json!([1]), "{partial:?}");
    for key in 0..12 {
        let read = ["table", "get", &format!("k{key}"), "--timeout", "60"];
        assert_eq!(cluster.run(&read).await.ok().trim(), format!("v{key}"));
    }
    // Two of three are left: none of them can be done without.
    let kept = cluster.run(&["member", "rebuild", "2", "--json", "--timeout", "2"]).await;
    assert_eq!(kept.code, 1, "{kept:?}");
    let failed = kept.json();
    assert_eq!(failed["rebuilt"], 0, "{failed}");
    assert!(failed["failed"].to_string().contains("other voters take part, 2 must"), "{failed}");
}

/// An interrupted rebuild leaves no group without a voter, and a second one does the rest.
#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_that_is_interrupted_finishes_what_it_began_and_begins_nothing_more() {
    let directory = TempDir::new().unwrap();
    let mut cluster = Supervised::start(directory.path(), 200, 0).await;
    cluster.run(&["table", "put", "color", "blue", "--timeout", "60"]).await.ok();
    cluster.kill(3).await;
    std::fs::remove_dir_all(directory.path().join("node-3")).unwrap();
    cluster.restart(3).await;

    let at = cluster.addresses()[&1].clone();
    let rebuild = ["member", "rebuild", "3", "--json", "--timeout", "60", "--at", &at];
    let running = start(&rebuild);
    let begun = Instant::now();
    while held(&cluster).await[2] == 0 {
        assert!(begun.elapsed() < Duration::from_secs(60), "nothing is rebuilt");
    }
    running.signal(Signal::INT);
    let ended = running.end().await;
    assert_eq!(ended.code, 3, "{ended:?}");
    assert!(ended.stderr.contains("interrupted"), "{ended:?}");
    let first = ended.json();
    let left = first["failed"].as_object().unwrap().len();
    assert!(left > 0 && first["rebuilt"].as_u64().unwrap() > 0, "{first}");
    assert_eq!(first["to_run"], serde_json::json!([]), "{first}");
    // A follower may hear of the last additions a moment later.
    let whole = |group: &Value| group["members"].as_array().unwrap().len() == 3;
    loop {
        let listed = cluster.run(&["group", "list", "--json"]).await.json();
        let groups = listed["groups"].as_array().unwrap();
        let Some(short) = groups.iter().find(|group| !whole(group)) else { break };
        assert!(begun.elapsed() < Duration::from_secs(100), "{short}");
    }

    let second = run(&rebuild).await.json();
    assert_eq!((&second["rebuilt"], &second["failed"]), (&201.into(), &serde_json::json!({})));
    assert_eq!(second["short_groups"], serde_json::json!({}), "{second}");
    assert_eq!(held(&cluster).await, [200, 200, 200]);
}

/// The second run meets replicas that catch up, of the first one that was killed, or that runs on.
#[tokio::test(flavor = "multi_thread")]
async fn rebuilds_that_meet_leave_every_voter_its_vote() {
    let directory = TempDir::new().unwrap();
    let cluster = Supervised::start(directory.path(), 12, 0).await;
    cluster.run(&["table", "put", "color", "blue", "--timeout", "60"]).await.ok();
    let at = cluster.addresses()[&1].clone();
    let rebuild = ["member", "rebuild", "3", "--json", "--timeout", "60", "--at", &at];
    let before = replicas_on(&cluster, 3).await;
    let killed = start(&rebuild);
    let begun = Instant::now();
    while replicas_on(&cluster, 3).await == before {
        assert!(begun.elapsed() < Duration::from_secs(60), "nothing is rebuilt");
    }
    killed.signal(Signal::KILL);
    killed.end().await;
    let (one, other) = tokio::join!(run(&rebuild), run(&rebuild));
    for ended in [one, other] {
        // Each may find a voter missing that the other has just removed.
        assert!(ended.code == 0 || ended.code == 3, "{ended:?}");
    }
    // The one that was killed may have left two groups between the removal and the addition.
    let last = run(&rebuild).await;
    let named = last.json()["short_groups"].as_object().unwrap().clone();
    assert!(last.code == if named.is_empty() { 0 } else { 3 } && named.len() <= 2, "{last:?}");
    for group in named.keys() {
        cluster.change_member("add", group, 3).await;
    }
    for group in groups_of(&cluster).await {
        let members = cluster.run(&["member", "list", &group, "--json"]).await.json();
        let roles: Vec<&Value> =
            members["members"].as_array().unwrap().iter().map(|member| &member["role"]).collect();
        assert_eq!(roles, ["voter"; 3], "group {group}: {members}");
    }
}

/// As by a second run that is killed between the removal and the addition: it is named by the one that
/// runs, with what adds the voter.
#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_names_a_group_that_lost_its_voter_to_another_command() {
    let directory = TempDir::new().unwrap();
    let cluster = Supervised::start(directory.path(), 60, 0).await;
    cluster.run(&["table", "put", "color", "blue", "--timeout", "60"]).await.ok();
    let at = cluster.addresses()[&1].clone();
    let before = replicas_on(&cluster, 3).await;
    let group = groups_of(&cluster).await.pop().unwrap();
    let running = start(&["member", "rebuild", "3", "--json", "--timeout", "60", "--at", &at]);
    let begun = Instant::now();
    while replicas_on(&cluster, 3).await == before {
        assert!(begun.elapsed() < Duration::from_secs(60), "nothing is rebuilt");
    }
    cluster.change_member("remove", &group, 3).await;
    let ended = running.end().await;
    assert_eq!(ended.code, 3, "{ended:?}");
    let shown = ended.json();
    assert_eq!(shown["short_groups"], serde_json::json!({ &group: 2 }), "{shown}");
    // Where it had its new replica already, that is all.
    let add = serde_json::json!([format!("shardhost member add {group} 3")]);
    let failed = shown["failed"].as_object().unwrap();
    assert_eq!(shown["to_run"] == add, failed.contains_key(&group), "{shown}");
    cluster.change_member("add", &group, 3).await;
}

/// Replicas move away while the same node is rebuilt: what one of the two removed the other one does not
/// add, and none of them says that all is done where it is not.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_rebuilt_and_decommissioned_at_once_leaves_no_group_with_a_fourth_voter() {
    let directory = TempDir::new().unwrap();
    let cluster = Supervised::with_spares(directory.path(), 8, 1, 1).await;
    cluster.run(&["table", "put", "color", "blue", "--timeout", "60"]).await.ok();
    let decommission = ["node", "decommission", "3", "--json", "--timeout", "60"];
    let rebuild = ["member", "rebuild", "3", "--json", "--timeout", "10"];
    let (moved, _) = tokio::join!(cluster.run(&decommission), cluster.run(&rebuild));
    assert!(moved.code == 0 || moved.code == 3, "{moved:?}");
    // Alone it comes to its end. A rebuild that gave up may have left two groups without a third voter.
    let again = cluster.run(&decommission).await;
    for group in again.json()["short_groups"].as_object().unwrap().keys() {
        cluster.change_member("add", group, 4).await;
    }
    let last = cluster.run(&decommission).await;
    assert_eq!(last.code, 0, "{last:?}");
    for group in groups_of(&cluster).await {
        let members = cluster.run(&["member", "list", &group, "--json"]).await.json();
        let voters = members["members"].as_array().unwrap().iter();
        let mut voters: Vec<u64> = voters.map(|one| one["node"].as_u64().unwrap()).collect();
        voters.sort_unstable();
        assert_eq!(voters, [1, 2, 4], "group {group}: {members}");
    }
}

async fn groups_of(cluster: &Supervised) -> Vec<String> {
    let listed = cluster.run(&["group", "list", "--json"]).await.json();
    let groups = listed["groups"].as_array().unwrap();
    groups.iter().map(|group| group["group"].to_string()).collect()
}

/// The replica on a node, of every group that the first node lists.
async fn replicas_on(cluster: &Supervised, node: u64) -> Vec<Value> {
    let listed = cluster.run(&["group", "list", "--json"]).await.json();
    let members = listed["groups"].as_array().unwrap().iter().map(|group| &group["members"]);
    let on_node = |members: &Value| {
        let of = members.as_array().unwrap().iter().find(|member| member["node"] == node);
        of.map_or(Value::Null, |member| member["replica"].clone())
    };
    members.map(on_node).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_nobody_knows_is_not_filled_and_one_is_told_what_to_do() {
    let directory = TempDir::new().unwrap();
    let cluster = Supervised::start(directory.path(), 1, 0).await;
    let refused = cluster.run(&["member", "fill", "9"]).await;
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(
        refused.stderr.contains("node 9") && refused.stderr.contains("in theirs"),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checked_rolling_restart_ends_with_its_verdict() {
    let directory = TempDir::new().unwrap();
    let load = super::demo::input(directory.path(), 400);
    let small = ["rolling-restart", "--check", "--shards", "4", "--rate", "300", "--json"];
    let ended = run(&[&small[..], &["--load", &load]].concat()).await;
    assert_eq!(ended.code, 0, "{ended:?}");
    let report = ended.json();
    assert_eq!(report["failed_operations"], 0, "{report}");
    assert_eq!(report["equal_shards"], 8, "{report}");
    let nodes = report["nodes"].as_array().unwrap();
    assert_eq!(nodes.len(), 3, "{report}");
    for node in nodes {
        assert!(node["leads"].as_u64().unwrap() > 0 && node["left"] == 0, "{report}");
        assert!(node["moved"].as_u64().unwrap() > 0, "{report}");
        assert!(node["longest_pause_seconds"].as_f64().unwrap() > 0.0, "{report}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_stops_where_its_command_fails_and_says_where_it_stands() {
    let directory = TempDir::new().unwrap();
    let cluster = Supervised::start(directory.path(), 2, 0).await;
    let stopped = cluster.run(&["rolling-restart", "--with", "exit 7"]).await;
    assert_eq!(stopped.code, 1, "{stopped:?}");
    let words = [
        "stopped at node 1",
        "drain end 1",
        "not touched: 2, 3",
        "`exit 7` ended with exit status: 7",
    ];
    for words in words {
        assert!(stopped.stderr.contains(words), "{words}: {stopped:?}");
    }
    // No command begins where another one stopped.
    let again = cluster.run(&["rolling-restart", "--with", "true"]).await;
    assert!(again.stderr.contains("node 1 is draining"), "{again:?}");
    cluster.run(&["drain", "end", "1"]).await.ok();
    let idle = cluster.run(&["rolling-restart", "--with", "true", "--deadline", "1"]).await;
    assert_eq!(idle.code, 1, "{idle:?}");
    assert!(idle.stderr.contains("the process that ran before still answers"), "{idle:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_needs_a_command_or_a_check() {
    let neither = run(&["rolling-restart"]).await;
    assert_eq!(neither.code, 2, "{neither:?}");
    assert!(neither.stderr.contains("--check"), "{neither:?}");
    let both = run(&["rolling-restart", "--check", "--with", "true"]).await;
    assert_eq!(both.code, 2, "{both:?}");
}

/// Free ports of an address, one for each of three nodes.
fn free_ports(host: Ipv4Addr) -> BTreeMap<u64, String> {
    let sockets: Vec<_> = (0..3).map(|_| TcpListener::bind((host, 0)).unwrap()).collect();
    (1..).zip(sockets.iter().map(|s| s.local_addr().unwrap().to_string())).collect()
}

/// Hosts that a shell starts and stops, as a service manager does. Ended when dropped.
struct Managed<'a> {
    directory: &'a Path,
    addresses: BTreeMap<u64, String>,
}

impl<'a> Managed<'a> {
    /// Starts three at an address that no other test listens at.
    async fn start(directory: &'a Path, host: Ipv4Addr) -> Self {
        let managed = Self { directory, addresses: free_ports(host) };
        managed.configure(&BTreeMap::new());
        for node in managed.addresses.keys() {
            let started = std::process::Command::new("sh")
                .args(["-c", &managed.start_command()])
                .env("SHARDHOST_NODE", node.to_string())
                .status();
            assert!(started.unwrap().success());
        }
        managed
    }

    /// Writes their configurations, in which these have listeners for operators.
    fn configure(&self, operators: &BTreeMap<u64, String>) {
        let lines = self.addresses.iter().map(|(id, at)| format!("{id} = \"{at}\"\n"));
        let nodes: String = lines.collect();
        for (node, address) in &self.addresses {
            let data = self.directory.join(format!("data-{node}"));
            let admin = operators.get(node).map(|at| format!("admin-listen = \"{at}\"\n"));
            let config = format!(
                "node = {node}\nlisten = \"{address}\"\n{}data-dir = \"{}\"\n[nodes]\n{nodes}[shards]\n\
                 tables = 3\n",
                admin.unwrap_or_default(),
                data.display()
            );
            std::fs::write(self.directory.join(format!("{node}.toml")), config).unwrap();
        }
    }

    fn start_command(&self) -> String {
        let (program, at) = (env!("CARGO_BIN_EXE_shardhost"), self.directory.display());
        format!(
            "cd {at}; {program} serve --config $SHARDHOST_NODE.toml >/dev/null 2>>$SHARDHOST_NODE.log & \
             echo $! > $SHARDHOST_NODE.pid"
        )
    }

    fn restart_command(&self) -> String {
        let at = self.directory.display();
        format!(
            "old=$(cat {at}/$SHARDHOST_NODE.pid); kill -TERM $old; \
             while kill -0 $old 2>/dev/null; do sleep 0.05; done; {}",
            self.start_command()
        )
    }

    fn process(&self, node: u64) -> u32 {
        let path = self.directory.join(format!("{node}.pid"));
        std::fs::read_to_string(path).unwrap().trim().parse().unwrap()
    }

    fn at(&self) -> String {
        self.addresses.values().cloned().collect::<Vec<_>>().join(",")
    }
}

impl Drop for Managed<'_> {
    fn drop(&mut self) {
        for node in 1..=3 {
            let path = self.directory.join(format!("{node}.pid"));
            let text = std::fs::read_to_string(path).unwrap_or_default();
            if let Some(process) = text.trim().parse().ok().and_then(Pid::from_raw) {
                // It may have ended unexpectedly.
                kill_process(process, Signal::KILL).unwrap_or_default();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_host_of_a_running_cluster_is_restarted_by_a_command() {
    let directory = TempDir::new().unwrap();
    let cluster = Managed::start(directory.path(), Ipv4Addr::new(127, 0, 7, 1)).await;
    let at = cluster.at();
    for address in cluster.addresses.values() {
        until("it answers", || std::net::TcpStream::connect(address).is_ok()).await;
    }
    run(&["table", "put", "color", "blue", "--at", &at, "--timeout", "30"]).await.ok();
    let before = [1, 2, 3].map(|node| cluster.process(node));
    let command = cluster.restart_command();
    let rolled = run(&["rolling-restart", "--with", &command, "--at", &at, "--json"]).await.json();
    let nodes: Vec<&Value> = rolled.as_array().unwrap().iter().map(|one| &one["node"]).collect();
    assert_eq!(nodes, [1, 2, 3], "{rolled}");
    for process in before {
        await_gone(process).await;
    }
    let found = run(&["table", "get", "color", "--at", &at, "--timeout", "30"]).await.ok();
    assert_eq!(found.trim(), "blue");
    // The end of a drain is recorded first, and every node says it of itself a moment later.
    let draining = |node: &Value| node["draining"] == true;
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let status = run(&["status", "--at", &at, "--json"]).await.json();
        if !status["nodes"].as_array().unwrap().iter().any(draining) {
            break;
        }
        assert!(Instant::now() < deadline, "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_gives_a_cluster_listeners_for_operators_and_takes_them_away() {
    let directory = TempDir::new().unwrap();
    let cluster = Managed::start(directory.path(), Ipv4Addr::new(127, 0, 7, 2)).await;
    let (at, command) = (cluster.at(), cluster.restart_command());
    let operators = free_ports(Ipv4Addr::new(127, 0, 7, 3));
    let at_operators = operators.values().cloned().collect::<Vec<_>>().join(",");
    for (apart, before, after) in
        [(operators, &at, &at_operators), (BTreeMap::new(), &at_operators, &at)]
    {
        until_well(before).await;
        cluster.configure(&apart);
        let restart = ["rolling-restart", "--with", &command, "--at", before, "--timeout", "60"];
        run(&restart).await.ok();
        until_well(after).await;
        let wrong = run(&["status", "--at", before]).await;
        assert_ne!(wrong.code, 0, "{wrong:?}");
    }
}

/// Waits until all is well with a cluster.
async fn until_well(at: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let status = run(&["status", "--at", at]).await;
        if status.code == 0 {
            return;
        }
        assert!(Instant::now() < deadline, "{status:?}");
    }
}
