//! Load that is constant while nothing changes.

use super::super::load::Loads;
use super::super::{ExecutorSettings, LoadSettings};
use super::build::group;
use crate::planner::Group;

fn loads() -> Loads {
    Loads::new(ExecutorSettings::default().load)
}

/// What becomes of measured loads, one group each, a second after the other.
fn settled(loads: &mut Loads, measured: &[u32], second: u64) -> Vec<u32> {
    let numbered = (1..).zip(measured);
    let mut groups: Vec<Group> =
        numbered.map(|(number, load)| Group { load: *load, ..group(number, 1, &[1]) }).collect();
    loads.settle(&mut groups, second * 1_000);
    groups.iter().map(|group| group.load).collect()
}

/// A number from 80 to 120 percent of the mean, the same everywhere.
fn noisy(mean: u32, second: u64) -> u32 {
    let mixed = (second + u64::from(mean) * 7_919).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33;
    (u64::from(mean) * (800 + mixed % 401) / 1_000) as u32
}

#[test]
fn a_load_is_within_a_quarter_of_what_counts() {
    for load in 16..5_000 {
        let step = settled(&mut loads(), &[load], 0)[0];
        let (low, high) = (step * 4 / 5, step * 5 / 4);
        assert!((low..=high).contains(&load), "{load} operations count as {step}");
    }
}

#[test]
fn noise_of_a_fifth_changes_nothing_in_an_hour() {
    // Also where many loads are near the idle limit.
    hold_still(loads());
    let settings = ExecutorSettings::default().load;
    hold_still(Loads::new(LoadSettings { idle_below: 1_000, ..settings }));
}

fn hold_still(mut loads: Loads) {
    let means: Vec<u32> = (1..400).map(|at| at * at / 11).collect();
    let measure = |second| means.iter().map(|mean| noisy(*mean, second)).collect::<Vec<u32>>();
    let mut counts = Vec::new();
    for second in 0..=120 {
        counts = settled(&mut loads, &measure(second), second);
    }
    assert!(counts.contains(&0) && counts.iter().any(|load| *load > 10_000), "{counts:?}");
    for second in 121..=3_720 {
        assert_eq!(settled(&mut loads, &measure(second), second), counts, "second {second}");
    }
}

#[test]
fn noise_after_a_change_changes_nothing_either() {
    // All loads rise slowly, so that steps are left at any distance from the end.
    let mut loads = loads();
    let measure = |second: u64| {
        let grown = |mean: u32| u64::from(mean) * second.min(300) / 100;
        let all = (1..400_u32).map(|at| noisy(u32::try_from(grown(at * at / 11)).unwrap(), second));
        all.collect::<Vec<u32>>()
    };
    let mut counts = Vec::new();
    for second in 0..=540 {
        counts = settled(&mut loads, &measure(second), second);
    }
    for second in 541..=4_140 {
        assert_eq!(settled(&mut loads, &measure(second), second), counts, "second {second}");
    }
}

#[test]
fn a_load_that_no_leader_reported_is_as_it_was() {
    let mut loads = loads();
    assert_eq!(settled(&mut loads, &[500], 0), [512]);
    for second in 1..600 {
        let mut unheard = Group { load: 0, ..group(1, 1, &[1]) };
        unheard.voters[0].lag = None;
        let mut groups = [unheard];
        loads.settle(&mut groups, second * 1_000);
        assert_eq!(groups[0].load, 512);
    }
}

#[test]
fn a_lasting_change_is_followed_and_a_short_one_is_not() {
    let mut loads = loads();
    let mut after = |load, seconds: std::ops::Range<u64>| {
        seconds.map(|second| settled(&mut loads, &[load], second)[0]).last()
    };
    assert_eq!(after(1_000, 0..60), Some(1_024));
    assert_eq!(after(4_000, 60..62), Some(1_024));
    assert_eq!(after(1_000, 62..120), Some(1_024));
    assert_eq!(after(4_000, 120..200), Some(3_072));
    assert_eq!(after(4_000, 200..300), Some(4_096));
    assert_eq!(after(0, 300..900), Some(0));
}

#[test]
fn the_largest_loads_and_groups_that_come_and_go_are_counted() {
    let mut loads = loads();
    assert_eq!(settled(&mut loads, &[u32::MAX, 100], 0), [1_000_000_000, 96]);
    assert_eq!(settled(&mut loads, &[u32::MAX], 1), [1_000_000_000]);
    // The second is new again: it begins with the measured value.
    assert_eq!(settled(&mut loads, &[u32::MAX, 500], 2), [1_000_000_000, 512]);
}

#[test]
fn without_smoothing_what_is_measured_counts_at_once() {
    let mut loads = Loads::new(LoadSettings { smoothing_ms: 0, idle_below: 1, centre_ms: 0 });
    assert_eq!(settled(&mut loads, &[64, 2], 0), [64, 2]);
    assert_eq!(settled(&mut loads, &[256, 3], 1), [256, 3]);
}
