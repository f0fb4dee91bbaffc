//! Peers, connections, and what travels between nodes.

use std::fmt;

use shardhost::host::Host;
use shardhost::transport::{ConnectionStats, LaneStats, PeerStats, TransportStats};

use super::families::{Families, Labels};

pub(crate) fn write(
    families: &mut Families<'_>,
    host: &Host,
    stats: &TransportStats,
) -> fmt::Result {
    let nodes: Vec<String> = stats.peers.iter().map(|peer| peer.node.to_string()).collect();
    let peers: Vec<(&str, &PeerStats)> =
        nodes.iter().map(String::as_str).zip(&stats.peers).collect();
    write_peers(families, &peers)?;
    write_lanes(families, &peers)?;
    families.counter(
        "messages_unknown_node",
        "Messages to nodes whose address is not known.",
        stats.unknown_node_drops,
    )?;
    families.counter(
        "messages_oversized",
        "Messages that are longer than a frame may be.",
        stats.oversized_drops,
    )?;
    families.counter(
        "greetings_refused",
        "Nodes that were refused when they greeted.",
        stats.refused_greetings,
    )?;
    families.counter(
        "advertisements_refused",
        "What nodes said they have, and could not be read.",
        stats.refused_advertisements,
    )?;
    families.counter(
        "peer_streams_broken",
        "Streams of nodes that ended because of what they carried, or broke.",
        stats.broken_streams,
    )?;
    let alarm = u64::from(stats.clock_alarm().is_some());
    families.gauge(
        "clock_disagrees",
        "1: the wall clock of this node, or of others, is wrong.",
        alarm,
    )?;
    write_connections(families, &host.connections())
}

/// A family of numbers of one kind of thing: its name, its meaning, and where the number is.
type Numbers<T> = (&'static str, &'static str, fn(&T) -> u64);

fn write_peers(families: &mut Families<'_>, peers: &[(&str, &PeerStats)]) -> fmt::Result {
    type Part = fn(&PeerStats) -> Option<f64>;
    let flag = |is: bool| f64::from(u8::from(is));
    let live = peers.iter().map(|(node, peer)| (vec![("peer", *node)], flag(peer.live)));
    families.gauges("peer_live", "1: heartbeats of the node come.", live)?;
    let refused = peers.iter().map(|(node, peer)| {
        (vec![("peer", *node)], flag(peer.refused.is_some() || peer.refused_by.is_some()))
    });
    families.gauges(
        "peer_refused",
        "1: this node refuses the other, or is refused by it.",
        refused,
    )?;
    let gauges: [(&str, &str, Part); 2] = [
        ("peer_silent_seconds", "Since something came from the node.", |peer| {
            peer.silent_for.map(|silent| silent.as_secs_f64())
        }),
        (
            "peer_clock_ahead_seconds",
            "By how much the wall clock of the node is ahead of this one's.",
            |peer| peer.clock_ahead_ms.map(|ahead| ahead as f64 / 1e3),
        ),
    ];
    for (name, help, part) in gauges {
        let series =
            peers.iter().filter_map(|(node, peer)| Some((vec![("peer", *node)], part(peer)?)));
        families.gauges(name, help, series)?;
    }
    let counters: [Numbers<PeerStats>; 4] = [
        ("peer_reconnects", "Connections that were made after the first.", |peer| peer.reconnects),
        ("peer_received_messages", "Messages that came from the node.", |peer| {
            peer.received_messages
        }),
        ("peer_received_frames", "Frames that came from the node.", |peer| peer.received_frames),
        ("peer_inbox_drops", "Messages of the node that found a full inbox.", |peer| {
            peer.inbox_drops
        }),
    ];
    for (name, help, part) in counters {
        let series = peers.iter().map(|(node, peer)| (vec![("peer", *node)], part(peer)));
        families.counters(name, help, series)?;
    }
    Ok(())
}

fn write_lanes(families: &mut Families<'_>, peers: &[(&str, &PeerStats)]) -> fmt::Result {
    let lanes = || {
        peers.iter().flat_map(|(node, peer)| {
            [("bulk", peer.bulk), ("urgent", peer.urgent)].map(
                |(lane, stats)| -> (Labels<'_>, LaneStats) {
                    (vec![("peer", *node), ("lane", lane)], stats)
                },
            )
        })
    };
    let counters: [Numbers<LaneStats>; 5] = [
        ("peer_sent_messages", "Messages that were handed to a connection.", |lane| lane.messages),
        ("peer_sent_frames", "Frames that were handed to a connection.", |lane| lane.frames),
        ("peer_sent_bytes", "Bytes of the messages that were handed to a connection.", |lane| {
            lane.bytes
        }),
        (
            "peer_dropped_messages",
            "Messages that were dropped: the lane was full, or there was no connection.",
            |lane| lane.dropped,
        ),
        (
            "peer_stalls",
            "Connections that were given up because the node took nothing of them.",
            |lane| lane.stalls,
        ),
    ];
    for (name, help, part) in counters {
        families.counters(name, help, lanes().map(|(labels, lane)| (labels, part(&lane))))?;
    }
    let gauges: [Numbers<LaneStats>; 3] = [
        ("peer_connected", "1: the node has welcomed this one.", |lane| u64::from(lane.connected)),
        ("peer_waiting_messages", "Messages that wait for a connection.", |lane| {
            lane.waiting_messages
        }),
        ("peer_waiting_bytes", "Bytes of the messages that wait for a connection.", |lane| {
            lane.waiting_bytes
        }),
    ];
    for (name, help, part) in gauges {
        families.gauges(name, help, lanes().map(|(labels, lane)| (labels, part(&lane) as f64)))?;
    }
    Ok(())
}

/// Of all listeners together.
fn write_connections(families: &mut Families<'_>, listeners: &[ConnectionStats]) -> fmt::Result {
    let sum = |part: fn(&ConnectionStats) -> u64| listeners.iter().map(part).sum::<u64>();
    let open = [
        ("silent", sum(|one| one.silent as u64)),
        ("clients", sum(|one| one.clients as u64)),
        ("operators", sum(|one| one.operators as u64)),
        ("peers", sum(|one| one.peers as u64)),
    ];
    let open = open.map(|(of, count)| (vec![("of", of)], count as f64));
    families.gauges("connections", "Open connections, by whose they are.", open)?;
    families.counter(
        "connections_ended",
        "Connections that made way for others.",
        sum(|one| one.ended),
    )?;
    families.counter(
        "connections_refused",
        "Connections of which there were too many.",
        sum(|one| one.refused),
    )?;
    families.counter(
        "handshakes_refused",
        "Connections that ended because their TLS or their certificate was not in order.",
        sum(|one| one.refused_handshakes),
    )
}
