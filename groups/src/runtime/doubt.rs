//! The log of this host turns out to be older than what its replicas acknowledged.

use parking_lot::Mutex;
use shardhost_storage::{
    Certainty, Doubt, GroupId, GroupWrite, LogBatch, LogError, LogPosition, PersistedGroup,
};

use super::open::Prepared;
use super::{Groups, RuntimeShared};
use crate::worker::Input;

/// How often the groups are looked up anew when one of them ended before the doubt was written.
const ATTEMPTS: usize = 16;

/// The doubt that was raised, and the order of raising it and of opening replicas: a worker hears
/// of a doubt after it got a replica that does not know of it.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    raised: Mutex<Raised>,
    order: Mutex<()>,
}

/// What is doubted of replicas that are created here.
#[derive(Clone, Copy, Debug, Default)]
struct Raised {
    /// Any may have been here before.
    any: Option<Doubt>,
    /// Those may that were founded on another disk of the node.
    disk_lost: bool,
}

impl Doubts {
    /// What is doubted of a replica that is created; `on_known_disk`: it is founded on this disk.
    pub(super) fn of_creation(&self, on_known_disk: bool) -> Option<Doubt> {
        let raised = *self.raised.lock();
        let lost = raised.disk_lost && !on_known_disk;
        raised.any.or(lost.then_some(Doubt::RolledBack))
    }

    /// From here on what is created here is in doubt.
    fn raise(&self, doubt: Doubt) {
        self.raised.lock().any = Some(doubt);
    }

    fn disk_was_lost(&self) {
        self.raised.lock().disk_lost = true;
    }

    /// Hands replicas to their workers; no doubt is raised meanwhile.
    pub(super) fn in_order<T>(&self, hand_over: impl FnOnce() -> T) -> T {
        let _held = self.order.lock();
        hand_over()
    }
}

impl Groups {
    /// An earlier process found that the data directory is older than what its replicas acknowledged:
    /// a replica that is created here may have been there before, and asks its peers first.
    pub fn doubt_creations(&self, doubt: Doubt) {
        self.shared().doubts.raise(doubt);
    }

    /// The node had another disk before this one: a replica that is created here asks its peers
    /// first, for it may have voted on the other one, unless its spec has
    /// [`on_known_disk`](crate::GroupSpec::on_known_disk).
    pub fn disk_was_lost(&self) {
        self.shared().doubts.disk_was_lost();
    }

    /// From here on no present replica takes part in an election before enough of its peers have
    /// reported what they hold. Blocks until that is durable; returns the number of replicas. Later
    /// ones are doubted by [`Groups::doubt_creations`] and [`Groups::disk_was_lost`], which come
    /// first.
    ///
    /// # Errors
    /// When the log cannot be read or written.
    pub fn raise_doubt(&self, doubt: Doubt) -> Result<usize, LogError> {
        let shared = self.shared();
        let mut attempts = ATTEMPTS;
        let count = loop {
            attempts -= 1;
            match shared.write_doubt(doubt) {
                // One of the groups ended meanwhile, so nothing was written.
                Err(LogError::Invalid { .. }) if attempts > 0 => {}
                outcome => break outcome?,
            }
        };
        shared.doubts.in_order(|| {
            for inbox in &shared.inboxes {
                inbox.complete(Input::RaiseDoubt { group: None, doubt });
            }
        });
        Ok(count)
    }
}

impl RuntimeShared {
    fn write_doubt(&self, doubt: Doubt) -> Result<usize, LogError> {
        let store = self.store()?;
        let certainty = Some(Certainty::InDoubt(doubt));
        let groups = store.groups()?.into_iter();
        // A damaged replica takes part in nothing.
        let groups = groups.filter(|group| matches!(store.load(*group), Ok(Some(_))));
        let writes: Vec<_> =
            groups.map(|group| GroupWrite { certainty, ..GroupWrite::new(group) }).collect();
        let count = writes.len();
        self.log.write(LogBatch { writes })?;
        Ok(count)
    }

    /// A replica that was opened from what the log held before a doubt was raised learns of it.
    pub(super) fn with_present_doubt(&self, mut prepared: Prepared) -> Prepared {
        let Some(raised) = self.doubts.of_creation(prepared.on_known_disk()) else {
            return prepared;
        };
        let group = prepared.group();
        match self.store().and_then(|store| store.load(group)) {
            Ok(Some(known)) => match known.certainty {
                Certainty::InDoubt(doubt) => prepared.core_mut().open_in_doubt(doubt),
                // It was being created while the doubt was raised, which did not see it.
                Certainty::Sure if is_new(&known) => self.doubt_new(group, raised, &mut prepared),
                Certainty::Sure | Certainty::Differs => {}
            },
            Ok(None) => {}
            Err(error) => {
                tracing::error!(%group, %error, "cannot read whether the replica is in doubt");
                prepared.core_mut().open_in_doubt(raised);
            }
        }
        prepared
    }

    fn doubt_new(&self, group: GroupId, doubt: Doubt, prepared: &mut Prepared) {
        prepared.core_mut().open_in_doubt(doubt);
        let certainty = Some(Certainty::InDoubt(doubt));
        let writes = vec![GroupWrite { certainty, ..GroupWrite::new(group) }];
        if let Err(error) = self.log.write(LogBatch { writes }) {
            // The host stops with its log; until then the replica is in doubt in memory.
            tracing::error!(%group, %error, "the doubt about a new replica cannot be written");
        }
    }
}

/// Whether a replica never did anything, and has others to ask.
fn is_new(known: &PersistedGroup) -> bool {
    let members = known.meta.membership.members.values();
    let voters = members.filter(|member| member.voter || member.outgoing_voter).count();
    voters > 1 && known.last == LogPosition::default() && known.hard_state.vote.is_none()
}
