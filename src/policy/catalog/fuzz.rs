//! Bytes as what the log and a snapshot hold for the catalog.
//!
//! Each command is preceded by its length in two bytes. So is each frame of a snapshot; checksums
//! and the digest of the whole are corrected, so that the content that they protect is tested, too.

use std::io::Cursor;

use bytes::Bytes;
use prost::Message;
use shardhost_groups::machine::{Command as Committed, Progress, StateMachine, apply_all};
use shardhost_storage::testing::fuzz::{Seed, Target, names_what_is_wrong};
use shardhost_storage::{GroupId, LogIndex, LogPosition, NodeId, Requirement};

use super::*;
use shardhost_proto::grants::Grants;
use shardhost_proto::shard_map::{KindShards, ShardMap};
use shardhost_proto::version::ClusterVersion;

/// Commands or frames of an input at most: time is bounded by them.
const MOST_PARTS: usize = 256;
const NOW_MS: u64 = 1_000_000;

/// Commands that every replica applies.
#[must_use]
pub fn catalog_commands() -> Target {
    // A short command may make a record of some hundred bytes, held twice and shown once.
    Target {
        name: "catalog_commands",
        run: check_commands,
        seeds: command_seeds,
        memory_factor: 256,
    }
}

/// Snapshots that a replica restores.
#[must_use]
pub fn catalog_snapshots() -> Target {
    let (run, seeds) = (check_snapshot, snapshot_seeds);
    Target { name: "catalog_snapshots", run, seeds, memory_factor: 256 }
}

fn parts_of(mut input: &[u8]) -> Vec<Bytes> {
    let mut parts = Vec::new();
    while parts.len() < MOST_PARTS
        && let Some((length, rest)) = input.split_first_chunk::<2>()
    {
        let (part, rest) = rest.split_at(rest.len().min(usize::from(u16::from_be_bytes(*length))));
        parts.push(Bytes::copy_from_slice(part));
        input = rest;
    }
    parts
}

fn framed<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut out = Vec::new();
    for part in parts {
        out.extend_from_slice(&u16::try_from(part.len()).expect("short").to_be_bytes());
        out.extend_from_slice(part);
    }
    out
}

/// Applies commands in batches of `size` and returns the answers. No bytes make the machine fail.
fn applied(machine: &mut CatalogMachine, commands: &[Bytes], size: usize) -> Vec<Bytes> {
    let mut answers = Vec::new();
    let mut index = machine.applied().expect("readable").map_or(0, |at| at.index.get());
    for chunk in commands.chunks(size.max(1)) {
        let mut batch: Vec<Committed> = (index + 1..)
            .zip(chunk)
            .map(|(index, data)| Committed::new(LogPosition::new(1, index), data.clone()))
            .collect();
        index += chunk.len() as u64;
        let last = LogPosition::new(1, index);
        apply_all(machine, SYSTEM_GROUP, last, &mut batch).expect("no command stops the machine");
        answers.extend(batch.iter().map(|command| command.response().clone()));
    }
    answers
}

fn check_commands(input: &[u8]) {
    let commands = parts_of(input);
    for data in &commands {
        match Command::decode(data) {
            Ok(command) => assert_eq!(&command.encode(), data, "two byte strings say one thing"),
            Err(refusal) => names_what_is_wrong(&refusal),
        }
        drop((Query::decode(data), Answer::decode(data)));
    }
    let (mut whole, mut cut) = (CatalogMachine::default(), CatalogMachine::default());
    let answers = applied(&mut whole, &commands, commands.len());
    assert_eq!(answers, applied(&mut cut, &commands, 1), "batches make a difference");
    for answer in &answers {
        match decode_reply(answer) {
            Ok(done) => assert!(done.revision <= whole.catalog().view().revision()),
            Err(refusal) => names_what_is_wrong(&refusal),
        }
    }
    same(&whole, &cut);
    let restored = carried(&whole);
    same(&whole, &restored);
    for query in queries() {
        assert_eq!(whole.query(&query), restored.query(&query), "two replicas answer differently");
    }
}

#[track_caller]
fn same(one: &CatalogMachine, two: &CatalogMachine) {
    assert_eq!(
        one.checksum(&Progress::default()),
        two.checksum(&Progress::default()),
        "two replicas differ"
    );
    assert_eq!(one.catalog(), two.catalog(), "two replicas differ and have one digest");
}

/// The machine that a snapshot of this one makes.
fn carried(machine: &CatalogMachine) -> CatalogMachine {
    let mut snapshot = Vec::new();
    write_snapshot(machine.catalog(), &mut snapshot).expect("written");
    let mut restored = CatalogMachine::default();
    let at = machine.applied().expect("readable").unwrap_or_default();
    restored.restore(at, &mut Cursor::new(snapshot)).expect("what was written is read");
    restored
}

fn queries() -> Vec<Bytes> {
    let lists = RecordKind::ALL.map(|kind| Query::List { kind, after: None, limit: 50 });
    let changes = Query::Changes { since: Revision::new(0), limit: 50 };
    lists.iter().chain([&changes]).map(Query::encode).collect()
}

/// A snapshot with right checksums, and with the digest that its content has.
fn sealed(frames: &[Bytes]) -> Vec<u8> {
    let mut out = b"SHCATAL\x01".to_vec();
    for frame in frames {
        out.extend_from_slice(&u32::try_from(frame.len()).expect("short").to_le_bytes());
        out.extend_from_slice(&crc32fast::hash(frame).to_le_bytes());
        out.extend_from_slice(frame);
    }
    out
}

/// A snapshot is refused, or a catalog restored from it works.
fn check_snapshot(input: &[u8]) {
    let mut frames = parts_of(input);
    let mut read = read_snapshot(&mut Cursor::new(sealed(&frames)));
    if let Err(SnapshotError::WrongDigest { actual, .. }) = read
        && let Some(last) = frames.last_mut()
        && let Ok(mut message) = wire::SnapshotFrame::decode(last.clone())
        && let Some(wire::snapshot_frame::Frame::End(end)) = &mut message.frame
    {
        end.digest = actual;
        *last = message.encode_to_vec().into();
        read = read_snapshot(&mut Cursor::new(sealed(&frames)));
    }
    match read {
        Err(error) => names_what_is_wrong(&error),
        Ok(catalog) => {
            let mut snapshot = Vec::new();
            write_snapshot(&catalog, &mut snapshot).expect("written");
            let mut machines = [CatalogMachine::default(), CatalogMachine::default()];
            for machine in &mut machines {
                let at = LogPosition::new(1, 10);
                let restored = machine.restore(at, &mut Cursor::new(&snapshot));
                restored.expect("what was written is read");
            }
            let commands: Vec<Bytes> = commands().iter().map(Command::encode).collect();
            let [one, two] = &mut machines;
            assert_eq!(applied(one, &commands, 2), applied(two, &commands, 9));
            same(one, two);
        }
    }
}

/// Commands of every kind, of which most change something.
fn commands() -> Vec<Command> {
    let node = NodeId::must;
    let name = |text| Name::new(Subject::Kind, text).expect("a name");
    let new_node = |number: u64| NewNode {
        id: node(number),
        address: format!("10.0.0.{number}:7400"),
        zone: Some(name("east")),
        weight: 1,
        store: 100 + number,
    };
    let group = |number: u64| GroupId::new(number);
    let new_group = |number: u64| NewGroup::new(group(number), name("table"), [1, 2, 3].map(node));
    let requirement = Requirement::soft(["fifo"]).expect("names");
    let placement = Placement {
        preference: vec![Place::Node(node(2)), Place::Zone(name("east"))].into(),
        pin: Some(node(2)),
        spread: Some(name("orders")),
    };
    let drain = NewDrain {
        node: node(3),
        owner: "anna".to_owned(),
        deadline_ms: NOW_MS + 1_000,
        expires_ms: NOW_MS + 2_000,
        fallback: DrainFallback::Proceed,
        stranding: Stranding::Accept,
    };
    let token = |id| NewToken {
        id,
        name: name("billing"),
        grants: Grants::CLIENT,
        digest: TokenDigest::new([7; TokenDigest::BYTES]),
        expires_ms: Some(NOW_MS + 1_000),
    };
    let shards = KindShards { count: 4, first_group: group(1_000_000) };
    let operations = vec![
        Operation::PutNode(new_node(1)),
        Operation::PutNode(new_node(2)),
        Operation::PutNode(new_node(3)),
        Operation::FoundShardMap { map: ShardMap::first([("table".to_owned(), shards)]) },
        Operation::CreateGroup(NewGroup { placement: placement.clone(), ..new_group(7) }),
        Operation::CreateGroup(new_group(8)),
        Operation::SetRequirement { group: group(7), requirement },
        Operation::SetPlacement { group: group(8), placement },
        Operation::RecordMembers {
            group: group(7),
            config_index: LogIndex::new(5),
            nodes: [1, 2].map(node).into(),
            founding: Some([1, 2].map(node).into()),
            learners: None,
            generation: None,
        },
        Operation::DestroyGroup { group: group(8), generation: Some(0) },
        Operation::FinishDestroy { group: group(8) },
        Operation::Advertise { node: node(1), incarnation: 9, capabilities: [name("fifo")].into() },
        Operation::BeginDrain(drain),
        Operation::PassTime {
            node: node(3),
            intent: IntentId::new(Revision::new(14)),
            passed_ms: 500,
        },
        Operation::Tick,
        Operation::SetPlannerMode { mode: PlannerMode::On },
        Operation::SetPlannedMoves {
            moves: PlannedMoves::Stopped,
            reason: "an incident".to_owned(),
        },
        Operation::RemoveNode { node: node(2) },
        Operation::SetReplicas {
            replicas: ReplicaSettings { mode: PlannerMode::On, replace_after_ms: 5_000 },
        },
        Operation::RaiseVersion {
            version: ClusterVersion::NEWEST,
            prepared: [1, 2, 3].map(|number| (node(number), 100 + number)).into(),
        },
        Operation::PutToken(token(u64::MAX)),
        Operation::PutToken(NewToken { expires_ms: None, ..token(5) }),
        Operation::RemoveToken { id: 5 },
        Operation::PutRule(ReplicaRule {
            name: name("gold"),
            groups: Selection::Label(Label { key: name("tier"), value: "gold".into() }),
            voters: Some(5),
            learners: Some(1),
            zones: Box::default(),
            capabilities: [name("fifo")].into(),
        }),
        Operation::PutRule(ReplicaRule {
            name: name("catalog"),
            groups: Selection::Group(group(0)),
            voters: Some(5),
            learners: None,
            zones: Box::default(),
            capabilities: Box::default(),
        }),
        Operation::RemoveRule { name: name("gold") },
        Operation::RecordMembers {
            group: group(7),
            config_index: LogIndex::new(9),
            nodes: [1, 3].map(node).into(),
            founding: Some([1].map(node).into()),
            learners: Some([3].map(node).into()),
            generation: Some(0),
        },
    ];
    operations.into_iter().map(|operation| Command::new(NOW_MS, operation)).collect()
}

fn command_seeds() -> Vec<Seed> {
    let encoded: Vec<Bytes> = commands().iter().map(Command::encode).collect();
    let mut seeds = vec![Seed::new("all", framed(encoded.iter().map(|one| &one[..])))];
    for (at, command) in encoded.iter().enumerate() {
        seeds.push(Seed::new(format!("command-{at}"), framed([&command[..]])));
    }
    let expected = Some(Revision::new(u64::MAX));
    let late = Command { now_ms: u64::MAX, expected, ..commands()[0].clone() };
    seeds.push(Seed::new("late", framed([&late.encode()[..]])));
    let founders = vec![1; 20_000];
    let create = wire::CreateGroup { kind: "queue".to_owned(), founders, ..Default::default() };
    let create = wire::command::Operation::CreateGroup(create);
    seeds.push(Seed::new("many-founders", framed([&unchecked(create)[..]])));
    let (name, digest) = ("billing".to_owned(), Bytes::from_static(&[7; 31]));
    let put = wire::PutToken { token: 5, name, grants: u32::MAX, digest, expires_ms: Some(0) };
    let put = wire::command::Operation::PutToken(put);
    seeds.push(Seed::new("damaged-token", framed([&unchecked(put)[..]])));
    seeds
}

/// A command that is not what [`Command::encode`] writes.
fn unchecked(operation: wire::command::Operation) -> Vec<u8> {
    let message = wire::Command { now_ms: 0, expected: None, operation: Some(operation) };
    [&[1][..], &message.encode_to_vec()].concat()
}

fn frames_of(snapshot: &[u8]) -> Vec<&[u8]> {
    let (mut rest, mut frames) = (&snapshot[8..], Vec::new());
    while let Some((length, behind)) = rest.split_first_chunk::<4>() {
        let (frame, behind) = behind[4..].split_at(u32::from_le_bytes(*length) as usize);
        frames.push(frame);
        rest = behind;
    }
    frames
}

fn snapshot_seeds() -> Vec<Seed> {
    let mut machine = CatalogMachine::default();
    let mut written = |commands: &[Command]| {
        let commands: Vec<Bytes> = commands.iter().map(Command::encode).collect();
        drop(applied(&mut machine, &commands, 5));
        let mut snapshot = Vec::new();
        write_snapshot(machine.catalog(), &mut snapshot).expect("written");
        snapshot
    };
    let empty = written(&[]);
    let some = written(&commands()[..8]);
    let all = written(&commands());
    for kind in RecordKind::ALL {
        let one = machine.catalog().view().records(kind, None).next();
        assert!(one.is_some(), "no snapshot has a record of {kind:?}");
    }
    let frames = frames_of(&all);
    let message = wire::SnapshotFrame { frame: None }.encode_to_vec();
    vec![
        Seed::new("empty", framed(frames_of(&empty))),
        Seed::new("some", framed(frames_of(&some))),
        Seed::new("all", framed(frames.clone())),
        Seed::new("without-its-end", framed(frames[..frames.len() - 1].to_vec())),
        Seed::new("end-first", framed(frames.iter().rev().copied())),
        Seed::new("a-frame-of-nothing", framed([&message[..]])),
    ]
}
