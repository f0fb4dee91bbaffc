//! What a record costs, for the bound on the whole: about the bytes of memory that it takes.

use super::super::name::Name;
use super::super::record::{GroupRecord, Members, NodeRecord, Place, Placement, Record};

/// A record, its place in a map, and its allocations.
const RECORD_BYTES: usize = 224;
/// A string or an item of a list.
const ITEM_BYTES: usize = 32;

pub(super) fn of(record: &Record) -> usize {
    RECORD_BYTES
        + match record {
            // Always there, also in a catalog that nothing was put into.
            Record::Settings(_) => return 0,
            Record::Node(node) => node_bytes(node),
            Record::Group(group) => group_bytes(group),
            Record::Ended(_) => 0,
            Record::Drain(drain) => drain.owner.len(),
            Record::Token(token) => name_bytes(&token.name),
        }
}

fn node_bytes(node: &NodeRecord) -> usize {
    let advertisement =
        node.advertisement.iter().flat_map(|advertisement| &advertisement.capabilities);
    node.address.len() + node.zone.iter().chain(advertisement).map(name_bytes).sum::<usize>()
}

fn group_bytes(group: &GroupRecord) -> usize {
    let labels = group.labels.iter().map(|label| name_bytes(&label.key) + text(&label.value));
    let members = |members: &Members| {
        let founding = members.founding.as_ref().map_or(0, |founding| founding.len());
        let learners = members.learners.as_ref().map_or(0, |learners| learners.len());
        ITEM_BYTES + nodes(members.nodes.len() + founding + learners)
    };
    group.kind.as_str().len()
        + nodes(group.founders.len())
        + labels.sum::<usize>()
        + group.capabilities.iter().map(name_bytes).sum::<usize>()
        + group.placement.as_deref().map_or(0, placement_bytes)
        + group.reported.as_deref().map_or(0, members)
}

fn placement_bytes(placement: &Placement) -> usize {
    let places = placement.preference.iter().map(|place| match place {
        Place::Node(_) => ITEM_BYTES,
        Place::Zone(zone) => name_bytes(zone),
    });
    2 * ITEM_BYTES + places.sum::<usize>() + placement.spread.as_ref().map_or(0, name_bytes)
}

const fn nodes(count: usize) -> usize {
    8 * count
}

fn name_bytes(name: &Name) -> usize {
    text(name.as_str())
}

const fn text(text: &str) -> usize {
    ITEM_BYTES + text.len()
}
