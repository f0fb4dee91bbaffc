//! Which nodes may talk to each other: the checks of `Hello` and `Welcome`, as pure functions.
//!
//! Nothing here knows streams or what was seen before; incarnations are compared in `starts`.

use shardhost_groups::transport::Lane;
use shardhost_proto::PROTOCOL_VERSION;
use shardhost_proto::peer::{Advertisement, Frame, Hello, Lane as WireLane, Welcome};
use shardhost_proto::version::ClusterVersion;
use shardhost_storage::NodeId;
use tonic::Status;

use super::founded::FoundedBy;
use super::map_tag::{self, MapTag};
use super::starts::{CLOCKS_DIFFER, MOST_STARTS_TOLD};
use super::versions::Versions;
use crate::data_dir::BEGINNING;

/// The claimed identity of this process.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub cluster: String,
    pub node: NodeId,
    pub incarnation: u64,
    /// The starts that the data directory knew before this one, the newest first.
    pub earlier_starts: Vec<u64>,
    pub address: String,
    /// Where clients reach this node, if not there.
    pub client_address: Option<String>,
    /// The same for operators.
    pub admin_address: Option<String>,
    /// The map of shards, where the cluster has no catalog.
    pub shard_map: Option<MapTag>,
    pub founded: FoundedBy,
    pub versions: Versions,
}

/// A peer knows of a start of this node that its data directory does not: it is an older copy, or a new
/// one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rollback {
    pub by: NodeId,
    /// The start that it saw.
    pub known: u64,
    /// The last start before that one that the directory knew; 0: the directory is a new one.
    pub held: u64,
}

/// A peer whose greeting was in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Greeting {
    pub node: NodeId,
    pub incarnation: u64,
    /// The newest starts of its data directory, this one first; empty: it did not say.
    pub starts: Vec<u64>,
}

/// Why a peer is refused. Each names what was found and what was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The peer speaks another version. Upgrade the older host.
    #[error("the peer speaks protocol {theirs}, this host speaks {ours}")]
    Protocol { theirs: u32, ours: u32 },
    /// The peer belongs to another cluster. Correct the addresses of one of them.
    #[error("the peer belongs to cluster {theirs:?}, this host to {ours:?}")]
    Cluster { theirs: String, ours: String },
    /// An address leads to another node than it should. Correct the directory.
    #[error("node {wanted} was meant, but node {found} was reached")]
    WrongNode {
        /// The node that should be there.
        wanted: u64,
        /// The node that is there.
        found: u64,
    },
    /// The peer is not in the directory of this host. Add it, or leave it out on purpose.
    #[error("node {node} is not in the directory of node {by}: it is new there, or was removed")]
    UnknownNode { node: u64, by: NodeId },
    /// The peer has another map of shards. Make the numbers of shards equal.
    #[error("the peer has {theirs}, this host {ours}; make the numbers of shards equal")]
    ShardMap { theirs: String, ours: String },
    /// The peer's cluster has the same name and was created on other disks: the data directories of
    /// two clusters are mixed. Put them where they belong.
    #[error(
        "the peer's cluster was founded on other disks than this one: they are two clusters of one name; \
         see that each node has its own data directory"
    )]
    OtherFounding,
    /// The peer's program does not know the version of this cluster. Start a later program there.
    #[error(
        "the peer takes part in clusters up to version {theirs}, this one is at version {cluster}; start a \
         later program there"
    )]
    OlderVersion { theirs: ClusterVersion, cluster: ClusterVersion },
    /// The peer's cluster is at a version that this program does not know. Start a later program here.
    #[error(
        "the peer's cluster is at version {cluster}, this node takes part up to version {ours}; start a later \
         program here"
    )]
    NewerVersion { cluster: ClusterVersion, ours: ClusterVersion },
    /// The certificate of the connection is another node's. Give each node the certificate with its number.
    #[error("node {greets} greets, and the certificate of its connection is for {certified}")]
    OtherCertificate { greets: u64, certified: String },
    /// A later start of the same node was seen: the older process must end.
    #[error("node {node} greets with incarnation {theirs}, but {seen} was already seen")]
    OldIncarnation {
        node: NodeId,
        /// The incarnation in the greeting.
        theirs: u64,
        /// The incarnation that represents the node.
        seen: u64,
        /// The newest incarnation from which messages were taken; 0: none.
        known: u64,
    },
    /// Another process of the same node lives, with a data directory that the greeting one is no
    /// successor of. End one of the two; a node whose disk was lost is let in when it was silent
    /// for the liveness timeout.
    #[error(
        "node {node} greets with incarnation {theirs}, but the process with incarnation {seen} \
         lives, which its data directory does not know: two processes have one node number"
    )]
    SecondProcess {
        node: NodeId,
        /// The incarnation in the greeting.
        theirs: u64,
        /// The incarnation that represents the node.
        seen: u64,
    },
    /// An incarnation is a time, and this one is further ahead than clocks may differ. Set the
    /// clocks of both nodes. The `incarnation` file of a data directory that was started with such
    /// a clock keeps the start.
    #[error(
        "node {node} greets with incarnation {theirs}, which is {} h later than the clock of this \
         host allows ({} h ahead)", hours(theirs, latest), CLOCKS_DIFFER.as_secs() / 3600
    )]
    AheadOfClock {
        node: NodeId,
        /// The incarnation in the greeting.
        theirs: u64,
        /// The latest that is believed.
        latest: u64,
    },
    /// A peer reports a start of this node that is impossible: it is further ahead than clocks may
    /// differ. Set the clocks of both nodes.
    #[error(
        "node {by} says that it knows incarnation {known} of this node, which is {} h later than \
         the clock of this host allows ({} h ahead)", hours(known, latest),
        CLOCKS_DIFFER.as_secs() / 3600
    )]
    KnownAheadOfClock {
        by: NodeId,
        /// The reported incarnation.
        known: u64,
        /// The latest that is believed.
        latest: u64,
    },
    /// The first frame carries no greeting, or not only one.
    #[error("the first frame must carry a hello and nothing else")]
    NoHello,
    /// The greeting names no lane.
    #[error("the greeting names lane {lane}, which is unknown")]
    UnknownLane {
        /// The number in the greeting.
        lane: i32,
    },
    /// No greeting, or no answer to it, came in time.
    #[error("the handshake took longer than {within:?}")]
    Late { within: std::time::Duration },
}

/// How much later a start is than another one, in whole hours and at least one: the text of a
/// refusal that is repeated should be the same.
const fn hours(later: &u64, than: &u64) -> u64 {
    later.saturating_sub(*than).div_ceil(3_600_000_000)
}

/// In a refused greeting: the newest incarnation of the greeting node that is known.
const KNOWN_INCARNATION: &str = "known-incarnation";

/// The newest incarnation of this node that a peer knew which refused a greeting; 0: it did not
/// say.
pub(super) fn known_of_refusal(status: &Status) -> u64 {
    let known = status.metadata().get(KNOWN_INCARNATION);
    known.and_then(|known| known.to_str().ok()?.parse().ok()).unwrap_or(0)
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let text = refusal.to_string();
        match refusal {
            Refusal::OldIncarnation { known, .. } => {
                let mut status = Self::failed_precondition(text);
                status.metadata_mut().insert(KNOWN_INCARNATION, known.into());
                status
            }
            Refusal::NoHello | Refusal::UnknownLane { .. } => Self::invalid_argument(text),
            Refusal::Late { .. } => Self::deadline_exceeded(text),
            _ => Self::failed_precondition(text),
        }
    }
}

impl Identity {
    /// The greeting of a lane to `to`, with this node's advertisement; that of a snapshot stream
    /// has neither.
    pub fn hello(
        &self,
        to: NodeId,
        lane: Option<Lane>,
        advertisement: Option<Advertisement>,
        known_incarnation: u64,
    ) -> Hello {
        let lane = match lane {
            Some(Lane::Bulk) => WireLane::Bulk,
            Some(Lane::Urgent) => WireLane::Urgent,
            None => WireLane::Unspecified,
        };
        Hello {
            protocol: PROTOCOL_VERSION,
            cluster: self.cluster.clone(),
            node: self.node.get(),
            incarnation: self.incarnation,
            to_node: to.get(),
            lane: lane.into(),
            address: self.address.clone(),
            client_address: self.client_address.clone().unwrap_or_default(),
            admin_address: self.admin_address.clone().unwrap_or_default(),
            advertisement,
            known_incarnation,
            shard_map: self.shard_map.as_ref().map(MapTag::to_wire),
            starts: self.starts(),
            // Messages of the urgent lane are small, and a silent peer is lost.
            wants_taken: lane == WireLane::Bulk,
            founding: self.founded.get(),
            newest_version: self.versions.newest().get(),
            cluster_version: self.versions.cluster_number(),
        }
    }

    /// The newest starts of the data directory, this one first.
    fn starts(&self) -> Vec<u64> {
        let earlier = self.earlier_starts.iter().filter(|start| **start != BEGINNING);
        let earlier = earlier.take(MOST_STARTS_TOLD - 1);
        std::iter::once(&self.incarnation).chain(earlier).copied().collect()
    }

    /// The answer to a greeting that was in order.
    pub fn welcome(&self, known_incarnation: u64, hello: &Hello) -> Welcome {
        Welcome {
            protocol: PROTOCOL_VERSION,
            cluster: self.cluster.clone(),
            node: self.node.get(),
            incarnation: self.incarnation,
            known_incarnation,
            tells_taken: hello.wants_taken,
            taken_frames: 0,
            founding: self.founded.get(),
            newest_version: self.versions.newest().get(),
            cluster_version: self.versions.cluster_number(),
        }
    }

    /// What follows from the newest incarnation of this node that a peer knows. `latest` is the
    /// latest that it can be.
    pub fn check_known(
        &self,
        by: NodeId,
        known: u64,
        latest: u64,
    ) -> Result<Option<Rollback>, Refusal> {
        let starts = &self.earlier_starts;
        let oldest = starts.last().copied().unwrap_or(0);
        let ours = known <= oldest || known == self.incarnation || starts.contains(&known);
        let held = starts.iter().copied().find(|start| *start < known).unwrap_or(BEGINNING);
        if !ours && known > latest {
            return Err(Refusal::KnownAheadOfClock { by, known, latest });
        }
        Ok((!ours).then_some(Rollback { by, known, held }))
    }

    /// Checks a greeting. Whether the node is known is the caller's to check.
    pub fn check_hello(&self, hello: &Hello) -> Result<Greeting, Refusal> {
        self.check_side(hello.protocol, &hello.cluster)?;
        if hello.to_node != self.node.get() {
            return Err(Refusal::WrongNode { wanted: hello.to_node, found: self.node.get() });
        }
        self.check_founding(hello.founding)?;
        self.versions.check(hello.newest_version, hello.cluster_version)?;
        map_tag::check(self.shard_map.as_ref(), hello.shard_map.as_ref())?;
        match NodeId::new(hello.node).filter(|node| *node != self.node) {
            Some(node) => {
                let starts = hello.starts.iter().take(MOST_STARTS_TOLD).copied().collect();
                Ok(Greeting { node, incarnation: hello.incarnation, starts })
            }
            None => Err(Refusal::UnknownNode { node: hello.node, by: self.node }),
        }
    }

    /// Checks the answer to a greeting that was sent to `to`.
    pub fn check_welcome(&self, welcome: &Welcome, to: NodeId) -> Result<Greeting, Refusal> {
        self.check_side(welcome.protocol, &welcome.cluster)?;
        if welcome.node != to.get() {
            return Err(Refusal::WrongNode { wanted: to.get(), found: welcome.node });
        }
        self.check_founding(welcome.founding)?;
        self.versions.check(welcome.newest_version, welcome.cluster_version)?;
        Ok(Greeting { node: to, incarnation: welcome.incarnation, starts: Vec::new() })
    }

    /// Checks which bootstrap a peer's cluster comes from; 0: it does not know.
    pub fn check_founding(&self, said: u64) -> Result<(), Refusal> {
        self.founded.may_be(said).then_some(()).ok_or(Refusal::OtherFounding)
    }

    fn check_side(&self, protocol: u32, cluster: &str) -> Result<(), Refusal> {
        if protocol != PROTOCOL_VERSION {
            return Err(Refusal::Protocol { theirs: protocol, ours: PROTOCOL_VERSION });
        }
        if cluster != self.cluster {
            let theirs = cluster.chars().take(LONGEST_NAME_TOLD).collect();
            return Err(Refusal::Cluster { theirs, ours: self.cluster.clone() });
        }
        Ok(())
    }
}

/// A stranger's cluster name goes into logs and statuses up to this many characters.
const LONGEST_NAME_TOLD: usize = 64;

/// The greeting of a first frame.
pub(super) fn hello_of(first: Frame) -> Result<Hello, Refusal> {
    let alone = first.messages.is_empty() && first.heartbeat.is_none();
    first.hello.filter(|_| alone).ok_or(Refusal::NoHello)
}

/// The lane that a greeting names.
pub(super) fn lane_of(hello: &Hello) -> Result<Lane, Refusal> {
    match WireLane::try_from(hello.lane) {
        Ok(WireLane::Bulk) => Ok(Lane::Bulk),
        Ok(WireLane::Urgent) => Ok(Lane::Urgent),
        _ => Err(Refusal::UnknownLane { lane: hello.lane }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(node: u64) -> Identity {
        Identity {
            cluster: "blue".into(),
            node: NodeId::must(node),
            incarnation: 7,
            earlier_starts: vec![5, 3],
            address: "127.0.0.1:1".into(),
            client_address: None,
            admin_address: None,
            shard_map: None,
            founded: FoundedBy::default(),
            versions: Versions::up_to(ClusterVersion::NEWEST),
        }
    }

    fn hello() -> Hello {
        identity(1).hello(NodeId::must(2), Some(Lane::Bulk), None, 0)
    }

    #[test]
    fn a_greeting_in_order_names_its_node_and_incarnation() {
        let greeting = identity(2).check_hello(&hello()).unwrap();
        let starts = vec![7, 5, 3];
        assert_eq!(greeting, Greeting { node: NodeId::must(1), incarnation: 7, starts });
    }

    #[test]
    fn every_mismatch_of_a_greeting_names_both_sides() {
        type Spoil = fn(&mut Hello);
        let cases: [(Spoil, &str); 5] = [
            (|h| h.protocol = 9, "the peer speaks protocol 9, this host speaks 1"),
            (|h| h.cluster = "red".into(), "cluster \"red\", this host to \"blue\""),
            (|h| h.to_node = 3, "node 3 was meant, but node 2 was reached"),
            (|h| h.node = 0, "node 0 is not in the directory of node 2"),
            (|h| h.node = 2, "node 2 is not in the directory of node 2"),
        ];
        for (spoil, told) in cases {
            let mut hello = hello();
            spoil(&mut hello);
            let refusal = identity(2).check_hello(&hello).unwrap_err().to_string();
            assert!(refusal.contains(told), "{refusal}");
        }
    }

    #[test]
    fn a_peer_with_another_map_of_shards_is_refused_with_both() {
        let with = |node, fingerprint, text: &str| {
            let shard_map = Some(MapTag { fingerprint, text: text.into() });
            Identity { shard_map, ..identity(node) }
        };
        let hello = |from: &Identity| from.hello(NodeId::must(2), Some(Lane::Bulk), None, 0);
        let eight = with(2, 8, "8 table shards");
        assert!(eight.check_hello(&hello(&with(1, 8, "8 table shards"))).is_ok());
        let refused = eight.check_hello(&hello(&with(1, 16, "16 table shards"))).unwrap_err();
        let text = refused.to_string();
        assert!(text.contains("the peer has 16 table shards, this host 8 table"), "{text}");
        // One that has a catalog, or is of an older version, compares nothing.
        assert!(eight.check_hello(&hello(&identity(1))).is_ok());
        assert!(identity(2).check_hello(&hello(&with(1, 16, "16 table shards"))).is_ok());
    }

    #[test]
    fn a_peer_of_another_founding_is_refused() {
        let founded = |by| {
            let one = identity(1);
            one.founded.set(by);
            one.hello(NodeId::must(2), Some(Lane::Bulk), None, 0)
        };
        let two = identity(2);
        assert!(two.check_hello(&founded(5)).is_ok(), "it does not know of its own");
        two.founded.set(7);
        assert_eq!(two.check_hello(&founded(5)), Err(Refusal::OtherFounding));
        assert!(two.check_hello(&founded(7)).is_ok());
        assert!(
            two.check_hello(&founded(0)).is_ok(),
            "one that was added, or of an earlier version"
        );
    }

    #[test]
    fn an_answer_of_another_founding_is_refused() {
        let (one, two) = (identity(1), identity(2));
        two.founded.set(7);
        let welcome = two.welcome(0, &hello());
        assert!(one.check_welcome(&welcome, two.node).is_ok(), "it does not know of its own");
        one.founded.set(5);
        assert_eq!(one.check_welcome(&welcome, two.node), Err(Refusal::OtherFounding));
        let older = Welcome { founding: 0, ..welcome };
        assert!(one.check_welcome(&older, two.node).is_ok(), "one of an earlier version");
    }

    #[test]
    fn a_welcome_from_another_node_or_cluster_is_refused() {
        let to = NodeId::must(2);
        let mut welcome = identity(2).welcome(0, &hello());
        assert!(identity(1).check_welcome(&welcome, to).is_ok());
        welcome.node = 3;
        assert_eq!(
            identity(1).check_welcome(&welcome, to),
            Err(Refusal::WrongNode { wanted: 2, found: 3 })
        );
        welcome.cluster = "red".into();
        assert!(matches!(identity(1).check_welcome(&welcome, to), Err(Refusal::Cluster { .. })));
    }

    #[test]
    fn a_start_that_the_directory_does_not_know_shows_that_it_was_rolled_back() {
        let (own, by) = (identity(1), NodeId::must(2));
        // What the directory knows or has forgotten, and this start itself.
        for known in [0, 1, 3, 5, 7] {
            assert_eq!(own.check_known(by, known, 8), Ok(None), "{known}");
        }
        for (known, held) in [(4, 3), (6, 5), (8, 5)] {
            let rollback = Rollback { by, known, held };
            assert_eq!(own.check_known(by, known, 8), Ok(Some(rollback)));
        }
        // It would be kept as a start of the directory, and no start is later than that.
        for known in [9, u64::MAX] {
            let refused = Refusal::KnownAheadOfClock { by, known, latest: 8 };
            assert_eq!(own.check_known(by, known, 8), Err(refused));
        }
    }

    /// The new directory was started before, and no peer answered.
    #[test]
    fn a_start_before_the_first_of_the_directory_shows_that_the_disk_is_a_new_one() {
        let by = NodeId::must(2);
        let of = |starts: &[u64]| Identity { earlier_starts: starts.to_vec(), ..identity(1) };
        let lost = Some(Rollback { by, known: 4, held: 0 });
        assert_eq!(of(&[]).check_known(by, 4, 8), Ok(lost), "started for the first time");
        assert_eq!(of(&[5, BEGINNING]).check_known(by, 4, 8), Ok(lost));
        assert_eq!(of(&[5, BEGINNING]).check_known(by, 0, 8), Ok(None), "it knows none");
        let copy = Some(Rollback { by, known: 4, held: 3 });
        assert_eq!(of(&[5, 3, BEGINNING]).check_known(by, 4, 8), Ok(copy));
        assert_eq!(of(&[5]).check_known(by, 4, 8), Ok(None), "the list of an earlier version");
        let hello = of(&[5, BEGINNING]).hello(by, Some(Lane::Bulk), None, 0);
        assert_eq!(hello.starts, [7, 5]);
    }

    #[test]
    fn the_refusal_of_an_old_incarnation_says_which_one_is_known() {
        let node = NodeId::must(1);
        let refused = Status::from(Refusal::OldIncarnation { node, theirs: 4, seen: 6, known: 5 });
        assert_eq!(known_of_refusal(&refused), 5);
        assert_eq!(known_of_refusal(&Status::from(Refusal::NoHello)), 0);
    }

    #[test]
    fn a_first_frame_with_more_than_a_hello_is_refused() {
        let alone = Frame { hello: Some(hello()), ..Frame::default() };
        assert!(hello_of(alone.clone()).is_ok());
        let crowded = Frame { messages: vec![Default::default()], ..alone };
        assert_eq!(hello_of(crowded), Err(Refusal::NoHello));
        assert_eq!(hello_of(Frame::default()), Err(Refusal::NoHello));
    }

    #[test]
    fn a_greeting_without_a_lane_is_refused() {
        let nowhere = identity(1).hello(NodeId::must(2), None, None, 0);
        assert_eq!(lane_of(&nowhere), Err(Refusal::UnknownLane { lane: 0 }));
        assert_eq!(lane_of(&hello()), Ok(Lane::Bulk));
    }

    #[test]
    fn a_strangers_endless_cluster_name_is_told_in_part_only() {
        let mut hello = hello();
        hello.cluster = "x".repeat(1 << 20);
        let refusal = identity(2).check_hello(&hello).unwrap_err();
        assert!(refusal.to_string().len() < 200);
    }
}
