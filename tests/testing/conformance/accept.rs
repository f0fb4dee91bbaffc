//! Accepting create requests: a replica is created with the machine that its maker makes.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use shardhost_storage::GroupId;

use super::MachineMaker;
use shardhost_groups::runtime::{CreateRequest, CreateRequestSink, Groups};

/// Takes the create requests of one host and creates its replicas. Clones are the same.
#[derive(Clone)]
pub struct Accept {
    shared: Arc<Shared>,
}

struct Shared {
    machines: MachineMaker,
    groups: Mutex<Option<Groups>>,
    under_way: Mutex<BTreeSet<GroupId>>,
}

impl fmt::Debug for Accept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Accept")
    }
}

impl Accept {
    /// Give it to [`shardhost_groups::GroupsBuilder::on_create_request`], then [bind](Accept::bind)
    /// it to what was started.
    #[must_use]
    pub fn new(machines: MachineMaker) -> Self {
        let (groups, under_way) = Default::default();
        Self { shared: Arc::new(Shared { machines, groups, under_way }) }
    }

    /// The groups that it creates replicas in. They keep it and it keeps them, until it is let
    /// go.
    pub fn bind(&self, groups: &Groups) {
        *self.shared.groups.lock() = Some(groups.clone());
    }

    /// Takes no more create requests.
    pub fn let_go(&self) {
        let groups = self.shared.groups.lock().take();
        drop(groups);
    }
}

impl CreateRequestSink for Accept {
    fn requested(&self, create_request: CreateRequest) {
        let group = create_request.group;
        let Some(groups) = self.shared.groups.lock().clone() else { return };
        if groups.group(group).is_some() || !self.shared.under_way.lock().insert(group) {
            return;
        }
        let shared = Arc::clone(&self.shared);
        // Creating waits for the disk, and the caller of this must not.
        std::thread::spawn(move || {
            let machine = (shared.machines)(group);
            if let Err(error) = groups.create(create_request.spec(), machine) {
                tracing::debug!(%group, %error, "a create request was not accepted");
            }
            shared.under_way.lock().remove(&group);
        });
    }
}
