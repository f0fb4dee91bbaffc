//! Messages on their way. Nothing arrives unless a script says so.

use std::collections::{BTreeMap, VecDeque};

use shardhost_groups::NodeId;
use shardhost_groups::transport::SnapshotShipment;
use shardhost_proto::peer::{GroupMessage, MessageKind};

/// What a rule or a command speaks of; what is `None` may be anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pattern {
    pub from: Option<NodeId>,
    pub to: Option<NodeId>,
    pub group: Option<u64>,
    pub kind: Option<MessageKind>,
}

impl Pattern {
    pub fn link(from: NodeId, to: NodeId) -> Self {
        Self { from: Some(from), to: Some(to), ..Self::default() }
    }

    pub fn fits(&self, from: NodeId, to: NodeId, message: &GroupMessage) -> bool {
        self.fits_link(from, to)
            && self.group.is_none_or(|group| group == message.group)
            && self.kind.is_none_or(|kind| kind == message.kind())
    }

    fn fits_link(&self, from: NodeId, to: NodeId) -> bool {
        self.from.is_none_or(|node| node == from) && self.to.is_none_or(|node| node == to)
    }
}

/// What the network does to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Passes,
    Held,
    Lost,
}

/// From one node to another.
pub type Link = (NodeId, NodeId);

/// A snapshot on its way, with the life of the process that sends it.
#[derive(Debug)]
pub struct Shipping {
    pub from: NodeId,
    pub life: u64,
    pub shipment: SnapshotShipment,
}

/// The queues of every pair of nodes, and the rules that messages fall under.
#[derive(Debug, Default)]
pub struct Network {
    queues: BTreeMap<Link, VecDeque<GroupMessage>>,
    held: Vec<(Link, GroupMessage)>,
    rules: Vec<(Pattern, Fate)>,
    pub shipments: Vec<Shipping>,
}

impl Network {
    pub fn rule(&mut self, pattern: Pattern, fate: Fate) {
        self.rules.push((pattern, fate));
    }

    /// Messages that fit are lost, those on their way too.
    pub fn lose(&mut self, pattern: Pattern) {
        self.take(&pattern, usize::MAX);
        self.rule(pattern, Fate::Lost);
    }

    /// Whether anything passes from one node to the other.
    pub fn connects(&self, from: NodeId, to: NodeId) -> bool {
        let whole = |pattern: &Pattern| pattern.kind.is_none() && pattern.group.is_none();
        !self.rules.iter().any(|(pattern, fate)| {
            *fate == Fate::Lost && whole(pattern) && pattern.fits_link(from, to)
        })
    }

    /// Takes rules of this fate back.
    pub fn lift(&mut self, lifted: Fate) {
        self.rules.retain(|(_, fate)| *fate != lifted);
    }

    pub fn fate(&self, from: NodeId, to: NodeId, message: &GroupMessage) -> Fate {
        let rule = self.rules.iter().rev().find(|(pattern, _)| pattern.fits(from, to, message));
        rule.map_or(Fate::Passes, |(_, fate)| *fate)
    }

    pub fn push(&mut self, link: Link, message: GroupMessage) {
        self.queues.entry(link).or_default().push_back(message);
    }

    pub fn hold(&mut self, link: Link, message: GroupMessage) {
        self.held.push((link, message));
    }

    /// Takes messages out of the queues, in their order, at most `count` of them.
    pub fn take(&mut self, pattern: &Pattern, count: usize) -> Vec<(Link, GroupMessage)> {
        let mut taken = Vec::new();
        for (&link, queue) in &mut self.queues {
            let mut kept = VecDeque::new();
            for message in queue.drain(..) {
                if taken.len() < count && pattern.fits(link.0, link.1, &message) {
                    taken.push((link, message));
                } else {
                    kept.push_back(message);
                }
            }
            *queue = kept;
        }
        taken
    }

    /// Takes held messages that fit.
    pub fn release(&mut self, pattern: &Pattern) -> Vec<(Link, GroupMessage)> {
        let fits =
            |(link, message): &mut (Link, GroupMessage)| pattern.fits(link.0, link.1, message);
        self.held.extract_if(.., fits).collect()
    }

    /// Everything on its way, and everything held.
    pub fn all(&self) -> impl Iterator<Item = (Link, &GroupMessage, &'static str)> {
        let queued = self.queues.iter();
        let queued = queued.flat_map(|(link, queue)| queue.iter().map(|one| (*link, one, "")));
        queued.chain(self.held.iter().map(|(link, one)| (*link, one, " held")))
    }
}
