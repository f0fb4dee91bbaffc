//! The search for an order, for the operations on one key.
//!
//! Calls and returns stand in a list in the order of their moments. An operation may come next if
//! its call stands before the first return in the list; it and its return are then taken out.
//! When nothing before the first return fits, the last one is put back and another one tried.
//! Operations without an answer have no return. They stand in a list of their own and are tried
//! last: most of them are not needed to explain anything.

use std::collections::HashSet;
use std::time::Instant;

use super::taken::{Number, Snapshot, Taken};
use super::{Model, Operation, OperationOf, Outcome, Violation};

/// What a search came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Order,
    None,
    OutOfTime,
}

/// Steps between two looks at the clock.
const STEPS_PER_LOOK: u64 = 256;

#[derive(Clone, Copy, Debug)]
enum Event {
    /// An operation begins; the second value is the place of its return.
    Call {
        op: usize,
        ret: usize,
    },
    Return,
    /// An operation without an answer begins.
    Unheard {
        op: usize,
    },
}

/// Two lists in one: of the events of answered operations, and of the others.
struct Links {
    next: Vec<usize>,
    previous: Vec<usize>,
}

pub(super) struct Search<'a, M: Model> {
    model: &'a M,
    operations: Vec<&'a OperationOf<M>>,
    numbers: Vec<Number>,
    events: Vec<Event>,
    links: Links,
    initial: M::State,
    state: M::State,
    taken: Taken,
    /// Answered operations that have no place yet.
    open: usize,
    /// What has its place, in order, each with the state before.
    placed: Vec<(usize, M::State)>,
    seen: HashSet<(Snapshot, M::State)>,
    best: Best,
}

/// The furthest that the search came before it was stuck.
#[derive(Default)]
struct Best {
    /// The return that nothing could be placed before.
    at: usize,
    /// Answered operations without a place: the fewest of all orders that came so far.
    open: usize,
    /// The shortest of those orders, which places the fewest unheard operations.
    order: Vec<usize>,
    /// So many of `order` are still what is placed.
    common: usize,
}

/// Where the lists begin, in place of an event.
const ANSWERED: usize = 0;
const UNHEARD: usize = 1;
/// Events behind the two list heads.
const HEADS: usize = 2;
const END: usize = usize::MAX;

impl<'a, M: Model> Search<'a, M> {
    pub(super) fn new(model: &'a M, key: &M::Key, mut operations: Vec<&'a OperationOf<M>>) -> Self {
        operations.sort_by_key(|operation| operation.called);
        let events = events_of(&operations);
        let (mut answered, mut unheard) = (0, 0);
        let numbers = operations.iter().map(|operation| match operation.outcome {
            Outcome::Answered { .. } => {
                answered += 1;
                Number::Answered(answered - 1)
            }
            Outcome::Unknown => {
                unheard += 1;
                Number::Unheard(unheard - 1)
            }
        });
        let numbers = numbers.collect();
        let initial = model.initial(key);
        Self {
            model,
            operations,
            numbers,
            links: Links::new(&events),
            events,
            state: initial.clone(),
            initial,
            taken: Taken::new(answered),
            open: answered,
            placed: Vec::new(),
            seen: HashSet::new(),
            best: Best::default(),
        }
    }

    /// Looks for an order. Counts what it tries.
    pub(super) fn run(
        &mut self,
        max_steps: u64,
        deadline: Option<Instant>,
        steps: &mut u64,
    ) -> Found {
        let mut at = self.links.next[ANSWERED];
        while self.open > 0 {
            at = match self.candidate(at) {
                Some((event, op)) => {
                    *steps += 1;
                    let look = steps.is_multiple_of(STEPS_PER_LOOK);
                    let late = || deadline.is_some_and(|deadline| Instant::now() > deadline);
                    if *steps > max_steps || (look && late()) {
                        return Found::OutOfTime;
                    }
                    if self.place(event, op) {
                        self.links.next[ANSWERED]
                    } else {
                        self.after(event)
                    }
                }
                None => {
                    self.note_stuck();
                    match self.take_back_change() {
                        Some(event) => self.after(event),
                        None => return Found::None,
                    }
                }
            };
        }
        Found::Order
    }

    /// The operation that begins at `at`, if it may come next.
    fn candidate(&self, at: usize) -> Option<(usize, usize)> {
        match *self.events.get(at)? {
            Event::Call { op, .. } | Event::Unheard { op } => Some((at, op)),
            Event::Return => None,
        }
    }

    /// The candidate behind another: first the answered ones, then the others.
    fn after(&self, event: usize) -> usize {
        let next = self.links.next[event];
        match self.events[event] {
            Event::Unheard { .. } => self.if_called(next),
            _ if matches!(self.events.get(next), Some(Event::Call { .. })) => next,
            _ => self.if_called(self.links.next[UNHEARD]),
        }
    }

    /// An operation without an answer may come next if it was called before the first return.
    fn if_called(&self, unheard: usize) -> usize {
        if unheard < self.first_return() { unheard } else { END }
    }

    fn first_return(&self) -> usize {
        let mut at = self.links.next[ANSWERED];
        while let Some(Event::Call { .. }) = self.events.get(at) {
            at = self.links.next[at];
        }
        at
    }

    /// Gives an operation the next place if the model allows it, and if what comes of it was not
    /// tried before.
    fn place(&mut self, event: usize, op: usize) -> bool {
        let operation = self.operations[op];
        let answer = operation.outcome.answer();
        let Some(next) = self.model.step(&self.state, &operation.op, answer) else { return false };
        // An operation without a received answer that changes nothing explains nothing.
        if answer.is_none() && next == self.state {
            return false;
        }
        self.taken.insert(self.numbers[op]);
        if !self.seen.insert((self.taken.snapshot(), next.clone())) {
            self.taken.remove(self.numbers[op]);
            return false;
        }
        self.links.take_out(event);
        if let Event::Call { ret, .. } = self.events[event] {
            self.links.take_out(ret);
            self.open -= 1;
        }
        self.placed.push((event, std::mem::replace(&mut self.state, next)));
        true
    }

    /// Takes places away again up to the last of an operation that may change the state. One that
    /// only reads fits nowhere better than at the first place where it fits: nothing else has to
    /// be tried there.
    fn take_back_change(&mut self) -> Option<usize> {
        loop {
            let event = self.take_back()?;
            if !self.model.only_reads(&self.operations[self.op_at(event)].op) {
                return Some(event);
            }
        }
    }

    /// Takes the last place away again.
    fn take_back(&mut self) -> Option<usize> {
        let (event, before) = self.placed.pop()?;
        self.state = before;
        let op = self.op_at(event);
        self.taken.remove(self.numbers[op]);
        if let Event::Call { ret, .. } = self.events[event] {
            self.links.put_back(ret);
            self.open += 1;
        }
        self.links.put_back(event);
        self.best.common = self.best.common.min(self.placed.len());
        Some(event)
    }

    fn note_stuck(&mut self) {
        let at = self.first_return();
        let Best { at: furthest, open, order, common } = &mut self.best;
        let shorter = (self.open, self.placed.len()) < (*open, order.len());
        if at > *furthest || (at == *furthest && shorter) {
            (*furthest, *open) = (at, self.open);
            order.truncate(*common);
            order.extend(self.placed[*common..].iter().map(|(event, _)| *event));
            *common = order.len();
        }
    }

    fn op_at(&self, event: usize) -> usize {
        match self.events[event] {
            Event::Call { op, .. } | Event::Unheard { op } => op,
            Event::Return => unreachable!("returns are not placed"),
        }
    }

    /// After a search that found no order: the shortest prefix that has none, and how far an
    /// order of it goes.
    pub(super) fn explain(&self, key: M::Key) -> Violation<M> {
        let owned = |event: &usize| self.operations[self.op_at(*event)].clone();
        let order: Vec<_> = self.best.order.iter().map(owned).collect();
        let mut state = self.initial.clone();
        let mut explained = Vec::with_capacity(order.len());
        for operation in order {
            let next = self.model.step(&state, &operation.op, operation.outcome.answer());
            state = next.unwrap_or(state);
            explained.push((operation, state.clone()));
        }
        let explained_events: HashSet<_> = self.best.order.iter().collect();
        let begins = |event: &usize| !matches!(self.events[*event], Event::Return);
        let mut stuck: Vec<_> = (HEADS..self.best.at.min(self.events.len()))
            .filter(|event| begins(event) && !explained_events.contains(event))
            .map(|event| owned(&event))
            .collect();
        stuck.sort_by_key(|operation| match operation.outcome {
            Outcome::Answered { at, .. } => at,
            Outcome::Unknown => u64::MAX,
        });
        Violation {
            key,
            initial: self.initial.clone(),
            explained,
            stuck,
            of: self.operations.len(),
        }
    }
}

/// Calls and returns by their moments; at the same moment calls first, so that operations that
/// touch are concurrent.
fn events_of<Op, Answer>(operations: &[&Operation<Op, Answer>]) -> Vec<Event> {
    let mut moments = Vec::with_capacity(operations.len() * 2);
    for (op, operation) in operations.iter().enumerate() {
        moments.push((operation.called, false, op));
        if let Outcome::Answered { at, .. } = operation.outcome {
            moments.push((at.max(operation.called), true, op));
        }
    }
    moments.sort_unstable();
    let mut returns = vec![END; operations.len()];
    for (place, (_, is_return, op)) in moments.iter().enumerate() {
        if *is_return {
            returns[*op] = place + HEADS;
        }
    }
    let heads = [Event::Return; HEADS];
    let events = moments.iter().map(|(_, is_return, op)| match returns[*op] {
        _ if *is_return => Event::Return,
        END => Event::Unheard { op: *op },
        ret => Event::Call { op: *op, ret },
    });
    heads.into_iter().chain(events).collect()
}

impl Links {
    fn new(events: &[Event]) -> Self {
        let mut links = Self { next: vec![END; events.len()], previous: vec![END; events.len()] };
        let mut last = [ANSWERED, UNHEARD];
        for (event, kind) in events.iter().enumerate().skip(HEADS) {
            let list = usize::from(matches!(kind, Event::Unheard { .. }));
            links.next[last[list]] = event;
            links.previous[event] = last[list];
            last[list] = event;
        }
        links
    }

    fn take_out(&mut self, event: usize) {
        let (previous, next) = (self.previous[event], self.next[event]);
        self.next[previous] = next;
        if next != END {
            self.previous[next] = previous;
        }
    }

    /// Puts back what was taken out last.
    fn put_back(&mut self, event: usize) {
        let (previous, next) = (self.previous[event], self.next[event]);
        self.next[previous] = event;
        if next != END {
            self.previous[next] = event;
        }
    }
}
