//! What a machine is asked while its state is being replaced.

use std::io::{Read, Write};
use std::sync::atomic::AtomicBool;

use shardhost_storage::MemorySnapshots;

use super::*;

const GROUP: GroupId = GroupId::new(1);

/// Holds the content of the last snapshot. A full disk stops a restore when the old state is gone.
struct Register {
    value: Bytes,
    full: Arc<AtomicBool>,
}

impl StateMachine for Register {
    fn applied(&self) -> Result<Option<LogPosition>, ApplyFault> {
        Ok(None)
    }

    fn apply(&mut self, _: &mut ApplyBatch<'_>) -> Result<(), ApplyFault> {
        Ok(())
    }

    fn query(&self, _: &Bytes) -> Result<Bytes, QueryError> {
        Ok(self.value.clone())
    }

    fn answers_at_once(&self, _: &Bytes) -> bool {
        true
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotWriter>, ApplyFault> {
        Ok(Box::new(Nothing))
    }

    fn restore(&mut self, _: LogPosition, source: &mut dyn Read) -> Result<(), ApplyFault> {
        self.value = Bytes::new();
        if self.full.load(Ordering::Relaxed) {
            return Err(ApplyFault::passing("the disk is full"));
        }
        let mut value = Vec::new();
        source.read_to_end(&mut value).map_err(ApplyFault::new)?;
        self.value = value.into();
        Ok(())
    }
}

struct Nothing;

impl SnapshotWriter for Nothing {
    fn write_to(self: Box<Self>, _: &mut dyn Write) -> std::io::Result<()> {
        Ok(())
    }
}

fn ask(applier: &mut Applier) -> Result<Bytes, QueryError> {
    let (reply, mut answer) = crate::completion::answer();
    let report = applier.run(ApplyWork::Query { request: Bytes::new(), reply });
    assert!(matches!(report, ApplyReport::Nothing), "{report:?}");
    answer.try_recv().unwrap()
}

#[test]
fn a_machine_whose_restore_stalled_answers_nothing_and_gives_no_views() {
    let at = LogPosition::new(1, 9);
    let snapshots = MemorySnapshots::new();
    let mut snapshot = snapshots.create(GROUP, at).unwrap();
    snapshot.write_all(b"new").unwrap();
    snapshot.finish().unwrap();
    let full = Arc::new(AtomicBool::new(true));
    let machine = Register { value: Bytes::from_static(b"old"), full: Arc::clone(&full) };
    let mut applier =
        Applier::new(GROUP, Box::new(machine), Arc::new(snapshots), LogPosition::new(1, 3));
    assert_eq!(ask(&mut applier).unwrap(), "old");

    let stalled = applier.run(ApplyWork::Restore { position: at });
    assert!(matches!(stalled, ApplyReport::Stalled { .. }), "{stalled:?}");
    let answer = ask(&mut applier);
    assert!(matches!(answer, Err(QueryError::Failed(_))), "{answer:?}");
    assert_eq!(applier.answer_at_once(&Bytes::new()), None);
    let taken = applier.run(ApplyWork::Snapshot);
    assert!(matches!(taken, ApplyReport::SnapshotTaken { view: Err(_), .. }), "{taken:?}");
    let taken = applier.run(ApplyWork::Check { position: at });
    assert!(matches!(taken, ApplyReport::CheckTaken { view: Err(_), .. }), "{taken:?}");

    full.store(false, Ordering::Relaxed);
    let restored = applier.run(ApplyWork::Restore { position: at });
    assert!(matches!(restored, ApplyReport::Restored { .. }), "{restored:?}");
    assert_eq!(ask(&mut applier).unwrap(), "new");
}
