//! Random snapshots with everything in them that can be in one.

use shardhost_storage::{GroupId, NodeId};

use super::super::{
    BackOff, Group, LedgerMove, Node, Place, Requirement, RequirementMode, Snapshot,
};
use super::build::{Dice, NOW, group, names, node, snapshot};

/// A snapshot from a seed. Every sixth node has some trouble, and some groups have each.
pub(super) fn random(seed: u64) -> Snapshot {
    let mut dice = Dice::new(seed);
    let nodes = 2 + dice.below(5);
    let groups = 1 + dice.below(24);
    let mut made = snapshot(
        (1..=nodes).map(|id| random_node(id, &mut dice)).collect(),
        (1..=groups).map(|id| random_group(id * 3, nodes, &mut dice)).collect(),
    );
    made.seed = dice.below(100);
    made.settings.load_tier = dice.below(3) == 0;
    made.settings.load_tolerance_percent = 20 + dice.below(80) as u32;
    made.settings.max_lag_entries = dice.below(3);
    for at in 0..made.groups.len() {
        let (id, term) = (made.groups[at].id, made.groups[at].term);
        if dice.below(12) == 0 {
            made.moves.push(random_move(id, nodes, term, &mut dice));
        }
        for target in (1..=nodes).map(NodeId::must) {
            let until_ms = NOW - 50 + dice.below(100);
            if dice.below(12) == 0 {
                made.back_offs.push(BackOff { group: id, target, until_ms });
            }
        }
    }
    made.check().expect("a canonical snapshot");
    made
}

fn random_node(id: u64, dice: &mut Dice) -> Node {
    let capabilities = match dice.below(5) {
        0 => None,
        1 => Some(names(&[])),
        2 => Some(names(&["fifo"])),
        _ => Some(names(&["fifo", "trim"])),
    };
    Node {
        weight: [1, 1, 1, 2, 3, 0][dice.below(6) as usize],
        zone: format!("zone-{}", dice.below(3)),
        capabilities,
        draining: dice.below(6) == 0,
        fit: dice.below(8) != 0,
        live: dice.below(8) != 0,
        live_since_ms: if dice.below(6) == 0 { NOW - 5 } else { 0 },
        ..node(id)
    }
}

fn random_group(id: u64, nodes: u64, dice: &mut Dice) -> Group {
    let count = 1 + dice.below(4);
    let voters = dice.pick(count, nodes);
    let leader = voters[dice.below(voters.len() as u64) as usize];
    let mut made = group(id, leader, &voters);
    for voter in &mut made.voters {
        voter.lag = [Some(0), Some(0), Some(0), Some(1), Some(9), None][dice.below(6) as usize];
    }
    made.requirement = random_requirement(dice);
    if dice.below(3) == 0 {
        let place = |at| match dice.below(2) {
            0 => Place::Node(NodeId::must(1 + dice.below(nodes))),
            _ => Place::Zone(format!("zone-{at}")),
        };
        made.preference = (0..2).map(place).collect();
    }
    made.pin = (dice.below(8) == 0).then(|| NodeId::must(1 + dice.below(nodes)));
    made.label = (dice.below(2) == 0).then(|| format!("label-{}", dice.below(4)));
    made.load = dice.below(3) as u32 * dice.below(50) as u32;
    made.moved_at_ms = (dice.below(6) == 0).then_some(NOW - 10);
    if dice.below(10) == 0 {
        made.last_leader = made.leader.take();
    }
    made
}

fn random_requirement(dice: &mut Dice) -> Requirement {
    let capabilities = match dice.below(4) {
        0 => names(&["fifo"]),
        1 => names(&["fifo", "trim"]),
        _ => names(&[]),
    };
    let mode = if dice.below(2) == 0 { RequirementMode::Hard } else { RequirementMode::Soft };
    Requirement { capabilities, mode }
}

fn random_move(group: GroupId, nodes: u64, ticket: u64, dice: &mut Dice) -> LedgerMove {
    let mut report = || (dice.below(2) == 0).then_some(NOW - 1);
    LedgerMove {
        group,
        ticket,
        since_ms: NOW - 100,
        completed_at_ms: report().map(|now| now - 9),
        from_reported_ms: report(),
        to_reported_ms: report(),
        from: NodeId::must(1 + dice.below(nodes)),
        to: NodeId::must(1 + dice.below(nodes)),
    }
}
