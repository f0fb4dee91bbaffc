//! What holds for the parts whatever happens to them, from seeds.

use std::collections::BTreeSet;

use shardhost_storage::{GroupId, NodeId};

use super::super::back_offs::BackOffs;
use super::super::bucket::Bucket;
use super::super::queue::Queue;
use super::super::window::Window;
use super::super::{BackOffSettings, Rate, WindowSettings};
use super::build::{gid, id};
use super::simulation::Chance;
use crate::planner::{Move, Tier};

const SEEDS: u64 = 200;

#[test]
fn a_bucket_gives_no_more_than_its_burst_and_its_rate_in_any_span() {
    for seed in 0..SEEDS {
        let mut chance = Chance::new(seed);
        let rate =
            Rate { burst: chance.between(1, 20) as u32, per_second: chance.below(50) as u32 };
        let mut bucket = Bucket::new(rate, 0);
        let (mut now, mut taken) = (0, Vec::new());
        for _ in 0..300 {
            now += chance.below(200);
            if bucket.has_token(now) {
                bucket.take(now);
                taken.push(now);
            }
        }
        for (at, first) in taken.iter().enumerate() {
            for (more, last) in taken[at..].iter().enumerate() {
                let most =
                    u64::from(rate.burst) * 1_000 + (last - first) * u64::from(rate.per_second);
                assert!(
                    (more as u64 + 1) * 1_000 <= most,
                    "seed {seed}: {more} in {first}..{last}"
                );
            }
        }
    }
}

#[test]
fn a_window_stays_within_its_limits() {
    for seed in 0..SEEDS {
        let mut chance = Chance::new(seed);
        let least = chance.between(1, 9) as u32;
        let most = least + chance.below(100) as u32;
        let first = chance.below(200) as u32;
        let mut window = Window::new(WindowSettings { first, least, most });
        for number in 1..500 {
            if chance.per_mille(100) {
                window.cut(number, number + 3)
            } else {
                window.grow()
            }
            assert!((least..=most).contains(&window.size()), "seed {seed}: {window:?}");
        }
    }
}

#[test]
fn mutes_are_in_order_in_force_and_bounded() {
    for seed in 0..SEEDS {
        let mut chance = Chance::new(seed);
        let limit = chance.below(12) as usize;
        let mut back_offs =
            BackOffs::new(BackOffSettings { first_ms: 100, longest_ms: 3_000 }, limit);
        let mut now = 0;
        for _ in 0..400 {
            now += chance.below(100);
            let key = (gid(chance.below(5)), id(chance.between(1, 4)));
            if chance.per_mille(200) {
                back_offs.remove(key);
            } else {
                back_offs.add(key, None, now);
            }
            let force = back_offs.in_force(now);
            assert!(force.len() <= back_offs.len() && back_offs.len() <= limit, "seed {seed}");
            assert!(
                force.is_sorted_by_key(|back_off| (back_off.group, back_off.target)),
                "seed {seed}"
            );
            let ends = force.iter().map(|back_off| back_off.until_ms);
            assert!(ends.into_iter().all(|end| end > now && end <= now + 3_000), "seed {seed}");
        }
    }
}

fn step(group: u64, chance: &mut Chance, bundle: u32) -> Move {
    let node = |chance: &mut Chance| -> NodeId { id(chance.between(1, 3)) };
    Move {
        group: gid(group),
        from: node(chance),
        to: node(chance),
        to_incarnation: 1,
        term: 1,
        tier: chance.one_of(&[Tier::Displaced, Tier::Load, Tier::Count]),
        bundle,
    }
}

#[test]
fn every_move_leaves_a_queue_once_and_its_bundle_in_order() {
    for seed in 0..SEEDS {
        let mut chance = Chance::new(seed);
        let (mut moves, mut bundle) = (Vec::new(), 0);
        for group in 1..=chance.between(1, 40) {
            bundle += u32::from(chance.per_mille(600));
            moves.push(step(group, &mut chance, bundle));
        }
        let mut queue = Queue::default();
        queue.fill(&moves, usize::MAX);
        let mut left: Vec<GroupId> = Vec::new();
        while let Some((place, lane)) = queue.heads().into_iter().nth(chance.below(2) as usize) {
            let found = queue.pop(lane).expect("a lane that has a head");
            assert_eq!(found.place, place, "seed {seed}");
            let mut steps = found.steps.into_iter();
            let first = steps.next().expect("a bundle is never empty");
            assert_eq!((first.from, first.to, first.tier), lane, "seed {seed}");
            left.push(first.group);
            assert!(queue.find(first.group).is_none(), "seed {seed}");
            queue.push(place, steps.collect());
        }
        // Drawing the second lane of one is drawing none.
        while let Some((_, lane)) = queue.heads().pop_first() {
            left.extend(
                queue.pop(lane).into_iter().flat_map(|bundle| bundle.steps).map(|m| m.group),
            );
        }
        let all: BTreeSet<GroupId> = left.iter().copied().collect();
        assert_eq!(
            (all.len(), left.len(), queue.len()),
            (moves.len(), moves.len(), 0),
            "seed {seed}"
        );
        for pair in moves.windows(2).filter(|pair| pair[0].bundle == pair[1].bundle) {
            let place = |group| left.iter().position(|left| *left == group);
            assert!(place(pair[0].group) < place(pair[1].group), "seed {seed}: {left:?}");
        }
    }
}
