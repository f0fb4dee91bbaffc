//! Groups that hibernate, and how the loss of their leader wakes them.
//!
//! A hibernating group has no timers. Its followers look for another leader when they are notified
//! that the leader's process, or its replica, ended. A group in which every follower hibernates,
//! whose leader is gone, and which gets no notice, is never led again.
//!
//! | guard | without it |
//! |---|---|
//! | a follower agrees to hibernate while the very process that asks is known to live | the question was in flight when the process ended, and its loss was reported before |
//! | a leader that ends while its node lives notifies its followers, after its earlier messages | no follower notices |
//! | a node that is back as another process is reported like one that was lost | it came back before it was missed |
//! | a leader checks again whether a quorum lives before it hibernates | the loss of the others came between question and answer; it never learns that it has no followers |

use stateright::{Model, Property};

const FOLLOWERS: usize = 2;
const MAX_ASKED: u8 = 2;
const MAX_PROCESSES: u8 = 3;

/// Which rules hold.
#[derive(Clone, Copy, Debug)]
pub struct Quiescence {
    /// Followers look whether the process that asks lives.
    pub checks_asker: bool,
    /// A replica that ends sends a notice.
    pub sends_step_down_notice: bool,
    /// Another process of the node counts as the loss of the one before.
    pub notices_restarts: bool,
    /// A leader looks again before it hibernates.
    pub looks_again: bool,
}

impl Quiescence {
    /// All rules hold.
    pub const SOUND: Self = Self {
        checks_asker: true,
        sends_step_down_notice: true,
        notices_restarts: true,
        looks_again: true,
    };
}

/// The notices of a follower, in the order of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Word {
    /// The leader asks to hibernate; the process that asks.
    Hibernate(u8),
    /// The leader's replica ends.
    Wake,
}

/// What the leader's replica does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Leader {
    /// It leads, and ticks.
    Awake,
    /// It waits for so many answers.
    Asking(u8),
    /// It leads, and does not tick.
    Hibernating,
    /// It is not there, or does not lead.
    Gone,
}

/// A follower.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Follower {
    hibernating: bool,
    /// Its own process runs.
    runs: bool,
    /// The process of the leader's node that it knows to live.
    knows: Option<u8>,
    words: Vec<Word>,
}

/// The group.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Group {
    leader: Leader,
    /// Which process the leader's node runs; `None`: none.
    process: Option<u8>,
    processes: u8,
    followers: [Follower; FOLLOWERS],
    /// Followers that agreed; that the leader knows to live.
    agreed: [bool; FOLLOWERS],
    lives: [bool; FOLLOWERS],
    asked: u8,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// The leader asks to hibernate.
    Ask,
    /// A follower hears the next word.
    Hear(usize),
    /// The answer of a follower arrives.
    Answer(usize),
    /// The leader's process ends.
    End,
    /// It is started again; its replica follows.
    Start,
    /// The leader's replica ends, its process continues.
    Close,
    /// A follower learns what process of the leader's node lives, or that none does.
    Learn(usize),
    /// A follower's process ends.
    Lose(usize),
    /// The leader learns of that.
    Miss(usize),
}

impl Quiescence {
    fn hear(self, group: &mut Group, at: usize) -> Option<()> {
        let follower = &mut group.followers[at];
        if follower.words.is_empty() || !follower.runs {
            return None;
        }
        match follower.words.remove(0) {
            Word::Hibernate(process) => {
                if follower.knows == Some(process) || !self.checks_asker {
                    follower.hibernating = true;
                    group.agreed[at] = true;
                }
            }
            Word::Wake => follower.hibernating = false,
        }
        Some(())
    }

    fn answer(self, group: &mut Group, at: usize) -> Option<()> {
        let Leader::Asking(left) = group.leader else { return None };
        if !group.agreed[at] {
            return None;
        }
        group.agreed[at] = false;
        if left > 1 {
            group.leader = Leader::Asking(left - 1);
            return Some(());
        }
        let quorum = group.lives.iter().any(|lives| *lives);
        group.leader =
            if quorum || !self.looks_again { Leader::Hibernating } else { Leader::Awake };
        Some(())
    }

    fn learn(self, group: &mut Group, at: usize) -> Option<()> {
        let process = group.process;
        let follower = &mut group.followers[at];
        if follower.knows == process || !follower.runs {
            return None;
        }
        let restarted = follower.knows.is_some() && process.is_some();
        follower.knows = process;
        // A connection to another process carries nothing of the one before.
        follower
            .words
            .retain(|word| matches!(word, Word::Hibernate(asker) if Some(*asker) != process));
        if process.is_none() || !restarted || self.notices_restarts {
            follower.hibernating = false;
        }
        Some(())
    }

    fn close(self, group: &mut Group) -> Option<()> {
        if group.process.is_none() || group.leader == Leader::Gone {
            return None;
        }
        group.leader = Leader::Gone;
        if self.sends_step_down_notice {
            for follower in &mut group.followers {
                follower.words.push(Word::Wake);
            }
        }
        Some(())
    }
}

impl Model for Quiescence {
    type State = Group;
    type Action = Step;

    fn init_states(&self) -> Vec<Group> {
        let follower =
            Follower { hibernating: false, runs: true, knows: Some(0), words: Vec::new() };
        vec![Group {
            leader: Leader::Awake,
            process: Some(0),
            processes: 1,
            followers: [follower.clone(), follower],
            agreed: [false; FOLLOWERS],
            lives: [true; FOLLOWERS],
            asked: 0,
        }]
    }

    fn actions(&self, group: &Group, steps: &mut Vec<Step>) {
        if group.leader == Leader::Awake && group.asked < MAX_ASKED {
            steps.push(Step::Ask);
        }
        steps.extend([Step::End, Step::Close]);
        if group.processes < MAX_PROCESSES {
            steps.push(Step::Start);
        }
        for at in 0..FOLLOWERS {
            steps.extend([Step::Hear(at), Step::Answer(at), Step::Learn(at)]);
            steps.extend([Step::Lose(at), Step::Miss(at)]);
        }
    }

    fn next_state(&self, last: &Group, step: Step) -> Option<Group> {
        let mut next = last.clone();
        match step {
            Step::Ask => {
                let process = next.process?;
                next.asked += 1;
                let asked = (0..FOLLOWERS).filter(|at| next.lives[*at]);
                let asked: Vec<usize> = asked.collect();
                if asked.is_empty() {
                    return None;
                }
                next.leader = Leader::Asking(u8::try_from(asked.len()).unwrap_or(u8::MAX));
                for at in asked {
                    next.followers[at].words.push(Word::Hibernate(process));
                }
            }
            Step::Hear(at) => self.hear(&mut next, at)?,
            Step::Answer(at) => self.answer(&mut next, at)?,
            Step::End => {
                next.process.take()?;
                next.leader = Leader::Gone;
            }
            Step::Start => {
                if next.process.is_some() {
                    return None;
                }
                next.process = Some(next.processes);
                next.processes += 1;
            }
            Step::Close => self.close(&mut next)?,
            Step::Learn(at) => self.learn(&mut next, at)?,
            Step::Lose(at) => {
                let follower = &mut next.followers[at];
                if !follower.runs {
                    return None;
                }
                (follower.runs, follower.hibernating) = (false, false);
                follower.words.clear();
            }
            Step::Miss(at) => {
                if next.followers[at].runs || !next.lives[at] || next.process.is_none() {
                    return None;
                }
                next.lives[at] = false;
                // It stands for an election timeout without a quorum, which needs ticks.
                let quorum = next.lives.iter().any(|lives| *lives);
                if next.leader == Leader::Hibernating && !quorum {
                    next.leader = Leader::Awake;
                }
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let woken = Property::always("somebody looks for a leader", |_, group: &Group| {
            let told = |follower: &Follower| {
                follower.knows != group.process || follower.words.contains(&Word::Wake)
            };
            let mut running = group.followers.iter().filter(|follower| follower.runs).peekable();
            let lost = group.leader == Leader::Gone && running.peek().is_some();
            !lost || running.any(|follower| !follower.hibernating || told(follower))
        });
        let alone = Property::always("a leader without a quorum ticks", |_, group: &Group| {
            group.leader != Leader::Hibernating || group.lives.iter().any(|lives| *lives)
        });
        vec![woken, alone]
    }
}
