//! What replicas are compared by follows from the commands alone: however they were batched, whatever
//! was replayed, flushed or restored, and whatever else the host holds.

use bytes::Bytes;
use shardhost_groups::apply::sum_of;
use shardhost_groups::checksum::StateSum;
use shardhost_groups::machine::StateMachine;

use super::queue::QueueCommand;
use super::table::TableCommand;
use super::testing::{GROUP, Scratch, apply, restore, snapshot_of};

fn sum(machine: &mut impl StateMachine) -> StateSum {
    let view = machine.consistency_view().unwrap().unwrap();
    sum_of(view, &mut |_| Ok(())).unwrap()
}

/// Applies the commands as one batch per command, with empty batches between some.
fn one_by_one(machine: &mut impl StateMachine, commands: &[Bytes]) {
    for (place, command) in commands.iter().enumerate() {
        apply(machine, place as u64 + 1, std::slice::from_ref(command));
        if place % 3 == 0 {
            machine.make_durable().unwrap();
        }
    }
    apply(machine, commands.len() as u64 + 1, &[]);
}

/// Replicas that come to the same state in different ways, and one that lacks the last command.
fn check<M: StateMachine>(open: fn(&Scratch) -> M, commands: &[Bytes]) {
    let scratches = [(); 4].map(|()| Scratch::new());
    let [mut whole, mut pieces, mut restored, mut lacks] = scratches.each_ref().map(open);
    apply(&mut whole, 1, commands);
    one_by_one(&mut pieces, commands);
    restore(&mut restored, 40, &snapshot_of(&mut whole));
    apply(&mut lacks, 1, &commands[..commands.len() - 1]);
    let expected = sum(&mut whole);
    assert_eq!(sum(&mut pieces), expected);
    assert_eq!(sum(&mut restored), expected);
    assert_ne!(sum(&mut lacks), expected);
    drop(pieces);
    scratches[1].state.flush_now().unwrap();
    let image = scratches[1].crashed();
    assert_eq!(sum(&mut open(&image)), expected, "after a crash");
}

#[test]
fn tables_that_applied_the_same_show_the_same() {
    let put = |key: &str, value: &str| {
        TableCommand::Put { key: key.as_bytes(), value: value.as_bytes() }.encode()
    };
    let delete = TableCommand::Delete { key: b"b" }.encode();
    let commands = [put("a", "1"), put("b", "2"), put("a", "3"), delete, put("c", "4")];
    check(|scratch| scratch.state.table(GROUP), &commands);
}

#[test]
fn queues_that_applied_the_same_show_the_same() {
    let commands = [
        QueueCommand::send(10, b"k", b"one", b"id"),
        QueueCommand::send(20, b"k", b"two", b""),
        QueueCommand::receive(30, 1, 100, b""),
        QueueCommand::send(40, b"l", b"three", b"id"),
        Bytes::from_static(b"no command"),
        QueueCommand::send(50, b"l", b"four", b"other"),
        QueueCommand::receive(500, 1, 100, b""),
    ];
    check(|scratch| scratch.state.queue(GROUP), &commands);
}
