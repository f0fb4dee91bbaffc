use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proptest::prelude::*;
use rocksdb::WriteBatch;
use shardhost_groups::machine::Progress;
use shardhost_storage::LogPosition;

use super::record::check;
use super::sessions::{Limits, Session};
use super::*;
use crate::shards::state_db::{GroupState, MachineKind};
use crate::shards::testing::{GROUP, Scratch};
use shardhost_proto::hash::SequenceSum;

/// Sessions that are driven command by command.
struct Case {
    sessions: Sessions,
    index: u64,
}

impl Case {
    fn new(limits: Limits) -> Self {
        Self { sessions: Sessions::with_limits(limits), index: 0 }
    }

    /// What becomes of a write; a fresh one is answered with its log index.
    fn write(&mut self, tag: SessionTag) -> Admission {
        self.index += 1;
        let admission = self.sessions.admit(&tag, self.index);
        if admission == Admission::Fresh {
            self.sessions.remember(&tag, answer(self.index));
        }
        admission
    }
}

fn answer(index: u64) -> Bytes {
    Bytes::copy_from_slice(&index.to_be_bytes())
}

fn few(sessions: usize) -> Limits {
    Limits { sessions, ..Limits::default() }
}

fn tag(id: u64, sequence: u64, lowest_unanswered: u64) -> SessionTag {
    SessionTag { id, start: 1_000, sequence, lowest_unanswered, now_ms: 1_000 }
}

fn over(next_start: u64) -> Admission {
    Admission::Refused(SessionRefusal::Over { next_start })
}

const SETTLED: Admission = Admission::Refused(SessionRefusal::Settled);

#[test]
fn a_duplicate_gets_the_first_answer_as_long_as_the_client_waits_for_one() {
    let mut case = Case::new(Limits::default());
    // Out of order: what was sent first may arrive last.
    assert_eq!(case.write(tag(1, 3, 1)), Admission::Fresh);
    assert_eq!(case.write(tag(1, 1, 1)), Admission::Fresh);
    assert_eq!(case.write(tag(1, 3, 1)), Admission::Duplicate(answer(1)));
    assert_eq!(case.write(tag(1, 1, 1)), Admission::Duplicate(answer(2)));
    assert_eq!(case.write(tag(1, 4, 3)), Admission::Fresh);
    assert_eq!(case.write(tag(1, 1, 1)), SETTLED);
    // It was never applied, and the client gave it up.
    assert_eq!(case.write(tag(1, 2, 2)), SETTLED);
    assert_eq!(case.write(tag(1, 3, 3)), Admission::Duplicate(answer(1)));
    assert_eq!(case.write(tag(2, 3, 1)), Admission::Fresh, "another session");
}

#[test]
fn the_least_recently_used_session_is_dropped_and_never_returns() {
    let mut case = Case::new(few(2));
    for id in [1, 2, 1] {
        case.write(SessionTag { start: 10 + id, ..tag(id, 1, 1) });
    }
    assert_eq!(case.write(SessionTag { start: 20, ..tag(3, 1, 1) }), Admission::Fresh);
    assert_eq!(case.sessions.len(), 2);
    // Session 2, which started at 12, was dropped: not even its first write is applied again.
    let late = SessionTag { start: 12, ..tag(2, 1, 1) };
    assert_eq!(case.write(late), over(1_000));
    // Session 1 started earlier, and is kept.
    let kept = case.write(SessionTag { start: 11, ..tag(1, 1, 1) });
    assert_eq!(kept, Admission::Duplicate(answer(1)));
    let again = SessionTag { start: 1_000, ..tag(4, 1, 1) };
    assert_eq!(case.write(again), Admission::Fresh);
}

#[test]
fn too_many_bytes_drop_sessions_but_never_the_one_in_use() {
    let mut case = Case::new(Limits { bytes: 1_000, ..Limits::default() });
    for id in 1..=3 {
        case.write(SessionTag { start: id, ..tag(id, 1, 1) });
    }
    assert_eq!(case.sessions.len(), 3);
    for sequence in 2..=20 {
        assert_eq!(case.write(SessionTag { start: 3, ..tag(3, sequence, 1) }), Admission::Fresh);
    }
    assert_eq!(case.sessions.len(), 1);
    let kept = case.write(SessionTag { start: 3, ..tag(3, 1, 1) });
    assert_eq!(kept, Admission::Duplicate(answer(3)));
}

#[test]
fn an_unused_session_expires_by_the_time_of_the_log() {
    let mut case = Case::new(Limits::default());
    case.write(tag(1, 1, 1));
    let at = |now_ms| SessionTag { id: 2, start: now_ms, now_ms, ..tag(2, 1, 1) };
    case.write(at(1_000 + EXPIRY_MS - 1));
    // Time does not run backwards, whatever a proposer's clock says.
    let kept = case.write(SessionTag { now_ms: 5, ..tag(1, 1, 1) });
    assert_eq!(kept, Admission::Duplicate(answer(1)));
    let end = 1_000 + 2 * EXPIRY_MS;
    case.write(SessionTag { id: 3, ..at(end) });
    assert_eq!(case.write(SessionTag { now_ms: end, ..tag(1, 2, 1) }), over(end));
}

#[test]
fn a_start_far_ahead_of_the_time_is_refused_with_one_that_is_accepted() {
    let mut case = Case::new(few(1));
    let far = SessionTag { start: u64::MAX, ..tag(1, 1, 1) };
    assert_eq!(case.write(far), over(1_000));
    // As far as may be; and when it was dropped, there still is a start that is accepted.
    let limit = 1_000 + MAX_START_LEAD_MS;
    assert_eq!(case.write(SessionTag { start: limit, ..tag(2, 1, 1) }), Admission::Fresh);
    assert_eq!(case.write(SessionTag { start: limit, ..tag(3, 1, 1) }), Admission::Fresh);
    assert_eq!(case.write(tag(4, 1, 1)), over(limit + 1));
    assert_eq!(case.write(SessionTag { start: limit + 1, ..tag(5, 1, 1) }), Admission::Fresh);
}

#[test]
fn one_id_with_two_starts_is_two_sessions() {
    let mut case = Case::new(Limits::default());
    case.write(tag(1, 1, 1));
    assert_eq!(case.write(SessionTag { start: 2_000, ..tag(1, 1, 1) }), over(1_000));
}

#[test]
fn a_tag_over_its_limits_is_refused() {
    let good = tag(1, WINDOW, 1);
    assert_eq!(good.check(), Ok(()));
    let bad = [
        tag(1, WINDOW + 1, 1),
        tag(1, 1, 2),
        tag(1, 1, 0),
        SessionTag { start: 0, ..good },
        SessionTag { now_ms: u64::MAX, ..good },
    ];
    for bad in bad {
        assert!(SessionTag::split(&bad.wrap(b"command")).is_err(), "{bad:?}");
    }
    assert_eq!(SessionTag::split(&good.wrap(b"command")), Ok((Some(good), &b"command"[..])));
    assert_eq!(SessionTag::split(b"\x01\x01plain"), Ok((None, &b"\x01\x01plain"[..])));
}

/// A write of the random cases: which session of three, how far its number is behind the newest,
/// how much is settled, and how much time passes.
#[derive(Clone, Copy, Debug)]
struct Step {
    session: u64,
    back: u64,
    settled: u64,
    pause_ms: u64,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let pause = prop_oneof![9 => 0..50u64, 1 => Just(600u64)];
    let step = (0..4u64, 0..6u64, 0..4u64, pause);
    let step = step.prop_map(|(session, back, settled, pause_ms)| Step {
        session,
        back,
        settled,
        pause_ms,
    });
    prop::collection::vec(step, 1..200)
}

/// What the clients of the random cases know.
#[derive(Default)]
struct Clients {
    now_ms: u64,
    /// By session number: incarnation, start, newest number, lowest unanswered number.
    sessions: BTreeMap<u64, (u64, u64, u64, u64)>,
}

impl Clients {
    /// Numbers that were settled are sent again, too: copies may be late.
    fn tag(&mut self, step: Step) -> SessionTag {
        self.now_ms += step.pause_ms;
        let now_ms = self.now_ms;
        let start = now_ms + 1;
        let (life, start, newest, lowest) =
            self.sessions.entry(step.session).or_insert((0, start, 0, 1));
        if step.back == 0 {
            *newest += 1;
        }
        *lowest = (*lowest).max((*newest).saturating_sub(step.settled).max(1));
        let sequence = (*newest).saturating_sub(step.back).max(1);
        let id = step.session << 32 | *life;
        let lowest_unanswered = (*lowest).min(sequence);
        SessionTag { id, start: *start, sequence, lowest_unanswered, now_ms }
    }

    fn renew(&mut self, session: u64, next_start: u64) {
        let (life, start, newest, lowest) = self.sessions.entry(session).or_default();
        (*life, *start, *newest, *lowest) = (*life + 1, next_start, 0, 1);
    }
}

proptest! {
    /// Against a model that remembers everything.
    #[test]
    fn no_write_is_applied_twice_whatever_is_dropped(steps in steps()) {
        let limits = Limits { sessions: 2, bytes: 900, expiry_ms: 500 };
        let (mut case, mut clients) = (Case::new(limits), Clients::default());
        let mut first: BTreeMap<(u64, u64), u64> = BTreeMap::new();
        let mut sent = Vec::new();
        for (at, step) in steps.into_iter().enumerate() {
            // Every third is a late copy of some earlier command.
            let late = (at % 3 == 2).then(|| sent[at * 31 % sent.len()]);
            let tag = late.unwrap_or_else(|| clients.tag(step));
            sent.push(tag);
            let write = (tag.id, tag.sequence);
            match case.write(tag) {
                Admission::Fresh => prop_assert_eq!(first.insert(write, case.index), None),
                Admission::Duplicate(given) => {
                    prop_assert_eq!(Some(given), first.get(&write).map(|index| answer(*index)));
                }
                Admission::Refused(SessionRefusal::Over { next_start }) if late.is_none() => {
                    clients.renew(step.session, next_start);
                    let tag = clients.tag(Step { back: 0, pause_ms: 0, ..step });
                    prop_assert_eq!(case.write(tag), Admission::Fresh, "a start that was named");
                    prop_assert_eq!(first.insert((tag.id, tag.sequence), case.index), None);
                }
                Admission::Refused(_) => {}
            }
            prop_assert!(case.sessions.len() <= 2);
        }
    }

}

proptest! {
    // Each case opens two databases.
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Replicas batch commands differently, and some load the sessions in between.
    #[test]
    fn what_is_stored_follows_from_the_commands_alone(
        steps in steps(), borders: BTreeSet<u8>,
    ) {
        let (one, other) = (Scratch::new(), Scratch::new());
        let state = |scratch: &Scratch, kind| GroupState::new(scratch.state.clone(), GROUP, kind);
        let calm = state(&one, MachineKind::Table);
        let busy = state(&other, MachineKind::Table);
        let mut clients = Clients::default();
        let tags: Vec<_> = steps.into_iter().map(|step| clients.tag(step)).collect();
        let mut case = Case::new(Limits::default());
        for tag in &tags {
            case.write(*tag);
        }
        commit(&calm, &mut case);
        let mut case = Case::new(Limits::default());
        for (at, tag) in tags.iter().enumerate() {
            case.write(*tag);
            if borders.contains(&(at as u8)) {
                commit(&busy, &mut case);
                case.sessions = Sessions::load(&busy).unwrap();
            }
        }
        commit(&busy, &mut case);
        prop_assert_eq!(sum(&calm), sum(&busy));
    }

}

proptest! {
    #[test]
    fn garbage_in_a_record_is_an_error_and_not_a_panic(mut data: Vec<u8>) {
        for kind in [0x30, 0x31] {
            data.splice(0..0, [1, kind]);
            drop(check(kind, &[0; 8], &data));
            drop(check(kind, &[], &data));
            if let Ok(session) = Session::decode(&data) {
                prop_assert_eq!(Session::decode(&session.encode()), Ok(session));
            }
            data.drain(..2);
        }
    }
}

fn commit(state: &GroupState, case: &mut Case) {
    let mut writes = WriteBatch::default();
    case.sessions.write(state.space(), &mut writes);
    state.commit(writes, LogPosition::new(1, case.index)).unwrap();
}

fn sum(state: &GroupState) -> u64 {
    let mut sum = SequenceSum::default();
    add_to_checksum(state, &Progress::default(), &mut sum).unwrap();
    sum.value()
}

/// What a client may choose: a shard that cannot read what it wrote for it is lost at its next start.
#[test]
fn the_last_number_of_a_session_is_read_as_it_was_written() {
    for lowest_unanswered in [u64::MAX - 1, u64::MAX] {
        let answers = (lowest_unanswered..=u64::MAX).map(|number| (number, answer(1))).collect();
        let session = Session { start: 1, lowest_unanswered, answers, ..Session::default() };
        assert_eq!(Session::decode(&session.encode()), Ok(session));
    }
}
