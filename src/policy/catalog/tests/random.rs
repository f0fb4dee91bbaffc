//! Random commands: snapshots and batches make no difference, whatever happens.

use std::sync::Arc;

use proptest::prelude::*;
use shardhost_groups::GroupSpec;
use shardhost_groups::machine::{ApplyBatch, Command as Committed, Progress, StateMachine};
use shardhost_storage::{LogIndex, LogPosition};
use shardhost_testing::state_machine::Check;

use super::*;
use shardhost_proto::grants::Grants;
use shardhost_proto::shard_map::{KindShards, ShardMap};
use shardhost_proto::version::ClusterVersion;

fn nodes() -> impl Strategy<Value = BTreeSet<NodeId>> {
    proptest::collection::btree_set((1..6u64).prop_map(node), 0..4)
}

fn capabilities() -> impl Strategy<Value = Requirement> {
    let lists = prop_oneof![Just(vec![]), Just(vec!["fifo"]), Just(vec!["fifo", "ssd"])];
    lists.prop_flat_map(|list| {
        let soft = Requirement::soft(list.clone()).unwrap();
        prop_oneof![Just(hard(&list)), Just(soft)]
    })
}

fn place() -> impl Strategy<Value = Place> {
    prop_oneof![
        (1..6u64).prop_map(|number| Place::Node(node(number))),
        "[a-c]".prop_map(|zone| Place::Zone(name(&zone))),
    ]
}

fn placement() -> impl Strategy<Value = Placement> {
    let preference = proptest::collection::vec(place(), 0..3);
    let pin = proptest::option::of((1..6u64).prop_map(node));
    let spread = proptest::option::of(Just(name("spread")));
    (preference, pin, spread).prop_map(|(preference, pin, spread)| Placement {
        preference: preference.into(),
        pin,
        spread,
    })
}

fn on_groups() -> impl Strategy<Value = Operation> {
    let id = || (1..5u64).prop_map(group);
    let incarnation = || proptest::option::weighted(0.2, 0..4u32);
    let new = (id(), nodes(), incarnation(), capabilities(), placement());
    prop_oneof![
        3 => new.prop_map(|(id, founders, incarnation, requirement, placement)| {
            let new = NewGroup { incarnation, requirement, placement, ..new_group(1, &[]) };
            Operation::CreateGroup(NewGroup { id, founders, ..new })
        }),
        2 => (id(), capabilities())
            .prop_map(|(group, requirement)| Operation::SetRequirement { group, requirement }),
        2 => (id(), placement())
            .prop_map(|(group, placement)| Operation::SetPlacement { group, placement }),
        2 => (id(), 1..9u64, nodes(), any::<bool>(), incarnation()).prop_map(
            |(group, index, nodes, told, generation)| {
                let (config_index, founding) = (LogIndex::new(index), told.then(|| nodes.clone()));
                let learners = None;
                Operation::RecordMembers {
                    group,
                    config_index,
                    nodes,
                    founding,
                    learners,
                    generation,
                }
            }
        ),
        1 => (id(), 1..9u64, nodes(), nodes()).prop_map(|(group, index, nodes, learners)| {
            let (config_index, founding) = (LogIndex::new(index), None);
            let learners = Some(learners.intersection(&nodes).copied().collect());
            let generation = None;
            Operation::RecordMembers {
                group,
                config_index,
                nodes,
                founding,
                learners,
                generation,
            }
        }),
        1 => (id(), incarnation())
            .prop_map(|(group, generation)| Operation::DestroyGroup { group, generation }),
        2 => id().prop_map(|group| Operation::FinishDestroy { group }),
    ]
}

fn on_nodes() -> impl Strategy<Value = Operation> {
    let id = || (1..6u64).prop_map(node);
    let zone = proptest::option::of("[a-c]");
    prop_oneof![
        3 => (1..6u64, zone, 0..3u32, 1..3u64).prop_map(|(number, zone, weight, store)| {
            let zone = zone.map(|zone| name(&zone));
            Operation::PutNode(NewNode { zone, weight, store, ..new_node(number) })
        }),
        1 => (id(), 0..3u64, capabilities()).prop_map(|(node, incarnation, requirement)| {
            let capabilities = requirement.capabilities.iter().map(|text| name(text)).collect();
            Operation::Advertise { node, incarnation, capabilities }
        }),
        1 => id().prop_map(|node| Operation::RemoveNode { node }),
    ]
}

fn on_drains() -> impl Strategy<Value = Operation> {
    let id = || (1..6u64).prop_map(node);
    let intent = || (1..40u64).prop_map(|number| IntentId::new(revision(number)));
    let fallback = prop_oneof![Just(DrainFallback::GiveUp), Just(DrainFallback::Proceed)];
    let stranding = prop_oneof![Just(Stranding::Refuse), Just(Stranding::Accept)];
    prop_oneof![
        3 => (id(), 1..30u64, 0..30u64, fallback, stranding).prop_map(
            |(node, deadline, more, fallback, stranding)| {
                let (deadline_ms, owner) = (NOW + deadline, "anna".to_owned());
                let expires_ms = deadline_ms + more;
                Operation::BeginDrain(
                    NewDrain { node, owner, deadline_ms, expires_ms, fallback, stranding },
                )
            }
        ),
        1 => (id(), intent(), 1..50u64).prop_map(|(node, intent, later)| {
            let (deadline_ms, expires_ms) = (NOW + later, NOW + later + 1);
            Operation::ExtendDrain { node, intent, deadline_ms, expires_ms }
        }),
        1 => (id(), intent()).prop_map(|(node, intent)| Operation::FinishDrain { node, intent }),
        1 => (id(), intent()).prop_map(|(node, intent)| Operation::EndDrain { node, intent }),
        1 => Just(Operation::Tick),
        2 => (id(), intent(), 0..20u64)
            .prop_map(|(node, intent, passed_ms)| Operation::PassTime { node, intent, passed_ms }),
    ]
}

fn on_settings() -> impl Strategy<Value = Operation> {
    let mode =
        prop_oneof![Just(PlannerMode::Off), Just(PlannerMode::Shadow), Just(PlannerMode::On)];
    let moves = prop_oneof![Just(PlannedMoves::Allowed), Just(PlannedMoves::Stopped)];
    let map = |tables| {
        let shards = KindShards { count: tables, first_group: group(1_000_000) };
        ShardMap::first([("table".to_owned(), shards)])
    };
    prop_oneof![
        (0..3u64).prop_map(move |tables| Operation::FoundShardMap { map: map(tables) }),
        (1_000..9_000u64).prop_map(|replace_after_ms| {
            let replicas = ReplicaSettings { mode: PlannerMode::Shadow, replace_after_ms };
            Operation::SetReplicas { replicas }
        }),
        (1..=ClusterVersion::NEWEST.get(), nodes()).prop_map(|(version, prepared)| {
            let prepared = prepared.into_iter().map(|node| (node, 1)).collect();
            Operation::RaiseVersion { version: ClusterVersion::new(version), prepared }
        }),
        mode.prop_map(|mode| Operation::SetPlannerMode { mode }),
        (moves, "[a-z]{0,3}")
            .prop_map(|(moves, reason)| Operation::SetPlannedMoves { moves, reason }),
    ]
}

fn on_rules() -> impl Strategy<Value = Operation> {
    let groups = prop_oneof![
        Just(Selection::All),
        Just(Selection::Kind(name("queue"))),
        "[ab]".prop_map(|value| {
            Selection::Label(Label { key: name("tier"), value: value.into() })
        }),
        (0..5u64).prop_map(|number| Selection::Group(group(number))),
    ];
    let count = || proptest::option::of(0..9u32);
    let zones = proptest::collection::btree_set("[a-c]", 0..3);
    let new = ("[rst]", groups, count(), count(), zones, capabilities());
    prop_oneof![
        3 => new.prop_map(|(text, groups, voters, learners, zones, requirement)| {
            let zones = zones.iter().map(|zone| name(zone)).collect();
            let capabilities = requirement.capabilities.iter().map(|text| name(text)).collect();
            let name = name(&text);
            Operation::PutRule(
                ReplicaRule { name, groups, voters, learners, zones, capabilities },
            )
        }),
        1 => "[rst]".prop_map(|text| Operation::RemoveRule { name: name(&text) }),
    ]
}

fn on_tokens() -> impl Strategy<Value = Operation> {
    let id = || prop_oneof![0..4u64, Just(u64::MAX)];
    let grants = (0..4u32).prop_map(|bits| Grants::from_bits(bits).unwrap());
    let new = (id(), "[ab]", grants, 0..2u8, proptest::option::of(0..90u64));
    prop_oneof![
        3 => new.prop_map(|(id, text, grants, byte, later)| {
            let digest = TokenDigest::new([byte; TokenDigest::BYTES]);
            let expires_ms = later.map(|later| NOW + later);
            Operation::PutToken(NewToken { id, name: name(&text), grants, digest, expires_ms })
        }),
        1 => id().prop_map(|id| Operation::RemoveToken { id }),
    ]
}

fn command() -> impl Strategy<Value = Command> {
    let operation = prop_oneof![
        4 => on_groups(), 4 => on_nodes(), 3 => on_drains(), 1 => on_settings(), 2 => on_tokens(),
        1 => on_rules(),
    ];
    let expected = proptest::option::weighted(0.1, (0..20u64).prop_map(revision));
    (0..60u64, expected, operation).prop_map(|(later, expected, operation)| Command {
        now_ms: NOW + later,
        expected: expected.filter(|_| operation.target().is_some()),
        operation,
    })
}

/// While there is no node, none is unprepared.
fn raise_first(version: ClusterVersion) -> Command {
    Command::new(NOW, Operation::RaiseVersion { version, prepared: BTreeMap::new() })
}

fn commands() -> impl Strategy<Value = Vec<Command>> {
    let version = (1..=ClusterVersion::NEWEST.get()).prop_map(ClusterVersion::new);
    let commands = proptest::collection::vec(command(), 1..150);
    (version, commands).prop_map(|(version, mut commands)| {
        commands.insert(0, raise_first(version));
        commands
    })
}

fn written(catalog: &Catalog) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_snapshot(catalog, &mut bytes).unwrap();
    bytes
}

/// Runs a command, whether it is refused or not.
fn try_command(catalog: &mut Catalog, command: &Command) {
    drop(run_command(catalog, command));
}

/// Runs commands in batches of these sizes, over and over.
fn in_batches(commands: &[Command], sizes: &[usize]) -> CatalogMachine {
    let mut machine = CatalogMachine::default();
    let mut left: Vec<_> = (2..)
        .zip(commands)
        .map(|(index, command)| Committed::new(LogPosition::new(1, index), command.encode()))
        .collect();
    for size in sizes.iter().cycle() {
        if left.is_empty() {
            return machine;
        }
        let mut batch: Vec<_> = left.drain(..(*size).min(left.len())).collect();
        let last = batch.last().map_or(LogPosition::new(1, 1), Committed::position);
        machine.apply(&mut ApplyBatch::new(group(1), last, &mut batch)).unwrap();
    }
    machine
}

/// What node 1 holds, and the catalog as it saw it last.
#[derive(Default)]
struct Home {
    held: BTreeMap<GroupId, Held>,
    seen: View,
}

impl Home {
    /// Steps for the groups that changed, and for all.
    fn look(&mut self, view: &View) -> (Vec<Step>, Vec<Step>) {
        let local = Local { node: node(1), store: 1, held: &self.held };
        let all = reconcile(view, local, GroupId::default(), usize::MAX).steps;
        let own = RecordKey::Node(node(1));
        let seen = std::mem::replace(&mut self.seen, view.clone());
        if seen.record(own) != view.record(own) {
            return (all.clone(), all);
        }
        let changed = view.groups_unlike(&seen);
        (reconcile_only(view, local, &changed, usize::MAX).steps, all)
    }

    fn carry_out(&mut self, steps: &[Step]) {
        for Step { group, action, .. } in steps {
            let (incarnation, state) = match action {
                Action::Create { spec } => (lives_before(spec), HeldState::Follows),
                Action::Destroy { incarnation } => (*incarnation, HeldState::Gone),
                Action::SetRequirement { .. } | Action::Leave { .. } => continue,
            };
            self.held.insert(*group, Held { incarnation, state });
        }
    }
}

/// How many lives a group had before the one that begins with these members.
fn lives_before(spec: &GroupSpec) -> u32 {
    let replica = spec.membership.members.keys().next().map_or(0, |replica| replica.get());
    u32::try_from(replica >> 32).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_restored_catalog_is_the_one_that_was_written(commands in commands(), cut: usize) {
        let mut catalog = Catalog::default();
        let cut = cut % commands.len();
        for command in &commands[..cut] {
            try_command(&mut catalog, command);
        }
        let mut restored = read_snapshot(&mut &written(&catalog)[..]).unwrap();
        prop_assert_eq!(&restored, &catalog);
        for command in &commands[cut..] {
            prop_assert_eq!(run_command(&mut restored, command), run_command(&mut catalog, command));
        }
        prop_assert_eq!(written(&restored), written(&catalog));
    }

    #[test]
    fn batches_make_no_difference(
        commands in commands(),
        sizes in proptest::collection::vec(1..9usize, 1..5),
    ) {
        let (cut, whole) = (in_batches(&commands, &sizes), in_batches(&commands, &[1_000]));
        prop_assert_eq!(cut.catalog().digest(), whole.catalog().digest());
        prop_assert_eq!(written(cut.catalog()), written(whole.catalog()));
        prop_assert_eq!(cut.checksum(&Progress::default()), whole.checksum(&Progress::default()));
    }

    #[test]
    fn a_command_changes_everything_it_says_or_nothing(commands in commands()) {
        let mut catalog = Catalog::default();
        let mut changed = 0;
        for command in &commands {
            let before = catalog.clone();
            let reply = run_command(&mut catalog, command);
            let same = catalog == before;
            let effect = reply.as_ref().map(|done| done.effect);
            prop_assert_eq!(same, effect != Ok(Effect::Changed), "{:?}: {:?}", command, reply);
            prop_assert_eq!(same, catalog.digest() == before.digest());
            changed += u32::from(!same);
            if let (Ok(done), Some(key)) = (&reply, command.operation.target()) {
                let held = catalog.view().record(key);
                prop_assert!(held.is_none_or(|record| record.revision() == done.revision));
            }
        }
        prop_assert!(commands.len() < 40 || changed > 0, "no command was accepted");
    }

    #[test]
    fn whoever_follows_the_changes_has_what_is_held(commands in commands(), step in 1..20usize) {
        let mut catalog = Catalog::default();
        let mut view = View::default();
        for some in commands.chunks(step) {
            for command in some {
                try_command(&mut catalog, command);
            }
            let query = Query::Changes { since: view.revision(), limit: 0 };
            let content = query.answer(&catalog).unwrap().content;
            let Content::Changes { changes, through, .. } = content else { panic!("{content:?}") };
            for change in changes {
                match change.record {
                    Some(record) => view.put(record),
                    None => view.remove(change.key),
                }
            }
            view.advance(through);
            prop_assert_eq!(&view, catalog.view());
        }
    }

    #[test]
    fn a_host_that_compares_what_changed_does_what_one_that_compares_everything_does(
        commands in commands(),
        step in 1..20usize,
    ) {
        let (mut catalog, mut host) = (Catalog::default(), Home::default());
        for some in commands.chunks(step) {
            for command in some {
                try_command(&mut catalog, command);
            }
            let (steps, everything) = host.look(catalog.view());
            prop_assert_eq!(&steps, &everything);
            host.carry_out(&steps);
        }
    }

    #[test]
    fn a_founded_group_always_has_a_registered_member_or_was_told_otherwise(
        commands in commands(),
    ) {
        let mut catalog = Catalog::default();
        for command in &commands {
            try_command(&mut catalog, command);
            let view = catalog.view();
            // A group on its way out keeps no node from being removed.
            let stays = |held: &&Arc<GroupRecord>| {
                held.reported.is_none() && held.state == GroupState::Active
            };
            for held in view.groups().values().filter(stays) {
                prop_assert!(held.members().iter().all(|node| view.nodes().contains_key(node)));
            }
            prop_assert!(view.drains().keys().all(|node| view.nodes().contains_key(node)));
            prop_assert!(view.groups().keys().all(|group| !view.ended().contains_key(group)));
        }
    }
}

#[test]
fn the_machine_keeps_its_side_of_the_contract() {
    let mut commands = vec![raise_first(ClusterVersion::NEWEST)];
    commands.extend((1..=3).map(|number| Command::new(NOW, Operation::PutNode(new_node(number)))));
    for number in 0..30 {
        let new = new_group(number % 9, &[1 + number % 3, 2]);
        commands.push(Command::new(NOW, Operation::CreateGroup(new)));
        let group = group(number % 5);
        commands.push(Command::new(NOW, Operation::DestroyGroup { group, generation: None }));
        commands.push(Command::new(NOW, Operation::FinishDestroy { group }));
        let digest = TokenDigest::new([1; TokenDigest::BYTES]);
        let (id, name, grants) = (number % 7, name("billing"), Grants::CLIENT);
        let new = NewToken { id, name, grants, digest, expires_ms: None };
        commands.push(Command::new(NOW, Operation::PutToken(new)));
        commands.push(Command::new(NOW, Operation::RemoveToken { id: number % 3 }));
    }
    let queries = [
        Query::List { kind: RecordKind::Group, after: None, limit: 5 },
        Query::List { kind: RecordKind::Ended, after: None, limit: 0 },
        Query::List { kind: RecordKind::Token, after: None, limit: 5 },
        Query::Changes { since: revision(0), limit: 0 },
        Query::Get(RecordKey::Settings),
    ];
    let mut data: Vec<_> = commands.iter().map(Command::encode).collect();
    data.push("nonsense".into());
    Check::new(CatalogMachine::default, data)
        .queries(queries.iter().map(Query::encode).chain(["nonsense".into()]))
        .run()
        .unwrap();
}
