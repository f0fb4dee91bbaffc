//! The open connections by kind, and the shares that the kinds have.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// How long a connection may be open before its first request is let in.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Bounds of the connections of one listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionLimits {
    /// Connections without a request so far. One more ends the oldest of them.
    pub silent: usize,
    /// Connections of clients and operators. A further one is refused at its first request.
    pub clients: usize,
    /// Connections of peers, beside those of clients.
    pub peers: usize,
    /// How long one may be open before its first request is let in.
    pub first_request: Duration,
}

impl ConnectionLimits {
    /// Shares out `connections`: five eighths for clients, a quarter for peers, an eighth for those
    /// that have not asked for anything yet.
    #[must_use]
    pub const fn of(connections: usize) -> Self {
        const fn at_least_one(number: usize) -> usize {
            if number == 0 { 1 } else { number }
        }
        Self {
            silent: at_least_one(connections / 8),
            clients: at_least_one(connections * 5 / 8),
            peers: at_least_one(connections / 4),
            first_request: FIRST_REQUEST_TIMEOUT,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Silent,
    Client,
    Peer,
}

/// How many connections there are, and how many there were too many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionStats {
    /// Open, without a request so far.
    pub silent: usize,
    /// Open, of clients and operators.
    pub clients: usize,
    pub peers: usize,
    /// Silent ones that were ended, after too long or to make way for others.
    pub ended: u64,
    /// Refused, because there are as many of their kind as there may be.
    pub refused: u64,
}

/// There are as many connections of a kind as there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this node has {limit} connections of {kind} and takes no more; close some, or ask another node"
)]
pub(crate) struct Full {
    kind: &'static str,
    limit: usize,
}

/// The open connections of a listener.
#[derive(Debug)]
pub struct Connections {
    limits: ConnectionLimits,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last_id: u64,
    open: HashMap<u64, Open>,
    /// Oldest first, for their numbers grow.
    silent: BTreeSet<u64>,
    stats: ConnectionStats,
}

#[derive(Debug)]
struct Open {
    kind: Kind,
    cut: CancellationToken,
}

impl State {
    const fn count(&mut self, kind: Kind) -> &mut usize {
        match kind {
            Kind::Silent => &mut self.stats.silent,
            Kind::Client => &mut self.stats.clients,
            Kind::Peer => &mut self.stats.peers,
        }
    }

    fn set(&mut self, id: u64, kind: Kind) {
        let Some(open) = self.open.get_mut(&id) else { return };
        let before = std::mem::replace(&mut open.kind, kind);
        if before == Kind::Silent {
            self.silent.remove(&id);
        }
        *self.count(before) -= 1;
        *self.count(kind) += 1;
    }
}

impl Connections {
    /// None yet.
    #[must_use]
    pub fn new(limits: ConnectionLimits) -> Arc<Self> {
        Arc::new(Self { limits, state: Mutex::default() })
    }

    /// How many there are.
    #[must_use]
    pub fn stats(&self) -> ConnectionStats {
        self.state.lock().stats
    }

    /// Takes in a connection that was accepted, and ends the oldest silent one if there are too many.
    pub(super) fn enter(self: &Arc<Self>) -> (Connection, CancellationToken) {
        let cut = CancellationToken::new();
        let mut state = self.state.lock();
        if state.silent.len() >= self.limits.silent
            && let Some(oldest) = state.silent.pop_first()
        {
            // It is counted until it is closed.
            state.stats.ended += 1;
            if let Some(open) = state.open.get(&oldest) {
                open.cut.cancel();
            }
        }
        state.last_id += 1;
        let id = state.last_id;
        state.open.insert(id, Open { kind: Kind::Silent, cut: cut.clone() });
        state.silent.insert(id);
        state.stats.silent += 1;
        (Connection { id, table: Arc::clone(self) }, cut)
    }

    /// How long a connection may be silent.
    pub(super) const fn first_request(&self) -> Duration {
        self.limits.first_request
    }

    pub(super) fn leave(&self, id: u64) {
        let mut state = self.state.lock();
        if let Some(open) = state.open.remove(&id) {
            state.silent.remove(&id);
            *state.count(open.kind) -= 1;
        }
    }
}

/// An open connection, as the services see it: an extension of each request. Keeps it neither open nor
/// counted.
#[derive(Clone, Debug)]
pub struct Connection {
    id: u64,
    table: Arc<Connections>,
}

impl Connection {
    /// Its number among those of the listener.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// Whether its first request is not there yet.
    pub(super) fn is_silent(&self) -> bool {
        let state = self.table.state.lock();
        state.open.get(&self.id).is_some_and(|open| open.kind == Kind::Silent)
    }

    /// Counts it as a client's, if there is room.
    pub(crate) fn admit_client(&self) -> Result<(), Full> {
        self.admit(Kind::Client, self.table.limits.clients, "clients")
    }

    /// Counts it as a peer's, if there is room.
    pub(crate) fn admit_peer(&self) -> Result<(), Full> {
        self.admit(Kind::Peer, self.table.limits.peers, "peers")
    }

    fn admit(&self, kind: Kind, limit: usize, name: &'static str) -> Result<(), Full> {
        let mut state = self.table.state.lock();
        match state.open.get(&self.id).map(|open| open.kind) {
            // A connection known as a peer's may carry requests of another kind.
            Some(Kind::Peer) | None => Ok(()),
            Some(known) if known == kind => Ok(()),
            Some(_) if *state.count(kind) >= limit => {
                state.stats.refused += 1;
                Err(Full { kind: name, limit })
            }
            Some(_) => {
                state.set(self.id, kind);
                Ok(())
            }
        }
    }

    /// Ends the connection with everything on it.
    pub fn cut(&self) {
        if let Some(open) = self.table.state.lock().open.get(&self.id) {
            open.cut.cancel();
        }
    }

    pub(super) fn note_ended(&self) {
        self.table.state.lock().stats.ended += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(silent: usize, clients: usize, peers: usize) -> Arc<Connections> {
        let first_request = FIRST_REQUEST_TIMEOUT;
        Connections::new(ConnectionLimits { silent, clients, peers, first_request })
    }

    #[test]
    fn the_oldest_silent_connection_makes_way_for_the_next() {
        let table = table(2, 1, 1);
        let entered: Vec<_> = (0..3).map(|_| table.enter()).collect();
        let cut: Vec<_> = entered.iter().map(|(_, cut)| cut.is_cancelled()).collect();
        assert_eq!(cut, [true, false, false]);
        assert_eq!(table.stats().ended, 1);
        table.leave(entered[0].0.id());
        assert_eq!(table.stats().silent, 2);
    }

    #[test]
    fn clients_leave_peers_their_share() {
        let table = table(4, 1, 1);
        let [first, second, peer] = [(); 3].map(|()| table.enter().0);
        assert_eq!(first.admit_client(), Ok(()));
        assert_eq!(first.admit_client(), Ok(()), "once is enough");
        assert!(second.admit_client().is_err());
        assert_eq!(peer.admit_peer(), Ok(()));
        assert_eq!(peer.admit_client(), Ok(()), "a peer may ask what clients ask");
        let stats = ConnectionStats { silent: 1, clients: 1, peers: 1, ended: 0, refused: 1 };
        assert_eq!(table.stats(), stats);
        table.leave(first.id());
        assert_eq!(second.admit_client(), Ok(()));
    }

    #[test]
    fn a_connection_that_was_let_in_is_not_ended_for_others() {
        let table = table(1, 1, 1);
        let (client, cut) = table.enter();
        assert_eq!(client.admit_client(), Ok(()));
        let others: Vec<_> = (0..5).map(|_| table.enter()).collect();
        assert!(!cut.is_cancelled());
        assert_eq!(others.iter().filter(|(_, cut)| cut.is_cancelled()).count(), 4);
    }
}
