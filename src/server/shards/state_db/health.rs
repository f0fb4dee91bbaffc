//! Whether the state can be written, for the host.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use tokio::sync::watch;
use tracing::{error, info};

use super::error::StateDbError;

/// How the state of the shards is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum StateHealth {
    /// It is written and made durable.
    #[default]
    Well,
    /// The disk is full, or the process has too many files open. What is to be applied waits, and is
    /// tried again until it works.
    Waits(StateDbError),
    /// The disk failed. Nothing is written any more: the host must stop.
    Failed(StateDbError),
}

/// What is known of it.
#[derive(Debug, Default)]
pub(crate) struct Health {
    told: watch::Sender<StateHealth>,
    /// The cells that wait. Held while it is published, so that a late update does not hide a
    /// failure.
    waiting: Mutex<BTreeMap<usize, StateDbError>>,
}

impl Health {
    pub(crate) fn watch(&self) -> watch::Receiver<StateHealth> {
        self.told.subscribe()
    }

    /// Whether something waits for space or descriptors.
    pub(crate) fn waits(&self) -> bool {
        matches!(*self.told.borrow(), StateHealth::Waits(_))
    }

    /// Takes note of what came of a write or a flush of a cell.
    pub(crate) fn note<T>(&self, cell: usize, outcome: &Result<T, StateDbError>) {
        let mut waiting = self.waiting.lock();
        let health = match outcome {
            Ok(_) => {
                waiting.remove(&cell);
                let other = waiting.values().next().cloned();
                other.map_or(StateHealth::Well, StateHealth::Waits)
            }
            Err(error @ (StateDbError::Passing { .. } | StateDbError::Halted { .. })) => {
                waiting.insert(cell, error.clone());
                StateHealth::Waits(error.clone())
            }
            Err(error @ StateDbError::Io { .. }) => StateHealth::Failed(error.clone()),
            // Concerns a group, or a caller.
            Err(_) => return,
        };
        self.told.send_if_modified(|known| {
            let same_kind = std::mem::discriminant(known) == std::mem::discriminant(&health);
            if same_kind || matches!(known, StateHealth::Failed(_)) {
                return false;
            }
            match &health {
                StateHealth::Well => info!("the state of the shards is written again"),
                StateHealth::Waits(error) => {
                    error!(%error, "the state of the shards waits; it is tried again");
                }
                StateHealth::Failed(error) => error!(%error, "the state of the shards failed"),
            }
            *known = health;
            true
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> StateDbError {
        StateDbError::Passing { action: "writing", message: "no space".to_owned() }
    }

    fn broken() -> StateDbError {
        StateDbError::Io { action: "flushing", message: "EIO".to_owned() }
    }

    #[test]
    fn waiting_ends_and_a_failure_does_not() {
        let health = Health::default();
        let seen = health.watch();
        health.note(0, &Ok(()));
        assert!(!seen.has_changed().unwrap(), "it was well before");
        health.note::<()>(1, &Err(full()));
        health.note(0, &Ok(()));
        assert_eq!(*seen.borrow(), StateHealth::Waits(full()));
        assert!(health.waits());
        health.note::<()>(1, &Err(StateDbError::Closed));
        assert!(health.waits(), "that is another matter");
        health.note(1, &Ok(()));
        assert_eq!(*seen.borrow(), StateHealth::Well);
        health.note::<()>(0, &Err(broken()));
        health.note(0, &Ok(()));
        health.note::<()>(0, &Err(full()));
        assert_eq!(*seen.borrow(), StateHealth::Failed(broken()));
    }
}
