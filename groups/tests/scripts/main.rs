//! What the protocol does, as scripts that read like a conversation.
//!
//! A script in `cases/` is comments, commands, and under each command its effects. Several nodes
//! with several groups run in one thread, on the same `WorkerCore` as in production, and nothing
//! happens unasked: no message arrives, no disk syncs, no state machine applies and no time passes
//! without a command. So every line of a trace has a cause, and a change of behaviour is a change
//! of a script.
//!
//! ```text
//! cargo test -p shardhost-groups --test scripts                            all of them
//! RUN=first_election.txt cargo test -p shardhost-groups --test scripts elections     one
//! REWRITE=1 cargo test -p shardhost-groups --test scripts    write the traces anew; read the diff
//! ```
//!
//! # Reading a trace
//!
//! | line | says |
//! |---|---|
//! | `1->2 g1 Append term=2 prev=3@1 entries=[4@2 "x"] commit=3` | node 1 sends node 2 an append for group 1; `4@2` is the entry of term 2 at index 4 |
//! | `n2 g1 persist term=2 vote=1 entries=[4@2 "x"]` | this is durable on node 2; what it promises leaves behind it |
//! | `n2 g1 follower term=2 leader=1`, `commit 4`, `config 5 …`, `hibernating` | what the replica says of itself changed |
//! | `n1 g1 applied 4@2 "x"` | the state machine applied a command; `applied 4` an entry that is none |
//! | `n1 g1 edge Acquired term=2` | an event for listeners of leadership |
//! | `n1 g1 propose x: applied at 4@2, answer 1` | a caller gets its answer; a machine's answer is how many commands it has applied |
//! | `(lost)`, `(held)` | what the network does to the message |
//! | `n2 refuses …`, `n2 drops …` | a message that changes nothing, and why |
//!
//! # Commands
//!
//! `node=2` or `node=(1,2)` names nodes, without it all that run are meant; `group=` is 1 unless it
//! is given; `quiet` behind any command hides its trace. Every script begins with a cluster.
//!
//! | the cluster | |
//! |---|---|
//! | `cluster nodes=3 groups=2` | nodes 1 to 3, each with a voter of every group |
//! | `cluster voters=(1,2) learners=(3) spare=(4)` | others than voters; a spare node holds nothing yet |
//! | … `keeps` | state machines keep themselves on disk; `flush` writes them |
//! | … `freeze=1` | ticks that proposals wait for a transfer |
//! | … `check=40` | ticks after which a leader has the replicas compared; it begins within as many |
//! | … `hibernate=5` `trail=2` `keep-log=4` `snapshot-every=9` `append-bytes=1` `inflight=2` `apply-bytes=1` `seed=3` | settings, as in `GroupsConfig` |
//!
//! | time | |
//! |---|---|
//! | `tick node=1 count=5` | nodes tick; nothing is delivered |
//! | `run ticks=5` | nodes tick, and after each tick everything else happens; heartbeats are not shown |
//! | `stabilize node=(2,3)` | these nodes take turns: take what arrived, write, apply; until there is nothing left |
//! | `campaign node=1` | node 1 ticks until it stands for election |
//! | `elect node=1` | node 1 ticks, and everything else happens, until it leads; only the result is shown |
//! | `pause node=1 milliseconds=500` | its clock runs, and it does nothing |
//!
//! | what is on its way | |
//! |---|---|
//! | `deliver from=1 to=2 kind=Append group=1 count=1` | messages that fit arrive, those of one link as one frame |
//! | … `drop` `duplicate` `reverse` `keep` | they are lost; come twice; in the wrong order; a copy is held |
//! | `hold from=1 to=2 kind=…`, `release` | messages that fit wait, from here on too; they are back on their way (`drop`: they are lost) |
//! | `lose from=1 kind=…`, `partition node=(1,2)`, `heal` | messages that fit are lost; two sides do not hear each other; no more of that |
//! | `ship from=1 to=3` | a snapshot arrives (`fail`: it does not) |
//! | `forge from=1 to=2 kind=Vote term=9 index=1 log-term=2 entries=(2.x) commit=1 …` | a forged message arrives |
//! | … `kind=Snapshot at-index=3 at-term=2 any-giver` | a snapshot, given by any replica to one that lost its state |
//! | … `kind=CreateReplica founders=(2,4) without=(1) config=9 newest=7` | the configuration that a create request, or a notice of removal, shows |
//! | `network` | shows it |
//!
//! | asking | |
//! |---|---|
//! | `propose node=1 data=(x,y) term=2 through-barrier` | commands; `panic` and `fault` break state machines |
//! | … `count=1100` | so many commands, the words of `data` in turn |
//! | … `round-goes-on` | the next command comes in the same round |
//! | `read node=1 as=a` `lease` `follower` `leadership`, `cancel node=1 as=a` | a read, under a name; its caller goes away |
//! | `transfer node=1 to=2`, `transfer node=1 to=(2,3) max-lag=0` | leadership goes to one node, or to the first that fits |
//! | `change node=1 add-voter=4 add-learner=5 promote=6 demote=2 remove=3 expecting=7` | the membership changes; a promotion takes `max-lag=`, `at-least=`, `unchecked` |
//! | … `unanswered` | the heartbeats by which the leader asks its peers first stay on their way; else they are answered at once, which is not shown |
//! | `replace node=1 old=3 new=4`, `cancel-addition node=1` | one member by another; not, after all |
//! | `barrier node=1`, `barrier node=1 drain=1`, `barrier node=1 close=1` | users' proposals are held back |
//! | `snapshot node=1` | the state machine is asked for a snapshot |
//! | `require node=1 names=(fifo) soft even-if-ineligible expecting=7` | the requirement of the group |
//! | `advertise node=1 names=(fifo) draining silently` | what a node says of itself, and the others hear |
//! | `policy node=1 says=decline to=(2) reason=…`, `reevaluate node=1` | what a policy of the node says of leaderships it acquires; they are looked at again |
//!
//! | inside a node | |
//! |---|---|
//! | `write`, `sync`, `persist` | the log writer writes what waits; syncs it; both |
//! | `apply node=1 group=1`, `flush` | state machines do one piece of work; keep what they hold |
//! | `check-hibernating node=1` | it is time to compare the replicas of groups that it leads and that hibernate |
//! | `stall node=1 part=disk`, `resume …` | its `disk`, `machine`, `worker` or `policies` stand still when others take turns |
//! | `crash node=1 keep=1`, `restart node=1`, `close node=1` | the process dies, and of the unsynced writes one survives; starts; closes a group |
//! | `back-up node=1`, `put-back node=1`, `wipe node=1` | the data directory is copied; of a node that is down, the copy is put back, or the disk replaced by an empty one |
//! | `fault node=1 in=sync`, `mend` | the next `write` or `sync` fails, `reads` of a group, an `entry index=3`; `snapshots` are damaged, the last word that a state `machine` holds is another one, there is no `space`, of a node that is down the `state` is lost with its snapshots; the next crash takes the `tail` of the log with it |
//! | `node-lost of=3`, `node-live of=3`, `unreachable node=1 of=3` | what the transport says of node 3 |
//!
//! | looking | |
//! |---|---|
//! | `status` `peers`, `membership`, `lease` | what replicas say of themselves |
//! | `counters` | what a node counted of leaderships: refusals, vetoes, transfers, by reason; how long users stood still |
//! | `disk`, `machine` | what would survive a crash; what the state machines hold |

mod commands;
mod words;
mod world;

use commands::Script;
use shardhost_groups::known_bugs::{KnownBug, KnownBugs};

const CASES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scripts/cases");

/// A test for every folder of scripts.
macro_rules! folders {
    ($($name:ident)*) => {
        const FOLDERS: &[&str] = &[$(stringify!($name)),*];
        $(
            #[test]
            fn $name() {
                run(stringify!($name));
            }
        )*
    };
}

folders! {
    elections replication persistence proposals reads transfers hibernation snapshots failures validator
    membership leases barriers policies consistency
}

fn run(folder: &str) {
    datadriven::walk(&format!("{CASES}/{folder}"), |file| {
        let mut script = Script::default();
        file.run(|case| script.run(case));
    });
}

/// The names of what is in a folder, in order.
fn names(folder: &str) -> Vec<String> {
    let files = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn every_folder_of_scripts_is_run() {
    let mut folders: Vec<String> = FOLDERS.iter().map(|name| (*name).to_owned()).collect();
    folders.sort();
    assert_eq!(names(CASES), folders);
}

/// A command that cannot be carried out says so in the trace: such a script teaches nothing.
#[test]
fn no_script_holds_a_mistake() {
    if std::env::var("REWRITE").is_ok() {
        // The files change meanwhile.
        return;
    }
    for folder in FOLDERS {
        for name in names(&format!("{CASES}/{folder}")) {
            let text = std::fs::read_to_string(format!("{CASES}/{folder}/{name}")).unwrap();
            assert!(!text.contains(commands::MISTAKE), "{folder}/{name}");
        }
    }
}

/// What each script shows that needs a rule: without the rule its trace is another one.
const NEEDS: &[(KnownBug, &str)] = &[
    (KnownBug::RecreateVoter, "membership/demoted_and_wiped_stays_away.txt"),
    (KnownBug::CountLostLearner, "membership/vote_for_a_wiped_learner.txt"),
    (KnownBug::CountLostLearner, "membership/promote_before_the_tick.txt"),
    (KnownBug::ChangeIntoStandstill, "membership/no_change_into_a_standstill.txt"),
    (KnownBug::CountNodesForReplicas, "membership/no_change_beside_a_failed_replica.txt"),
    (KnownBug::CountNodesForReplicas, "membership/no_vote_for_a_failed_learner.txt"),
    (KnownBug::CountEarlierAnswers, "membership/no_change_beside_a_frozen_voter.txt"),
    (
        KnownBug::CountVotersThatTakeNothing,
        "membership/no_change_beside_a_voter_that_takes_no_entries.txt",
    ),
    (KnownBug::CountNodesForReplicas, "hibernation/a_change_waits_for_answers.txt"),
    (KnownBug::KeepForTheUnlevel, "failures/a_lost_state_leaves_past_one_that_lags.txt"),
    (KnownBug::JointWaitsForMachine, "membership/joint_is_left_without_the_machine.txt"),
    (KnownBug::InstallStaysOut, "snapshots/a_long_restore_keeps_nobody_out.txt"),
    (KnownBug::ForgetLostStates, "membership/the_last_state_is_not_removed.txt"),
    (KnownBug::ForgetLostStates, "membership/joint_is_kept_for_the_last_state.txt"),
    (KnownBug::ForgetLostStates, "membership/no_vote_without_the_state.txt"),
    (KnownBug::CountLateAnswers, "membership/late_answer_of_a_lost_disk.txt"),
    (KnownBug::RemovedCampaigns, "membership/removed_one_does_not_stand_in_the_way.txt"),
    (KnownBug::ForgetCommit, "membership/commit_is_remembered.txt"),
    (KnownBug::CreateRequestOfAnotherGroup, "membership/create_request_of_another_group.txt"),
    (KnownBug::SilentPolicyKeepsLeadership, "policies/no_answer_hands_on_before_hibernation.txt"),
    (KnownBug::SilentPolicyKeepsLeadership, "policies/a_policy_that_panicked_is_asked_again.txt"),
    (KnownBug::ForgiveTheLast, "policies/a_silent_successor_behind_one_that_declined.txt"),
    (KnownBug::RefusedForGood, "policies/a_successor_that_installs_a_snapshot_is_asked_again.txt"),
    (KnownBug::ImpairedForGood, "policies/a_successor_that_lost_its_state_is_asked_again.txt"),
    (KnownBug::ImpairedForGood, "policies/a_successor_whose_machine_hung_is_asked_again.txt"),
    (KnownBug::ImpairedForGood, "policies/a_former_leader_is_asked_again.txt"),
    (KnownBug::ImpairedForGood, "policies/a_successor_behind_the_requirement_is_asked_again.txt"),
    (KnownBug::OnlyLeadersGiveState, "membership/a_learner_has_the_last_state.txt"),
    (KnownBug::OnlyLeadersGiveState, "membership/removed_while_down_with_the_last_state.txt"),
    (KnownBug::CaretakerAnswersReads, "policies/caretaker_follower_read.txt"),
    (KnownBug::IgnoreDoubt, "persistence/lost_tail_while_another_lags.txt"),
    (KnownBug::TurnOfOneTick, "hibernation/turns.txt"),
    (KnownBug::SkipCommands, "consistency/all_are_equal.txt"),
];

#[test]
fn scripts_notice_the_rules_that_they_need() {
    if std::env::var("REWRITE").is_ok() {
        // The files would be written with what is wrong.
        return;
    }
    for (bug, script) in NEEDS {
        let path = format!("{CASES}/{script}");
        assert!(std::path::Path::new(&path).exists(), "{script} is not there");
        let runs = std::panic::catch_unwind(|| {
            datadriven::walk(&path, |file| {
                let mut script = Script::with_bugs(KnownBugs::from([*bug]));
                file.run(|case| script.run(case));
            });
        });
        assert!(runs.is_err(), "{script} does not notice {bug:?}");
    }
}
