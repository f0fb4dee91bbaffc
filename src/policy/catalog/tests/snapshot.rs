//! Snapshots: complete, or refused with the error.

use shardhost_groups::machine::{ApplyBatch, Command as Committed, StateMachine};
use shardhost_storage::LogPosition;

use super::*;

fn written(catalog: &Catalog) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_snapshot(catalog, &mut bytes).unwrap();
    bytes
}

fn read(bytes: &[u8]) -> Result<Catalog, SnapshotError> {
    read_snapshot(&mut &bytes[..])
}

fn fault(bytes: &[u8]) -> String {
    read(bytes).map(|_| ()).unwrap_err().to_string()
}

/// A catalog with a record of every kind, large enough for several frames.
fn rich() -> Catalog {
    let mut catalog = three_nodes();
    put_node(&mut catalog, in_zone(4, "east"));
    for number in 1..=4_000 {
        create(
            &mut catalog,
            NewGroup { requirement: hard(&["fifo"]), ..new_group(number, &[1, 4]) },
        );
    }
    destroy(&mut catalog, 5);
    let new = NewDrain {
        node: node(3),
        owner: "anna".to_owned(),
        deadline_ms: NOW + 1,
        expires_ms: NOW + 2,
        fallback: DrainFallback::Proceed,
        stranding: Stranding::Refuse,
    };
    run(&mut catalog, Operation::BeginDrain(new)).unwrap();
    run(&mut catalog, Operation::SetPlannerMode { mode: PlannerMode::On }).unwrap();
    catalog
}

/// The snapshot with one message changed, and its CRC made right again.
fn forged(change: impl Fn(&mut Vec<wire::snapshot_frame::Frame>)) -> Vec<u8> {
    use prost::Message;
    let bytes = written(&rich());
    let (header, mut rest) = bytes.split_at(8);
    let mut frames = Vec::new();
    while !rest.is_empty() {
        let length = u32::from_le_bytes(rest[..4].try_into().unwrap()) as usize;
        let message = wire::SnapshotFrame::decode(&rest[8..8 + length]).unwrap();
        frames.push(message.frame.unwrap());
        rest = &rest[8 + length..];
    }
    change(&mut frames);
    let mut out = header.to_vec();
    for frame in frames {
        let bytes = wire::SnapshotFrame { frame: Some(frame) }.encode_to_vec();
        out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        out.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        out.extend_from_slice(&bytes);
    }
    out
}

#[test]
fn a_catalog_comes_back_as_it_was_in_several_frames() {
    let catalog = rich();
    let bytes = written(&catalog);
    let back = read(&bytes).unwrap();
    assert_eq!(back, catalog);
    assert_eq!(back.digest(), catalog.digest());
    assert!(bytes.len() > 64 * 1024, "{} bytes are one frame", bytes.len());
    assert_eq!(read(&written(&Catalog::default())).unwrap(), Catalog::default());
}

#[test]
fn what_is_something_else_or_of_another_format_is_refused() {
    let mut bytes = written(&rich());
    bytes[7] = 9;
    assert!(fault(&bytes).contains("has format 9, this host reads format 1"), "{}", fault(&bytes));
    bytes[0] = b'X';
    assert!(fault(&bytes).contains("no snapshot of a catalog"), "{}", fault(&bytes));
}

#[test]
fn every_byte_counts() {
    let bytes = written(&with_group());
    assert!(read(&bytes).is_ok());
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        assert!(read(&damaged).is_err(), "byte {at} was changed without an error");
    }
}

#[test]
fn a_snapshot_that_ends_early_or_goes_on_is_refused() {
    let bytes = written(&with_group());
    for length in 0..bytes.len() {
        let refused = matches!(read(&bytes[..length]), Err(SnapshotError::Unreadable { .. }));
        assert!(refused, "cut to {length} bytes");
    }
    let longer = [&bytes[..], &[0]].concat();
    assert!(matches!(read(&longer), Err(SnapshotError::Trailing)));
}

#[test]
fn a_length_that_no_frame_has_is_not_believed() {
    let mut bytes = written(&with_group());
    bytes[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(fault(&bytes).contains("4294967295 bytes, at most 1048576"), "{}", fault(&bytes));
}

#[test]
fn frames_that_are_whole_and_wrong_are_refused() {
    use wire::snapshot_frame::Frame;
    let swapped = forged(|frames| frames.swap(1, 2));
    assert!(
        fault(&swapped).contains("settings follows the drain of node 3"),
        "{}",
        fault(&swapped)
    );
    let mixed = forged(|frames| {
        let changes = frames.iter().position(|frame| matches!(frame, Frame::Changes(_))).unwrap();
        frames.swap(changes - 1, changes);
    });
    assert!(fault(&mixed).contains("records follow changes"), "{}", fault(&mixed));
    let headless = forged(|frames| drop(frames.remove(0)));
    assert!(
        fault(&headless).contains("frame 1 of the snapshot makes no sense: it is not the head")
    );
    let lost = forged(|frames| drop(frames.remove(2)));
    assert!(fault(&lost).contains("says it has 4006 records, it has "), "{}", fault(&lost));
    let future = forged(|frames| {
        let Frame::Head(head) = &mut frames[0] else { panic!("no head") };
        head.revision = 3_000;
    });
    assert!(fault(&future).contains("of revision 4009, the head of 3000"), "{}", fault(&future));
    let other = forged(|frames| {
        let Frame::Head(head) = &mut frames[0] else { panic!("no head") };
        head.ended_floor = 1;
    });
    assert!(fault(&other).contains("says its digest is"), "{}", fault(&other));
}

#[test]
fn a_machine_that_cannot_restore_keeps_what_it_has() {
    let mut machine = CatalogMachine::default();
    let data = Command::new(NOW, Operation::PutNode(new_node(1))).encode();
    let mut batch = [Committed::new(LogPosition::new(1, 2), data)];
    machine.apply(&mut ApplyBatch::new(group(1), LogPosition::new(1, 2), &mut batch)).unwrap();
    let mut bytes = written(&rich());
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let fault = machine.restore(LogPosition::new(3, 9), &mut &bytes[..]).unwrap_err();
    assert!(fault.to_string().contains("damaged: its CRC is"), "{fault}");
    assert_eq!(machine.applied(), Ok(Some(LogPosition::new(1, 2))));
    assert!(machine.catalog().view().nodes().contains_key(&node(1)));
}
