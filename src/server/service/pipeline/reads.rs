//! The reads of a stream. One that waits is an entry in a line and has no task: that begins when the read has
//! its place in the stream and the room for its answer in the host's memory, which covers the task, too.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use shardhost_groups::{Group, ReadMode};
use shardhost_storage::GroupId;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::reader::submit;
use super::stream::{Charge, Outcome, Stream};
use crate::service::budget::{HeldBytes, HostRead};
use crate::service::reads::{Granted, PLACE_TIMEOUT, Waits, most_bytes, most_group_bytes};
use crate::service::{
    MAX_GET_ANSWER_BYTES, MAX_RANGE_ANSWER_BYTES, RANGE_READ_WEIGHT, READ_TASK_BYTES,
    REQUEST_OVERHEAD_BYTES,
};

/// What a read costs: its weight in its stream, and the most that it and its answer may take.
#[derive(Debug)]
pub(super) struct Cost {
    weight: u32,
    pub(super) bytes: usize,
}

pub(super) static GET: Cost = Cost { weight: 1, bytes: READ_TASK_BYTES + MAX_GET_ANSWER_BYTES };
pub(super) static RANGE: Cost =
    Cost { weight: RANGE_READ_WEIGHT, bytes: READ_TASK_BYTES + MAX_RANGE_ANSWER_BYTES };
/// Whether a command is needless; the answer has no messages.
static NEEDLESS: Cost = Cost { weight: 1, bytes: READ_TASK_BYTES };

// A read takes no more than its request is charged for, be it that it waits for its place in the stream, or has that
// and waits for memory.
const _: () = assert!(most_bytes::<Asked>() + ALLOCATOR_BYTES <= REQUEST_OVERHEAD_BYTES);
const _: () = assert!(
    most_bytes::<Box<dyn HostRead>>()
        + size_of::<Placed>()
        + most_group_bytes::<Asked>()
        + ALLOCATOR_BYTES
        <= REQUEST_OVERHEAD_BYTES
);
/// What the allocator adds to an entry, its line and its query.
const ALLOCATOR_BYTES: usize = 3 * 16;

/// A request that reads.
pub(super) struct Asked {
    pub(super) id: u64,
    pub(super) charge: Charge,
    pub(super) group: Group,
    pub(super) read: Read,
}

pub(super) enum Read {
    Query(ReadMode, Bytes, &'static Cost),
    /// Propose the command, unless the shard's leader says that it would change nothing. Apart: most
    /// entries of a line are queries.
    Unless(Box<Unless>),
}

pub(super) struct Unless {
    pub(super) command: Bytes,
    pub(super) query: Bytes,
}

impl Asked {
    const fn cost(&self) -> &'static Cost {
        match &self.read {
            Read::Query(_, _, cost) => cost,
            Read::Unless(_) => &NEEDLESS,
        }
    }

    /// Its group has too many reads under way.
    fn refuse(self, stream: &Arc<Stream>) {
        let Self { id, charge, group, read } = self;
        match read {
            Read::Query(..) => stream.complete(id, charge, Outcome::TooManyReads),
            // It cannot be asked whether the command is needed.
            Read::Unless(unless) => submit(stream, &group, vec![(id, charge, unless.command)]),
        }
    }

    async fn run(self, stream: Arc<Stream>, mut places: ReadPlaces) {
        let Self { id, charge, group, read } = self;
        let answer = match read {
            Read::Query(mode, query, _) => group.query(mode, query).await,
            Read::Unless(unless) => {
                let Unless { command, query } = *unless;
                match group.query(ReadMode::Lease, query).await {
                    Ok(answer) if !answer.is_empty() => Ok(answer),
                    // The error of the question is reported as that of the command.
                    _ => return submit(&stream, &group, vec![(id, charge, command)]),
                }
            }
        };
        places.shrink_to(answer.as_ref().map_or(0, Bytes::len));
        stream.complete(id, charge, Outcome::Read(answer, places));
    }
}

impl Waits for Asked {
    fn is_given_up(&self) -> bool {
        // A stream whose client is gone closes its line.
        false
    }
}

/// What a read holds until its answer is taken.
pub(super) struct ReadPlaces {
    _of_stream: StreamShare,
    of_host: HeldBytes,
}

impl ReadPlaces {
    /// Those of a read that has a place in the host only.
    #[cfg(test)]
    pub(super) const fn of_host(group: GroupId, of_host: HeldBytes) -> Self {
        Self { _of_stream: StreamShare { stream: Weak::new(), group, weight: 0 }, of_host }
    }

    /// The answer is there: what it does not need is given back.
    pub(super) fn shrink_to(&mut self, answer: usize) {
        self.of_host.shrink_to(REQUEST_OVERHEAD_BYTES + answer);
    }
}

/// The place of one read in its stream, free again when this is dropped.
struct StreamShare {
    stream: Weak<Stream>,
    group: GroupId,
    weight: u32,
}

impl Drop for StreamShare {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.upgrade()
            && stream.reads.give_back(self.group, self.weight)
        {
            begin(&stream);
        }
    }
}

/// A read that has its place in its stream.
struct Placed {
    asked: Asked,
    share: StreamShare,
    gone: CancellationToken,
}

impl HostRead for Placed {
    fn is_given_up(&self) -> bool {
        self.gone.is_cancelled() || self.share.stream.strong_count() == 0
    }

    fn begin(self: Box<Self>, bytes: HeldBytes) {
        let Self { asked, share, gone } = *self;
        let Some(stream) = share.stream.upgrade() else { return };
        let places = ReadPlaces { _of_stream: share, of_host: bytes };
        let runtime = stream.runtime.clone();
        let run = asked.run(stream, places);
        // A client that is gone waits for no answer.
        runtime.spawn(async move { gone.run_until_cancelled(run).await });
    }

    fn refuse(self: Box<Self>) {
        let Self { asked, share, .. } = *self;
        if let Some(stream) = share.stream.upgrade() {
            asked.refuse(&stream);
        }
    }
}

/// Puts reads into the lines of their groups, and begins what has its place.
pub(super) fn enter(stream: &Arc<Stream>, asked: Vec<Asked>) {
    if asked.is_empty() {
        return;
    }
    for one in asked {
        stream.reads.enter(one.group.id(), one.cost().weight, one);
    }
    begin(stream);
    if stream.reads.has_waiting() {
        stream.reads_wait.notify_one();
    }
}

/// Begins the reads that have their places in the stream now.
fn begin(stream: &Arc<Stream>) {
    let mut began = false;
    while let Some(Granted { item: asked, group, weight, .. }) = stream.reads.next() {
        began = true;
        let share = StreamShare { stream: Arc::downgrade(stream), group, weight };
        let (bytes, gone) = (asked.cost().bytes, stream.gone.clone());
        stream.budget.read(group, bytes, Box::new(Placed { asked, share, gone }));
    }
    if began && stream.budget.has_waiting_reads() {
        stream.reads_wait.notify_one();
    }
    if began && stream.gone.is_cancelled() {
        // They began to wait after it was seen to that nothing does.
        stream.budget.drop_given_up_reads();
    }
}

/// Refuses, as long as it runs, the reads that wait too long for the share of their group.
pub(super) async fn refuse_late(stream: &Arc<Stream>) {
    loop {
        stream.reads_wait.notified().await;
        while stream.reads.has_waiting() || stream.budget.has_waiting_reads() {
            sleep(PLACE_TIMEOUT / 4).await;
            for late in stream.reads.take_late() {
                late.refuse(stream);
            }
            begin(stream);
            stream.budget.refuse_late_reads();
        }
    }
}
