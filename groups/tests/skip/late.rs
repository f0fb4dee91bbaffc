//! A member that lacks the command: an append of it may be on its way.

use std::sync::mpsc::channel;

use shardhost_groups::Term;
use shardhost_groups::known_bugs::{KnownBug, KnownBugs};
use shardhost_groups::runtime::{SkipEnd, StoredEntry};
use shardhost_proto::peer::MessageKind;
use shardhost_storage::NodeId;
use shardhost_testing::network::{Fate, Tap};

use super::{ID, SOON, Trio, at_of, is_failed, leader_of};

/// `poison` fails the two members that have it; its append to the third one is on its way.
struct Late {
    trio: Trio,
    entry: StoredEntry,
    /// The member that lacks it.
    late: usize,
    /// Those that have it.
    others: [usize; 2],
    /// Holds the append back.
    tap: Tap,
}

impl Late {
    async fn start(bugs: KnownBugs) -> Self {
        let (trio, replicas) = Trio::start_with(bugs);
        let leader = leader_of(&replicas).await;
        let at = at_of(&replicas, leader);
        let (late, third) = ((at + 1) % 3, (at + 2) % 3);
        let one = leader.propose("one").await.unwrap().index;
        for replica in &replicas {
            replica.wait_for(move |status| status.applied >= one, SOON).await.unwrap();
        }
        let to = NodeId::must(late as u64 + 1);
        let tap = trio.network.tap(move |envelope| {
            let carries =
                envelope.kind() == MessageKind::Append && !envelope.message.entries.is_empty();
            if envelope.to == to && carries { Fate::Hold } else { Fate::Deliver }
        });
        // The leader's machine takes its time, so that the third one learns of the commit.
        let (ends, gate) = channel();
        trio.disks[at].lock().unwrap().gate = Some(gate);
        let proposed = tokio::spawn({
            let leader = leader.clone();
            async move { leader.propose("poison").await }
        });
        replicas[third].wait_for(is_failed, SOON).await.expect("it fails");
        ends.send(()).unwrap();
        proposed.await.unwrap().expect_err("its machine fails");
        replicas[at].wait_for(is_failed, SOON).await.expect("it fails");
        let index = one.next();
        for host in &trio.hosts {
            assert!(host.close(ID).await);
        }
        assert_eq!(trio.hosts[late].stored_entry(ID, index).unwrap(), None, "it is on its way");
        let entry = trio.hosts[at].stored_entry(ID, index).unwrap().expect("it is there");
        Self { trio, entry, late, others: [at, third], tap }
    }

    /// These members skip it.
    fn skip(&self, members: &[usize], term: Term) {
        for at in members {
            self.trio.skip_in(*at, self.entry, term).unwrap();
        }
    }

    /// All are opened, the late one first, so that it hears of no leader before the append. What stands in its log
    /// once the group continues.
    async fn opened(self) -> StoredEntry {
        let Self { trio, entry, late, others, tap } = self;
        let late_one = trio.open(late, entry.index);
        tap.release();
        let others = others.map(|at| trio.open(at, entry.index));
        let two = leader_of(&others).await.propose("two").await.unwrap().index;
        let done = late_one.wait_for(move |one| one.applied >= two || is_failed(one), SOON).await;
        done.expect("it has the entry of one of the two");
        trio.hosts[late].stored_entry(ID, entry.index).unwrap().expect("it is there")
    }
}

/// What becomes of the member that lacks the command.
async fn after_a_late_append(bugs: KnownBugs) -> StoredEntry {
    let late = Late::start(bugs).await;
    (0..3).for_each(|at| late.trio.begin(at, late.entry).unwrap());
    let term = late.trio.later_term();
    late.skip(&[0, 1, 2], term);
    late.opened().await
}

/// The same where the operator's command ends before it comes to that member, which is opened by the next one.
async fn after_an_interrupted_skip(bugs: KnownBugs) -> StoredEntry {
    let late = Late::start(bugs).await;
    (0..3).for_each(|at| late.trio.begin(at, late.entry).unwrap());
    let term = late.trio.later_term();
    late.skip(&late.others, term);
    let end = || late.trio.hosts[late.late].finish_skip(ID, late.entry.index, SkipEnd::Skipped);
    match bugs.has(KnownBug::EndSkipUnentered) {
        true => end().expect("it does not ask"),
        false => {
            let refused = end().expect_err("the command may still come").to_string();
            assert!(refused.contains("may still send it") && refused.contains("--confirm"));
            late.skip(&[late.late], term);
        }
    }
    late.opened().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_skip_that_ended_before_it_came_to_a_member_without_the_command_is_not_over_there() {
    let here = after_an_interrupted_skip(KnownBugs::none()).await;
    assert!(here.is_empty, "{here:?}");
    let here = after_an_interrupted_skip(KnownBugs::from([KnownBug::EndSkipUnentered])).await;
    assert!(!here.is_empty, "the check sees what the note is for: {here:?}");
}

/// A skip that begins anew has another term, which the member has not entered.
#[tokio::test(flavor = "multi_thread")]
async fn a_skip_that_begins_anew_asks_a_member_without_the_command_again() {
    let late = Late::start(KnownBugs::none()).await;
    let Late { trio, entry, late: at, .. } = &late;
    (0..3).for_each(|at| trio.begin(at, *entry).unwrap());
    let end = || trio.hosts[*at].finish_skip(ID, entry.index, SkipEnd::Skipped);
    end().expect_err("it has not entered the term");
    late.skip(&[*at], trio.later_term());
    trio.hosts[*at].abandon_skip(ID, entry.index).unwrap();
    trio.begin(*at, *entry).unwrap();
    end().expect_err("it has not entered the new term");
    late.skip(&[*at], trio.later_term());
    end().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_from_before_the_skip_that_comes_late_brings_no_command_back() {
    let here = after_a_late_append(KnownBugs::none()).await;
    assert!(here.is_empty, "{here:?}");
    let here = after_a_late_append(KnownBugs::from([KnownBug::SkipKeepsTerm])).await;
    assert!(!here.is_empty, "the check sees what the term is for: {here:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_enters_the_term_of_the_skip_whether_it_has_the_entry_or_not() {
    let (trio, entry) = Trio::poisoned().await;
    let skip = |at: usize, entry, term| trio.skip_in(at, entry, term);
    (0..3).for_each(|at| trio.begin(at, entry).unwrap());
    let refused = skip(0, entry, entry.term).expect_err("the command was sent in it").to_string();
    assert!(refused.contains("cannot be skipped in term"), "{refused}");
    assert_eq!(trio.hosts[0].stored_entry(ID, entry.index).unwrap(), Some(entry), "unchanged");
    let term = Term::new(trio.term().get() + 5);
    skip(0, entry, term).unwrap();
    assert_eq!(trio.hosts[0].stored_term(ID).unwrap(), term);
    // Again, as by a command that was interrupted: it does not leave a later term.
    skip(0, entry, Term::new(entry.term.get() + 1)).unwrap();
    assert_eq!(trio.hosts[0].stored_term(ID).unwrap(), term);
}
