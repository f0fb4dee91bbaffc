//! Reports about a peer, and which of its processes is believed.

use super::*;
use shardhost_groups::transport::{Recipient, ShipmentOutcome};
use shardhost_proto::peer::GroupMessage;
use shardhost_storage::{GroupId, LogPosition, ReplicaId};

const TIMEOUT: Timeouts =
    Timeouts { calm: Duration::from_secs(1), suspected: Duration::from_millis(200) };

/// Nothing is ahead of the clock.
const LATEST: u64 = 1 << 40;

fn greeting(incarnation: u64) -> Greeting {
    let starts = (1..=incarnation).rev().collect();
    Greeting { node: NodeId::must(2), incarnation, starts }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Edge {
    Live(u64),
    /// By the one name in it.
    Said(u64, String),
    Lost,
}
use Edge::{Live, Lost};

#[derive(Debug, Default)]
struct Edges(Mutex<Vec<Edge>>);

impl Inbound for Edges {
    fn deliver(&self, _: NodeId, _: Vec<GroupMessage>) -> usize {
        0
    }
    fn snapshot_arrived(&self, _: NodeId, _: GroupMessage) {}
    fn wants_snapshot(&self, _: GroupId, _: ReplicaId, _: LogPosition) -> Option<Recipient> {
        None
    }
    fn snapshot_shipped(&self, _: GroupId, _: ReplicaId, _: ShipmentOutcome) {}
    fn peer_live(&self, _: NodeId, incarnation: u64) {
        self.0.lock().push(Live(incarnation));
    }
    fn peer_advertisement(&self, _: NodeId, incarnation: u64, advertisement: Advertisement) {
        let names = advertisement.capabilities.into_iter().collect::<String>();
        self.0.lock().push(Edge::Said(incarnation, names));
    }
    fn peer_lost(&self, _: NodeId) {
        self.0.lock().push(Lost);
    }
    fn unreachable(&self, _: NodeId, _: Vec<(GroupId, ReplicaId)>) {}
}

fn advertisement(name: &str) -> Advertisement {
    Advertisement { capabilities: [name.to_owned()].into(), ..Advertisement::default() }
}

fn said(incarnation: u64, name: &str) -> Edge {
    Edge::Said(incarnation, name.to_owned())
}

struct Case {
    edges: Arc<Edges>,
    inbound: Arc<dyn Inbound>,
    start: Instant,
    liveness: Liveness,
}

impl Case {
    fn new() -> Self {
        let edges = Arc::new(Edges::default());
        let inbound: Arc<dyn Inbound> = edges.clone();
        let start = Instant::now();
        let liveness = Liveness::new(NodeId::must(2), start, CancellationToken::new());
        Self { edges, inbound, start, liveness }
    }

    fn at(&self, milliseconds: u64) -> Instant {
        self.start + Duration::from_millis(milliseconds)
    }

    fn admit(&self, incarnation: u64, lane: Lane) -> Result<Visit, Refusal> {
        self.liveness.admit(&greeting(incarnation), LATEST, lane, None, self.start, &self.inbound)
    }

    /// Admits a stream whose greeting has one name of its node.
    fn admit_saying(&self, incarnation: u64, lane: Lane, name: &str) -> Visit {
        let said = Some(advertisement(name));
        self.liveness
            .admit(&greeting(incarnation), LATEST, lane, said, self.start, &self.inbound)
            .unwrap()
    }

    fn says(&self, visit: &Visit, name: &str) {
        self.liveness.said(visit, advertisement(name), &self.inbound);
    }

    fn heard_at(&self, milliseconds: u64, visit: &Visit) {
        self.liveness.heard(visit, self.at(milliseconds), &self.inbound);
    }

    fn judge_at(&self, milliseconds: u64) {
        self.liveness.judge(self.at(milliseconds), TIMEOUT, &self.inbound);
    }

    fn edges(&self) -> Vec<Edge> {
        self.edges.0.lock().clone()
    }
}

#[test]
fn silence_for_the_timeout_is_loss_and_a_frame_is_life_again() {
    let case = Case::new();
    let visit = case.admit(1, Lane::Urgent).unwrap();
    case.judge_at(999);
    assert_eq!(case.edges(), [Live(1)]);
    case.judge_at(1000);
    case.judge_at(2000);
    assert_eq!(case.edges(), [Live(1), Lost]);
    case.heard_at(2001, &visit);
    assert_eq!(case.edges(), [Live(1), Lost, Live(1)]);
}

#[test]
fn a_suspicion_shortens_the_patience_until_the_next_frame() {
    let case = Case::new();
    let visit = case.admit(1, Lane::Urgent).unwrap();
    case.liveness.suspect();
    case.judge_at(199);
    case.heard_at(199, &visit);
    case.judge_at(500);
    assert_eq!(case.edges(), [Live(1)]);
    case.liveness.suspect();
    case.judge_at(501);
    assert_eq!(case.edges(), [Live(1), Lost]);
}

#[test]
fn a_new_incarnation_is_told_and_ends_the_streams_of_the_old_one() {
    let case = Case::new();
    let bulk = case.admit(1, Lane::Bulk).unwrap();
    let urgent = case.admit(1, Lane::Urgent).unwrap();
    case.admit(2, Lane::Urgent).unwrap();
    assert!(bulk.ended.is_cancelled() && urgent.ended.is_cancelled());
    assert_eq!(case.edges(), [Live(1), Live(2)]);
}

#[test]
fn a_frame_of_an_ended_stream_is_no_life() {
    let case = Case::new();
    let visit = case.admit(1, Lane::Urgent).unwrap();
    case.judge_at(1000);
    visit.ended.cancel();
    case.heard_at(1001, &visit);
    assert_eq!(case.edges(), [Live(1), Lost]);
}

#[test]
fn an_old_incarnation_is_refused_also_when_only_an_answer_told_of_the_new_one() {
    let case = Case::new();
    case.liveness.welcomed(&greeting(5), None, LATEST).unwrap();
    let refusal = case.admit(4, Lane::Bulk).unwrap_err();
    let (node, known) = (NodeId::must(2), 0);
    assert_eq!(refusal, Refusal::OldIncarnation { node, theirs: 4, seen: 5, known });
    assert!(case.edges().is_empty());
}

#[test]
fn a_second_stream_of_a_lane_ends_the_first_and_leaves_the_other_lane() {
    let case = Case::new();
    let bulk = case.admit(1, Lane::Bulk).unwrap();
    let urgent = case.admit(1, Lane::Urgent).unwrap();
    case.admit(1, Lane::Bulk).unwrap();
    assert!(bulk.ended.is_cancelled());
    assert!(!urgent.ended.is_cancelled());
    assert_eq!(case.edges(), [Live(1)]);
}

#[test]
fn a_forgotten_peer_is_lost_once() {
    let case = Case::new();
    case.admit(1, Lane::Bulk).unwrap();
    case.liveness.forget(&case.inbound);
    case.liveness.forget(&case.inbound);
    assert_eq!(case.edges(), [Live(1), Lost]);
}

#[test]
fn what_a_node_says_is_told_after_its_life_and_when_it_changes() {
    let case = Case::new();
    let visit = case.admit_saying(1, Lane::Urgent, "ssd");
    case.says(&visit, "ssd");
    case.says(&visit, "fifo");
    assert_eq!(case.edges(), [Live(1), said(1, "ssd"), said(1, "fifo")]);
    assert_eq!(case.liveness.advertisement(), Some(advertisement("fifo")));
}

#[test]
fn a_node_that_is_heard_again_says_what_it_said_before() {
    let case = Case::new();
    let visit = case.admit_saying(1, Lane::Urgent, "ssd");
    case.judge_at(1000);
    case.heard_at(1001, &visit);
    assert_eq!(case.edges(), [Live(1), said(1, "ssd"), Lost, Live(1), said(1, "ssd")]);
}

#[test]
fn another_incarnation_has_said_nothing_yet() {
    let case = Case::new();
    let before = case.admit_saying(1, Lane::Urgent, "ssd");
    case.admit(2, Lane::Bulk).unwrap();
    case.says(&before, "fifo");
    assert_eq!(case.edges(), [Live(1), said(1, "ssd"), Live(2)]);
    assert_eq!(case.liveness.advertisement(), None);
    case.admit_saying(2, Lane::Urgent, "gpu");
    assert_eq!(case.edges().last(), Some(&said(2, "gpu")));
}

#[test]
fn a_greeting_of_the_bulk_lane_that_comes_late_does_not_take_back_what_was_said() {
    let case = Case::new();
    case.admit_saying(1, Lane::Bulk, "old");
    let urgent = case.admit_saying(1, Lane::Urgent, "old");
    case.says(&urgent, "fresh");
    case.admit_saying(1, Lane::Bulk, "old");
    assert_eq!(case.edges(), [Live(1), said(1, "old"), said(1, "fresh")]);
}

#[test]
fn what_a_lost_node_says_is_told_when_it_lives() {
    let case = Case::new();
    let visit = case.admit(1, Lane::Urgent).unwrap();
    case.judge_at(1000);
    case.says(&visit, "ssd");
    assert_eq!(case.edges(), [Live(1), Lost]);
    case.heard_at(1001, &visit);
    assert_eq!(case.edges(), [Live(1), Lost, Live(1), said(1, "ssd")]);
}

#[test]
fn the_process_that_a_clone_displaced_is_live_again_after_the_clone() {
    let case = Case::new();
    case.admit(1, Lane::Urgent).unwrap();
    let clone = case.admit(2, Lane::Urgent).unwrap();
    case.judge_at(1000);
    case.liveness.welcomed(&greeting(1), Some(2), LATEST).unwrap();
    case.heard_at(1001, &clone);
    case.admit(1, Lane::Urgent).unwrap();
    assert!(clone.ended.is_cancelled());
    assert_eq!(case.edges(), [Live(1), Live(2), Lost, Live(1)]);
    assert_eq!(case.liveness.incarnation(), Some(1));
}
