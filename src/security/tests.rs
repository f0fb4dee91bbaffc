//! Both sides of a connection, with certificates that are in order and with all that are not.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use shardhost_proto::grants::Grants;
use shardhost_proto::ids::NodeId;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::accept::Accepting;
use super::connect::connect;
use super::make::{Made, MakeError, authority, sign, sign_from, whole_cluster};
use super::{Caller, CredentialError, Credentials, Identity, TlsFiles};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A directory of certificates of a cluster.
struct Office {
    directory: TempDir,
    authority: Made,
    cluster: &'static str,
}

impl Office {
    fn new(cluster: &'static str) -> Self {
        let (directory, authority) = (TempDir::new().unwrap(), authority(cluster, DAY).unwrap());
        let office = Self { directory, authority, cluster };
        std::fs::write(office.path("ca.pem"), &office.authority.certificate).unwrap();
        office
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn files(&self, name: &str) -> TlsFiles {
        TlsFiles::in_directory(self.directory.path(), name)
    }

    fn write(&self, name: &str, made: &Made) {
        let (certificate, key) = self.files(name).own.unwrap();
        std::fs::write(certificate, &made.certificate).unwrap();
        std::fs::write(key, &made.key).unwrap();
    }

    fn identity(&self, node: u64) -> Identity {
        Identity::of_node(self.cluster, NodeId::must(node)).unwrap()
    }

    fn node(&self, node: u64) -> Credentials {
        let name = format!("node-{node}");
        self.write(&name, &sign(&self.authority, &self.identity(node), DAY).unwrap());
        Credentials::load(self.files(&name)).unwrap()
    }

    fn user(&self, name: &str, grants: &str) -> Credentials {
        let identity = Identity::of_user(self.cluster, name, grants.parse().unwrap()).unwrap();
        self.write(name, &sign(&self.authority, &identity, DAY).unwrap());
        Credentials::load(self.files(name)).unwrap()
    }

    /// One that knows the authority and has no certificate.
    fn stranger(&self) -> Credentials {
        Credentials::load(TlsFiles { ca: self.path("ca.pem"), own: None }).unwrap()
    }
}

/// What both sides saw of a connection: who was accepted, and how the other side fared.
struct Met {
    accepted: Result<Caller, String>,
    connected: Result<(), String>,
}

async fn meet(listens: Option<&Credentials>, connects: &Credentials, meant: Option<u64>) -> Met {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let accept = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut accepted = Accepting::new(stream, listens).unwrap();
        let mut said = [0; 5];
        accepted.read_exact(&mut said).await.map_err(|error| error.to_string())?;
        accepted.write_all(b"there").await.map_err(|error| error.to_string())?;
        accepted.flush().await.map_err(|error| error.to_string())?;
        Ok(accepted.caller().get().cloned().unwrap())
    };
    let connect = async {
        let connected = connect(&address, connects, meant.map(NodeId::must)).await;
        let mut connected = connected.map_err(|error| error.to_string())?;
        connected.write_all(b"hello").await.map_err(|error| error.to_string())?;
        connected.flush().await.map_err(|error| error.to_string())?;
        let mut said = [0; 5];
        connected.read_exact(&mut said).await.map(drop).map_err(|error| error.to_string())
    };
    let (accepted, connected) = tokio::join!(accept, connect);
    Met { accepted, connected }
}

#[tokio::test]
async fn each_side_learns_who_the_other_one_is() {
    let office = Office::new("shop");
    let (one, two) = (office.node(1), office.node(2));
    let met = meet(Some(&one), &two, Some(1)).await;
    assert_eq!((met.accepted, met.connected), (Ok(Caller::Node(NodeId::must(2))), Ok(())));
    let ann = office.user("ann", "operator,table-read");
    let met = meet(Some(&one), &ann, None).await;
    assert_eq!(met.accepted.unwrap().to_string(), "user ann (operator,table-read)");
    let met = meet(Some(&one), &office.stranger(), None).await;
    assert_eq!((met.accepted, met.connected), (Ok(Caller::Unknown), Ok(())));
}

#[tokio::test]
async fn an_address_that_leads_to_another_node_is_noticed() {
    let office = Office::new("shop");
    let met = meet(Some(&office.node(1)), &office.node(2), Some(3)).await;
    let error = met.connected.unwrap_err();
    assert!(error.contains("node 3 was meant") && error.contains("shop/node/1"), "{error}");
    assert!(met.accepted.is_err());
}

#[tokio::test]
async fn another_authority_or_cluster_is_refused_by_both_sides() {
    let (shop, other) = (Office::new("shop"), Office::new("other"));
    let met = meet(Some(&shop.node(1)), &other.node(2), None).await;
    let error = met.connected.unwrap_err();
    assert!(error.contains("another authority"), "{error}");
    assert!(met.accepted.is_err());
    // Of the same authority, by mistake.
    let elsewhere = Identity::of_node("other", NodeId::must(2)).unwrap();
    shop.write("elsewhere", &sign(&shop.authority, &elsewhere, DAY).unwrap());
    let elsewhere = Credentials::load(shop.files("elsewhere")).unwrap();
    let met = meet(Some(&shop.node(1)), &elsewhere, None).await;
    let error = met.connected.unwrap_err();
    assert!(error.contains("cluster shop, this is cluster other"), "{error}");
    let met = meet(Some(&elsewhere), &shop.stranger(), None).await;
    assert!(met.connected.is_ok(), "who has no certificate asks for no name");
}

/// The client shows what it has only after it believed the server: the server refuses it.
#[tokio::test]
async fn a_caller_of_another_authority_is_refused_by_the_listener() {
    let (shop, other) = (Office::new("shop"), Office::new("shop"));
    let identity = Identity::of_user("shop", "eve", "admin".parse().unwrap()).unwrap();
    let made = sign(&other.authority, &identity, DAY).unwrap();
    // Its own authority and ours, so that it believes us.
    let both = format!("{}{}", other.authority.certificate, shop.authority.certificate);
    std::fs::write(other.path("ca.pem"), both).unwrap();
    other.write("eve", &made);
    let eve = Credentials::load(other.files("eve")).unwrap();
    let met = meet(Some(&shop.node(1)), &eve, None).await;
    assert!(met.accepted.is_err() && met.connected.is_err(), "{:?}", met.accepted);
}

#[tokio::test]
async fn a_user_is_no_node() {
    let office = Office::new("shop");
    let user = office.user("ann", "admin");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    assert!(Accepting::new(stream, Some(&user)).is_err(), "it cannot listen as a node");
    let wanted = user.check_node("shop", NodeId::must(1)).unwrap_err().to_string();
    assert!(wanted.contains("user/ann") && wanted.contains("node 1 of cluster shop"), "{wanted}");
}

#[tokio::test]
async fn who_speaks_tls_where_there_is_none_hears_of_it_and_the_other_way_round() {
    let office = Office::new("shop");
    let met = meet(None, &office.node(2), None).await;
    let (accepted, connected) = (met.accepted.unwrap_err(), met.connected.unwrap_err());
    assert!(accepted.contains("it speaks TLS, and this node does not"), "{accepted}");
    assert!(connected.contains("no TLS"), "{connected}");

    let (said, refused) = said_to(&office, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    assert!(refused.contains("does not speak TLS"), "{refused}");
    let text = String::from_utf8_lossy(&said).into_owned();
    assert!(text.contains("this node speaks TLS"), "{text}");
    assert!(said.ends_with(super::accept::WANTS_TLS_TEXT));
    // A frame of the length that it says: 9 of settings, 9 before 8 and the text.
    assert_eq!(said.len(), 9 + 9 + usize::from(said[11]), "{text:?}");
}

/// What a node with TLS says to one who begins with this, and why it refuses.
async fn said_to(office: &Office, begins: &[u8]) -> (Vec<u8>, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut plain = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    plain.write_all(begins).await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    let mut accepted = Accepting::new(stream, Some(&office.node(1))).unwrap();
    let listening = tokio::spawn(async move { accepted.read_u8().await.unwrap_err().to_string() });
    let mut said = Vec::new();
    plain.read_to_end(&mut said).await.unwrap();
    drop(plain);
    (said, listening.await.unwrap())
}

#[tokio::test]
async fn who_is_refused_hears_why_also_if_more_was_on_its_way() {
    let office = Office::new("shop");
    let begins = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &[0; 4_000]].concat();
    for _ in 0..50 {
        let (said, _) = said_to(&office, &begins).await;
        assert!(said.ends_with(super::accept::WANTS_TLS_TEXT), "{said:?}");
    }
}

#[tokio::test]
async fn a_certificate_that_is_not_valid_now_is_refused_where_it_is_read_and_by_the_others() {
    let office = Office::new("shop");
    let now = SystemTime::now();
    let expired = sign_from(&office.authority, &office.identity(1), now - 2 * DAY, DAY).unwrap();
    office.write("expired", &expired);
    let error = Credentials::load(office.files("expired")).unwrap_err();
    assert!(matches!(error, CredentialError::Expired { .. }), "{error}");
    assert!(error.to_string().contains("24 h ago"), "{error}");
    let early = sign_from(&office.authority, &office.identity(1), now + DAY, DAY).unwrap();
    office.write("early", &early);
    let error = Credentials::load(office.files("early")).unwrap_err();
    assert!(matches!(error, CredentialError::NotYet { .. }), "{error}");
    // One that expires while it is in use.
    let short =
        sign_from(&office.authority, &office.identity(1), now - DAY, DAY + Duration::from_secs(2));
    office.write("short", &short.unwrap());
    let short = Credentials::load(office.files("short")).unwrap();
    let (two, mut last) = (office.node(2), Ok(()));
    while last.is_ok() {
        assert!(now.elapsed().unwrap() < Duration::from_secs(60), "it is believed for ever");
        last = meet(Some(&short), &two, Some(1)).await.connected;
    }
    let error = last.unwrap_err();
    assert!(error.contains("its certificate expired"), "{error}");
    let met = meet(Some(&two), &short, Some(2)).await;
    assert!(met.accepted.is_err());
    let error = met.connected.unwrap_err();
    assert!(error.to_lowercase().contains("expired"), "{error}");
}

#[test]
fn files_that_do_not_fit_together_are_refused_by_name() {
    let (office, other) = (Office::new("shop"), Office::new("shop"));
    office.node(1);
    other.node(1);
    let files = office.files("node-1");
    let with = |change: &dyn Fn(&mut TlsFiles)| {
        let mut files = files.clone();
        change(&mut files);
        Credentials::load(files).unwrap_err()
    };
    let error = with(&|files| files.ca = other.path("ca.pem"));
    assert!(matches!(error, CredentialError::OtherAuthority { .. }), "{error}");
    let error = with(&|files| {
        let (_, key) = other.files("node-1").own.unwrap();
        files.own.as_mut().unwrap().1 = key;
    });
    assert!(matches!(error, CredentialError::OtherKey { .. }), "{error}");
    let pipe = office.path("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    let error = with(&|files| files.ca = pipe.clone());
    assert!(error.to_string().contains("it is no file"), "{error}");
    let error = with(&|files| files.ca = office.path("nowhere"));
    assert!(error.to_string().contains("nowhere"), "{error}");
    for (text, what) in [("", "certificate"), ("-----BEGIN CERTIFICATE-----\nxx", "certificate")] {
        std::fs::write(office.path("cut.pem"), text).unwrap();
        let error = with(&|files| files.ca = office.path("cut.pem"));
        assert!(
            matches!(error, CredentialError::Pem { .. }) && error.to_string().contains(what),
            "{error}"
        );
    }
    let error = with(&|files| files.own.as_mut().unwrap().0 = office.path("ca.pem"));
    assert!(matches!(error, CredentialError::Identity { .. }), "an authority is no node: {error}");
}

#[tokio::test]
async fn new_files_are_taken_once_they_fit_together_and_not_before() {
    let office = Office::new("shop");
    let (one, two) = (office.node(1), office.node(2));
    assert!(!one.reload().unwrap());
    let made = sign(&office.authority, &office.identity(1), 2 * DAY).unwrap();
    let (certificate, key) = office.files("node-1").own.unwrap();
    std::fs::write(&certificate, &made.certificate).unwrap();
    let half = one.reload().unwrap_err();
    assert!(matches!(half, CredentialError::OtherKey { .. }), "{half}");
    assert!(meet(Some(&one), &two, Some(1)).await.connected.is_ok(), "what was there is used");
    std::fs::write(&key, &made.key).unwrap();
    assert!(one.reload().unwrap());
    assert!(one.facts().unwrap().not_after > SystemTime::now() + DAY);
    assert!(meet(Some(&one), &two, Some(1)).await.connected.is_ok());
    // Another node's are a mistake.
    office.write("node-1", &sign(&office.authority, &office.identity(7), DAY).unwrap());
    let other = one.reload().unwrap_err();
    assert!(matches!(other, CredentialError::OtherIdentity { .. }), "{other}");
    assert!(meet(Some(&one), &two, Some(1)).await.connected.is_ok());
}

#[tokio::test]
async fn an_authority_is_replaced_by_way_of_both() {
    let (old, new) = (Office::new("shop"), Office::new("shop"));
    let (one, two) = (old.node(1), old.node(2));
    let both = format!("{}{}", old.authority.certificate, new.authority.certificate);
    std::fs::write(old.path("ca.pem"), both).unwrap();
    // All believe both before one shows a certificate of the new one.
    for credentials in [&one, &two] {
        assert!(credentials.reload().unwrap());
    }
    for (node, credentials) in [(1, &one), (2, &two)] {
        old.write(
            &format!("node-{node}"),
            &sign(&new.authority, &old.identity(node), DAY).unwrap(),
        );
        assert!(credentials.reload().unwrap());
        assert!(meet(Some(&one), &two, Some(1)).await.connected.is_ok());
    }
    std::fs::write(old.path("ca.pem"), &new.authority.certificate).unwrap();
    assert_eq!(one.removals(), 0, "another one beside it takes nothing");
    assert!(one.reload().unwrap());
    // Who looks next finds nothing new, and is to know all the same.
    assert!(!one.reload().unwrap());
    assert_eq!(one.removals(), 1);
    assert!(meet(Some(&one), &two, Some(1)).await.connected.is_ok());
}

/// Its holder could sign for anyone.
#[test]
fn a_certificate_that_is_no_authority_does_not_count_as_one() {
    let office = Office::new("shop");
    office.user("ann", "table-read");
    let ann = std::fs::read_to_string(office.path("ann.pem")).unwrap();
    let both = format!("{}{ann}", office.authority.certificate);
    std::fs::write(office.path("ca.pem"), both).unwrap();
    let error = Credentials::load(office.files("ann")).unwrap_err();
    assert!(error.to_string().contains("none of an authority"), "{error}");
}

#[test]
fn what_a_user_may_do_may_change() {
    let office = Office::new("shop");
    let ann = office.user("ann", "reader");
    office.user("ann", "operator");
    assert!(ann.reload().unwrap());
    let bob = Identity::of_user("shop", "bob", "reader".parse().unwrap()).unwrap();
    office.write("ann", &sign(&office.authority, &bob, DAY).unwrap());
    assert!(matches!(ann.reload(), Err(CredentialError::OtherIdentity { .. })));
}

#[tokio::test]
async fn a_connection_that_breaks_off_in_the_greeting_ends() {
    let office = Office::new("shop");
    let node = office.node(1);
    for said in [
        &b""[..],
        b"\x16",
        b"\x16\x03\x01\x02\x00garbage",
        b"\x16\x03\x01\xff\xff",
        b"GET / HTTP/1.1",
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        far.write_all(said).await.unwrap();
        far.shutdown().await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let mut accepted = Accepting::new(stream, Some(&node)).unwrap();
        let error = accepted.read_u8().await.unwrap_err();
        assert!(accepted.caller().get().is_none(), "{said:?}: {error}");
        let again = accepted.read_u8().await.unwrap_err();
        assert_ne!(again.kind(), ErrorKind::WouldBlock, "{said:?}");
    }
}

#[test]
fn an_authority_names_its_cluster() {
    let office = Office::new("shop");
    assert_eq!(super::make::cluster_of(&office.authority.certificate).unwrap(), "shop");
    let node = sign(&office.authority, &office.identity(1), DAY).unwrap();
    assert!(super::make::cluster_of(&node.certificate).is_err());
    assert!(authority("a b", DAY).is_err() && authority("x", 100 * 400 * DAY).is_err());
}

#[test]
fn secrets_are_not_shown() {
    let office = Office::new("shop");
    let credentials = office.node(1);
    let secret = std::fs::read_to_string(office.path("node-1.key")).unwrap();
    let body = secret.lines().nth(1).unwrap();
    for shown in [format!("{credentials:?}"), format!("{:?}", office.authority)] {
        assert!(!shown.contains(body) && !shown.contains("PRIVATE"), "{shown}");
    }
}

#[tokio::test]
async fn a_node_that_speaks_tls_alone_is_recognized() {
    let office = Office::new("shop");
    let (node, within) = (office.node(1), Duration::from_secs(20));
    for (credentials, wants) in [(Some(&node), true), (None, false)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let accept = async {
            let (stream, _) = listener.accept().await.unwrap();
            let mut accepted = Accepting::new(stream, credentials).unwrap();
            let mut said = [0; 24];
            // One without TLS hears how HTTP/2 begins, and ends the connection.
            assert_eq!(accepted.read_exact(&mut said).await.is_ok(), !wants);
        };
        let asked = super::connect::wants_tls(&address, within);
        let ((), found) = tokio::join!(accept, asked);
        assert_eq!(found, wants);
    }
}

#[test]
fn what_is_made_for_a_whole_cluster_fits_together_and_is_not_replaced() {
    use std::os::unix::fs::PermissionsExt;
    let place = TempDir::new().unwrap();
    let directory = place.path().join("certificates");
    let nodes = [1, 2].map(NodeId::must);
    let make = || whole_cluster(&directory, "shop", nodes, "ann", DAY);
    make().unwrap();
    for node in nodes {
        let files = TlsFiles::in_directory(&directory, &node.to_string());
        Credentials::load(files).unwrap().check_node("shop", node).unwrap();
    }
    let files = TlsFiles::in_directory(&directory, "ann");
    let (certificate, key) = files.own.as_ref().unwrap();
    let mode = std::fs::metadata(key).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "keys are for their owner alone");
    let ann = Credentials::load(files.clone()).unwrap().facts().unwrap().identity;
    assert_eq!(ann, Identity::of_user("shop", "ann", Grants::ALL).unwrap());
    assert!(!directory.join("ca.key").exists(), "there will be no others");
    let before = std::fs::read(key).unwrap();
    assert!(make().is_err());
    let other = sign(&authority("shop", DAY).unwrap(), &ann, DAY).unwrap();
    assert!(matches!(other.keep(&directory, "ann"), Err(MakeError::Exists(_))));
    std::fs::remove_file(certificate).unwrap();
    assert!(
        matches!(other.keep(&directory, "ann"), Err(MakeError::Exists(there)) if there == *key)
    );
    assert!(!certificate.exists() && std::fs::read(key).unwrap() == before);
}
