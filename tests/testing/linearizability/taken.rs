//! Which operations have their place already, in a form that is small while few are under way.

/// A set of operations. Those with an answer are numbered by their calls; nearly all of the first
/// ones are in the set and nearly none of the last, so the full and the empty words at both ends
/// are left out of what is remembered.
#[derive(Debug)]
pub(super) struct Taken {
    answered: Vec<u64>,
    full: usize,
    /// Words from here on are empty.
    empty: usize,
    /// Operations without an answer, ascending.
    unheard: Vec<u32>,
}

/// One state of a [`Taken`] to be remembered.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Snapshot {
    full: usize,
    between: Box<[u64]>,
    unheard: Box<[u32]>,
}

/// Which operation of a key is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Number {
    /// Of those with an answer.
    Answered(usize),
    Unheard(u32),
}

impl Taken {
    pub(super) fn new(answered: usize) -> Self {
        let words = answered.div_ceil(64);
        Self { answered: vec![0; words], full: 0, empty: 0, unheard: Vec::new() }
    }

    pub(super) fn insert(&mut self, number: Number) {
        match number {
            Number::Answered(number) => {
                let word = number / 64;
                self.answered[word] |= 1 << (number % 64);
                self.empty = self.empty.max(word + 1);
                while self.answered.get(self.full) == Some(&u64::MAX) {
                    self.full += 1;
                }
            }
            Number::Unheard(number) => {
                let place = self.unheard.partition_point(|&other| other < number);
                self.unheard.insert(place, number);
            }
        }
    }

    pub(super) fn remove(&mut self, number: Number) {
        match number {
            Number::Answered(number) => {
                let word = number / 64;
                self.answered[word] &= !(1 << (number % 64));
                self.full = self.full.min(word);
                while self.empty > 0 && self.answered[self.empty - 1] == 0 {
                    self.empty -= 1;
                }
            }
            Number::Unheard(number) => self.unheard.retain(|&other| other != number),
        }
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let between = self.answered.get(self.full..self.empty).unwrap_or_default();
        Snapshot { full: self.full, between: between.into(), unheard: self.unheard.clone().into() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However a set came about, it is remembered as the same.
        #[test]
        fn equal_sets_have_equal_snapshots(
            first in prop::collection::btree_set(0_usize..300, 0..300),
            second in prop::collection::btree_set(0_usize..300, 0..300),
            unheard in prop::collection::btree_set(0_u32..20, 0..5),
        ) {
            let build = |numbers: &BTreeSet<usize>, taken: &mut Taken| {
                numbers.iter().for_each(|&number| taken.insert(Number::Answered(number)));
            };
            let (mut direct, mut detour) = (Taken::new(300), Taken::new(300));
            build(&first, &mut direct);
            unheard.iter().for_each(|&number| direct.insert(Number::Unheard(number)));
            unheard.iter().rev().for_each(|&number| detour.insert(Number::Unheard(number)));
            build(&second, &mut detour);
            build(&first, &mut detour);
            second.difference(&first).for_each(|&number| detour.remove(Number::Answered(number)));
            prop_assert_eq!(direct.snapshot(), detour.snapshot());
            if first != second {
                let mut other = Taken::new(300);
                build(&second, &mut other);
                unheard.iter().for_each(|&number| other.insert(Number::Unheard(number)));
                prop_assert_ne!(direct.snapshot(), other.snapshot());
            }
        }
    }
}
