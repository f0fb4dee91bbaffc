//! When a call counts as hanging, and when it does no longer.

use super::*;

const LIMIT: u32 = 3;

#[test]
fn a_call_is_slow_after_the_limit_and_hung_after_three_times_as_long() {
    use Health::{Hung, Slow, Well};
    let mut thread = WatchedThread::default();
    let mut look = |seen| thread.look(seen, LIMIT);
    let found: Vec<Health> = (0..12).map(|_| look(Some((1, 0)))).collect();
    assert_eq!(found, [[Well; 3], [Slow; 3], [Slow; 3], [Hung; 3]].concat());
    assert_eq!(look(Some((2, 0))), Well, "another one");
    assert_eq!([(); 20].map(|()| look(None)), [Well; 20], "it is at none");
}

#[test]
fn a_batch_that_is_applied_in_parts_does_not_hang() {
    let mut thread = WatchedThread::default();
    for part in 0..100 {
        assert_eq!(thread.look(Some((1, part)), LIMIT), Health::Well);
        assert_eq!(thread.look(Some((1, part)), LIMIT), Health::Well);
    }
}

#[test]
fn it_is_well_when_calls_ended_in_time_for_twice_the_limit() {
    use Health::{Hung, Slow, Well};
    let mut settled = Settled::default();
    let mut settle = |found| settled.settle(found, LIMIT);
    assert_eq!([Well, Slow, Slow, Hung].map(&mut settle), [None, Some(Slow), None, Some(Hung)]);
    assert_eq!([Well, Well].map(&mut settle), [Some(Slow), None], "commands are taken at once");
    assert_eq!([Slow, Well, Well].map(&mut settle), [None; 3], "slow again: no change");
    assert_eq!([Well; 3].map(&mut settle), [None; 3], "still within twice the limit");
    assert_eq!([Well, Well].map(&mut settle), [Some(Well), None]);
}

/// Each call looks well until it has lasted as long as the limit.
#[test]
fn a_machine_that_is_slow_again_and_again_does_not_come_to_be_well_in_between() {
    let (mut thread, mut settled) = (WatchedThread::default(), Settled::default());
    let mut reported = Vec::new();
    for call in 0..20 {
        for _ in 0..=LIMIT + 1 {
            reported.extend(settled.settle(thread.look(Some((call, 0)), LIMIT), LIMIT));
        }
    }
    assert_eq!(reported, [Health::Slow]);
}
