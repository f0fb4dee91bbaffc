//! How a run of contiguous entries of one group becomes one value of the log.
//!
//! A value per entry would cost a host more than Raft itself does; a value per run costs once
//! what one entry would. The payload is a `Run` message inside the frame of every value of the log, which adds
//! length and CRC-32. Decoding copies no payload: the entries' bytes are slices of the value.
//! Nothing here knows keys or stores.

use bytes::Bytes;
use prost::Message;
use shardhost_proto::log;

use crate::convert::{Malformed, entry_from_message, entry_to_message};
use crate::frame;
use crate::ids::{GroupId, LogIndex};
use crate::types::Entry;

/// Writes the value of a run into `out`, replacing its content. The entries must be contiguous and
/// at least one.
pub fn encode<'a>(group: GroupId, entries: impl Iterator<Item = &'a Entry>, out: &mut Vec<u8>) {
    let mut entries = entries.peekable();
    let first_index = entries.peek().map_or(0, |entry| entry.index.get());
    let run = log::Run { first_index, entries: entries.map(entry_to_message).collect() };
    frame::seal(group, out, |out| {
        out.reserve(run.encoded_len());
        run.encode_raw(out);
    });
}

/// The entries of a run's value.
///
/// # Errors
/// [`Malformed`] when the bytes are not what [`encode`] wrote for this group, or hold what this
/// version does not know. Never panics.
pub fn decode(group: GroupId, value: &Bytes) -> Result<Vec<Entry>, Malformed> {
    let run = decode_message(group, value)?;
    let first = first_index(&run)?;
    let indexes = (first.get()..).map(LogIndex::new);
    run.entries
        .into_iter()
        .zip(indexes)
        .map(|(entry, index)| entry_from_message(index, entry))
        .collect()
}

fn decode_message(group: GroupId, value: &Bytes) -> Result<log::Run, Malformed> {
    let payload =
        frame::open(group, value).map_err(|damage| Malformed::new("run", damage.to_string()))?;
    log::Run::decode(payload).map_err(|error| Malformed::new("run", error.to_string()))
}

/// The first index, after checking that the run's indexes are such as can be.
fn first_index(run: &log::Run) -> Result<LogIndex, Malformed> {
    if run.entries.is_empty() {
        return Err(Malformed::new("run", "it has no entries"));
    }
    let end = run.first_index.checked_add(run.entries.len() as u64);
    if run.first_index == 0 || end.is_none() {
        return Err(Malformed::new("run", format!("it cannot start at {}", run.first_index)));
    }
    Ok(LogIndex::new(run.first_index))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Term;
    use crate::types::EntryKind;
    use proptest::prelude::*;

    const GROUP: GroupId = GroupId::new(7);

    fn encoded(entries: &[Entry]) -> Bytes {
        let mut out = Vec::new();
        encode(GROUP, entries.iter(), &mut out);
        out.into()
    }

    fn sealed(run: &log::Run) -> Bytes {
        let mut out = Vec::new();
        frame::seal(GROUP, &mut out, |out| run.encode_raw(out));
        out.into()
    }

    fn bytes() -> impl Strategy<Value = Bytes> {
        proptest::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from)
    }

    fn run() -> impl Strategy<Value = Vec<Entry>> {
        let entry = (any::<u64>(), any::<bool>(), bytes(), bytes());
        (1..u64::MAX - 100, proptest::collection::vec(entry, 1..20)).prop_map(|(first, parts)| {
            (first..)
                .zip(parts)
                .map(|(index, (term, config, data, context))| Entry {
                    term: Term::new(term),
                    index: LogIndex::new(index),
                    kind: if config { EntryKind::Config } else { EntryKind::Command },
                    data,
                    context,
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn a_run_survives_the_round_trip(entries in run()) {
            prop_assert_eq!(decode(GROUP, &encoded(&entries)), Ok(entries));
        }

        #[test]
        fn damage_is_noticed(entries in run(), at in any::<prop::sample::Index>(), flip in 1..=255u8) {
            let mut value = encoded(&entries).to_vec();
            let at = at.index(value.len());
            value[at] ^= flip;
            prop_assert!(decode(GROUP, &value.into()).is_err());
        }

        #[test]
        fn no_bytes_make_it_panic(value in proptest::collection::vec(any::<u8>(), 0..200)) {
            // Random bytes hardly ever pass the checksum, so that they also go in behind it.
            let mut out = Vec::new();
            frame::seal(GROUP, &mut out, |out| out.extend_from_slice(&value));
            drop(decode(GROUP, &out.into()));
            prop_assert!(decode(GROUP, &value.into()).is_err());
        }
    }

    #[test]
    fn decoding_copies_no_payload() {
        let data = Bytes::from(vec![5; 1000]);
        let entry = Entry {
            term: Term::new(1),
            index: LogIndex::new(1),
            kind: EntryKind::Command,
            data,
            context: Bytes::new(),
        };
        let value = encoded(&[entry]);
        let decoded = decode(GROUP, &value).expect("just encoded");
        assert!(value.as_ptr_range().contains(&decoded[0].data.as_ptr()));
    }

    #[test]
    fn an_unknown_kind_of_entry_is_refused() {
        for kind in [0, 4, -1] {
            let entry = log::Entry { kind, term: 1, ..log::Entry::default() };
            let run = log::Run { first_index: 1, entries: vec![entry] };
            let refused = decode(GROUP, &sealed(&run)).expect_err("no such kind");
            assert!(refused.message.contains("unknown kind"), "{refused}");
        }
    }

    #[test]
    fn a_run_without_entries_or_with_impossible_indexes_is_refused() {
        let entry = log::Entry { kind: 1, term: 1, ..log::Entry::default() };
        for (first_index, count) in [(1, 0), (0, 1), (u64::MAX, 1), (u64::MAX - 1, 2)] {
            let run = log::Run { first_index, entries: vec![entry.clone(); count] };
            assert!(decode(GROUP, &sealed(&run)).is_err(), "{count} entries from {first_index}");
        }
    }
}
