use shardhost_storage::NodeId;

use super::*;

const OWN: ReplicaId = ReplicaId::must(1);
const TIMEOUT: Duration = Duration::from_millis(500);

fn at(millis: u64) -> Moment {
    Moment::ZERO + Duration::from_millis(millis)
}

/// A step at this time, which is one of its tick, too.
fn now(millis: u64) -> Now {
    let moment = Some(at(millis));
    Now { began: moment, ended: moment, tick: millis / 50, timeout: 10, bugs: KnownBugs::none() }
}

fn without_clock(tick: u64) -> Now {
    Now { began: None, ended: None, tick, ..now(0) }
}

fn members(nodes: std::ops::RangeInclusive<u64>) -> Membership {
    Membership::initial(nodes.map(NodeId::must))
}

fn acknowledged(lease: &Lease) -> Moment {
    lease.acknowledged(&members(1..=5), OWN, false, KnownBugs::none())
}

fn answer(lease: &mut Lease, peers: &[u64], stamp: u64, millis: u64) {
    for peer in peers {
        lease.take_stamp(*peer, at(stamp).get(), now(millis));
    }
}

#[test]
fn a_voter_that_heard_its_leader_locks_its_vote_for_an_election_timeout() {
    let mut lease = Lease::default();
    assert!(!lease.is_vote_locked(now(100)));
    lease.hear(2, now(100), Duration::from_millis(50));
    assert!(lease.is_vote_locked(now(100)) && lease.is_locked_for(2));
    lease.renew(now(120), TIMEOUT);
    assert!(lease.is_vote_locked(now(619)));
    assert!(!lease.is_vote_locked(now(620)));
}

#[test]
fn a_replica_that_does_not_answer_for_two_election_timeouts_takes_no_part() {
    let mut lease = Lease::default();
    lease.reset(100);
    assert_eq!(lease.presence_of(2, 120, 10), Presence::Unknown);
    assert_eq!(lease.presence_of(2, 121, 10), Presence::Silent);
    lease.note_life(2, 7, 130);
    assert_eq!(lease.presence_of(2, 140, 10), Presence::Answers);
    assert_eq!(lease.presence_of(2, 150, 10), Presence::Unknown);
    assert_eq!(lease.presence_of(2, 151, 10), Presence::Silent);
    // The group hibernated meanwhile.
    lease.ask_anew(400);
    assert_eq!(lease.presence_of(2, 420, 10), Presence::Unknown);
    assert_eq!(lease.presence_of(2, 421, 10), Presence::Silent);
}

#[test]
fn one_that_was_opened_is_locked_until_it_knows_the_time() {
    let mut lease = Lease::opened(true);
    assert!(lease.is_vote_locked(now(10_000)));
    lease.renew(now(10_000), TIMEOUT);
    assert!(lease.is_vote_locked(now(10_499)) && !lease.is_vote_locked(now(10_500)));
}

#[test]
fn without_a_clock_a_vote_lock_ends_after_many_ticks() {
    let mut lease = Lease::default();
    lease.hear(2, now(500), Duration::from_millis(50));
    lease.renew(now(500), TIMEOUT);
    assert!(lease.is_vote_locked(without_clock(49)), "no matter which time it is");
    assert!(!lease.is_vote_locked(without_clock(50)));
    lease.hear(2, without_clock(60), Duration::from_millis(50));
    lease.renew(without_clock(99), TIMEOUT);
    assert!(lease.is_vote_locked(without_clock(99)));
    lease.renew(without_clock(100), TIMEOUT);
    assert!(!lease.is_vote_locked(without_clock(100)));
}

#[test]
fn a_lease_counts_from_the_oldest_of_the_newest_answers_of_a_quorum() {
    let mut lease = Lease::default();
    assert_eq!(acknowledged(&lease), Moment::ZERO);
    answer(&mut lease, &[2], 30, 50);
    assert_eq!(acknowledged(&lease), Moment::ZERO, "no quorum");
    answer(&mut lease, &[3], 20, 50);
    answer(&mut lease, &[4], 10, 50);
    assert_eq!(acknowledged(&lease), at(20));
    answer(&mut lease, &[4], 60, 50);
    assert_eq!(acknowledged(&lease), at(20), "a stamp of the future");
    answer(&mut lease, &[3], 5, 50);
    assert_eq!(acknowledged(&lease), at(20), "an old answer takes nothing back");
    let alone = lease.acknowledged(&members(1..=1), OWN, false, KnownBugs::none());
    assert_eq!(alone, Moment::NEVER);
}

#[test]
fn a_leader_counts_many_voters_as_few() {
    let mut lease = Lease::default();
    let many = members(1..=15);
    let quorum = |lease: &Lease| lease.acknowledged(&many, OWN, false, KnownBugs::none());
    answer(&mut lease, &[9, 10, 11, 12, 13, 14], 10, 50);
    assert_eq!(quorum(&lease), Moment::ZERO);
    answer(&mut lease, &[15], 8, 50);
    assert_eq!(quorum(&lease), at(8));
}

#[test]
fn after_a_failed_transfer_every_target_must_answer_anew() {
    let mut lease = Lease::default();
    answer(&mut lease, &[2, 3, 4, 5], 10, 10);
    lease.void(2, Some(at(20)));
    assert_eq!(acknowledged(&lease), Moment::ZERO, "it is revoked");
    lease.resume(now(30));
    answer(&mut lease, &[3, 4, 5], 40, 40);
    assert_eq!(acknowledged(&lease), at(40));
    assert!(lease.may_be_deposed(0));
    lease.void(3, Some(at(50)));
    lease.resume(now(60));
    answer(&mut lease, &[3], 70, 70);
    assert!(lease.may_be_deposed(0), "the first target owes an answer still");
    answer(&mut lease, &[2], 70, 70);
    assert!(!lease.may_be_deposed(0));
}

/// The clock cannot be read when a transfer fails: it was before the next heartbeat that has a stamp.
#[test]
fn a_transfer_that_failed_at_an_unknown_moment_takes_the_lease_for_a_heartbeat_only() {
    let mut lease = Lease::default();
    lease.void(2, Some(at(20)));
    lease.resume(without_clock(3));
    lease.send_heartbeat(2, without_clock(4));
    answer(&mut lease, &[2, 3], 30, 35);
    assert!(lease.may_be_deposed(0), "that may have been sent before it failed");
    lease.send_heartbeat(2, now(40));
    answer(&mut lease, &[2, 3], 40, 45);
    assert!(lease.may_be_deposed(0) && acknowledged(&lease) == Moment::ZERO);
    answer(&mut lease, &[2, 3], 50, 55);
    assert!(!lease.may_be_deposed(0));
    assert_eq!(acknowledged(&lease), at(50));
}

#[test]
fn a_target_that_was_removed_is_outgrown() {
    let mut lease = Lease::default();
    lease.void(5, Some(at(20)));
    lease.resume(now(30));
    lease.change_members(&members(1..=5), &members(1..=4), 100, KnownBugs::none());
    assert!(lease.needs_entry(100) && !lease.needs_entry(101));
    assert!(lease.may_be_deposed(100) && !lease.may_be_deposed(101));
}

#[test]
fn a_replica_that_may_have_lost_its_disk_is_checked() {
    let mut lease = Lease::default();
    assert!(!lease.note_life(2, 7, 0), "the first");
    assert!(!lease.note_life(2, 7, 0));
    assert!(lease.note_life(2, 8, 0));
    lease.check_life(2, 1);
    answer(&mut lease, &[2], 60, 70);
    assert!(!lease.is_checked(2), "the answer of its earlier life, perhaps");
    lease.send_heartbeat(2, now(100));
    answer(&mut lease, &[2], 99, 110);
    assert!(!lease.is_checked(2));
    answer(&mut lease, &[2], 100, 120);
    assert!(lease.is_checked(2));
    lease.check_life(2, 1);
    lease.take_stamp(2, 0, without_clock(40));
    assert!(!lease.is_checked(2));
    lease.take_stamp(2, 0, without_clock(41));
    assert!(lease.is_checked(2), "nothing of that life is on its way any more");
}

#[test]
fn an_order_from_before_an_answered_heartbeat_is_old() {
    let mut lease = Lease::default();
    lease.hear_stamp(2, 5, at(100));
    assert_eq!((lease.echo_to(2), lease.echo_to(3)), (at(100).get(), 0));
    assert!(!lease.is_current_order(5, at(99)) && lease.is_current_order(5, at(100)));
    assert!(lease.is_current_order(6, at(1)), "another term");
    lease.renew(now(100), TIMEOUT);
    assert_eq!(lease.echo_to(2), 0);
}

#[test]
fn only_answers_to_what_was_asked_then_count_for_a_round() {
    let round = Round { tick: 100, began: Some(at(50)), committed: 7 };
    let mut lease = Lease::default();
    lease.note_life(2, 1, 100);
    answer(&mut lease, &[2], 49, 60);
    assert!(!lease.has_answered(round, 2, 10), "it was on its way");
    answer(&mut lease, &[2], 50, 70);
    assert!(lease.has_answered(round, 2, 10) && !lease.has_answered(round, 3, 10));
    assert!(!round.is_over(120, 10) && round.is_over(121, 10));
    for began in [None, Some(at(99))] {
        let round = Round { began, ..round };
        lease.note_life(2, 1, 109);
        assert!(
            !lease.has_answered(round, 2, 10),
            "without a clock it may be to an earlier heartbeat"
        );
        lease.note_life(2, 1, 110);
        assert!(lease.has_answered(round, 2, 10));
    }
}

#[test]
fn a_new_leadership_starts_from_nothing() {
    let mut lease = Lease::default();
    answer(&mut lease, &[2, 3, 4], 10, 10);
    lease.note_state(2, true);
    assert_eq!(lease.state_of(2), PeerState::Lost);
    lease.void(2, Some(at(20)));
    lease.reset(0);
    assert_eq!(lease.state_of(2), PeerState::Unknown);
    assert!(!lease.may_be_deposed(0));
    assert_eq!(acknowledged(&lease), Moment::ZERO);
}
