//! The inbox of a worker, in two parts: what comes from outside is bounded and refused when it is
//! full; completions of what the worker itself handed out always fit, for there are never more of
//! them than of what was handed out.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded, unbounded};

use crate::worker::Input;

/// Inputs from outside that may wait.
const MAX_INPUTS: usize = 1 << 16;
/// Bytes of peers' messages that may wait.
const MAX_PEER_BYTES: usize = 64 << 20;

/// Where a worker's inputs are put.
#[derive(Debug)]
pub(crate) struct Inbox {
    outside: Sender<Input>,
    completions: Sender<Input>,
    peer_bytes: std::sync::Arc<AtomicUsize>,
    end: End,
}

/// The end of a worker. A caller that waits for an input learns that the worker is gone when the
/// input is dropped: none may stay in a channel that is never read again. So a worker that ends
/// sets this and empties the channels, and a sender that finds it set after putting something in
/// does it too.
#[derive(Clone, Debug)]
struct End {
    ended: std::sync::Arc<AtomicBool>,
    outside: Receiver<Input>,
    completions: Receiver<Input>,
}

impl End {
    fn has_come(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    fn empty(&self) {
        while self.outside.try_recv().is_ok() {}
        while self.completions.try_recv().is_ok() {}
    }
}

/// Where a worker takes them.
#[derive(Debug)]
pub(super) struct Outlet {
    pub(super) outside: Receiver<Input>,
    pub(super) completions: Receiver<Input>,
    peer_bytes: std::sync::Arc<AtomicUsize>,
    end: End,
}

impl Drop for Outlet {
    fn drop(&mut self) {
        self.end.ended.store(true, Ordering::SeqCst);
        self.end.empty();
    }
}

impl Inbox {
    pub(super) fn new() -> (Self, Outlet) {
        let (outside, outside_outlet) = bounded(MAX_INPUTS);
        // Bounded by what the worker handed out; see the head of the file.
        let (completions, completions_outlet) = unbounded();
        let peer_bytes = std::sync::Arc::new(AtomicUsize::new(0));
        let end = End {
            ended: std::sync::Arc::default(),
            outside: outside_outlet.clone(),
            completions: completions_outlet.clone(),
        };
        let outlet = Outlet {
            outside: outside_outlet,
            completions: completions_outlet,
            peer_bytes: std::sync::Arc::clone(&peer_bytes),
            end: end.clone(),
        };
        (Self { outside, completions, peer_bytes, end }, outlet)
    }

    /// Offers an input from outside.
    pub(crate) fn offer(&self, input: Input) -> Result<(), TrySendError<Input>> {
        if self.end.has_come() {
            return Err(TrySendError::Disconnected(input));
        }
        self.outside.try_send(input)?;
        if self.end.has_come() {
            self.end.empty();
        }
        Ok(())
    }

    /// Offers messages of `bytes` bytes from a peer; they come back when they do not fit.
    pub(super) fn offer_peer(&self, input: Input, bytes: usize) -> Result<(), Input> {
        if self.peer_bytes.load(Ordering::Relaxed) > MAX_PEER_BYTES {
            return Err(input);
        }
        self.peer_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.offer(input).map_err(|error| {
            self.peer_bytes.fetch_sub(bytes, Ordering::Relaxed);
            error.into_inner()
        })
    }

    /// Puts in a completion. When the worker is gone, no caller waits for it.
    pub(crate) fn complete(&self, input: Input) {
        if self.completions.send(input).is_err() || self.end.has_come() {
            tracing::trace!("a completion came after its worker had ended");
            self.end.empty();
        }
    }
}

impl Outlet {
    /// Peers' messages of `bytes` bytes were taken out.
    pub(super) fn took_peer_bytes(&self, bytes: usize) {
        self.peer_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// What messages count for in the bound of bytes.
pub(super) fn peer_bytes(messages: &[shardhost_proto::peer::GroupMessage]) -> usize {
    let payload = |message: &shardhost_proto::peer::GroupMessage| {
        let entries: usize = message.entries.iter().map(|entry| entry.data.len() + 64).sum();
        size_of::<shardhost_proto::peer::GroupMessage>() + entries
    };
    messages.iter().map(payload).sum()
}

#[cfg(test)]
mod tests {
    use shardhost_proto::log::Entry;
    use shardhost_proto::peer::GroupMessage;
    use shardhost_storage::NodeId;

    use super::*;

    fn from_peer() -> Input {
        Input::Peer { from: NodeId::must(2), messages: Vec::new() }
    }

    #[test]
    fn what_comes_from_outside_is_refused_when_the_inbox_is_full() {
        let (inbox, outlet) = Inbox::new();
        (0..MAX_INPUTS).for_each(|_| inbox.offer(Input::Stop).unwrap());
        assert!(matches!(inbox.offer(Input::Stop), Err(TrySendError::Full(Input::Stop))));
        outlet.outside.recv().unwrap();
        inbox.offer(Input::Stop).unwrap();
    }

    #[test]
    fn completions_fit_into_a_full_inbox() {
        let (inbox, outlet) = Inbox::new();
        (0..MAX_INPUTS).for_each(|_| inbox.offer(Input::Stop).unwrap());
        inbox.complete(Input::Persisted(Vec::new()));
        assert!(matches!(outlet.completions.recv().unwrap(), Input::Persisted(_)));
    }

    #[test]
    fn messages_of_peers_are_bounded_in_bytes() {
        let (inbox, outlet) = Inbox::new();
        inbox.offer_peer(from_peer(), MAX_PEER_BYTES).unwrap();
        inbox.offer_peer(from_peer(), 1).unwrap();
        inbox.offer_peer(from_peer(), 1).unwrap_err();
        outlet.took_peer_bytes(MAX_PEER_BYTES);
        inbox.offer_peer(from_peer(), 1).unwrap();
    }

    #[test]
    fn messages_that_find_the_inbox_full_give_their_bytes_back() {
        let (inbox, outlet) = Inbox::new();
        (0..MAX_INPUTS).for_each(|_| inbox.offer(Input::Stop).unwrap());
        for _ in 0..100 {
            inbox.offer_peer(from_peer(), MAX_PEER_BYTES).unwrap_err();
        }
        outlet.outside.recv().unwrap();
        inbox.offer_peer(from_peer(), 1).unwrap();
    }

    #[test]
    fn an_inbox_whose_worker_ended_takes_nothing() {
        let (inbox, outlet) = Inbox::new();
        drop(outlet);
        assert!(matches!(inbox.offer(Input::Stop), Err(TrySendError::Disconnected(_))));
        inbox.offer_peer(from_peer(), 1).unwrap_err();
        // No caller waits for it; it must not panic.
        inbox.complete(Input::Stop);
    }

    #[test]
    fn messages_count_with_their_payload() {
        let empty = GroupMessage::default();
        let entry = Entry { data: vec![0; 1_000].into(), ..Entry::default() };
        let full = GroupMessage { entries: vec![entry; 3], ..GroupMessage::default() };
        assert!(peer_bytes(std::slice::from_ref(&empty)) > 0, "an empty one is not free");
        let both = peer_bytes(&[empty, full]);
        assert!((3_000..5_000).contains(&both), "{both}");
    }
}
