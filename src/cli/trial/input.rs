//! The input: the lines of a file, each once into the table and once into the queue.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use bytes::Bytes;
use shardhost_proto::routing::key_hash;
use shardhost_server::shards::table::MAX_KEY_BYTES;

const WORDS: &str = "/usr/share/dict/words";
/// Partition keys of the queue at most.
const MAX_PARTITIONS: usize = 1_024;
/// Lines of a partition at least, where there are enough.
const MIN_PARTITION_LINES: usize = 8;

/// The input.
#[derive(Debug)]
pub struct Input {
    pub path: PathBuf,
    /// Its lines, without the empty ones.
    lines: Vec<Bytes>,
    /// For each line, the first one that is equal.
    first: Vec<u32>,
    partitions: usize,
}

impl Input {
    /// Reads a file, or the word list; at most `limit` lines.
    pub fn read(path: Option<&Path>, limit: Option<usize>) -> anyhow::Result<Self> {
        let path = path.unwrap_or_else(|| Path::new(WORDS)).to_path_buf();
        let content = std::fs::read(&path).with_context(|| {
            format!(
                "cannot read {}; install the word list with `apt-get install wamerican`, or name \
                 another file with --load FILE",
                path.display()
            )
        })?;
        let content = Bytes::from(content);
        let lines = lines_of(&content, limit.unwrap_or(usize::MAX));
        Self::new(path, lines)
    }

    fn new(path: PathBuf, lines: Vec<Bytes>) -> anyhow::Result<Self> {
        if lines.is_empty() || u32::try_from(lines.len()).is_err() {
            let (path, count) = (path.display(), lines.len());
            bail!("{path} has {count} lines; name a file with some with --load FILE");
        }
        if let Some(line) = lines.iter().find(|line| line.len() > MAX_KEY_BYTES) {
            bail!(
                "{} has a line of {} bytes; a key of the table has at most {MAX_KEY_BYTES}",
                path.display(),
                line.len()
            );
        }
        let partitions = (lines.len() / MIN_PARTITION_LINES).clamp(1, MAX_PARTITIONS);
        let first = first_equals(&lines);
        Ok(Self { path, lines, first, partitions })
    }

    /// How many lines there are.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// A line: a key of the table and the body of a message.
    pub fn line(&self, number: u32) -> &Bytes {
        &self.lines[number as usize]
    }

    /// How many different lines there are: the keys of the table.
    pub fn distinct(&self) -> u64 {
        (0u32..).zip(&self.first).filter(|(number, first)| number == *first).count() as u64
    }

    /// All numbers of lines.
    pub fn numbers(&self) -> std::ops::Range<u32> {
        0..u32::try_from(self.lines.len()).unwrap_or(u32::MAX)
    }

    /// The value that the table must hold for a line: its first position, and its hash.
    pub fn value(&self, number: u32) -> Bytes {
        let first = self.first[number as usize];
        format!("{}:{:016x}", first + 1, key_hash(self.line(number))).into()
    }

    /// The lines of each partition of the queue, in the order in which they are sent.
    pub fn partitions(&self) -> Vec<(Bytes, Vec<u32>)> {
        let name = |at: usize| Bytes::from(format!("partition-{at:04}"));
        let mut partitions: Vec<_> =
            (0..self.partitions).map(|at| (name(at), Vec::new())).collect();
        for number in self.numbers() {
            let at = key_hash(self.line(number)) % self.partitions as u64;
            partitions[at as usize].1.push(number);
        }
        partitions
    }
}

fn lines_of(content: &Bytes, limit: usize) -> Vec<Bytes> {
    let lines = content.split(|byte| *byte == b'\n');
    let lines = lines.map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    lines.filter(|line| !line.is_empty()).take(limit).map(|line| content.slice_ref(line)).collect()
}

fn first_equals(lines: &[Bytes]) -> Vec<u32> {
    let mut seen: HashMap<&Bytes, u32> = HashMap::with_capacity(lines.len());
    let numbered = (0u32..).zip(lines);
    numbered.map(|(number, line)| *seen.entry(line).or_insert(number)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(text: &str) -> Input {
        let lines = lines_of(&Bytes::from(text.to_owned()), usize::MAX);
        Input::new("test".into(), lines).unwrap()
    }

    #[test]
    fn equal_lines_have_equal_values_so_that_their_order_does_not_matter() {
        let input = input("a\n\nb\r\na\n");
        assert_eq!((input.len(), input.distinct()), (3, 2));
        assert_eq!(input.value(0), input.value(2));
        assert_ne!(input.value(0), input.value(1));
        assert_eq!(input.line(1), "b");
    }

    #[test]
    fn every_line_is_in_one_partition_and_in_order() {
        let text: String = (0..100).map(|n| format!("line {n}\n")).collect();
        let partitions = input(&text).partitions();
        assert_eq!(partitions.len(), 12);
        assert!(partitions.iter().all(|(_, lines)| lines.is_sorted()));
        let mut all: Vec<u32> = partitions.into_iter().flat_map(|(_, lines)| lines).collect();
        all.sort_unstable();
        assert_eq!(all, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn a_missing_word_list_is_an_error_that_says_what_to_do() {
        let error = Input::read(Some(Path::new("/nowhere/words")), None).unwrap_err();
        let message = format!("{error:#}");
        assert!(message.contains("wamerican") && message.contains("--load"), "{message}");
    }
}
