//! What the network is at one moment: hosts, links, and what is on its way. Decides, and delivers
//! nothing itself.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Message;
use shardhost_proto::hash::{MIX_STEP, mix};
use shardhost_proto::peer::GroupMessage;
use shardhost_storage::{GroupId, NodeId, ReplicaId, SnapshotStore};

use super::Trouble;
use super::tap::{Envelope, Held, Judged, Taps};
use shardhost_groups::transport::{Inbound, Lane, Outgoing};

/// Messages that one lane of one link holds at most.
const MAX_LANE_MESSAGES: usize = 1 << 14;

/// What was counted since the network was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct NetworkStats {
    /// Messages that were handed over to a host.
    pub delivered: u64,
    /// Messages that were lost: to chance, to a tap, on a cut link, to or from a dead host.
    pub lost: u64,
    /// Messages that found a full lane.
    pub refused: u64,
}

/// A host that takes part.
#[derive(Clone)]
pub(super) struct Attached {
    pub(super) life: u64,
    pub(super) incarnation: u64,
    pub(super) inbound: Arc<dyn Inbound>,
    pub(super) snapshots: Arc<dyn SnapshotStore>,
}

/// A message on its way.
struct Packet {
    from: NodeId,
    to: NodeId,
    lane: Lane,
    message: GroupMessage,
}

/// What one direction of one link holds of one lane.
#[derive(Default)]
struct Queue {
    waiting: usize,
    /// When the last of them is delivered; nothing behind it is delivered earlier.
    last: Option<Instant>,
}

pub(super) struct State {
    pub(super) stopped: bool,
    pub(super) trouble: Trouble,
    pub(super) lost_after: Duration,
    pub(super) cuts: BTreeSet<(NodeId, NodeId)>,
    pub(super) stats: NetworkStats,
    hosts: BTreeMap<NodeId, Attached>,
    lives: BTreeMap<NodeId, u64>,
    packets: BTreeMap<(Instant, u64), Packet>,
    queues: HashMap<(NodeId, NodeId, Lane), Queue>,
    pub(super) taps: Taps,
    /// Which incarnation of the second the first believes to be live.
    believed: BTreeMap<(NodeId, NodeId), u64>,
    /// Since when the first does not hear the second, which it believes to be live.
    silent: BTreeMap<(NodeId, NodeId), Instant>,
    /// When to look whether a host must be notified of another.
    judgements: BTreeSet<Instant>,
    sequence: u64,
    chance: u64,
}

/// Messages that did not leave: for each node, which replicas they were for.
pub(super) type Unreachable = BTreeMap<NodeId, Vec<(GroupId, ReplicaId)>>;

/// A notice to a host.
pub(super) enum Due {
    Messages { host: Arc<dyn Inbound>, from: NodeId, messages: Vec<GroupMessage> },
    Live { host: Arc<dyn Inbound>, peer: NodeId, incarnation: u64 },
    Lost { host: Arc<dyn Inbound>, peer: NodeId },
}

impl fmt::Debug for Due {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Messages { from, messages, .. } => {
                write!(f, "{} messages of {from:?}", messages.len())
            }
            Self::Live { peer, .. } => write!(f, "{peer:?} lives"),
            Self::Lost { peer, .. } => write!(f, "{peer:?} is lost"),
        }
    }
}

impl Due {
    pub(super) fn carry_out(self) {
        match self {
            Self::Messages { host, from, messages } => {
                let dropped = host.deliver(from, messages);
                if dropped > 0 {
                    tracing::debug!(%from, dropped, "a host's inbox is full");
                }
            }
            Self::Live { host, peer, incarnation } => host.peer_live(peer, incarnation),
            Self::Lost { host, peer } => host.peer_lost(peer),
        }
    }
}

impl State {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            stopped: false,
            trouble: Trouble::none(),
            lost_after: Duration::from_millis(60),
            cuts: BTreeSet::new(),
            stats: NetworkStats::default(),
            hosts: BTreeMap::new(),
            lives: BTreeMap::new(),
            packets: BTreeMap::new(),
            queues: HashMap::new(),
            taps: Taps::default(),
            believed: BTreeMap::new(),
            silent: BTreeMap::new(),
            judgements: BTreeSet::new(),
            sequence: 0,
            chance: seed,
        }
    }

    /// Ends everything; what is returned is to be dropped without the lock.
    pub(super) fn stop(&mut self) -> BTreeMap<NodeId, Attached> {
        self.stopped = true;
        std::mem::take(&mut self.hosts)
    }

    pub(super) fn known_nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.lives.keys().copied()
    }

    /// Another life of a node begins, and the one before ends.
    pub(super) fn begin_life(&mut self, node: NodeId) -> u64 {
        let life = self.lives.entry(node).or_default();
        *life += 1;
        let life = *life;
        self.detach(node, life - 1);
        life
    }

    pub(super) fn attach(&mut self, node: NodeId, host: Attached) {
        if self.lives.get(&node) == Some(&host.life) && !self.stopped {
            self.hosts.insert(node, host);
            self.judge_soon(Instant::now());
        }
    }

    /// The life of a node ends: nothing gets in or out any more.
    pub(super) fn detach(&mut self, node: NodeId, life: u64) -> Option<Attached> {
        if self.host(node)?.life != life {
            return None;
        }
        let host = self.hosts.remove(&node);
        self.believed.retain(|(observer, _), _| *observer != node);
        self.silent.retain(|(observer, _), _| *observer != node);
        self.judge_soon(Instant::now());
        host
    }

    pub(super) fn host(&self, node: NodeId) -> Option<&Attached> {
        self.hosts.get(&node)
    }

    /// The host of a node, if this incarnation of it still runs.
    pub(super) fn host_in_life(&self, node: NodeId, life: u64) -> Option<&Attached> {
        self.host(node).filter(|host| host.life == life)
    }

    /// Whether anything gets from one node to another.
    pub(super) fn reaches(&self, from: NodeId, to: NodeId) -> bool {
        self.hosts.contains_key(&from)
            && self.hosts.contains_key(&to)
            && !self.cuts.contains(&(from, to))
    }

    /// Takes a batch. Returns what is known not to have left.
    pub(super) fn send(&mut self, from: NodeId, batch: Vec<Outgoing>, now: Instant) -> Unreachable {
        let mut unreachable = Unreachable::new();
        for Outgoing { to, lane, message } in batch {
            let envelope = Envelope { from, to, lane: Some(lane), message: &message };
            match self.taps.judge(&envelope) {
                Judged::Deliver => {}
                Judged::Lose => {
                    self.stats.lost += 1;
                    continue;
                }
                Judged::Hold(tap) => {
                    self.taps.hold(tap, Held::Message { from, to, lane, message });
                    continue;
                }
            }
            let replica = ReplicaId::new(message.to_replica);
            let addressed = replica.map(|replica| (GroupId::new(message.group), replica));
            if !self.put(from, to, lane, message, now) {
                unreachable.entry(to).or_default().extend(addressed);
            }
        }
        unreachable
    }

    /// Puts a message on its way. `false`: its sender knows that it will not arrive.
    pub(super) fn put(
        &mut self,
        from: NodeId,
        to: NodeId,
        lane: Lane,
        message: GroupMessage,
        now: Instant,
    ) -> bool {
        if !self.reaches(from, to) {
            self.stats.lost += 1;
            return false;
        }
        if self.draw(1_000) < u64::from(self.trouble.lost_of_1000) {
            self.stats.lost += 1;
            return true;
        }
        let late = self.draw_duration(self.trouble.late_by);
        let takes = self.transmission(lane, &message);
        let queue = self.queues.entry((from, to, lane)).or_default();
        if queue.waiting >= MAX_LANE_MESSAGES {
            self.stats.refused += 1;
            return false;
        }
        let start = queue.last.map_or(now, |last| last.max(now));
        let due = (start + takes).max(now + late);
        queue.waiting += 1;
        queue.last = Some(due);
        self.sequence += 1;
        self.packets.insert((due, self.sequence), Packet { from, to, lane, message });
        true
    }

    /// How long a message occupies its lane.
    fn transmission(&self, lane: Lane, message: &GroupMessage) -> Duration {
        match (lane, self.trouble.bulk_bytes_per_second) {
            (Lane::Bulk, Some(rate)) => {
                let bytes = message.encoded_len() as u64;
                Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / rate.max(1))
            }
            _ => Duration::ZERO,
        }
    }

    /// When something is to be done next.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let packet = self.packets.keys().next().map(|(due, _)| *due);
        let judgement = self.judgements.first().copied();
        packet.into_iter().chain(judgement).min()
    }

    pub(super) fn take_due(&mut self, now: Instant) -> Vec<Due> {
        let mut due = Vec::new();
        if self.judgements.first().is_some_and(|at| *at <= now) {
            self.judgements.retain(|at| *at > now);
            self.tell_of_peers(now, &mut due);
        }
        while let Some(entry) = self.packets.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let packet = entry.remove();
            self.arrive(packet, &mut due);
        }
        due
    }

    fn arrive(&mut self, packet: Packet, due: &mut Vec<Due>) {
        let Packet { from, to, lane, message } = packet;
        if let Some(queue) = self.queues.get_mut(&(from, to, lane)) {
            queue.waiting -= 1;
        }
        let reaches = self.reaches(from, to);
        let Some(host) = self.hosts.get(&to).filter(|_| reaches) else {
            self.stats.lost += 1;
            return;
        };
        self.stats.delivered += 1;
        // What goes the same way at the same time travels together.
        if let Some(Due::Messages { host: last, from: sender, messages }) = due.last_mut()
            && *sender == from
            && Arc::ptr_eq(last, &host.inbound)
        {
            messages.push(message);
            return;
        }
        let host = Arc::clone(&host.inbound);
        due.push(Due::Messages { host, from, messages: vec![message] });
    }

    /// A host may have come, gone, or become unreachable.
    pub(super) fn judge_soon(&mut self, now: Instant) {
        self.judgements.insert(now);
    }

    fn tell_of_peers(&mut self, now: Instant, due: &mut Vec<Due>) {
        for observer in self.hosts.keys().copied().collect::<Vec<_>>() {
            for peer in self.lives.keys().copied().collect::<Vec<_>>() {
                if peer != observer {
                    due.extend(self.tell_of_peer(observer, peer, now));
                }
            }
        }
    }

    fn tell_of_peer(&mut self, observer: NodeId, peer: NodeId, now: Instant) -> Option<Due> {
        let pair = (observer, peer);
        let heard = self.hosts.get(&peer).filter(|_| self.reaches(peer, observer));
        let heard = heard.map(|peer| peer.incarnation);
        let believed = self.believed.get(&pair).copied();
        let host = Arc::clone(&self.host(observer)?.inbound);
        match (heard, believed) {
            (Some(incarnation), believed) => {
                self.silent.remove(&pair);
                self.believed.insert(pair, incarnation);
                let news = believed != Some(incarnation);
                news.then_some(Due::Live { host, peer, incarnation })
            }
            (None, Some(_)) => {
                let lost_at = *self.silent.entry(pair).or_insert(now) + self.lost_after;
                if lost_at > now {
                    self.judgements.insert(lost_at);
                    return None;
                }
                self.silent.remove(&pair);
                self.believed.remove(&pair);
                Some(Due::Lost { host, peer })
            }
            (None, None) => None,
        }
    }

    fn draw(&mut self, below: u64) -> u64 {
        let lot = mix(self.chance);
        self.chance = self.chance.wrapping_add(MIX_STEP);
        lot % below.max(1)
    }

    fn draw_duration(&mut self, up_to: Duration) -> Duration {
        let nanos = u64::try_from(up_to.as_nanos()).unwrap_or(u64::MAX);
        if nanos == 0 { Duration::ZERO } else { Duration::from_nanos(self.draw(nanos)) }
    }
}
