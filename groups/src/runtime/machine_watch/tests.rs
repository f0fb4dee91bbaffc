//! When a call counts as hanging, and when it does no longer.

use super::*;

const LIMIT: u32 = 3;

#[test]
fn a_call_is_slow_after_the_limit_and_hung_after_three_times_as_long() {
    use Health::{Busy, Hung, Slow, Well};
    let mut thread = WatchedThread::default();
    let mut look = |seen| thread.look(seen, LIMIT);
    let found: Vec<Health> = (0..12).map(|_| look(Some((1, 0)))).collect();
    assert_eq!(found, [[Well, Well, Busy], [Slow; 3], [Slow; 3], [Hung; 3]].concat());
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

/// A thread at a restore serves one group: it is not what keeps a host well, and if it stands still, not
/// what keeps it from being well.
#[test]
fn a_host_is_as_the_best_thread_that_serves_all_groups() {
    use Health::{Hung, Slow, Well};
    let host = |threads: &[(Health, bool)]| health_of_host(threads.iter().copied());
    assert_eq!(host(&[(Hung, false), (Well, false)]), Well);
    assert_eq!(host(&[(Hung, false), (Slow, false)]), Slow);
    assert_eq!(host(&[(Hung, false), (Well, true)]), Hung, "a restore goes on");
    assert_eq!(host(&[(Well, false), (Hung, true)]), Well, "a restore stands still");
    assert_eq!([host(&[(Well, true)]), host(&[(Hung, true)])], [Well, Hung], "there is no other");
}

#[test]
fn half_as_long_as_a_call_may_take_is_no_reason_to_give_a_leadership_away() {
    assert_eq!(impairment(Health::Busy, String::new()), None);
    let mut settled = Settled::default();
    let mut settle = |found| settled.settle(found, LIMIT);
    use Health::{Busy, Slow, Well};
    assert_eq!([Busy, Busy, Well].map(&mut settle), [Some(Busy), None, Some(Well)]);
    assert_eq!([Busy, Slow].map(&mut settle), [Some(Busy), Some(Slow)]);
    assert_eq!([Busy; 5].map(&mut settle), [None; 5], "it was slow a moment ago");
    assert_eq!(settle(Busy), Some(Busy));
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
    assert_eq!(reported, [Health::Busy, Health::Slow]);
}
