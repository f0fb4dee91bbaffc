//! The commands and their places in a log, with entries between them that are none of a
//! machine's business, and ways to cut them into batches.

use std::ops::Range;

use bytes::Bytes;
use shardhost_storage::LogPosition;

use shardhost_groups::machine::Command;

#[derive(Debug)]
pub(super) struct Script {
    commands: Vec<(LogPosition, Bytes)>,
}

impl Script {
    /// Every third command stands behind an entry of raft's own, every fifth begins a term.
    pub(super) fn new(commands: Vec<Bytes>) -> Self {
        let (mut term, mut index) = (1, 1);
        let placed = commands.into_iter().enumerate().map(|(number, data)| {
            term += u64::from(number % 5 == 4);
            index += 1 + u64::from(number % 3 == 2);
            (LogPosition::new(term, index), data)
        });
        Self { commands: placed.collect() }
    }

    pub(super) const fn len(&self) -> usize {
        self.commands.len()
    }

    /// The position of a machine that applied so many commands.
    pub(super) fn position(&self, count: usize) -> LogPosition {
        match count.checked_sub(1) {
            Some(last) => self.commands[last].0,
            // The entry that the first leader starts its term with.
            None => LogPosition::new(1, 1),
        }
    }

    /// How many commands stand at or before a position, if the machine can stand there.
    pub(super) fn count_at(&self, position: LogPosition) -> Option<usize> {
        (0..=self.len()).find(|count| self.position(*count) == position)
    }

    /// Commands as a batch gets them.
    pub(super) fn batch(&self, range: Range<usize>) -> Vec<Command> {
        let commands = self.commands[range].iter();
        commands.map(|(position, data)| Command::new(*position, data.clone())).collect()
    }

    /// Cuts what comes from `from` on into batches, some of them empty.
    pub(super) fn cuts(&self, from: usize, seed: u64) -> Vec<Range<usize>> {
        let mut lot = seed;
        let mut cuts = Vec::new();
        let mut start = from;
        while start < self.len() {
            lot =
                lot.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let most = if seed == 0 { self.len() as u64 } else { 7 };
            let length = if seed == 0 { most } else { (lot >> 33) % most };
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            let end = start.saturating_add(length).min(self.len());
            cuts.push(start..end);
            start = end;
        }
        cuts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_cover_every_command_once_in_order() {
        let script = Script::new((0..40).map(|number: u32| number.to_string().into()).collect());
        for seed in 0..20 {
            for from in [0, 7, 40] {
                let covered: Vec<_> = script.cuts(from, seed).into_iter().flatten().collect();
                assert_eq!(covered, (from..40).collect::<Vec<_>>());
            }
        }
        assert_eq!(script.cuts(0, 0).len(), 1, "the first way is all at once");
        let empty = (1..20).flat_map(|seed| script.cuts(0, seed)).any(|cut| cut.is_empty());
        assert!(empty, "no batch is empty");
    }

    #[test]
    fn places_grow_and_name_their_commands() {
        let script = Script::new((0..40).map(|number: u32| number.to_string().into()).collect());
        for count in 0..40 {
            assert!(script.position(count) < script.position(count + 1));
            assert_eq!(script.count_at(script.position(count)), Some(count));
        }
        assert_eq!(script.count_at(LogPosition::new(9, 999)), None);
    }
}
