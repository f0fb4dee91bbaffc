//! How many reads run or wait to be sent, and how many of them one group may have: of one stream, by
//! weight, and of all streams of a host, by bytes. A read that finds no place waits in a line of its
//! group, and is no more than an entry there: what runs it begins when it has its place.
//!
//! A read keeps its place until its answer is handed to the connection. Reads of a state machine
//! that hangs keep theirs for long, so no group may have them all.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use parking_lot::Mutex;
use shardhost_storage::GroupId;
use tokio::time::Instant;

/// How long a read waits for one of the places of its group, and a quarter more at most.
pub(super) const PLACE_TIMEOUT: Duration = Duration::from_secs(1);
/// A line or a table that is emptier than a part of its room gives room back.
const SPARSE_PART: usize = 4;
/// Smaller ones do not.
const SMALL_ROOM: usize = 64;
/// The shortest line has room for so many.
const LEAST_LINE: usize = 4;

/// What waits for a place.
pub(super) trait Waits {
    /// Its client is gone.
    fn is_given_up(&self) -> bool;
}

/// The places of one stream, or of all, and what waits for them.
#[derive(Debug)]
pub(super) struct Places<T> {
    /// What one group may have.
    group_share: u32,
    state: Mutex<State<T>>,
}

#[derive(Debug)]
struct State<T> {
    free: usize,
    waiting: usize,
    /// When the last of what waits got its place, or began to wait where nothing did.
    moved: Instant,
    /// The groups that have places, or that something waits for.
    groups: HashMap<GroupId, OfGroup<T>>,
    /// Those whose share has room for the first that waits, in the order of their turns.
    ready: VecDeque<GroupId>,
    /// Those whose share has none. They have most of it, so they are few.
    blocked: Vec<GroupId>,
    closed: bool,
}

#[derive(Debug)]
struct OfGroup<T> {
    used: u32,
    // An entry in a box each: a line of one takes little, and what leaves it leaves no gap.
    line: VecDeque<Box<Waiting<T>>>,
    standing: Standing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Nothing waits for it.
    Idle,
    Ready,
    Blocked,
}

#[derive(Debug)]
struct Waiting<T> {
    since: Instant,
    weight: u32,
    item: T,
}

impl<T> Waiting<T> {
    fn is_late(&self) -> bool {
        self.since.elapsed() >= PLACE_TIMEOUT
    }
}

/// What has its place now, which is to be given back.
#[derive(Debug)]
pub(super) struct Granted<T> {
    pub(super) item: T,
    pub(super) group: GroupId,
    pub(super) weight: u32,
    pub(super) waited: Duration,
}

/// The most memory that something takes that waits, beside what it refers to: alone in the line of its
/// group, in a table of groups that has just grown.
pub(super) const fn most_bytes<T>() -> usize {
    let line = LEAST_LINE * size_of::<Box<Waiting<T>>>();
    let turn = 2 * size_of::<GroupId>();
    size_of::<Waiting<T>>() + line + turn + most_group_bytes::<T>()
}

/// The most memory that a group takes that has places.
pub(super) const fn most_group_bytes<T>() -> usize {
    7 * size_of::<(GroupId, OfGroup<T>)>() / 3
}

impl<T: Waits> Places<T> {
    pub(super) fn new(all: usize, group_share: u32) -> Self {
        let state = State {
            free: all,
            waiting: 0,
            moved: Instant::now(),
            groups: HashMap::new(),
            ready: VecDeque::new(),
            blocked: Vec::new(),
            closed: false,
        };
        Self { group_share, state: Mutex::new(state) }
    }

    pub(super) fn free(&self) -> usize {
        self.state.lock().free
    }

    /// Whether anything waits.
    pub(super) fn has_waiting(&self) -> bool {
        self.state.lock().waiting > 0
    }

    /// Whether something waits, and nothing got a place for this long.
    pub(super) fn is_stuck(&self, time: Duration) -> bool {
        let state = self.state.lock();
        state.waiting > 0 && state.moved.elapsed() >= time
    }

    /// Puts something in the line of its group: first for the share of the group, then for a place
    /// among all. So what waits for a group that hangs is in the way of no other. [`Self::next`] says
    /// what has its place.
    pub(super) fn enter(&self, group: GroupId, weight: u32, item: T) {
        let waiting = Box::new(Waiting { since: Instant::now(), weight, item });
        let mut state = self.state.lock();
        if state.closed {
            drop(state);
            return;
        }
        if state.waiting == 0 {
            state.moved = waiting.since;
        }
        state.waiting += 1;
        let of_group = state.groups.entry(group).or_insert_with(OfGroup::new);
        of_group.line.push_back(waiting);
        state.settle(group, self.group_share);
    }

    /// What has its place now, one after the other, each group in its turn. To be asked until nothing
    /// has one, after something entered or was given back.
    pub(super) fn next(&self) -> Option<Granted<T>> {
        loop {
            let granted = self.state.lock().grant(self.group_share)?;
            if !granted.item.is_given_up() {
                return Some(granted);
            }
            self.give_back(granted.group, granted.weight);
        }
    }

    /// A place is free again, or a part of one. True: something waits that may have its place now.
    pub(super) fn give_back(&self, group: GroupId, weight: u32) -> bool {
        let mut state = self.state.lock();
        state.free += weight as usize;
        if let Some(of_group) = state.groups.get_mut(&group) {
            of_group.used -= weight;
            state.settle(group, self.group_share);
        }
        !state.ready.is_empty()
    }

    /// What has waited too long for a share that its group has in use. Where the share has room, it waits
    /// for places that other groups have.
    pub(super) fn take_late(&self) -> Vec<T> {
        let mut state = self.state.lock();
        let mut late = Vec::new();
        for group in state.blocked.clone() {
            let Some(of_group) = state.groups.get_mut(&group) else { continue };
            while of_group.line.front().is_some_and(|first| first.is_late()) {
                late.extend(of_group.line.pop_front().map(|waiting| waiting.item));
            }
            state.settle(group, self.group_share);
        }
        state.waiting -= late.len();
        late
    }

    /// Lets go of what is given up.
    pub(super) fn drop_given_up(&self) {
        let dropped = self.state.lock().take_given_up(self.group_share);
        drop(dropped);
    }

    /// Lets go of everything that waits, and of what enters from now on.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.waiting = 0;
        state.ready.clear();
        state.blocked.clear();
        let lines: Vec<_> = state.groups.values_mut().map(OfGroup::take_line).collect();
        state.groups.retain(|_, of_group| of_group.used > 0);
        drop(state);
        drop(lines);
    }
}

impl<T: Waits> State<T> {
    fn grant(&mut self, group_share: u32) -> Option<Granted<T>> {
        let group = *self.ready.front()?;
        let of_group = self.groups.get_mut(&group)?;
        // The first waits until there is room for all of it: otherwise smaller ones went by for ever.
        let weight = of_group.line.front()?.weight;
        self.free = self.free.checked_sub(weight as usize)?;
        let waiting = of_group.line.pop_front()?;
        of_group.used += weight;
        of_group.standing = Standing::Idle;
        self.ready.pop_front();
        self.waiting -= 1;
        self.moved = Instant::now();
        self.settle(group, group_share);
        let waited = self.moved.duration_since(waiting.since);
        Some(Granted { item: waiting.item, group, weight, waited })
    }

    /// Where a group stands after a change. No line is longer than what is in it needs.
    fn settle(&mut self, group: GroupId, group_share: u32) {
        let Some(of_group) = self.groups.get_mut(&group) else { return };
        let (before, now) = (of_group.standing, of_group.standing_with(group_share));
        of_group.standing = now;
        of_group.give_room_back();
        let is_needed = of_group.used > 0 || now != Standing::Idle;
        if !is_needed {
            self.groups.remove(&group);
        }
        if before != now {
            match before {
                Standing::Idle => {}
                Standing::Ready => self.ready.retain(|one| *one != group),
                Standing::Blocked => self.blocked.retain(|one| *one != group),
            }
            match now {
                Standing::Idle => {}
                Standing::Ready => self.ready.push_back(group),
                Standing::Blocked => self.blocked.push(group),
            }
        }
        self.give_room_back();
    }

    fn take_given_up(&mut self, group_share: u32) -> Vec<Box<Waiting<T>>> {
        let mut taken = Vec::new();
        let groups: Vec<_> = self.ready.iter().chain(&self.blocked).copied().collect();
        for group in groups {
            let Some(of_group) = self.groups.get_mut(&group) else { continue };
            let line = of_group.take_line();
            let (left, kept) = line.into_iter().partition(|waiting| waiting.item.is_given_up());
            of_group.line = kept;
            taken.extend::<VecDeque<_>>(left);
            of_group.standing = of_group.standing_with(group_share);
        }
        self.waiting -= taken.len();
        let Self { groups, ready, blocked, .. } = self;
        groups.retain(|_, of_group| of_group.used > 0 || of_group.standing != Standing::Idle);
        let stands = |group: &GroupId| groups.get(group).map(|of_group| of_group.standing);
        // What was in the way may have been the first of its line.
        let freed: Vec<_> =
            blocked.extract_if(.., |group| stands(group) != Some(Standing::Blocked)).collect();
        ready.extend(freed);
        blocked.extend(ready.iter().filter(|group| stands(group) == Some(Standing::Blocked)));
        ready.retain(|group| stands(group) == Some(Standing::Ready));
        self.give_room_back();
        taken
    }

    fn give_room_back(&mut self) {
        if is_sparse(self.groups.len(), self.groups.capacity()) {
            self.groups.shrink_to(2 * self.groups.len());
        }
        if is_sparse(self.ready.len(), self.ready.capacity()) {
            self.ready.shrink_to(2 * self.ready.len());
        }
    }
}

impl<T> OfGroup<T> {
    fn new() -> Self {
        Self { used: 0, line: VecDeque::new(), standing: Standing::Idle }
    }

    fn standing_with(&self, group_share: u32) -> Standing {
        match self.line.front() {
            None => Standing::Idle,
            Some(first) if self.used + first.weight <= group_share => Standing::Ready,
            Some(_) => Standing::Blocked,
        }
    }

    fn take_line(&mut self) -> VecDeque<Box<Waiting<T>>> {
        self.standing = Standing::Idle;
        std::mem::take(&mut self.line)
    }

    fn give_room_back(&mut self) {
        if is_sparse(self.line.len(), self.line.capacity()) {
            self.line.shrink_to(2 * self.line.len());
        }
    }
}

/// Whether most of the room of a collection is empty.
pub(super) const fn is_sparse(used: usize, room: usize) -> bool {
    room > SMALL_ROOM && used < room / SPARSE_PART
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use tokio::time::advance;

    use super::*;
    use crate::service::{MAX_GROUP_READ_WEIGHT, MAX_READ_WEIGHT, RANGE_READ_WEIGHT};

    const ONE: GroupId = GroupId::new(1);
    const TWO: GroupId = GroupId::new(2);
    const SHARE: u32 = MAX_GROUP_READ_WEIGHT;

    /// A read, and whether its client is gone.
    #[derive(Debug)]
    struct Read(Rc<Cell<bool>>);

    impl Waits for Read {
        fn is_given_up(&self) -> bool {
            self.0.get()
        }
    }

    fn places() -> Places<Read> {
        Places::new(MAX_READ_WEIGHT as usize, SHARE)
    }

    fn enter(places: &Places<Read>, group: GroupId, weight: u32, count: u32) -> Rc<Cell<bool>> {
        let gone = Rc::default();
        (0..count).for_each(|_| places.enter(group, weight, Read(Rc::clone(&gone))));
        gone
    }

    /// The groups of what has its place now, and the weights.
    fn granted(places: &Places<Read>) -> Vec<(GroupId, u32)> {
        std::iter::from_fn(|| places.next()).map(|one| (one.group, one.weight)).collect()
    }

    fn give_back(places: &Places<Read>, granted: Vec<(GroupId, u32)>) {
        for (group, weight) in granted {
            places.give_back(group, weight);
        }
    }

    fn assert_empty(places: &Places<Read>) {
        let state = places.state.lock();
        assert_eq!(state.free, MAX_READ_WEIGHT as usize);
        assert_eq!((state.waiting, state.groups.len()), (0, 0));
        assert!(state.ready.is_empty() && state.blocked.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_does_not_wait_for_ever_for_the_places_of_a_group_that_hangs() {
        let places = places();
        enter(&places, ONE, 1, SHARE + 1);
        let hung = granted(&places);
        assert_eq!(hung.len(), SHARE as usize);
        advance(PLACE_TIMEOUT / 2).await;
        enter(&places, ONE, 1, 1);
        assert!(places.take_late().is_empty());
        advance(PLACE_TIMEOUT / 2).await;
        assert_eq!(places.take_late().len(), 1, "the other one waits for half the time");
        give_back(&places, hung);
        let last = granted(&places);
        assert_eq!(last.len(), 1);
        give_back(&places, last);
        assert_empty(&places);
    }

    #[tokio::test(start_paused = true)]
    async fn a_group_has_a_part_of_the_places_and_leaves_the_others() {
        let places = places();
        enter(&places, ONE, 1, SHARE + 1);
        enter(&places, TWO, RANGE_READ_WEIGHT, SHARE);
        let taken = granted(&places);
        let of = |group| taken.iter().filter(|one| one.0 == group).count();
        assert_eq!(of(ONE), SHARE as usize);
        assert_eq!(of(TWO), (SHARE / RANGE_READ_WEIGHT) as usize);
        places.give_back(ONE, 1);
        assert_eq!(granted(&places), [(ONE, 1)]);
        places.give_back(TWO, RANGE_READ_WEIGHT - 1);
        assert!(granted(&places).is_empty(), "there is no room for all of it");
        places.give_back(TWO, 1);
        assert_eq!(granted(&places), [(TWO, RANGE_READ_WEIGHT)]);
    }

    #[tokio::test(start_paused = true)]
    async fn all_groups_together_have_the_places_of_the_stream_and_take_turns() {
        let places = places();
        (1..=20).for_each(|group| drop(enter(&places, GroupId::new(group), 1, SHARE)));
        let taken = granted(&places);
        assert_eq!(taken.len(), MAX_READ_WEIGHT as usize);
        let first: Vec<_> = taken.iter().take(20).map(|one| one.0.get()).collect();
        assert_eq!(first, (1..=20).collect::<Vec<_>>());
        advance(2 * PLACE_TIMEOUT).await;
        assert!(places.take_late().is_empty(), "their groups have room, and others are in the way");
    }

    /// Otherwise many gets would keep a scan waiting for ever.
    #[tokio::test(start_paused = true)]
    async fn a_read_that_needs_much_is_not_passed_by_those_that_need_little() {
        let places = Places::new(SHARE as usize, SHARE);
        enter(&places, ONE, 1, SHARE);
        let taken = granted(&places);
        enter(&places, TWO, RANGE_READ_WEIGHT, 1);
        enter(&places, ONE, 1, SHARE);
        for _ in 1..RANGE_READ_WEIGHT {
            places.give_back(ONE, 1);
            assert!(granted(&places).is_empty());
        }
        places.give_back(ONE, 1);
        assert_eq!(granted(&places), [(TWO, RANGE_READ_WEIGHT)]);
        drop(taken);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_given_up_takes_no_place_and_goes() {
        let places = places();
        enter(&places, ONE, RANGE_READ_WEIGHT, SHARE / RANGE_READ_WEIGHT);
        let mut taken = granted(&places);
        let gone = enter(&places, ONE, RANGE_READ_WEIGHT, 5);
        enter(&places, ONE, 1, 1);
        places.give_back(ONE, 1);
        assert!(granted(&places).is_empty(), "there is no room for the first");
        gone.set(true);
        places.drop_given_up();
        assert_eq!(granted(&places), [(ONE, 1)], "the first of those that are left");
        // One that goes when its turn is near is passed over.
        let gone = enter(&places, TWO, 1, 5);
        enter(&places, TWO, 2, 1);
        gone.set(true);
        assert_eq!(granted(&places), [(TWO, 2)]);
        taken.push((TWO, 2));
        give_back(&places, taken);
        assert_empty(&places);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_waits_where_nobody_answers() {
        let places = places();
        enter(&places, ONE, 1, SHARE + 1);
        let taken = granted(&places);
        enter(&places, TWO, 1, 1);
        places.close();
        enter(&places, ONE, 1, 1);
        assert!(granted(&places).is_empty() && !places.has_waiting());
        give_back(&places, taken);
        assert_empty(&places);
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_waited_leaves_no_room_behind() {
        let places = Places::new(10_000, 1);
        (0..10_000).for_each(|group| drop(enter(&places, GroupId::new(group), 1, 1)));
        enter(&places, ONE, 1, 10_000);
        give_back(&places, granted(&places));
        let used = granted(&places);
        advance(PLACE_TIMEOUT).await;
        drop(places.take_late());
        let state = places.state.lock();
        let room =
            state.groups[&ONE].line.capacity() + state.groups.capacity() + state.ready.capacity();
        assert!(room <= 4 * SMALL_ROOM, "{room} of {used:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_stuck_when_something_waits_and_nothing_moves() {
        let (places, time) = (places(), PLACE_TIMEOUT);
        advance(time).await;
        assert!(!places.is_stuck(time), "nothing waits");
        enter(&places, ONE, 1, SHARE + 1);
        granted(&places);
        assert!(!places.is_stuck(time), "not for long");
        advance(time).await;
        assert!(places.is_stuck(time));
        places.give_back(ONE, 1);
        granted(&places);
        assert!(!places.is_stuck(time));
    }
}
