//! Each model holds, and does not without any one of its guards.

use shardhost_models::configurations::Configurations;
use shardhost_models::leases::Leases;
use shardhost_models::lives::Lives;
use shardhost_models::prepared_votes::PreparedVotes;
use shardhost_models::quiescence::Quiescence;
use shardhost_models::{Checkable, Verdict, check};

/// The model holds in at least so many states: fewer would show that it does not move.
fn holds(name: &str, model: impl Checkable, at_least: usize) {
    match check(model) {
        Verdict::Holds(states) => {
            println!("{name}: {states} states");
            assert!(states >= at_least, "{name} has {states} states");
        }
        Verdict::Fails(property, path) => panic!("{name}: not {property}: {path}"),
    }
}

/// Without the guard the property fails.
fn fails(name: &str, model: impl Checkable, property: &str) {
    match check(model) {
        Verdict::Fails(found, path) => {
            println!("{name}: not {found}: {path}");
            assert_eq!(found, property, "{name}");
        }
        Verdict::Holds(states) => panic!("{name} is not needed in {states} states"),
    }
}

#[test]
fn configurations_that_count_when_applied() {
    holds("configurations", Configurations::SOUND, 10_000);
    let property = "what is committed stays";
    let sound = Configurations::SOUND;
    fails("remembers_commits", Configurations { remembers_commits: false, ..sound }, property);
    fails("one_at_a_time", Configurations { one_at_a_time: false, ..sound }, property);
    let late = Configurations { applies_before_campaign: false, ..sound };
    fails("applies_before_campaign", late, property);
    fails("compares_logs", Configurations { compares_logs: false, ..sound }, property);
}

#[test]
fn leases() {
    holds("leases", Leases::SOUND, 10_000);
    let property = "a lease excludes later leaders";
    let sound = Leases::SOUND;
    fails("counts_from_sending", Leases { counts_from_sending: false, ..sound }, property);
    fails("length", Leases { length: sound.length + 1, ..sound }, property);
    fails("void_in_transfer", Leases { void_in_transfer: false, ..sound }, property);
    fails("awaits_target", Leases { awaits_target: false, ..sound }, property);
    fails("refuses_late_orders", Leases { refuses_late_orders: false, ..sound }, property);
    fails("locked_after_restart", Leases { locked_after_restart: false, ..sound }, property);
    fails("names_incarnation", Leases { names_incarnation: false, ..sound }, property);
}

#[test]
fn prepared_votes() {
    holds("prepared votes", PreparedVotes::SOUND, 10_000);
    let property = "one leader in a term";
    let sound = PreparedVotes::SOUND;
    fails("awaits_disk", PreparedVotes { awaits_disk: false, ..sound }, property);
    fails("writes_others", PreparedVotes { writes_others: false, ..sound }, property);
    fails("keeps_prepared", PreparedVotes { keeps_prepared: false, ..sound }, property);
    fails("keeps_order", PreparedVotes { keeps_order: false, ..sound }, property);
}

#[test]
fn quiescence() {
    holds("quiescence", Quiescence::SOUND, 1_000);
    let (led, alone) = ("somebody looks for a leader", "a leader without a quorum ticks");
    let sound = Quiescence::SOUND;
    fails("checks_asker", Quiescence { checks_asker: false, ..sound }, led);
    fails("sends_step_down_notice", Quiescence { sends_step_down_notice: false, ..sound }, led);
    fails("notices_restarts", Quiescence { notices_restarts: false, ..sound }, led);
    fails("looks_again", Quiescence { looks_again: false, ..sound }, alone);
}

#[test]
fn lives() {
    holds("lives", Lives::SOUND, 100);
    let lost = "what was acknowledged is there";
    let sound = Lives::SOUND;
    fails("one_step", Lives { one_step: false, ..sound }, "one replica runs");
    fails("awaits_log", Lives { awaits_log: false, ..sound }, lost);
    fails("names_opening", Lives { names_opening: false, ..sound }, lost);
}
