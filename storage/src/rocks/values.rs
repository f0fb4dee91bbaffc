//! The values of the database other than runs: framed messages, checked when they are read.

use bytes::Bytes;
use prost::Message;
use shardhost_proto::log;

use crate::convert::{
    Malformed, hard_state_from_message, hard_state_to_message, meta_from_message, meta_to_message,
    position_from_message, position_to_message,
};
use crate::frame;
use crate::ids::{GroupId, LogPosition, ReplicaId};
use crate::types::{Certainty, Doubt, GroupMeta, HardState};

/// Value of what a replica knows of itself.
pub(super) fn meta(meta: &GroupMeta, out: &mut Vec<u8>) {
    seal(meta.group, &meta_to_message(meta), out);
}

/// Value of a replica's hard state and base.
pub(super) fn state(group: GroupId, state: &HardState, base: LogPosition, out: &mut Vec<u8>) {
    let hard_state = Some(hard_state_to_message(state));
    let base = Some(position_to_message(base));
    seal(group, &log::ReplicaState { hard_state, base }, out);
}

/// Value of the largest replica id destroyed.
pub(super) fn tombstone(group: GroupId, replica: ReplicaId, out: &mut Vec<u8>) {
    seal(group, &log::Tombstone { replica: replica.get() }, out);
}

/// How it is written why a log may have lost something.
pub(super) const fn cause_of(doubt: Doubt) -> log::doubt::Cause {
    match doubt {
        Doubt::TornTail => log::doubt::Cause::TornTail,
        Doubt::RolledBack => log::doubt::Cause::RolledBack,
        Doubt::Unreadable => log::doubt::Cause::Unreadable,
    }
}

/// Value of why a log may have lost something, or that a state differs.
pub(super) fn doubt(group: GroupId, cause: log::doubt::Cause, out: &mut Vec<u8>) {
    seal(group, &log::Doubt { cause: cause.into() }, out);
}

pub(super) fn read_meta(group: GroupId, value: Vec<u8>) -> Result<GroupMeta, Malformed> {
    let meta = meta_from_message(open::<log::GroupMeta>("group meta", group, value)?)?;
    if meta.group != group {
        return Err(Malformed::new("group meta", format!("it is that of group {}", meta.group)));
    }
    Ok(meta)
}

pub(super) fn read_state(
    group: GroupId,
    value: Vec<u8>,
) -> Result<(HardState, LogPosition), Malformed> {
    let message = open::<log::ReplicaState>("replica state", group, value)?;
    let (Some(hard_state), Some(base)) = (message.hard_state, message.base) else {
        return Err(Malformed::new("replica state", "a part is missing"));
    };
    Ok((hard_state_from_message(&hard_state), position_from_message(&base)))
}

pub(super) fn read_tombstone(group: GroupId, value: Vec<u8>) -> Result<ReplicaId, Malformed> {
    let message = open::<log::Tombstone>("tombstone", group, value)?;
    ReplicaId::new(message.replica)
        .ok_or_else(|| Malformed::new("tombstone", "the replica id is zero"))
}

pub(super) fn read_doubt(group: GroupId, value: Vec<u8>) -> Result<Certainty, Malformed> {
    let message = open::<log::Doubt>("doubt", group, value)?;
    match message.cause() {
        log::doubt::Cause::TornTail => Ok(Certainty::InDoubt(Doubt::TornTail)),
        log::doubt::Cause::RolledBack => Ok(Certainty::InDoubt(Doubt::RolledBack)),
        log::doubt::Cause::Unreadable => Ok(Certainty::InDoubt(Doubt::Unreadable)),
        log::doubt::Cause::Differs => Ok(Certainty::Differs),
        log::doubt::Cause::Unspecified => {
            Err(Malformed::new("doubt", format!("its cause {} is unknown", message.cause)))
        }
    }
}

fn seal(group: GroupId, message: &impl Message, out: &mut Vec<u8>) {
    frame::seal(group, out, |out| message.encode_raw(out));
}

fn open<M: Message + Default>(
    what: &'static str,
    group: GroupId,
    value: Vec<u8>,
) -> Result<M, Malformed> {
    let payload = frame::open(group, &Bytes::from(value))
        .map_err(|damage| Malformed::new(what, damage.to_string()))?;
    M::decode(payload).map_err(|error| Malformed::new(what, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{LogIndex, NodeId, Term};
    use crate::types::Membership;

    const GROUP: GroupId = GroupId::new(7);

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut out);
        out
    }

    fn some_meta() -> GroupMeta {
        GroupMeta {
            group: GROUP,
            replica: ReplicaId::must(2),
            membership: Membership::initial([NodeId::must(1), NodeId::must(2)]),
            snapshot: None,
            labels: [("zone".to_owned(), "a".to_owned())].into(),
            kind: "table".to_owned(),
            skipping: None,
        }
    }

    #[test]
    fn values_are_read_as_they_were_written() {
        let hard_state =
            HardState { term: Term::new(5), vote: ReplicaId::new(1), commit: LogIndex::new(9) };
        let base = LogPosition::new(4, 8);
        let replica = ReplicaId::must(3);
        assert_eq!(read_meta(GROUP, written(|out| meta(&some_meta(), out))), Ok(some_meta()));
        let value = written(|out| state(GROUP, &hard_state, base, out));
        assert_eq!(read_state(GROUP, value), Ok((hard_state, base)));
        let value = written(|out| tombstone(GROUP, replica, out));
        assert_eq!(read_tombstone(GROUP, value), Ok(replica));
        for known in [Doubt::TornTail, Doubt::RolledBack, Doubt::Unreadable] {
            let value = written(|out| doubt(GROUP, cause_of(known), out));
            assert_eq!(read_doubt(GROUP, value), Ok(Certainty::InDoubt(known)));
        }
        let value = written(|out| doubt(GROUP, log::doubt::Cause::Differs, out));
        assert_eq!(read_doubt(GROUP, value), Ok(Certainty::Differs));
    }

    #[test]
    fn values_of_another_group_or_kind_and_damaged_ones_are_refused() {
        let value = written(|out| meta(&some_meta(), out));
        assert!(read_meta(GroupId::new(8), value.clone()).is_err());
        assert!(
            read_tombstone(GROUP, written(|out| seal(GROUP, &log::Tombstone::default(), out)))
                .is_err()
        );
        assert!(
            read_state(GROUP, written(|out| seal(GROUP, &log::ReplicaState::default(), out)))
                .is_err()
        );
        let causeless = written(|out| seal(GROUP, &log::Doubt::default(), out));
        assert!(read_doubt(GROUP, causeless).is_err());
        for length in 0..value.len() {
            assert!(read_meta(GROUP, value[..length].to_vec()).is_err());
        }
    }
}
