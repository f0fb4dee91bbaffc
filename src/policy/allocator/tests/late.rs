//! Orders from a seed: they take time, are lost, refused, and given up by operators; answers come late, groups are
//! without a leader for a while, additions to some nodes never end, the system group gets another leader, and
//! members are reported every few seconds. What the allocator believes of an order is so at every moment, and when
//! all is calm every group is healed.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;

const SEEDS: u64 = 150;
const GROUPS: u64 = 5;
const NODES: u64 = 7;
const STEP_MS: u64 = 1_000;
/// Reports of members come so often.
const REPORT_EVERY: u64 = 5;
/// When all is calm and every node takes replicas.
const HEALED_WITHIN_MS: u64 = 300_000;
/// The same where two do not: an addition to each is waited for.
const HEALED_IN_SPITE_MS: u64 = 3 * MOVING_FOR_MS + HEALED_WITHIN_MS;

/// A group as its leader knows it.
#[derive(Debug, Default)]
struct Truth {
    members: BTreeSet<NodeId>,
    /// The change that is under way, and when it ends.
    change: Option<(Step, u64)>,
    has_no_leader_until: u64,
}

/// An order on its way, or its answer.
#[derive(Debug)]
enum Sent {
    Order(Order),
    Answer(Order, Outcome),
}

struct Orders {
    world: World,
    rng: SmallRng,
    groups: BTreeMap<GroupId, Truth>,
    on_its_way: BTreeMap<u64, Vec<Sent>>,
    /// Orders that a group recorded, or found done.
    recorded: BTreeSet<u64>,
    /// Additions that operators gave up, or the allocator, because they did not end.
    given_up: BTreeSet<(GroupId, NodeId)>,
    /// Additions that were begun. Their groups may report it late.
    begun: BTreeSet<(GroupId, NodeId)>,
    /// Groups of which an operator gave an addition up.
    cancelled: BTreeSet<GroupId>,
    /// Nodes on which no replica comes into being.
    hopeless: BTreeSet<NodeId>,
    calm: bool,
}

impl Orders {
    fn new(seed: u64, bug: Option<OrderBug>) -> Self {
        let mut world = World::new(&[""; NODES as usize]);
        world.allocator.bug = bug;
        world.system.clear();
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut groups = BTreeMap::new();
        for number in 1..=GROUPS {
            let first = rng.random_range(1..=NODES - 2);
            world.create(number, &[first, first + 1, first + 2], &[]);
            let members = (first..first + 3).map(node).collect();
            groups.insert(group(number), Truth { members, ..Truth::default() });
        }
        let hopeless = match seed % 3 {
            0 => BTreeSet::new(),
            _ => (0..2).map(|_| node(rng.random_range(1..=NODES))).collect(),
        };
        let (on_its_way, recorded, given_up, begun, cancelled) = Default::default();
        let calm = false;
        Self {
            world,
            rng,
            groups,
            on_its_way,
            recorded,
            given_up,
            begun,
            cancelled,
            hopeless,
            calm,
        }
    }

    fn run(&mut self, steps: u64) {
        for step in 0..steps {
            let now = self.world.now_ms + STEP_MS;
            if !self.calm {
                self.disturb(now);
            }
            self.end_changes(now);
            self.deliver(now);
            if step.is_multiple_of(REPORT_EVERY) {
                self.report();
            }
            for change in self.world.pass_at(now) {
                let order = self.world.orders[&change.group];
                self.given_up.extend(change.instead_of.map(|node| (change.group, node)));
                self.send(now, 2_000, Sent::Order(order));
            }
            self.check();
        }
    }

    fn send(&mut self, now: u64, within: u64, sent: Sent) {
        let at = now + self.rng.random_range(1..=within);
        self.on_its_way.entry(at).or_default().push(sent);
    }

    /// The system group gets another leader, which remembers nothing.
    fn forget(&mut self) {
        let bug = self.world.allocator.bug;
        self.world.allocator = Allocator { bug, ..Allocator::default() };
        self.on_its_way.clear();
        self.recorded.clear();
        self.given_up.clear();
        self.begun.clear();
    }

    fn disturb(&mut self, now: u64) {
        let at = node(self.rng.random_range(1..=NODES));
        let of = group(self.rng.random_range(1..=GROUPS));
        match self.rng.random_range(0..40) {
            0 if self.world.live.len() as u64 == NODES => drop(self.world.live.remove(&at)),
            1 | 2 => drop(self.world.live.insert(at)),
            3 => {
                let until = now + self.rng.random_range(1_000..60_000);
                self.groups.get_mut(&of).unwrap().has_no_leader_until = until;
            }
            4 if self.rng.random_bool(0.2) => self.forget(),
            // An operator gives an addition up, once: the node is left out then.
            5 | 6 if self.cancelled.insert(of) => {
                let change = self.groups.get_mut(&of).unwrap().change.take();
                let new = change.and_then(|(step, _)| step.new_node());
                self.given_up.extend(new.map(|new| (of, new)));
            }
            _ => {}
        }
    }

    fn end_changes(&mut self, now: u64) {
        for truth in self.groups.values_mut() {
            let Some((step, at)) = truth.change else { continue };
            let comes = |new| self.world.live.contains(&new) && !self.hopeless.contains(&new);
            let answers = step.new_node().is_none_or(comes);
            if now >= at && answers && now >= truth.has_no_leader_until {
                truth.members.retain(|node| Some(*node) != step.old());
                truth.members.extend(step.new_node());
                truth.change = None;
            }
        }
    }

    fn deliver(&mut self, now: u64) {
        let later = self.on_its_way.split_off(&(now + 1));
        let due = std::mem::replace(&mut self.on_its_way, later);
        for sent in due.into_values().flatten() {
            match sent {
                Sent::Answer(order, outcome) => self.world.allocator.ended(order, now, outcome),
                Sent::Order(order) => self.take(now, order),
            }
        }
    }

    /// An order reaches the leader, if there is one.
    fn take(&mut self, now: u64, order: Order) {
        if !self.calm && self.rng.random_bool(0.1) {
            return;
        }
        let outcome = self.try_to(now, order);
        if outcome == Outcome::Begun {
            self.recorded.insert(order.ticket);
            let new = order.change.step.new_node();
            self.begun.extend(new.map(|new| (order.change.group, new)));
        }
        // Most answers come at once, and some after the order was decided anew.
        let slow = !self.calm && self.rng.random_bool(0.2);
        self.send(now, if slow { 2 * UNKNOWN_FOR_MS } else { 100 }, Sent::Answer(order, outcome));
    }

    fn try_to(&mut self, now: u64, order: Order) -> Outcome {
        let Change { group: id, step, instead_of, .. } = order.change;
        let truth = self.groups.get_mut(&id).unwrap();
        if now < truth.has_no_leader_until {
            return Outcome::Refused("no leader".to_owned());
        }
        let (old, new) = (step.old().unwrap(), step.new_node().unwrap());
        match truth.change {
            Some((one, _)) if one == step => return Outcome::Begun,
            Some((one, _)) => {
                let under_way = one.new_node().unwrap();
                if instead_of != Some(under_way) {
                    return Outcome::InTheWay(under_way);
                }
                truth.change = None;
                return Outcome::Refused("an addition was cancelled".to_owned());
            }
            None => {}
        }
        match (truth.members.contains(&old), truth.members.contains(&new)) {
            (true, false) => {
                truth.change = Some((step, now + self.rng.random_range(1_000..20_000)));
                Outcome::Begun
            }
            (false, true) => Outcome::Begun,
            _ => Outcome::Refused("the members are others".to_owned()),
        }
    }

    fn report(&mut self) {
        let leads = |truth: &&Truth| self.world.now_ms >= truth.has_no_leader_until;
        let of = |truth: &Truth| {
            let incoming = truth.change.and_then(|(step, _)| step.new_node());
            truth.members.iter().copied().chain(incoming).collect::<BTreeSet<NodeId>>()
        };
        let shown = self.groups.iter().filter(|(_, truth)| leads(truth));
        let shown: Vec<_> = shown.map(|(id, truth)| (*id, of(truth))).collect();
        for (id, members) in shown {
            let known = self.world.catalog.view().groups()[&id].members().iter().copied();
            if !known.eq(members.iter().copied()) {
                let members: Vec<u64> = members.into_iter().map(NodeId::get).collect();
                self.world.report(id.get(), &members);
            }
        }
    }

    /// What the allocator believes is so.
    fn check(&self) {
        for (id, moving) in &self.world.allocator.moving {
            let is_recorded = self.recorded.contains(&moving.ticket);
            assert!(!moving.begun || is_recorded, "group {id}: {moving:?} was not begun");
        }
        for left_out in self.world.allocator.avoided.keys() {
            let tried = self.given_up.contains(left_out) || self.begun.contains(left_out);
            assert!(tried, "{left_out:?} is left out for nothing");
        }
    }

    fn check_healed(&self) {
        for (id, truth) in &self.groups {
            let live = truth.members.iter().filter(|node| self.world.live.contains(node)).count();
            let why = self.world.why(id.get());
            assert_eq!((truth.members.len(), live), (3, 3), "group {id}: {truth:?}: {why}");
        }
        let moving = &self.world.allocator.moving;
        assert!(moving.is_empty() || !self.hopeless.is_empty(), "{moving:?}");
    }
}

fn run(seed: u64, bug: Option<OrderBug>) {
    let mut orders = Orders::new(seed, bug);
    orders.run(400);
    orders.calm = true;
    orders.groups.values_mut().for_each(|truth| truth.has_no_leader_until = 0);
    let within = match orders.hopeless.is_empty() {
        true => HEALED_WITHIN_MS,
        false => HEALED_IN_SPITE_MS,
    };
    orders.run(within / STEP_MS);
    orders.check_healed();
}

#[test]
fn what_is_believed_of_orders_is_so_and_every_group_is_healed() {
    (0..SEEDS).for_each(|seed| run(seed, None));
}

fn is_caught(bug: OrderBug) {
    let caught =
        (0..SEEDS).find(|seed| std::panic::catch_unwind(|| run(*seed, Some(bug))).is_err());
    println!("{bug:?} is caught by seed {}", caught.expect("no seed noticed it"));
}

#[test]
fn answers_that_count_for_another_order_are_caught() {
    is_caught(OrderBug::CountsLateAnswers);
}

#[test]
fn changes_that_were_given_up_and_count_as_under_way_are_caught() {
    is_caught(OrderBug::KeepsGivenUp);
}

#[test]
fn additions_of_others_that_are_waited_for_without_end_are_caught() {
    is_caught(OrderBug::LeavesInTheWay);
}
