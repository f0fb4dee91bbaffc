//! Openings of a group's replica on one host, and work that comes late.
//!
//! A host opens, closes and destroys the replica of one group again and again, for many callers. What a
//! replica handed to other threads (writes of the log, the removal of old snapshots) is done after its
//! end.
//!
//! | guard | without it |
//! |---|---|
//! | at most one step of a group runs | two replicas of it run |
//! | a replica's end waits until the log writer has passed all that it handed over | the next one reads a log without it |
//! | late work names its opening, and is dropped for another one | it removes what the next one needs |

use stateright::{Model, Property};

const MAX_OPENINGS: u8 = 3;
const MAX_WRITES: u8 = 2;

/// Which rules hold.
#[derive(Clone, Copy, Debug)]
pub struct Lives {
    /// One step at a time.
    pub one_step: bool,
    /// An end waits for the log writer.
    pub awaits_log: bool,
    /// Late work names its opening.
    pub names_opening: bool,
}

impl Lives {
    /// All rules hold.
    pub const SOUND: Self = Self { one_step: true, awaits_log: true, names_opening: true };
}

/// What is done with the group as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Nothing runs.
    Closed,
    /// A replica is being opened, and has read this much of the log.
    Opening(u8),
    /// A replica runs.
    Open,
    /// It was stopped, and what it handed over is on its way.
    Ending,
}

/// One host's part of a group.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Host {
    state: State,
    /// Openings so far; the newest has this number.
    opening: u8,
    /// Replicas that run.
    running: u8,
    /// Entries that are durable, that were acknowledged, and that the running replica knows.
    durable: u8,
    acknowledged: u8,
    known: u8,
    /// Writes on their way: of which opening, and up to which entry.
    writes: Vec<(u8, u8)>,
    /// The opening that took the snapshot which the group's log needs; 0: it needs none.
    snapshot: u8,
    /// Removals of snapshots on their way: of which openings.
    prunes: Vec<u8>,
    /// A replica opened with fewer entries than were acknowledged, or a needed snapshot is gone.
    lost: bool,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// The replica is opened: it reads the log.
    BeginOpen,
    /// It runs.
    FinishOpen,
    /// It appends an entry, which is acknowledged when it is durable.
    Append,
    /// It takes a snapshot, and orders the removal of older ones.
    Snapshot,
    /// The replica is closed.
    Close,
    /// The log writer makes the oldest write durable.
    Write,
    /// The oldest removal of snapshots is carried out.
    Prune,
    /// The end is over.
    Finish,
}

impl Model for Lives {
    type State = Host;
    type Action = Step;

    fn init_states(&self) -> Vec<Host> {
        vec![Host {
            state: State::Closed,
            opening: 0,
            running: 0,
            durable: 0,
            acknowledged: 0,
            known: 0,
            writes: Vec::new(),
            snapshot: 0,
            prunes: Vec::new(),
            lost: false,
        }]
    }

    fn actions(&self, host: &Host, steps: &mut Vec<Step>) {
        let closed = host.state == State::Closed;
        if host.opening < MAX_OPENINGS && (closed || !self.one_step) {
            steps.push(Step::BeginOpen);
        }
        steps.extend([Step::FinishOpen, Step::Close, Step::Write, Step::Prune, Step::Finish]);
        if host.state == State::Open {
            steps.push(Step::Append);
            steps.push(Step::Snapshot);
        }
    }

    fn next_state(&self, last: &Host, step: Step) -> Option<Host> {
        let mut next = last.clone();
        match step {
            Step::BeginOpen => {
                next.opening += 1;
                next.state = State::Opening(next.durable);
            }
            Step::FinishOpen => {
                let State::Opening(read) = next.state else { return None };
                next.lost |= read < next.acknowledged || next.durable != read;
                next.known = read;
                next.running += 1;
                next.state = State::Open;
            }
            Step::Append => {
                if next.known >= MAX_WRITES {
                    return None;
                }
                next.known += 1;
                next.writes.push((next.opening, next.known));
            }
            Step::Snapshot => {
                if next.snapshot == next.opening {
                    return None;
                }
                // The log needs this snapshot from here on, and none before.
                next.snapshot = next.opening;
                next.prunes.push(next.opening);
            }
            Step::Close => {
                if next.state != State::Open {
                    return None;
                }
                next.running -= 1;
                next.state = State::Ending;
            }
            Step::Write => {
                if next.writes.is_empty() {
                    return None;
                }
                let (_, entry) = next.writes.remove(0);
                next.durable = next.durable.max(entry);
                next.acknowledged = next.acknowledged.max(entry);
            }
            Step::Prune => {
                // It keeps the snapshot of the opening that ordered it.
                if next.prunes.is_empty() {
                    return None;
                }
                let of = next.prunes.remove(0);
                let current = of == next.opening && next.state == State::Open;
                if current || !self.names_opening {
                    next.lost |= next.snapshot > of;
                }
            }
            Step::Finish => {
                let waits = self.awaits_log && !next.writes.is_empty();
                if next.state != State::Ending || waits {
                    return None;
                }
                next.state = State::Closed;
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("one replica runs", |_, host: &Host| host.running <= 1),
            Property::always("what was acknowledged is there", |_, host: &Host| !host.lost),
        ]
    }
}
