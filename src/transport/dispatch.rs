//! The way out: a batch of messages is sorted by peer and lane and put into the lanes.
//!
//! Runs on Raft's worker threads and the log writer's: it takes one short lock per peer and lane
//! of the batch, wakes each sender at most once, and never waits.

use shardhost_groups::transport::{Lane, Outgoing};
use shardhost_storage::NodeId;

use super::config::HEARTBEAT_MAX_BYTES;
use super::lane::{Dropped, Queued};
use super::shared::Shared;

/// The messages of a batch that go the same way, in order.
struct Bundle {
    to: NodeId,
    lane: Lane,
    queued: Vec<Queued>,
}

impl Shared {
    /// Puts a batch into the lanes.
    pub fn dispatch(&self, messages: Vec<Outgoing>) {
        let peers = self.peers.load();
        for bundle in sort(messages) {
            let Some(peer) = peers.get(&bundle.to) else {
                self.counters.unknown_node_drops.add(bundle.queued.len());
                continue;
            };
            let mut dropped = Vec::new();
            let queued = self.sendable(bundle.to, bundle.queued, &mut dropped);
            peer.lane(bundle.lane).push(queued, &mut dropped);
            peer.note_unreachable(dropped);
        }
    }

    /// Takes out what no frame can carry: sent, it would end the stream at the receiver.
    fn sendable(&self, to: NodeId, queued: Vec<Queued>, out: &mut Vec<Dropped>) -> Vec<Queued> {
        if queued.iter().all(|queued| self.fits_a_frame(queued)) {
            return queued;
        }
        let (fitting, oversized): (Vec<_>, Vec<_>) =
            queued.into_iter().partition(|queued| self.fits_a_frame(queued));
        self.counters.oversized_drops.add(oversized.len());
        for queued in &oversized {
            tracing::error!(
                %to,
                bytes = queued.bytes(),
                entries = queued.entries(),
                most_bytes = self.config.frame_max_bytes,
                most_entries = self.config.frame_max_entries,
                "a message is larger than a frame may be; raise the bound on every host"
            );
        }
        out.extend(oversized.iter().filter_map(Queued::addressee));
        fitting
    }

    fn fits_a_frame(&self, queued: &Queued) -> bool {
        queued.bytes() <= self.config.frame_max_bytes - HEARTBEAT_MAX_BYTES
            && queued.entries() <= self.config.frame_max_entries
    }
}

fn sort(messages: Vec<Outgoing>) -> Vec<Bundle> {
    let mut bundles: Vec<Bundle> = Vec::new();
    let mut last = 0;
    for Outgoing { to, lane, message } in messages {
        let same_way = |bundle: &Bundle| bundle.to == to && bundle.lane == lane;
        if !bundles.get(last).is_some_and(same_way) {
            last = bundles.iter().position(same_way).unwrap_or(bundles.len());
        }
        if last == bundles.len() {
            bundles.push(Bundle { to, lane, queued: Vec::new() });
        }
        bundles[last].queued.push(Queued::new(message));
    }
    bundles
}

#[cfg(test)]
mod tests {
    use super::*;
    use shardhost_proto::peer::GroupMessage;

    #[test]
    fn a_batch_is_sorted_by_peer_and_lane_and_keeps_its_order() {
        let ways = [(1, Lane::Bulk), (2, Lane::Bulk), (1, Lane::Urgent), (1, Lane::Bulk)];
        let batch = ways.iter().enumerate().map(|(group, (node, lane))| Outgoing {
            to: NodeId::must(*node),
            lane: *lane,
            message: GroupMessage { group: group as u64, to_replica: 1, ..GroupMessage::default() },
        });
        let sorted = sort(batch.collect());
        let groups = |bundle: &Bundle| {
            let groups = bundle.queued.iter().filter_map(Queued::addressee);
            groups.map(|(group, _)| group.get()).collect::<Vec<_>>()
        };
        let shape: Vec<_> =
            sorted.iter().map(|bundle| (bundle.to.get(), bundle.lane, groups(bundle))).collect();
        assert_eq!(
            shape,
            [(1, Lane::Bulk, vec![0, 3]), (2, Lane::Bulk, vec![1]), (1, Lane::Urgent, vec![2])]
        );
    }
}
