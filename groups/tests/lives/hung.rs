//! A log that hangs for so long that the host takes no part any more.

use std::sync::atomic::Ordering;
use std::time::Duration;

use shardhost_proto::peer::MessageKind;

use super::reopen::{Node, caught, set, wait};

/// Ten of them are an election timeout, and thirty what a host whose log hangs takes part for.
const TICK: Duration = Duration::from_millis(10);

#[test]
fn a_host_whose_log_hangs_is_silent_until_it_goes_on() {
    let node = Node::ticking(TICK);
    node.create().join().unwrap().unwrap();
    assert!(node.append());
    let is_silent = || node.around.silent.load(Ordering::SeqCst);
    let answers = || node.told(MessageKind::HeartbeatResponse, 5, 0).len();
    // Whether it answers a leader, for which it needs no log.
    let answers_the_leader = || {
        let before = answers();
        wait(|| {
            node.deliver(MessageKind::Heartbeat, 2, 5);
            answers() > before
        })
    };
    assert!(answers_the_leader());

    let held = set(&node.around.write);
    node.deliver(MessageKind::Append, 3, 6);
    let hangs = caught(&node.around.write);
    assert!(hangs, "nothing is written");
    assert!(wait(is_silent), "peers go on hearing of it");
    assert!(!answers_the_leader(), "it takes part");

    drop(held);
    assert!(wait(|| !is_silent()), "it does not come back");
    let later = || node.told(MessageKind::HeartbeatResponse, 6, 0).len();
    assert!(wait(|| {
        node.deliver(MessageKind::Heartbeat, 3, 6);
        later() > 0
    }));
}
