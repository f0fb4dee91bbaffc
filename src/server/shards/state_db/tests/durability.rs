//! What is flushed is durable; what is not is not called so.

use shardhost_groups::machine::StateMachine as _;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use shardhost_groups::machine::Progress;

use super::super::*;
use super::{applied, apply_nothing, becomes_durable, durable, put_all};
use crate::shards::testing::{GROUP, Scratch, open};

#[test]
fn only_what_was_flushed_is_called_durable_and_survives_a_crash() {
    let scratch = Scratch::new();
    let mut table = scratch.state.table(GROUP);
    put_all(&mut table, 1..=3);
    assert_eq!((applied(&table), durable(&table)), (Some(3), 0));
    scratch.state.flush_now().unwrap();
    put_all(&mut table, 4..=5);
    assert_eq!((applied(&table), durable(&table)), (Some(5), 3));

    let after = scratch.crashed();
    let table = after.state.table(GROUP);
    assert_eq!((applied(&table), durable(&table)), (Some(3), 3));
    assert_eq!(table.checksum(&Progress::default()).unwrap().items, 3);
}

#[test]
fn closing_flushes() {
    let scratch = Scratch::new();
    put_all(&mut scratch.state.table(GROUP), 1..=3);
    let directory = scratch.close();
    let table = open(directory.path()).table(GROUP);
    assert_eq!((applied(&table), durable(&table)), (Some(3), 3));
}

#[test]
fn a_machine_opened_again_does_not_take_unflushed_writes_for_durable() {
    let scratch = Scratch::new();
    put_all(&mut scratch.state.table(GROUP), 1..=3);
    let again = scratch.state.table(GROUP);
    assert_eq!((applied(&again), durable(&again)), (Some(3), 0));
}

#[test]
fn an_empty_batch_moves_the_position() {
    let scratch = Scratch::new();
    let mut table = scratch.state.table(GROUP);
    apply_nothing(&mut table, 4);
    assert_eq!(applied(&table), Some(4));
}

#[test]
fn the_state_becomes_durable_by_itself_after_enough_bytes() {
    let options = StateDbOptions { flush_bytes: 1, ..StateDbOptions::small().flushed_by_hand() };
    becomes_durable(options);
}

#[test]
fn the_state_becomes_durable_by_itself_after_a_while() {
    let mut options = StateDbOptions::small().flushed_by_hand();
    options.flush_interval = Duration::from_millis(1);
    becomes_durable(options);
}

#[test]
fn flushes_during_writes_never_claim_more_than_a_crash_leaves() {
    const FLUSHES: usize = 50;
    let scratch = Scratch::new();
    let (begun, stop) = (Barrier::new(2), AtomicBool::new(false));
    let written = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut table = scratch.state.table(GROUP);
            put_all(&mut table, 1..=1);
            begun.wait();
            let put = |index: &u64| put_all(&mut table, *index..=*index);
            (2..).inspect(put).find(|_| stop.load(Ordering::Relaxed)).unwrap()
        });
        begun.wait();
        (0..FLUSHES).for_each(|_| scratch.state.flush_now().unwrap());
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap()
    });
    let claimed = durable(&scratch.state.table(GROUP));
    let crashed = scratch.crashed();
    let table = crashed.state.table(GROUP);
    let found = applied(&table).unwrap();
    assert!(1 <= claimed && claimed <= found && found <= written, "{claimed} {found} {written}");
    assert_eq!(table.checksum(&Progress::default()).unwrap().items, found);
}
