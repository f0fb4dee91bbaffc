//! The open connections by kind, and the shares that the kinds have.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use shardhost_proto::methods::{Audience, Audiences};
use shardhost_security::Caller;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long a connection may be open before its first request is let in.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// A client's connection without an open request for so long makes way for another client.
const IDLE_BEFORE_IT_ENDS: Duration = Duration::from_secs(60);

/// Bounds of the connections of one listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionLimits {
    /// Connections without a request so far. One more ends the oldest of them.
    pub silent: usize,
    /// Connections of clients and operators. A further one ends the one that had no open request for
    /// longest, if that is for 60 seconds, and else is refused at its first request.
    pub clients: usize,
    /// Connections of users who may do what operators do, as far as certificates and tokens say who that is.
    /// Further ones count as those of clients.
    pub operators: usize,
    /// Connections of peers, beside those of clients.
    pub peers: usize,
    /// How long one may be open before its first request is let in.
    pub first_request: Duration,
}

impl ConnectionLimits {
    /// Shares out `connections`: nine sixteenths for clients, one for operators, a quarter for peers, an eighth
    /// for those that have not asked for anything yet.
    #[must_use]
    pub const fn of(connections: usize) -> Self {
        const fn at_least_one(number: usize) -> usize {
            if number == 0 { 1 } else { number }
        }
        Self {
            silent: at_least_one(connections / 8),
            clients: at_least_one(connections * 9 / 16),
            operators: connections / 16,
            peers: at_least_one(connections / 4),
            first_request: FIRST_REQUEST_TIMEOUT,
        }
    }

    /// Divides the shares among listeners, by who is served there: that of peers goes to the listener of nodes,
    /// that of operators to theirs, and all have the same of those without a request. Those who are not known
    /// count as clients, and so do nodes that ask no peer's service: a listener without clients has a ninth of
    /// their share.
    #[must_use]
    pub fn divided(self, listeners: &[Audiences]) -> Vec<Self> {
        let without = listeners.iter().filter(|served| !served.has(Audience::Clients)).count();
        let (silent, few) = (self.silent / listeners.len().max(1), (self.clients / 9).max(1));
        let many = self.clients.saturating_sub(few * without).max(1);
        let of = |served: &Audiences| Self {
            silent: silent.max(1),
            clients: if served.has(Audience::Clients) { many } else { few },
            operators: if served.has(Audience::Operators) { self.operators } else { 0 },
            peers: if served.has(Audience::Nodes) { self.peers } else { 0 },
            first_request: self.first_request,
        };
        listeners.iter().map(of).collect()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Silent,
    Client,
    Operator,
    Peer,
}

/// How many connections there are, and how many there were too many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionStats {
    /// Open, without a request so far.
    pub silent: usize,
    /// Open, of clients, and of operators who are not known or beyond their share.
    pub clients: usize,
    pub operators: usize,
    pub peers: usize,
    /// Silent ones that were ended, after too long or to make way for others, and idle ones of clients.
    pub ended: u64,
    /// Refused, because there are as many of their kind as there may be.
    pub refused: u64,
    /// That ended before the first request, because their TLS or their certificate was not in order.
    pub refused_handshakes: u64,
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
    /// Those of clients without an open request, and since when, longest first.
    idle: BTreeSet<(Instant, u64)>,
    /// Those of clients that were ended and are not closed yet.
    leaving: usize,
    stats: ConnectionStats,
}

#[derive(Debug)]
struct Open {
    kind: Kind,
    cut: CancellationToken,
    /// Requests whose answer is not complete.
    requests: usize,
    /// Its place among the idle ones.
    idle_since: Option<Instant>,
    /// It was ended for another one.
    leaves: bool,
}

impl Open {
    const fn new(cut: CancellationToken) -> Self {
        Self { kind: Kind::Silent, cut, requests: 0, idle_since: None, leaves: false }
    }
}

impl State {
    const fn count(&mut self, kind: Kind) -> &mut usize {
        match kind {
            Kind::Silent => &mut self.stats.silent,
            Kind::Client => &mut self.stats.clients,
            Kind::Operator => &mut self.stats.operators,
            Kind::Peer => &mut self.stats.peers,
        }
    }

    fn set(&mut self, id: u64, kind: Kind) {
        let Some(open) = self.open.get_mut(&id) else { return };
        let before = std::mem::replace(&mut open.kind, kind);
        if let Some(since) = open.idle_since.take() {
            self.idle.remove(&(since, id));
        }
        if before == Kind::Silent {
            self.silent.remove(&id);
        }
        *self.count(before) -= 1;
        *self.count(kind) += 1;
    }

    /// Ends the client's connection that was idle for longest; false: none was for long enough.
    fn end_idle(&mut self) -> bool {
        let Some((since, id)) = self.idle.first().copied() else { return false };
        if since.elapsed() < IDLE_BEFORE_IT_ENDS {
            return false;
        }
        self.idle.pop_first();
        if let Some(open) = self.open.get_mut(&id) {
            (open.idle_since, open.leaves) = (None, true);
            open.cut.cancel();
            self.leaving += 1;
            self.stats.ended += 1;
        }
        true
    }

    fn begin_request(&mut self, id: u64) {
        let Some(open) = self.open.get_mut(&id) else { return };
        open.requests += 1;
        if let Some(since) = open.idle_since.take() {
            self.idle.remove(&(since, id));
        }
    }

    fn end_request(&mut self, id: u64) {
        let Some(open) = self.open.get_mut(&id) else { return };
        open.requests -= 1;
        if open.requests == 0 && open.kind == Kind::Client && !open.leaves {
            let now = Instant::now();
            open.idle_since = Some(now);
            self.idle.insert((now, id));
        }
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
        state.open.insert(id, Open::new(cut.clone()));
        state.silent.insert(id);
        state.stats.silent += 1;
        (
            Connection {
                id,
                table: Arc::clone(self),
                caller: Arc::default(),
                tokens: Arc::default(),
            },
            cut,
        )
    }

    /// Ends all that are open.
    pub fn cut_all(&self) {
        for open in self.state.lock().open.values() {
            open.cut.cancel();
        }
    }

    /// How long a connection may be silent.
    pub(super) const fn first_request(&self) -> Duration {
        self.limits.first_request
    }

    pub(super) fn leave(&self, id: u64) {
        let mut state = self.state.lock();
        if let Some(open) = state.open.remove(&id) {
            state.silent.remove(&id);
            if let Some(since) = open.idle_since {
                state.idle.remove(&(since, id));
            }
            state.leaving -= usize::from(open.leaves);
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
    caller: Arc<OnceLock<Caller>>,
    /// What ends when the tokens do that were used over it. Asked at every read and write, so a connection
    /// over which none was used takes no lock.
    tokens: Arc<OnceLock<Mutex<Vec<CancellationToken>>>>,
}

/// Tokens that may be used over one connection.
const MOST_TOKENS: usize = 8;

impl Connection {
    /// Who is at the other end, as its certificate says.
    #[must_use]
    pub fn caller(&self) -> Caller {
        // Requests come after that is known.
        self.caller.get().cloned().unwrap_or(Caller::Unknown)
    }

    /// A token is used over it; false: too many are.
    pub(super) fn uses(&self, ended: &CancellationToken) -> bool {
        let mut tokens = self.tokens.get_or_init(Mutex::default).lock();
        if tokens.contains(ended) {
            return true;
        }
        let room = tokens.len() < MOST_TOKENS;
        if room {
            tokens.push(ended.clone());
        }
        room
    }

    /// Whether a token that was used over it ended: answers of that may wait for a side that takes nothing.
    pub(super) fn outlived_a_token(&self) -> bool {
        let Some(tokens) = self.tokens.get() else { return false };
        tokens.lock().iter().any(CancellationToken::is_cancelled)
    }

    /// The same connection, of which this says who is at the other end.
    pub(super) fn of(mut self, caller: Arc<OnceLock<Caller>>) -> Self {
        self.caller = caller;
        self
    }

    /// It ended before it was known who is at the other end. Returns how many did.
    pub(super) fn note_refused_handshake(&self) -> u64 {
        let mut state = self.table.state.lock();
        state.stats.refused_handshakes += 1;
        state.stats.refused_handshakes
    }

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

    /// A request of it begins, and lasts until what is returned is dropped.
    pub(super) fn begin_request(&self) -> OpenRequest {
        self.table.state.lock().begin_request(self.id);
        OpenRequest(self.clone())
    }

    /// Counts it as a client's, if there is room, or another one was idle for long.
    pub(crate) fn admit_client(&self) -> Result<(), Full> {
        self.admit(Kind::Client, self.table.limits.clients, "clients")
    }

    /// Counts it as an operator's, or as a client's where there are as many of operators as may be: clients
    /// that keep all their places keep no operator out.
    pub(crate) fn admit_operator(&self) -> Result<(), Full> {
        {
            let mut state = self.table.state.lock();
            let kind = state.open.get(&self.id).map(|open| open.kind);
            let admitted = !matches!(kind, Some(Kind::Silent | Kind::Client));
            if admitted {
                return Ok(());
            }
            if state.stats.operators < self.table.limits.operators {
                state.set(self.id, Kind::Operator);
                return Ok(());
            }
        }
        self.admit_client()
    }

    /// Counts it as a peer's, if there is room.
    pub(crate) fn admit_peer(&self) -> Result<(), Full> {
        self.admit(Kind::Peer, self.table.limits.peers, "peers")
    }

    fn admit(&self, kind: Kind, limit: usize, name: &'static str) -> Result<(), Full> {
        let mut state = self.table.state.lock();
        match state.open.get(&self.id).map(|open| open.kind) {
            // A connection known as a peer's or an operator's may carry requests of another kind.
            Some(Kind::Peer) | None => Ok(()),
            Some(Kind::Operator) if kind == Kind::Client => Ok(()),
            Some(known) if known == kind => Ok(()),
            Some(_) => {
                let leaving = if kind == Kind::Client { state.leaving } else { 0 };
                let is_full = state.count(kind).saturating_sub(leaving) >= limit;
                if is_full && !(kind == Kind::Client && state.end_idle()) {
                    state.stats.refused += 1;
                    return Err(Full { kind: name, limit });
                }
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

/// A request whose answer is not complete.
#[derive(Debug)]
pub(super) struct OpenRequest(Connection);

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.0.table.state.lock().end_request(self.0.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(silent: usize, clients: usize, peers: usize) -> Arc<Connections> {
        let (operators, first_request) = (1, FIRST_REQUEST_TIMEOUT);
        Connections::new(ConnectionLimits { silent, clients, operators, peers, first_request })
    }

    #[test]
    fn clients_that_keep_their_places_keep_no_operator_out() {
        let table = table(8, 1, 1);
        let [client, second, operator, another] = [(); 4].map(|()| table.enter().0);
        client.admit_client().unwrap();
        let _asks = client.begin_request();
        assert!(second.admit_client().is_err());
        assert_eq!(operator.admit_operator(), Ok(()));
        assert_eq!(operator.admit_operator(), Ok(()), "once is enough");
        assert_eq!(operator.admit_client(), Ok(()), "an operator may ask what clients ask");
        assert!(another.admit_operator().is_err(), "there is one place, and none of clients");
        assert_eq!(table.stats().operators, 1);
        table.leave(operator.id());
        assert_eq!(another.admit_operator(), Ok(()));
        // It takes no place of clients any more.
        table.leave(another.id());
        assert_eq!(client.admit_operator(), Ok(()));
        assert_eq!(second.admit_client(), Ok(()));
        let stats = table.stats();
        assert_eq!((stats.clients, stats.operators), (1, 1));
    }

    #[test]
    fn several_listeners_have_no_more_connections_than_one_and_each_has_those_of_whom_it_serves() {
        use Audience::{Clients, Nodes, Operators};
        let sets: [&[&[Audience]]; 4] = [
            &[&[Nodes, Operators, Clients]],
            &[&[Nodes, Operators], &[Clients]],
            &[&[Nodes, Clients], &[Operators]],
            &[&[Nodes], &[Operators], &[Clients]],
        ];
        for (connections, served) in
            [0, 1, 20, 64, 512, 8_192].into_iter().flat_map(|count| sets.map(|set| (count, set)))
        {
            let one = ConnectionLimits::of(connections);
            let served: Vec<Audiences> = served.iter().map(|set| Audiences::of(set)).collect();
            let all = one.divided(&served);
            let sum = |of: fn(&ConnectionLimits) -> usize| all.iter().map(of).sum::<usize>();
            let count = served.len();
            assert!(sum(|limits| limits.silent) <= one.silent.max(count), "{all:?}");
            assert!(sum(|limits| limits.clients) <= one.clients.max(count), "{all:?}");
            assert_eq!(sum(|limits| limits.operators), one.operators);
            assert_eq!(sum(|limits| limits.peers), one.peers);
            for (limits, served) in all.iter().zip(&served) {
                assert!(limits.silent > 0 && limits.clients > 0, "{limits:?}");
                assert_eq!(limits.operators > 0, served.has(Operators) && one.operators > 0);
                assert_eq!(limits.peers > 0, served.has(Nodes), "{limits:?}");
            }
            if let [alone] = all[..] {
                assert_eq!(alone, one);
            }
        }
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
        let stats = ConnectionStats {
            silent: 1,
            clients: 1,
            peers: 1,
            refused: 1,
            ..ConnectionStats::default()
        };
        assert_eq!(table.stats(), stats);
        table.leave(first.id());
        assert_eq!(second.admit_client(), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_asks_nothing_makes_way_for_one_that_does() {
        let table = table(8, 2, 1);
        let [(first, first_cut), (second, second_cut)] = [(); 2].map(|()| table.enter());
        for connection in [&first, &second] {
            connection.admit_client().unwrap();
        }
        let open = first.begin_request();
        drop(second.begin_request());
        let (third, third_cut) = table.enter();
        assert!(third.admit_client().is_err(), "none was idle for long");
        tokio::time::advance(IDLE_BEFORE_IT_ENDS).await;
        assert_eq!(third.admit_client(), Ok(()));
        assert!(
            second_cut.is_cancelled() && !first_cut.is_cancelled() && !third_cut.is_cancelled()
        );
        // One leaves, and makes room for one.
        let (fourth, _) = table.enter();
        assert!(fourth.admit_client().is_err(), "the first one waits for its answer");
        table.leave(second.id());
        assert!(fourth.admit_client().is_err());
        drop(open);
        tokio::time::advance(IDLE_BEFORE_IT_ENDS / 2).await;
        drop(first.begin_request());
        tokio::time::advance(IDLE_BEFORE_IT_ENDS / 2).await;
        assert!(fourth.admit_client().is_err(), "it asked meanwhile");
        tokio::time::advance(IDLE_BEFORE_IT_ENDS / 2).await;
        assert_eq!(fourth.admit_client(), Ok(()));
        assert!(first_cut.is_cancelled());
        for connection in [&first, &third, &fourth] {
            table.leave(connection.id());
        }
        let state = table.state.lock();
        assert!(state.idle.is_empty() && state.leaving == 0 && state.stats.clients == 0);
    }

    #[tokio::test(start_paused = true)]
    async fn no_peer_makes_way() {
        let table = table(4, 1, 1);
        let (peer, cut) = table.enter();
        peer.admit_client().unwrap();
        drop(peer.begin_request());
        peer.admit_peer().unwrap();
        drop(peer.begin_request());
        tokio::time::advance(2 * IDLE_BEFORE_IT_ENDS).await;
        let [first, second] = [(); 2].map(|()| table.enter().0);
        assert_eq!(first.admit_client(), Ok(()));
        assert!(second.admit_client().is_err());
        assert!(!cut.is_cancelled());
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
