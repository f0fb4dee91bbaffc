//! Bytes as values of the log: each kind of value that the database and the identity file hold.
//!
//! The first byte of an input selects its kind, and whether the rest is used unchanged or within a
//! frame whose checksum is right: random bytes hardly ever pass that.

use bytes::Bytes;
use prost::Message;
use shardhost_proto::log;

use super::boot::BootId;
use super::identity::{IdentityFile, Stage};
use super::{keys, values};
use crate::convert::Malformed;
use crate::ids::{LogIndex, LogPosition, NodeId, ReplicaId, Term};
use crate::testing::fixtures::{self, GROUP};
use crate::testing::fuzz::{Seed, Target, names_what_is_wrong};
use crate::types::{Certainty, Doubt, HardState, Incoming};
use crate::{Entry, Requirement, frame, run};

/// Kinds of values; the last one counts them.
const META: u8 = 0;
const STATE: u8 = 1;
const TOMBSTONE: u8 = 2;
const DOUBT: u8 = 3;
const RUN: u8 = 4;
const IDENTITY: u8 = 5;
const KEY: u8 = 6;
const KINDS: u8 = 7;
/// Set in the first byte: the rest is put into a frame.
const SEALED: u8 = 0x80;

/// The target.
#[must_use]
pub fn log_values() -> Target {
    // An entry of two bytes takes 90 in memory, twice: as a message, and converted.
    Target { name: "log_values", run: check, seeds, memory_factor: 256 }
}

fn check(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else { return };
    let sealed = kind & SEALED != 0;
    let value = if sealed { seal(rest) } else { rest.to_vec() };
    match (kind & !SEALED) % KINDS {
        META => again(values::read_meta(GROUP, value.clone()), values::meta, |bytes| {
            values::read_meta(GROUP, bytes)
        }),
        STATE => again(
            values::read_state(GROUP, value.clone()),
            |(state, base), out| values::state(GROUP, state, *base, out),
            |bytes| values::read_state(GROUP, bytes),
        ),
        TOMBSTONE => again(
            values::read_tombstone(GROUP, value.clone()),
            |replica, out| values::tombstone(GROUP, *replica, out),
            |bytes| values::read_tombstone(GROUP, bytes),
        ),
        DOUBT => again(
            values::read_doubt(GROUP, value.clone()),
            |certainty, out| values::doubt(GROUP, cause_of(*certainty), out),
            |bytes| values::read_doubt(GROUP, bytes),
        ),
        RUN => check_run(&value.into()),
        IDENTITY => check_identity(rest, sealed),
        KEY => check_key(rest),
        _ => {}
    }
}

/// What was read is written, and read as the same.
fn again<T: PartialEq + std::fmt::Debug>(
    read: Result<T, Malformed>,
    write: impl Fn(&T, &mut Vec<u8>),
    read_again: impl Fn(Vec<u8>) -> Result<T, Malformed>,
) {
    match read {
        Ok(value) => {
            let mut bytes = Vec::new();
            write(&value, &mut bytes);
            assert_eq!(read_again(bytes), Ok(value), "it is not read as it was written");
        }
        Err(error) => names_what_is_wrong(&error),
    }
}

fn check_run(value: &Bytes) {
    match run::decode(GROUP, value) {
        Ok(entries) => {
            assert!(!entries.is_empty(), "a run has entries");
            let follows = |pair: &[Entry]| pair[1].index.get() == pair[0].index.get() + 1;
            assert!(entries.windows(2).all(follows), "a run has a gap");
            let mut bytes = Vec::new();
            run::encode(GROUP, entries.iter(), &mut bytes);
            assert_eq!(run::decode(GROUP, &bytes.into()), Ok(entries));
        }
        Err(error) => names_what_is_wrong(&error),
    }
}

fn check_identity(rest: &[u8], sealed: bool) {
    let bytes = if sealed { IdentityFile::sealed(rest) } else { rest.to_vec() };
    match IdentityFile::decode(&bytes) {
        Ok(file) => {
            let again = IdentityFile::decode(&file.encode());
            assert_eq!(again, Ok(file), "it is not read as it was written");
        }
        Err(error) => names_what_is_wrong(&error),
    }
}

fn check_key(rest: &[u8]) {
    if let Some((group, part)) = keys::parse_replica(rest) {
        assert_eq!(keys::replica(group, part)[..], *rest);
    }
    if let Some((group, first)) = keys::parse_run(rest) {
        assert_eq!(keys::run(group, first)[..], *rest);
    }
}

fn cause_of(certainty: Certainty) -> log::doubt::Cause {
    match certainty {
        Certainty::InDoubt(doubt) => values::cause_of(doubt),
        _ => log::doubt::Cause::Differs,
    }
}

fn seal(payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    frame::seal(GROUP, &mut out, |out| out.extend_from_slice(payload));
    out
}

fn seeds() -> Vec<Seed> {
    let written = |kind: u8, write: &dyn Fn(&mut Vec<u8>)| {
        let mut value = Vec::new();
        write(&mut value);
        let payload = value.split_off(frame::HEADER_BYTES);
        [&[kind | SEALED][..], &payload].concat()
    };
    let mut seeds = Vec::new();
    let mut add = |name: &str, bytes: Vec<u8>| seeds.push(Seed::new(name, bytes));
    add("meta", written(META, &|out| values::meta(&fixtures::meta(GROUP, 2), out)));
    let mut meta = fixtures::meta(GROUP, 3);
    meta.snapshot = Some(LogPosition::new(4, 70));
    meta.membership.newest_replica = ReplicaId::new(5);
    let (replica, replaces) = (ReplicaId::must(4), ReplicaId::new(1));
    meta.membership.incoming = Some(Incoming { replica, replaces });
    meta.membership.requirement = Requirement::soft(["fifo", "ssd"]).expect("names");
    add("meta-changing", written(META, &|out| values::meta(&meta, out)));
    let state =
        HardState { term: Term::new(9), vote: ReplicaId::new(2), commit: LogIndex::new(88) };
    let base = LogPosition::new(3, 40);
    add("state", written(STATE, &|out| values::state(GROUP, &state, base, out)));
    let last = LogPosition::new(u64::MAX, u64::MAX);
    add("state-at-the-end", written(STATE, &|out| values::state(GROUP, &state, last, out)));
    add("tombstone", written(TOMBSTONE, &|out| values::tombstone(GROUP, ReplicaId::must(7), out)));
    for (name, cause) in [
        ("doubt-torn", values::cause_of(Doubt::TornTail)),
        ("doubt-rolled-back", values::cause_of(Doubt::RolledBack)),
        ("doubt-unreadable", values::cause_of(Doubt::Unreadable)),
        ("differs", log::doubt::Cause::Differs),
    ] {
        add(name, written(DOUBT, &|out| values::doubt(GROUP, cause, out)));
    }
    let entries = fixtures::entries(3, 10..=20);
    let run = written(RUN, &|out| run::encode(GROUP, entries.iter(), out));
    add("run-cut", run[..run.len() / 2].to_vec());
    add("run", run);
    let framed = {
        let mut out = Vec::new();
        run::encode(GROUP, entries[..2].iter(), &mut out);
        [&[RUN][..], &out].concat()
    };
    add("run-in-its-frame", framed);
    let late = log::Run { first_index: u64::MAX - 1, entries: vec![log::Entry::default(); 3] };
    add("run-beyond-the-last-index", [&[RUN | SEALED][..], &late.encode_to_vec()].concat());
    let empty = log::Entry { kind: 1, ..log::Entry::default() };
    let many = log::Run { first_index: 1, entries: vec![empty; 8_000] };
    add("run-of-empty-entries", [&[RUN | SEALED][..], &many.encode_to_vec()].concat());
    let many = vec![log::Member::default(); 8_000];
    let membership = Some(log::Membership { members: many, ..log::Membership::default() });
    let many = log::GroupMeta { group: GROUP.get(), replica: 1, membership, ..Default::default() };
    add("meta-of-empty-members", [&[META | SEALED][..], &many.encode_to_vec()].concat());
    let file = IdentityFile {
        stage: Stage::Ready,
        sequence: 70_000,
        log_file: 12,
        boot: BootId::new(5),
        certainty: Certainty::Sure,
        identity: log::StoreIdentity {
            format: 1,
            cluster: "shop".to_owned(),
            node: NodeId::must(3).get(),
            store: 77,
        },
    };
    add("identity", [&[IDENTITY][..], &file.encode()].concat());
    let rest = file.encode().split_off(12);
    add("identity-unsealed", [&[IDENTITY | SEALED][..], &rest].concat());
    let key = keys::replica(GROUP, keys::Part::Meta);
    add("key-of-a-replica", [&[KEY][..], &key].concat());
    add("key-of-a-run", [&[KEY][..], &keys::run(GROUP, LogIndex::new(9))].concat());
    seeds
}
