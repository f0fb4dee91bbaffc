//! Replies and their messages. A refusal travels as its name and those of the fields that it has.

use std::sync::Arc;

use shardhost_storage::{GroupId, LogIndex, NodeId};

use super::super::error::{Refusal, StrandedGroup, Subject};
use super::super::record::{DrainState, IntentId, Place, RecordKey, Revision};
use super::super::reply::{Done, Effect, Reply};
use super::super::wire;
use super::super::wire::reply::Outcome;
use super::{
    cause_from, cause_to, drain_state_from, drain_state_to, key_from, key_to, malformed, map_from,
    map_to, node_from, place_from, place_to, present,
};
use shardhost_proto::shard_map::ShardMap;
use shardhost_proto::version::ClusterVersion;

/// The message of a reply.
pub(in super::super) fn reply_to_message(reply: &Reply) -> wire::Reply {
    let outcome = match reply {
        Ok(done) => Outcome::Done(wire::Done {
            revision: done.revision.get(),
            unchanged: done.effect == Effect::Unchanged,
            incarnation: done.incarnation,
        }),
        Err(refusal) => Outcome::Refusal(refusal_to(refusal)),
    };
    wire::Reply { outcome: Some(outcome) }
}

/// The reply of a message.
pub(in super::super) fn reply_from_message(message: wire::Reply) -> Reply {
    match present(message.outcome, "outcome")? {
        Outcome::Done(done) => Ok(Done {
            revision: Revision::new(done.revision),
            effect: if done.unchanged { Effect::Unchanged } else { Effect::Changed },
            incarnation: done.incarnation,
        }),
        Outcome::Refusal(message) => Err(refusal_from(message)?),
    }
}

/// A field of a refusal, as the field of the message that it travels in.
trait Part<W>: Sized {
    fn to_part(&self) -> W;
    fn from_part(part: &W) -> Result<Self, Refusal>;
}

macro_rules! numbers {
    ($($type:ty: $to:expr, $from:expr;)*) => {
        $(impl Part<u64> for $type {
            fn to_part(&self) -> u64 {
                let to: fn(&Self) -> u64 = $to;
                to(self)
            }
            fn from_part(part: &u64) -> Result<Self, Refusal> {
                let from: fn(u64) -> Result<Self, Refusal> = $from;
                from(*part)
            }
        })*
    };
}

fn narrow<T: TryFrom<u64>>(number: u64) -> Result<T, Refusal> {
    T::try_from(number).map_err(|_| malformed(format_args!("{number} is too large for its field")))
}

numbers! {
    u64: |number| *number, Ok;
    u32: |number| u64::from(*number), narrow;
    u8: |number| u64::from(*number), narrow;
    usize: |number| *number as u64, narrow;
    Revision: |revision| revision.get(), |number| Ok(Self::new(number));
    IntentId: |intent| intent.begun().get(), |number| Ok(Self::new(Revision::new(number)));
    LogIndex: |index| index.get(), |number| Ok(Self::new(number));
    GroupId: |group| group.get(), |number| Ok(Self::new(number));
    NodeId: |node| node.get(), node_from;
    ClusterVersion: |version| version.get().into(), |number| Ok(Self::new(narrow(number)?));
    Subject: |subject| u64::from(subject.number()), |number| {
        present(Self::from_number(narrow(number)?), "subject")
    };
    DrainState: |state| u64::from(drain_state_to(*state).unsigned_abs()), |number| {
        drain_state_from(narrow(number)?)
    };
}

impl Part<String> for String {
    fn to_part(&self) -> String {
        self.clone()
    }
    fn from_part(part: &String) -> Result<Self, Refusal> {
        Ok(part.clone())
    }
}

impl<T: Part<u64>> Part<Vec<u64>> for Vec<T> {
    fn to_part(&self) -> Vec<u64> {
        self.iter().map(Part::to_part).collect()
    }
    fn from_part(part: &Vec<u64>) -> Result<Self, Refusal> {
        part.iter().map(T::from_part).collect()
    }
}

impl Part<Option<wire::RecordKey>> for RecordKey {
    fn to_part(&self) -> Option<wire::RecordKey> {
        Some(key_to(*self))
    }
    fn from_part(part: &Option<wire::RecordKey>) -> Result<Self, Refusal> {
        key_from(present(part.as_ref(), "record")?)
    }
}

impl Part<Option<wire::Place>> for Place {
    fn to_part(&self) -> Option<wire::Place> {
        Some(place_to(self))
    }
    fn from_part(part: &Option<wire::Place>) -> Result<Self, Refusal> {
        place_from(present(part.as_ref(), "place")?)
    }
}

impl Part<Vec<wire::StrandedGroup>> for Vec<StrandedGroup> {
    fn to_part(&self) -> Vec<wire::StrandedGroup> {
        let one = |stranded: &StrandedGroup| wire::StrandedGroup {
            group: stranded.group.get(),
            cause: cause_to(stranded.cause),
        };
        self.iter().map(one).collect()
    }
    fn from_part(part: &Vec<wire::StrandedGroup>) -> Result<Self, Refusal> {
        let one = |message: &wire::StrandedGroup| {
            let cause = cause_from(message.cause)?;
            Ok(StrandedGroup { group: GroupId::new(message.group), cause })
        };
        part.iter().map(one).collect()
    }
}

impl Part<Option<wire::ShardMap>> for Arc<ShardMap> {
    fn to_part(&self) -> Option<wire::ShardMap> {
        Some(map_to(self))
    }
    fn from_part(part: &Option<wire::ShardMap>) -> Result<Self, Refusal> {
        Ok(Self::new(map_from(present(part.as_ref(), "map of shards")?)?))
    }
}

/// Which field of the message each field of a refusal travels in.
macro_rules! refusals {
    ($($name:literal $variant:ident { $($field:ident: $slot:ident),* };)*) => {
        fn refusal_to(refusal: &Refusal) -> wire::Refusal {
            let mut message = wire::Refusal {
                name: refusal.name().to_owned(),
                message: refusal.to_string(),
                ..wire::Refusal::default()
            };
            match refusal {
                $(Refusal::$variant { $($field),* } => {
                    $(message.$slot = $field.to_part();)*
                })*
                Refusal::Foreign { message: text, .. } => message.message.clone_from(text),
            }
            message
        }

        fn refusal_from(message: wire::Refusal) -> Result<Refusal, Refusal> {
            Ok(match message.name.as_str() {
                $($name => Refusal::$variant {
                    $($field: Part::from_part(&message.$slot)?),*
                },)*
                _ => Refusal::Foreign { name: message.name, message: message.message },
            })
        }
    };
}

refusals! {
    "WRONG_REVISION" WrongRevision { record: record, expected: given, actual: actual };
    "UNKNOWN_GROUP" UnknownGroup { group: group };
    "RESERVED_GROUP" ReservedGroup { group: group };
    "OTHER_GENERATION" OtherGeneration { group: group, given: given, actual: actual };
    "GROUP_EXISTS" GroupExists { group: group, founded: actual };
    "LIFE_OVER" LifeOver { group: group, given: given, next: actual };
    "DESTROYING" Destroying { group: group, since: actual };
    "NOT_DESTROYING" NotDestroying { group: group, founded: actual };
    "UNKNOWN_NODE" UnknownNode { node: node };
    "NODE_REMOVED" NodeRemoved { node: node };
    "NOT_PREPARED" NotPrepared { node: node, version: given };
    "NEEDS_VERSION" NeedsVersion { needed: given, present: actual };
    "VERSION_NOT_KNOWN" VersionNotKnown { given: given };
    "UNKNOWN_ZONE" UnknownZone { zone: text };
    "ADDRESS_TAKEN" AddressTaken { address: text, node: node };
    "STALE_ADVERTISEMENT" StaleAdvertisement { node: node, given: given, actual: actual };
    "NODE_IN_USE" NodeInUse { node: node, groups: ids, total: actual };
    "NOT_MEMBER" NotMember { group: group, node: node, members: ids };
    "PIN_CONTRADICTS" PinContradicts { group: group, pin: node, first: place };
    "STALE_MEMBERS" StaleMembers { group: group, given: given, actual: actual };
    "BAD_NAME" BadName { subject: subject, given: text };
    "OVER_LIMIT" OverLimit { subject: subject, actual: actual, limit: limit };
    "MISSING" Missing { subject: subject };
    "REPEATED" Repeated { subject: subject, given: text };
    "BAD_TIME" BadTime { subject: subject, given: given, from: actual, to: limit };
    "ALREADY_DRAINING" AlreadyDraining { node: node, intent: actual, owner: text };
    "NOT_DRAINING" NotDraining { node: node, intent: given };
    "WRONG_INTENT" WrongIntent { node: node, given: given, actual: actual, owner: text };
    "DRAIN_OVER" DrainOver { node: node, state: actual };
    "OTHER_SHARD_MAP" OtherShardMap { cluster: shard_map };
    "STRANDED" Stranded { node: node, groups: stranded, total: actual };
    "UNKNOWN_TOKEN" UnknownToken { token: given };
    "TOKEN_EXISTS" TokenExists { token: given, made: actual };
    "UNKNOWN_RULE" UnknownRule { rule: text };
    "SAME_GROUPS" SameGroups { rule: text };
    "BAD_VOTERS" BadVoters { given: given };
    "UNKNOWN_VERSION" UnknownVersion { given: given, known: actual };
    "MALFORMED" Malformed { detail: text };
}
