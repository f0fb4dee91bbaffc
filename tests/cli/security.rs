//! Clusters with certificates: who gets in, what each may do, and what happens to all others.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use shardhost::NodeId;
use shardhost_client::security::caller::Need;
use shardhost_client::security::channel::{Channel, Security, Token};
use shardhost_client::security::{Caller, Credentials, TlsFiles, User, rights};
use shardhost_client::{Client, ClientOptions};
use shardhost_proto::grants::Grant;
use shardhost_proto::methods::METHODS;
use shardhost_proto::version::ClusterVersion;
use tempfile::TempDir;
use tonic::Code;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;

use super::process::{Ended, Node, run};
use super::servers::Servers;

/// Certificates of a cluster, made by the program.
pub(super) struct Office {
    directory: TempDir,
}

impl Office {
    pub(super) async fn new(cluster: &str, nodes: u64) -> Self {
        let office = Self { directory: TempDir::new().unwrap() };
        office.make(&["ca", "--cluster", cluster]).await;
        for node in 1..=nodes {
            office.make(&["node", &node.to_string()]).await;
        }
        for (user, grants) in [
            ("root", "admin"),
            ("ann", "operator"),
            ("bob", "reader"),
            ("shop", "client"),
            ("tom", "table-read"),
        ] {
            office.make(&["user", user, "--grants", grants]).await;
        }
        office
    }

    async fn make(&self, arguments: &[&str]) -> String {
        let directory = self.path("").display().to_string();
        run(&[&["cert"], arguments, &["--dir", &directory]].concat()).await.ok()
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The flags that name a certificate.
    fn flags(&self, name: &str) -> Vec<String> {
        let file = |end: &str| self.path(&format!("{name}.{end}")).display().to_string();
        let ca = self.path("ca.pem").display().to_string();
        ["--tls-ca", &ca, "--tls-cert", &file("pem"), "--tls-key", &file("key")]
            .map(str::to_owned)
            .into()
    }

    fn start(&self, servers: &mut Servers, node: u64) {
        self.start_with(servers, node, &[]);
    }

    pub(super) fn start_with(&self, servers: &mut Servers, node: u64, more: &[&str]) {
        servers.set_environment(node, [("SHARDHOST_LOG", "warn,shardhost::audit=info")]);
        let flags = self.flags(&format!("node-{node}"));
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        servers.start(node, &[&flags, more].concat());
    }

    /// Runs a command as a user.
    pub(super) async fn run(&self, servers: &Servers, user: &str, arguments: &[&str]) -> Ended {
        self.run_at(servers.address(1), user, arguments).await
    }

    async fn run_at(&self, address: &str, user: &str, arguments: &[&str]) -> Ended {
        let flags = self.flags(user);
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        run(&[arguments, &flags, &["--at", address]].concat()).await
    }

    pub(super) async fn until(&self, servers: &Servers, user: &str, arguments: &[&str]) {
        let done = || async { self.run(servers, user, arguments).await.code == 0 };
        servers.until(&format!("{arguments:?}"), done).await;
    }
}

const SHARDS: &str = "tables = 2\nqueues = 1";
/// With the catalog.
const GROUPS: u64 = 4;

async fn three(office: &Office) -> Servers {
    let mut servers = Servers::new(3, "", SHARDS);
    for node in 1..=3 {
        office.start(&mut servers, node);
    }
    // All is well before the shards are created, too.
    let is_whole = || async {
        let shown = office.run(&servers, "root", &["status", "--json"]).await;
        let Ok(status) = serde_json::from_str::<Value>(&shown.stdout) else { return false };
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        shown.code == 0 && nodes.iter().all(|node| node["groups"] == GROUPS)
    };
    servers.until("all groups are there and led", is_whole).await;
    servers
}

#[tokio::test(flavor = "multi_thread")]
async fn each_user_may_do_what_its_certificate_grants() {
    let office = Office::new("shardhost", 3).await;
    let servers = three(&office).await;
    office.until(&servers, "shop", &["table", "put", "color", "red"]).await;
    let allowed: [(&str, &[&str]); 8] = [
        ("shop", &["queue", "send", "p", "body"]),
        ("tom", &["table", "get", "color"]),
        ("root", &["table", "get", "color"]),
        ("bob", &["status"]),
        ("bob", &["group", "list"]),
        ("ann", &["node", "list"]),
        ("ann", &["balance", "mode", "off"]),
        ("root", &["group", "require", "2000000", "fifo", "--even-if-ineligible"]),
    ];
    for (user, arguments) in allowed {
        let done = office.run(&servers, user, arguments).await;
        assert_eq!(done.code, 0, "{user} {arguments:?}: {done:?}");
    }
    let denied: [(&str, &[&str], &str); 8] = [
        (
            "tom",
            &["table", "put", "color", "blue", "--timeout", "3"],
            "lacks the grant table-write",
        ),
        ("tom", &["queue", "send", "p", "body", "--timeout", "3"], "lacks the grant queue-write"),
        ("shop", &["status"], "lacks the grant reader"),
        ("bob", &["balance", "mode", "off"], "lacks the grant operator"),
        ("bob", &["leader", "transfer", "1000000"], "lacks the grant operator"),
        ("ann", &["table", "get", "color", "--timeout", "3"], "lacks the grant table-read"),
        ("ann", &["group", "destroy", "1000001", "--expect", "0"], "lacks the grant admin"),
        ("ann", &["token", "make", "eve", "--grants", "admin"], "lacks the grant admin"),
    ];
    for (user, arguments, words) in denied {
        let refused = office.run(&servers, user, arguments).await;
        assert!(
            refused.code != 0 && refused.stderr.contains(words),
            "{user} {arguments:?}: {refused:?}"
        );
    }
    let got = office.run(&servers, "root", &["table", "get", "color"]).await.ok();
    assert_eq!(got.trim(), "red");
    // What operators did, and what was denied, is on record, with who did it.
    let all: String = (1..=3).map(|node| servers.log(node)).collect();
    for (who, words, outcome) in [
        ("user root (admin)", "even_if_ineligible: true", "Ok"),
        ("user ann (operator)", "SetPlannerMode", "Ok"),
        ("user bob (reader)", "TransferLeader", "PermissionDenied"),
        ("user ann (operator)", "PutToken", "PermissionDenied"),
    ] {
        let recorded = |line: &str| {
            line.contains("shardhost::audit")
                && line.contains(who)
                && line.contains(words)
                && line.contains(outcome)
        };
        assert!(all.lines().any(recorded), "{who} {words}: {all}");
    }
}

/// What a call without content comes to, as far as rights are concerned.
async fn denied(channel: Channel, path: &'static str) -> bool {
    let mut calls = tonic::client::Grpc::new(channel);
    calls.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let path = PathAndQuery::from_static(path);
    match calls.server_streaming(tonic::Request::new(()), path, codec).await {
        Ok(_) => false,
        Err(status) => matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated),
    }
}

/// Each call of each service, by each kind of caller. What is allowed and changes something is not called.
#[tokio::test(flavor = "multi_thread")]
async fn each_call_is_denied_to_all_callers_that_lack_its_right() {
    let office = Office::new("shardhost", 3).await;
    let servers = three(&office).await;
    let user =
        |grants: &str| Caller::User(User { name: "x".to_owned(), grants: grants.parse().unwrap() });
    let callers = [
        (None, Caller::Unknown),
        (Some("bob"), user("reader")),
        (Some("ann"), user("operator")),
        (Some("shop"), user("client")),
        (Some("tom"), user("table-read")),
        (Some("root"), user("admin")),
        (Some("node-2"), Caller::Node(NodeId::must(2))),
    ];
    let mut refused = 0;
    for (name, caller) in callers {
        let own = name
            .map(|name| (office.path(&format!("{name}.pem")), office.path(&format!("{name}.key"))));
        let credentials = Credentials::load(TlsFiles { ca: office.path("ca.pem"), own }).unwrap();
        let security = Security::without_token(credentials);
        let endpoint = Endpoint::from_shared(format!("http://{}", servers.address(1))).unwrap();
        let channel = security.now(&endpoint, None).await.unwrap();
        for path in METHODS.iter().copied().chain(["/grpc.health.v1.Health/Check"]) {
            let may = rights::check(&caller, path).is_ok();
            let harmless = matches!(
                rights::need(path).unwrap(),
                Need::Nothing | Need::Known | Need::User(Grant::Reader)
            );
            if !may || harmless {
                assert_eq!(denied(channel.clone(), path).await, !may, "{name:?} {path}");
                refused += usize::from(!may);
            }
        }
        let unknown = "/shardhost.admin.v1.Admin/Shell";
        let mut calls = tonic::client::Grpc::new(channel);
        calls.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<(), ()>::default();
        let asked = calls.unary(tonic::Request::new(()), PathAndQuery::from_static(unknown), codec);
        let code = asked.await.map(|_| ()).unwrap_err().code();
        assert!(matches!(code, Code::Unimplemented | Code::Unauthenticated), "{name:?}: {code:?}");
    }
    assert!(refused > 100, "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_certificate_or_another_one_gets_in_nowhere() {
    let office = Office::new("shardhost", 3).await;
    let stranger = Office::new("shardhost", 1).await;
    let mut servers = three(&office).await;
    let plain = servers.run(1, &["status"]).await;
    assert!(plain.code == 1 && plain.stderr.contains("TLS"), "{plain:?}");
    let ca = office.path("ca.pem").display().to_string();
    let unknown = servers.run(1, &["status", "--tls-ca", &ca]).await;
    assert!(
        unknown.code == 1 && unknown.stderr.contains("wants a certificate or a token"),
        "{unknown:?}"
    );
    let other = stranger.run(&servers, "root", &["status"]).await;
    assert!(other.code == 1 && other.stderr.contains("another authority"), "{other:?}");
    // A node with the certificate of another number is not started, nor is a user's a node's.
    servers.kill(3).await;
    for (name, words) in [("node-2", "is for shardhost://shardhost/node/2"), ("root", "/user/root")]
    {
        let flags = office.flags(name);
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        servers.start(3, &flags);
        assert!(!servers.end(3).await.success());
        servers.await_log(3, &[words]).await;
    }
    // One without TLS, and one of another authority, are not let in, and both sides say why.
    servers.start(3, &[]);
    servers.await_log(3, &["TLS"]).await;
    servers.await_log(1, &["it does not speak TLS, and this node does"]).await;
    servers.kill(3).await;
    stranger.make(&["node", "3"]).await;
    stranger.start(&mut servers, 3);
    servers.await_log(3, &["another authority"]).await;
    servers.kill(3).await;
    office.start(&mut servers, 3);
    office.until(&servers, "root", &["status"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_counts_until_it_is_removed_also_in_a_stream_that_is_open() {
    let office = Office::new("shardhost", 3).await;
    let servers = three(&office).await;
    let made = ["token", "make", "worker", "--grants", "client", "--json"];
    let raised = || async {
        let shown = office.run(&servers, "root", &["cluster", "version", "--json"]).await;
        shown.code == 0 && shown.json()["version"] == ClusterVersion::NEWEST.get()
    };
    servers.until("tokens are known", raised).await;
    let made = office.run(&servers, "root", &made).await.json();
    let (id, text) = (made["id"].as_str().unwrap(), made["token"].as_str().unwrap());
    let file = office.path("token");
    std::fs::write(&file, format!("{text}\n")).unwrap();
    let ca = office.path("ca.pem").display().to_string();
    let file = file.display().to_string();
    let as_worker = ["--tls-ca", &ca, "--token-file", &file];
    let put = [&["table", "put", "color", "red"][..], &as_worker].concat();
    let done = || async { servers.run(1, &put).await.code == 0 };
    servers.until("the token is known", done).await;
    let denied = servers.run(1, &[&["status"][..], &as_worker].concat()).await;
    assert!(
        denied.stderr.contains("user worker (table-read,") && denied.stderr.contains("lacks"),
        "{denied:?}"
    );
    let listed = office.run(&servers, "root", &["token", "list"]).await.ok();
    assert!(listed.contains(id) && listed.contains("worker"), "{listed}");
    let secret = text.rsplit('-').next().unwrap();
    assert!(!listed.contains(secret));

    let credentials = Credentials::load(TlsFiles { ca: ca.clone().into(), own: None }).unwrap();
    let security = Security { credentials: Some(credentials), token: Token::new(text) };
    let deadline = Duration::from_secs(3);
    let options = ClientOptions { deadline, security, ..ClientOptions::default() };
    let client = Client::connect([servers.address(1).to_owned()], options).await.unwrap();
    let table = client.table();
    // Its streams are open from here on.
    for key in 0..32 {
        table.put(format!("key-{key}"), "value").await.unwrap();
    }
    office.run(&servers, "root", &["token", "remove", id]).await.ok();
    let refused = || async {
        let outcomes =
            futures::future::join_all((0..32).map(|key| table.put(format!("key-{key}"), "late")))
                .await;
        outcomes.iter().all(Result::is_err)
    };
    servers.until("no stream takes anything any more", refused).await;
    let refused = servers.run(1, &put).await;
    assert!(
        refused.code != 0 && refused.stderr.contains("the token is not known here"),
        "{refused:?}"
    );
    for node in 1..=3 {
        assert!(!servers.log(node).contains(secret), "a secret is in the log of node {node}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_with_its_certificate_and_certificates_are_replaced_while_it_runs() {
    let office = Office::new("shardhost", 3).await;
    let mut servers = three(&office).await;
    office.make(&["node", "7"]).await;
    let data = servers.directory().join("seventh").display().to_string();
    let seed = servers.address(1).to_owned();
    let flags = office.flags("node-7");
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    // Its certificate names its number.
    let seventh = Node::joining(&data, &[&["--join", &seed][..], &flags].concat()).await;
    assert_eq!(seventh.number(), 7);
    let serves = || async {
        let listed = office.run(&servers, "root", &["node", "list", "--json"]).await;
        listed.code == 0 && listed.json()["nodes"][3]["state"] == "serves"
    };
    servers.until("the node that joined serves", serves).await;

    // Another certificate of the same node, and then another authority beside the first.
    let before = certificate(&office.path("node-1.pem"));
    for end in ["pem", "key"] {
        std::fs::remove_file(office.path(&format!("node-1.{end}"))).unwrap();
    }
    office.make(&["node", "1", "--days", "30"]).await;
    assert_ne!(certificate(&office.path("node-1.pem")), before);
    let status = ["status", "--json"];
    let taken = || async {
        let shown = office.run(&servers, "root", &status).await;
        let days = shown.json()["nodes"][0]["certificate_days"].as_u64();
        days.is_some_and(|days| days <= 30)
    };
    servers.until("the new certificate is in use", taken).await;
    // Everyone connects anew.
    for node in 2..=3 {
        servers.kill(node).await;
        office.start(&mut servers, node);
    }
    office.until(&servers, "shop", &["table", "put", "color", "red"]).await;
    office.until(&servers, "root", &["status"]).await;
    seventh.stop().await;
}

fn certificate(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn where_others_reach_it_a_node_without_certificates_is_started_on_purpose_only() {
    let directory = TempDir::new().unwrap();
    let data = directory.path().join("data").display().to_string();
    let serve = ["serve", "--data-dir", &data, "--listen", "0.0.0.0:0"];
    let refused = run(&serve).await;
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(
        refused.stderr.contains("--insecure") && refused.stderr.contains("shardhost cert"),
        "{refused:?}"
    );
    let node = Node::start(&data, &["--listen", "0.0.0.0:0", "--insecure"]).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_made_once_and_say_whose_they_are() {
    let office = Office::new("shop", 1).await;
    let shown = run(&["cert", "show", &office.path("node-1.pem").display().to_string()]).await.ok();
    assert!(shown.contains("shardhost://shop/node/1: valid for 36"), "{shown}");
    let directory = office.path("").display().to_string();
    for arguments in [
        &["ca"][..],
        &["node", "1"],
        &["user", "ann", "--grants", "reader"],
        &["user", "ca", "--grants", "reader"],
        &["user", "../x", "--grants", "reader"],
        &["user", "eve", "--grants", "root"],
        &["node", "0"],
        &["node", "2", "--days", "0"],
    ] {
        let refused = run(&[&["cert"], arguments, &["--dir", &directory]].concat()).await;
        assert_ne!(refused.code, 0, "{arguments:?}: {refused:?}");
        assert!(!refused.stderr.contains("panicked"), "{refused:?}");
    }
    let key = std::fs::metadata(office.path("ca.key")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&key.permissions()) & 0o777, 0o600);
    let half = run(&["status", "--tls-cert", &office.path("ann.pem").display().to_string()]).await;
    assert!(half.code == 2 && half.stderr.contains("belong together"), "{half:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_go_from_node_to_node_over_listeners_of_their_own() {
    let office = Office::new("shardhost", 3).await;
    let mut servers = Servers::new(3, "planner = \"off\"", SHARDS);
    let [admin, clients] = [(); 2].map(|()| servers.free_beside(1));
    let second = servers.free_beside(2);
    office.start_with(&mut servers, 1, &["--admin-listen", &admin, "--client-listen", &clients]);
    office.start_with(&mut servers, 2, &["--admin-listen", &second]);
    office.start(&mut servers, 3);
    let well = || async { office.run_at(&admin, "bob", &["status"]).await.code == 0 };
    servers.until("a cluster without problems", well).await;
    for to in ["1", "2", "3"] {
        let transfer = ["leader", "transfer", "1000000", "--to", to];
        let moved = || async { office.run_at(&admin, "ann", &transfer).await.code == 0 };
        servers.until(&format!("node {to} leads"), moved).await;
        let drained =
            || async { office.run_at(&second, "ann", &["drain", "begin", to]).await.code == 0 };
        servers.until(&format!("node {to} is drained"), drained).await;
        office.run_at(&second, "ann", &["drain", "end", to]).await.ok();
    }
    for (user, command) in [
        ("bob", &["node", "list"][..]),
        ("bob", &["group", "list"]),
        ("bob", &["replicas", "status"]),
        ("root", &["replicas", "rule", "set", "all", "--all", "--voters", "3"]),
    ] {
        office.run_at(&admin, user, command).await.ok();
    }
    let drained = office.run_at(&admin, "bob", &["drain", "begin", "2"]).await;
    assert!(drained.code != 0 && drained.stderr.contains("lacks the grant"), "{drained:?}");
    let put = |address| office.run_at(address, "shop", &["table", "put", "color", "red"]);
    put(&clients).await.ok();
    let refused = put(&admin).await;
    assert!(refused.code != 0 && refused.stderr.contains(&clients), "{refused:?}");
    let status = office.run_at(servers.address(1), "bob", &["status"]).await;
    assert!(
        status
            .stderr
            .starts_with(&format!("error: {}: this address is for nodes; ", servers.address(1))),
        "{status:?}"
    );
    assert!(status.stderr.contains(&admin), "{status:?}");
}
