//! Between the catalog's types and their messages. Reading checks everything that the types do not
//! allow: zero ids, invalid names, duplicates, unknown enumerators.

mod command;
mod record;
mod reply;
mod rule;
mod shard_map;
mod token;

use std::collections::BTreeSet;
use std::fmt;

use bytes::Bytes;
use prost::Message;
use shardhost_storage::convert::{requirement_from_message, requirement_to_message};
use shardhost_storage::{NodeId, Requirement};

use super::command::{Stranding, check_limit, malformed};
use super::error::{Refusal, StrandedCause, Subject};
use super::name::Name;
use super::record::{
    DrainFallback, DrainState, GroupState, Label, Place, Placement, PlannedMoves, PlannerMode,
    RecordKey, RecordKind, ReplicaSettings,
};
use super::{MAX_CAPABILITIES, MAX_PREFERENCES, VERSION, log, wire};

pub(super) use command::{command_from_message, command_to_message};
pub(super) use record::{boxed, compact, record_from_message, record_to_message, sorted};
pub(super) use reply::{reply_from_message, reply_to_message};
use rule::{rule_from, rule_to};
use shard_map::{map_from, map_to};

pub(super) const fn replicas_to(replicas: ReplicaSettings) -> wire::Replicas {
    let ReplicaSettings { mode, replace_after_ms } = replicas;
    wire::Replicas { mode: mode_to(mode), replace_after_ms }
}

pub(super) fn replicas_from(message: wire::Replicas) -> Result<ReplicaSettings, Refusal> {
    let replace_after_ms = message.replace_after_ms;
    Ok(ReplicaSettings { mode: mode_from(message.mode)?, replace_after_ms })
}

/// A message behind a version byte.
pub(super) fn versioned(message: &impl Message) -> Bytes {
    let mut out = Vec::with_capacity(1 + message.encoded_len());
    out.push(VERSION);
    message.encode_raw(&mut out);
    out.into()
}

/// The message behind its version byte.
pub(super) fn read_versioned<M: Message + Default>(data: &Bytes) -> Result<M, Refusal> {
    match data.first() {
        Some(&VERSION) => M::decode(data.slice(1..)).map_err(malformed),
        Some(&given) => Err(Refusal::UnknownVersion { given, known: VERSION }),
        None => Err(malformed("there are no bytes")),
    }
}

macro_rules! same_enum {
    ($to:ident, $from:ident, $name:ident, $words:literal, $($variant:ident),*) => {
        pub(super) const fn $to(value: $name) -> i32 {
            match value {
                $($name::$variant => wire::$name::$variant as i32,)*
            }
        }
        pub(super) fn $from(value: i32) -> Result<$name, Refusal> {
            match wire::$name::try_from(value) {
                $(Ok(wire::$name::$variant) => Ok($name::$variant),)*
                _ => Err(malformed(format_args!(concat!($words, " {} is not known"), value))),
            }
        }
    };
}

same_enum!(group_state_to, group_state_from, GroupState, "state of a group", Active, Destroying);
same_enum!(mode_to, mode_from, PlannerMode, "mode of the planner", Off, Shadow, On);
same_enum!(moves_to, moves_from, PlannedMoves, "kill switch", Allowed, Stopped);
same_enum!(
    drain_state_to,
    drain_state_from,
    DrainState,
    "state of a drain",
    Draining,
    Drained,
    Partial,
    GivenUp
);
same_enum!(fallback_to, fallback_from, DrainFallback, "fallback of a drain", GiveUp, Proceed);
same_enum!(stranding_to, stranding_from, Stranding, "stranding", Refuse, Accept);
same_enum!(cause_to, cause_from, StrandedCause, "cause", NoMember, NotCapable, Draining, NotLive);
same_enum!(
    kind_to,
    kind_from,
    RecordKind,
    "kind of record",
    Settings,
    Node,
    Group,
    Ended,
    Drain,
    Token
);

/// A part that every message of its kind has.
pub(super) fn present<T>(part: Option<T>, what: impl fmt::Display) -> Result<T, Refusal> {
    part.ok_or_else(|| {
        malformed(format_args!("it lacks the {what}, or that is of a later version"))
    })
}

pub(super) fn node_from(number: u64) -> Result<NodeId, Refusal> {
    NodeId::new(number).ok_or_else(|| malformed("node 0; nodes are numbered from 1"))
}

pub(super) fn nodes_to<'a>(nodes: impl IntoIterator<Item = &'a NodeId>) -> Vec<u64> {
    nodes.into_iter().map(|node| node.get()).collect()
}

/// The listed items as a set; none may be listed twice.
pub(super) fn set_of<T: Ord + fmt::Display>(
    subject: Subject,
    items: impl IntoIterator<Item = Result<T, Refusal>>,
) -> Result<BTreeSet<T>, Refusal> {
    let mut set = BTreeSet::new();
    for item in items {
        let item = item?;
        if set.contains(&item) {
            return Err(Refusal::Repeated { subject, given: item.to_string() });
        }
        set.insert(item);
    }
    Ok(set)
}

pub(super) fn nodes_from(subject: Subject, nodes: &[u64]) -> Result<BTreeSet<NodeId>, Refusal> {
    set_of(subject, nodes.iter().map(|node| node_from(*node)))
}

pub(super) fn names_to<'a>(names: impl IntoIterator<Item = &'a Name>) -> Vec<String> {
    names.into_iter().map(|name| name.as_str().to_owned()).collect()
}

pub(super) fn names_from(subject: Subject, names: &[String]) -> Result<BTreeSet<Name>, Refusal> {
    set_of(subject, names.iter().map(|name| Name::new(subject, name)))
}

/// An absent name travels as an empty one.
pub(super) fn optional_name_to(name: Option<&Name>) -> String {
    name.map_or_else(String::new, |name| name.as_str().to_owned())
}

pub(super) fn optional_name_from(subject: Subject, text: &str) -> Result<Option<Name>, Refusal> {
    (!text.is_empty()).then(|| Name::new(subject, text)).transpose()
}

pub(super) fn requirement_to(requirement: &Requirement) -> Option<log::Requirement> {
    requirement_to_message(requirement)
}

pub(super) fn requirement_from(message: Option<&log::Requirement>) -> Result<Requirement, Refusal> {
    let names = message.map_or(&[][..], |message| &message.capabilities);
    check_limit(Subject::Capability, names.len(), MAX_CAPABILITIES)?;
    names_from(Subject::Capability, names)?;
    requirement_from_message(message).map_err(malformed)
}

pub(super) fn labels_to(labels: &[Label]) -> Vec<wire::Label> {
    labels.iter().map(label_to).collect()
}

pub(super) fn label_to(label: &Label) -> wire::Label {
    wire::Label { key: label.key.as_str().to_owned(), value: label.value.as_ref().to_owned() }
}

pub(super) fn label_from(label: wire::Label) -> Result<Label, Refusal> {
    let key = Name::new(Subject::Label, &label.key)?;
    Ok(Label { key, value: label.value.into() })
}

pub(super) fn labels_from(labels: Vec<wire::Label>) -> Result<Vec<Label>, Refusal> {
    labels.into_iter().map(label_from).collect()
}

pub(super) fn place_to(place: &Place) -> wire::Place {
    let place = match place {
        Place::Node(node) => wire::place::Place::Node(node.get()),
        Place::Zone(zone) => wire::place::Place::Zone(zone.as_str().to_owned()),
    };
    wire::Place { place: Some(place) }
}

pub(super) fn place_from(place: &wire::Place) -> Result<Place, Refusal> {
    match present(place.place.as_ref(), "place")? {
        wire::place::Place::Node(node) => Ok(Place::Node(node_from(*node)?)),
        wire::place::Place::Zone(zone) => Ok(Place::Zone(Name::new(Subject::Zone, zone)?)),
    }
}

/// The default travels as nothing.
pub(super) fn placement_to(placement: &Placement) -> Option<wire::Placement> {
    (*placement != Placement::default()).then(|| wire::Placement {
        preference: placement.preference.iter().map(place_to).collect(),
        pin: placement.pin.map_or(0, NodeId::get),
        spread: optional_name_to(placement.spread.as_ref()),
    })
}

pub(super) fn placement_from(message: Option<&wire::Placement>) -> Result<Placement, Refusal> {
    let Some(message) = message else { return Ok(Placement::default()) };
    check_limit(Subject::Preference, message.preference.len(), MAX_PREFERENCES)?;
    let preference: Result<Box<[Place]>, _> = message.preference.iter().map(place_from).collect();
    Ok(Placement {
        preference: preference?,
        pin: NodeId::new(message.pin),
        spread: optional_name_from(Subject::Spread, &message.spread)?,
    })
}

pub(super) fn key_to(key: RecordKey) -> wire::RecordKey {
    wire::RecordKey { kind: kind_to(key.kind()), id: key.id() }
}

pub(super) fn key_from(message: &wire::RecordKey) -> Result<RecordKey, Refusal> {
    let kind = kind_from(message.kind)?;
    RecordKey::new(kind, message.id)
        .ok_or_else(|| malformed(format_args!("there is no record {} of this kind", message.id)))
}
