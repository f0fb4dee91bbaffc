//! Random messages against replicas in every state: what passes the validator makes none fail.

use proptest::prelude::*;
use shardhost_groups::storage::convert::membership_to_message;
use shardhost_groups::{GroupId, LogPosition, Membership, NodeId, Role};
use shardhost_proto::log::{
    Entry, EntryKind, LogPosition as WirePosition, Member, Membership as WireMembership,
};
use shardhost_proto::peer::{
    CreateRequest, GroupMessage, MessageKind, RecoveryAnswer, SnapshotMeta, StateChecksum,
};

use crate::victim::{Victim, command, message};

/// Groups, each in another state.
const FRESH: u64 = 1;
const FOLLOWER: u64 = 2;
const LEADER: u64 = 3;
const CANDIDATE: u64 = 4;
const EARLY_CANDIDATE: u64 = 5;
const COMPACTED: u64 = 6;
const BUSY_LEADER: u64 = 7;
const INSTALLING: u64 = 8;
const GROUPS: u64 = 8;

fn replicas_in_every_state() -> Victim {
    let mut victim = Victim::new();
    let start = LogPosition::default();
    victim.open(FRESH, start);

    victim.open(FOLLOWER, start);
    victim.follow(FOLLOWER, 2, 3, 6, 4);

    victim.open(LEADER, start);
    victim.lead(LEADER, 2);

    victim.open(COMPACTED, LogPosition::new(2, 10));
    victim.follow(COMPACTED, 3, 3, 14, 12);

    victim.open(BUSY_LEADER, start);
    victim.lead(BUSY_LEADER, 2);
    victim.settle();

    victim.open(CANDIDATE, start);
    victim.follow(CANDIDATE, 2, 3, 6, 4);
    victim.settle();
    victim.campaign(CANDIDATE, 2, 3);
    victim.settle();

    victim.open(INSTALLING, start);
    victim.follow(INSTALLING, 2, 3, 6, 4);
    victim.settle();
    victim.deliver(snapshot(INSTALLING, 3, 9, membership()));

    victim.open(EARLY_CANDIDATE, start);
    victim.follow(EARLY_CANDIDATE, 2, 3, 6, 4);
    victim.campaign(EARLY_CANDIDATE, 2, 3);
    victim
}

pub fn membership() -> WireMembership {
    membership_to_message(&Membership::initial((1..=3).map(NodeId::must)))
}

pub fn snapshot(group: u64, term: u64, index: u64, membership: WireMembership) -> GroupMessage {
    let position = Some(WirePosition { term, index });
    let meta = SnapshotMeta { position, membership: Some(membership) };
    let kind = MessageKind::Snapshot.into();
    GroupMessage { kind, snapshot: Some(meta), ..message(group, 2, term) }
}

#[test]
fn the_replicas_are_in_the_states_that_their_names_say() {
    let victim = replicas_in_every_state();
    assert_eq!(victim.status(FRESH).last.get(), 0);
    assert_eq!(victim.status(FOLLOWER).role, Role::Follower);
    assert_eq!(victim.status(LEADER).role, Role::Leader);
    assert!(victim.status(LEADER).serving);
    assert_eq!(victim.status(CANDIDATE).role, Role::Candidate);
    assert_eq!(victim.status(EARLY_CANDIDATE).role, Role::Candidate);
    assert_eq!(victim.status(COMPACTED).first.get(), 11);
    assert_eq!(victim.status(COMPACTED).last.get(), 14);
    assert_eq!(victim.status(INSTALLING).last.get(), 9);
    assert_eq!(victim.status(INSTALLING).applied.get(), 4);
    assert_eq!(victim.failures(), 0);
}

/// One thing that happens to the worker.
#[derive(Clone, Debug)]
enum Happening {
    Garbage(Box<Garbage>),
    Tick,
    Persist,
    Apply,
}

/// A message whose numbers lie around those of the replica that it goes to.
#[derive(Clone, Debug)]
struct Garbage {
    group: u64,
    from: u64,
    to: u64,
    kind: i32,
    term: Number,
    log_term: Number,
    index: Number,
    commit: Number,
    commit_term: Number,
    reject: bool,
    hint: Number,
    request_snapshot: Number,
    context: Vec<u8>,
    entries: Vec<(Number, i32, u8)>,
    snapshot: Option<Metadata>,
}

/// What a snapshot message says of its snapshot.
#[derive(Clone, Debug)]
struct Metadata {
    term: Number,
    index: Number,
    members: Vec<Member>,
    auto_leave: bool,
}

/// A number near one of the replica's, or any.
#[derive(Clone, Copy, Debug)]
enum Number {
    Zero,
    Near(i64),
    Any(u64),
}

impl Number {
    fn around(self, known: u64) -> u64 {
        match self {
            Self::Zero => 0,
            Self::Near(distance) => known.saturating_add_signed(distance),
            Self::Any(number) => number,
        }
    }
}

fn number() -> impl Strategy<Value = Number> {
    prop_oneof![
        2 => Just(Number::Zero),
        12 => (-3i64..=3).prop_map(Number::Near),
        2 => (0u64..20).prop_map(Number::Any),
        1 => prop_oneof![Just(u64::MAX), Just(1 << 62), Just(1 << 40)].prop_map(Number::Any),
    ]
}

fn kind() -> impl Strategy<Value = i32> {
    prop_oneof![9 => 1i32..=10, 1 => 0i32..30, 3 => 20i32..=28]
}

fn member() -> impl Strategy<Value = Member> {
    (0u64..5, 0u64..5, 0i32..4, any::<bool>()).prop_map(|(replica, node, role, outgoing_voter)| {
        Member { replica, node, role, outgoing_voter, never_voted: false }
    })
}

fn metadata() -> impl Strategy<Value = Metadata> {
    let members = prop_oneof![Just(membership().members), prop::collection::vec(member(), 0..5)];
    (number(), number(), members, prop::bool::weighted(0.2)).prop_map(
        |(term, index, members, auto_leave)| Metadata { term, index, members, auto_leave },
    )
}

fn garbage() -> impl Strategy<Value = Garbage> {
    let header = (1..=GROUPS, prop_oneof![8 => 2u64..=3, 1 => 0u64..6], kind(), number());
    let to = prop_oneof![19 => Just(1u64), 1 => 0u64..4];
    let numbers = (number(), number(), number(), number(), number(), number());
    let entries = prop::collection::vec((number(), 0i32..4, 0u8..3), 0..4);
    let context = prop_oneof![
        4 => Just(Vec::new()),
        1 => Just(b"CampaignTransfer".to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..70),
    ];
    let snapshot = prop::option::weighted(0.3, metadata());
    let rest = (any::<bool>(), context, entries, snapshot);
    (header, to, numbers, rest).prop_map(|(header, to, numbers, rest)| Garbage {
        group: header.0,
        from: header.1,
        to,
        kind: header.2,
        term: header.3,
        log_term: numbers.0,
        index: numbers.1,
        commit: numbers.2,
        commit_term: numbers.3,
        reject: rest.0,
        hint: numbers.4,
        request_snapshot: numbers.5,
        context: rest.1,
        entries: rest.2,
        snapshot: rest.3,
    })
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        20 => garbage().prop_map(|garbage| Happening::Garbage(Box::new(garbage))),
        1 => Just(Happening::Tick),
        2 => Just(Happening::Persist),
        2 => Just(Happening::Apply),
    ]
}

/// The message, unless it is the one that is meant to stop its replica: a heartbeat beyond the
/// log, which is given back within it.
fn build(victim: &Victim, garbage: &Garbage) -> GroupMessage {
    let status = victim.status(garbage.group);
    let (term, last) = (status.term.get(), status.last.get());
    let mut commit = garbage.commit.around(last);
    if garbage.kind == i32::from(MessageKind::Heartbeat) {
        commit = commit.min(last);
    }
    let snapshot = garbage.kind == i32::from(MessageKind::Snapshot);
    GroupMessage {
        group: garbage.group,
        from_replica: garbage.from,
        to_replica: garbage.to,
        kind: garbage.kind,
        term: garbage.term.around(term),
        log_term: garbage.log_term.around(term),
        index: garbage.index.around(last),
        commit,
        commit_term: garbage.commit_term.around(term),
        reject: garbage.reject,
        reject_hint: garbage.hint.around(last),
        // Mostly none, as otherwise no response would pass.
        request_snapshot: match garbage.request_snapshot {
            Number::Any(number) => number,
            _ => 0,
        },
        priority: 0,
        context: garbage.context.clone().into(),
        entries: entries(garbage, term, snapshot),
        snapshot: garbage.snapshot.as_ref().filter(|_| snapshot).map(|metadata| {
            let index = metadata.index.around(status.committed.get());
            let position = Some(WirePosition { term: metadata.term.around(term), index });
            let (members, auto_leave) = (metadata.members.clone(), metadata.auto_leave);
            let membership = WireMembership { members, auto_leave, ..Default::default() };
            SnapshotMeta { position, membership: Some(membership) }
        }),
        stamp: garbage.hint.around(last),
        life: garbage.commit_term.around(term),
        create_request: create_request(garbage),
        genesis: if garbage.reject { garbage.hint.around(last) } else { 0 },
        escape: garbage.reject,
        refusal: None,
        declined: vec![garbage.commit_term.around(term)],
        recovery: recovery(garbage, term, last),
        checksum: checksum(garbage),
        verdict: verdict(garbage),
        lacks_state: garbage.reject,
        any_giver: garbage.reject,
    }
}

/// Of the kinds that compare replicas mostly some checksum, of the others none.
fn checksum(garbage: &Garbage) -> Option<StateChecksum> {
    let compares = [MessageKind::Checksum, MessageKind::ChecksumVerdict];
    let (bytes, sum) = (u64::from(garbage.reject), 7);
    compares.map(i32::from).contains(&garbage.kind).then_some(StateChecksum {
        format: 1,
        bytes,
        sum,
    })
}

/// An unknown one, too.
fn verdict(garbage: &Garbage) -> i32 {
    let judges = garbage.kind == i32::from(MessageKind::ChecksumVerdict);
    if judges { garbage.context.len() as i32 % 4 } else { 0 }
}

/// Of the kind that carries one mostly some memberships, of the others mostly none.
fn recovery(garbage: &Garbage, term: u64, last: u64) -> Option<Box<RecoveryAnswer>> {
    let answers = garbage.kind == i32::from(MessageKind::RecoveryResponse);
    let metadata = garbage.snapshot.as_ref().filter(|_| answers || garbage.reject)?;
    let membership = |auto_leave| WireMembership {
        members: metadata.members.clone(),
        auto_leave,
        ..Default::default()
    };
    Some(Box::new(RecoveryAnswer {
        applied: Some(membership(false)),
        unapplied: if garbage.reject { vec![membership(metadata.auto_leave)] } else { Vec::new() },
        committed: garbage.commit.around(last),
        matched: garbage.hint.around(last),
        committed_term: garbage.log_term.around(term),
    }))
}

/// Of the kinds that carry one mostly some membership, of the others mostly none.
fn create_request(garbage: &Garbage) -> Option<CreateRequest> {
    let asks =
        [MessageKind::Removed, MessageKind::CreateReplica].map(i32::from).contains(&garbage.kind);
    let metadata = garbage.snapshot.as_ref().filter(|_| asks || garbage.reject)?;
    let (members, auto_leave) = (metadata.members.clone(), metadata.auto_leave);
    let membership = WireMembership { members, auto_leave, ..Default::default() };
    Some(CreateRequest { membership: Some(membership), ..CreateRequest::default() })
}

fn entries(garbage: &Garbage, term: u64, snapshot: bool) -> Vec<Entry> {
    if snapshot || garbage.kind != i32::from(MessageKind::Append) {
        return Vec::new();
    }
    let entry = |&(at, kind, size): &(Number, i32, u8)| {
        let mut entry = command(at.around(term), &vec![7; usize::from(size)]);
        // Mostly commands.
        entry.kind = if kind == 0 { EntryKind::Config.into() } else { kind.min(1) };
        entry
    };
    garbage.entries.iter().map(entry).collect()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 512,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_message_that_passes_makes_a_replica_fail(
        happenings in prop::collection::vec(happening(), 1..60),
    ) {
        let mut victim = replicas_in_every_state();
        for happening in happenings {
            match &happening {
                Happening::Garbage(garbage) => {
                    let message = build(&victim, garbage);
                    victim.deliver(message);
                }
                Happening::Tick => victim.tick(),
                Happening::Persist => victim.persist(),
                Happening::Apply => victim.apply(),
            }
            prop_assert_eq!(victim.failures(), 0, "after {:?}", happening);
        }
        victim.settle();
        prop_assert_eq!(victim.failures(), 0, "while settling");
    }
}

/// The end of a joint configuration that was never begun, committed at once.
#[test]
fn an_entry_that_leaves_no_joint_configuration_changes_nothing() {
    let mut victim = replicas_in_every_state();
    let garbage = Garbage {
        group: 1,
        from: 2,
        to: 1,
        kind: MessageKind::Append.into(),
        term: Number::Near(2),
        log_term: Number::Zero,
        index: Number::Zero,
        commit: Number::Any(1),
        commit_term: Number::Zero,
        reject: false,
        hint: Number::Zero,
        request_snapshot: Number::Zero,
        context: Vec::new(),
        entries: vec![(Number::Near(0), 0, 0)],
        snapshot: None,
    };
    let message = build(&victim, &garbage);
    victim.deliver(message);
    victim.settle();
    let status = victim.status(1);
    assert_eq!((victim.failures(), status.applied.get()), (0, 1), "{status:?}");
}

/// Garbage that is all refused would prove nothing.
#[test]
fn a_good_part_of_the_garbage_passes() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    let mut victim = replicas_in_every_state();
    let before = victim.core.counters().clone();
    for _ in 0..2_000 {
        let garbage = garbage().new_tree(&mut runner).unwrap().current();
        let message = build(&victim, &garbage);
        victim.deliver(message);
    }
    let counters = victim.core.counters();
    let refused: u64 = counters.refused.values().sum();
    let taken = counters.messages - before.messages - refused;
    assert!(taken > 200, "{taken} taken, {refused} refused: {:?}", counters.refused);
    assert!(counters.refused.len() > 8, "{:?}", counters.refused);
    assert!((1..=GROUPS).all(|group| victim.core.group(GroupId::new(group)).is_some()));
}
