//! Where nodes are reached, as text, and where a lane connects to: the configured address of its peer, or
//! the one that the peer's greeting named.
//!
//! A node that was started at another address is found by its greeting, which says where it listens.
//! Nothing proves a greeting, so what it says counts for little:
//!
//! * A process that was reached at the configured address names its address, and may name another
//!   one, as behind a proxy or a tunnel. The address that a later process names is learnt if it
//!   differs. Before any was reached there, as by a host that was restarted after its peer moved,
//!   the named address is learnt: behind a proxy the first connection there corrects it.
//! * The address where a node was found is remembered over restarts: of two nodes that moved,
//!   neither could greet the other one.
//! * The configured address comes first. The learnt one is tried while the configured one does not
//!   lead to the node.
//! * Where the configured address leads to the node, the learnt one is forgotten.
//! * While a lane goes to the learnt address, the configured one is probed repeatedly, and tried
//!   when it has a listener. After each vain probe, the next one waits longer.
//!
//! Pure but for the text of the address: time and connections are the caller's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// Why a text is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{address}` {why}")]
pub struct AddressError {
    address: String,
    why: Why,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Why {
    #[error("is not host:port{0}")]
    Form(&'static str),
    #[error(
        "stands for all addresses of a machine, and others cannot connect to that; name one of them"
    )]
    Everywhere,
}

/// Checks that a text is `host:port`: a name, an IPv4 address, or an IPv6 address in brackets, and a port
/// from 1 on. Whether the name is known is not looked up.
///
/// # Errors
/// [`AddressError`].
pub fn check_address(address: &str) -> Result<(), AddressError> {
    let wrong = |why| Err(AddressError { address: address.to_owned(), why: Why::Form(why) });
    if address.contains("://") || address.contains('/') {
        return wrong("; leave the scheme and the path out");
    }
    let Some((host, port)) = address.rsplit_once(':') else {
        return wrong("; the port is missing");
    };
    let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    if !digits || port.parse::<u16>().map_or(true, |port| port == 0) {
        return wrong("; the port is 1 to 65535");
    }
    if let Some(inner) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return match inner.parse::<Ipv6Addr>() {
            Ok(_) => Ok(()),
            Err(_) => wrong("; between the brackets stands no IPv6 address"),
        };
    }
    if host.contains(':') {
        return wrong("; an IPv6 address stands in brackets, as in [::1]:7400");
    }
    let in_names = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if host.is_empty() || !host.bytes().all(in_names) {
        return wrong("; a host has letters, digits, '.', '-' and '_'");
    }
    if host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return match host.parse::<Ipv4Addr>() {
            Ok(_) => Ok(()),
            Err(_) => wrong("; a host of digits and dots is an IPv4 address, and that is none"),
        };
    }
    // A name from the root on ends with a dot.
    let mut labels = host.strip_suffix('.').unwrap_or(host).split('.');
    if labels.any(|label| label.is_empty() || label.starts_with('-') || label.ends_with('-')) {
        return wrong("; the parts of a name are not empty, and neither begin nor end with '-'");
    }
    Ok(())
}

/// The same of one where others reach a node: it is not that of all addresses of a machine, as `0.0.0.0`.
///
/// # Errors
/// [`AddressError`].
pub fn check_reachable(address: &str) -> Result<(), AddressError> {
    check_address(address)?;
    let host = address.rsplit_once(':').map_or("", |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match host.parse::<IpAddr>() {
        Ok(ip) if ip.to_canonical().is_unspecified() => {
            Err(AddressError { address: address.to_owned(), why: Why::Everywhere })
        }
        _ => Ok(()),
    }
}

/// Bytes of an address that is learnt, at most.
const MAX_LEARNT_BYTES: usize = 255;

/// Whether an address that a greeting names is one that others can connect to.
pub(super) fn may_be_learnt(address: &str) -> bool {
    address.len() <= MAX_LEARNT_BYTES && check_reachable(address).is_ok()
}

/// What the greetings of a peer say of its address.
#[derive(Clone, Debug, Default)]
pub(super) struct Named {
    /// The last greeting: which process, and the address that it named.
    last: Option<(u64, String)>,
    /// The process that answered at the configured address last.
    reached: Option<u64>,
    /// What a process named that answered at the configured address: the two are one place.
    usual: Option<String>,
    /// Where the last greeting says that the node is, if it moved.
    moved_to: Option<String>,
}

impl Named {
    /// A process of the peer greeted and named its address.
    pub fn greeted(&mut self, incarnation: u64, address: &str, configured: &str) {
        self.last = Some((incarnation, address.to_owned()));
        if self.reached == Some(incarnation) {
            return self.note_usual();
        }
        self.note_moved(address, configured);
    }

    /// An earlier process of this host found the node there.
    pub fn remembered(&mut self, address: &str, configured: &str) {
        self.note_moved(address, configured);
    }

    fn note_moved(&mut self, address: &str, configured: &str) {
        let moved = self.usual.as_deref() != Some(address) && address != configured;
        self.moved_to = (moved && may_be_learnt(address)).then(|| address.to_owned());
    }

    /// A process of the peer answered at the configured address.
    pub fn reached(&mut self, incarnation: u64) {
        self.reached = Some(incarnation);
        self.note_usual();
    }

    fn note_usual(&mut self) {
        self.moved_to = None;
        if let Some((last, address)) = &self.last
            && Some(*last) == self.reached
        {
            self.usual = Some(address.clone());
        }
    }

    /// Where the node is, if that is not where it should be.
    pub fn moved_to(&self) -> Option<&str> {
        self.moved_to.as_deref()
    }
}

/// Which of its addresses a peer is tried at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Configured,
    Learnt,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The address did not lead to the node.
    NotThere,
    /// The node answered there. The lane may have been open for long.
    WasThere,
    /// The configured address has a listener while the lane goes to the learnt one.
    ConfiguredListens,
}

/// When the next attempt is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    AtOnce,
    Later,
}

/// The looks at the configured address wait up to so many times longer.
const MAX_LOOK_FACTOR: u32 = 32;

/// The way of one lane between the addresses of its peer.
#[derive(Clone, Debug)]
pub(super) struct Course {
    place: Place,
    /// How long a lane stays at the learnt address before the configured one is looked at.
    look_after: Duration,
    least_look_after: Duration,
}

impl Course {
    /// Begins at the configured address.
    pub fn new(look_after: Duration) -> Self {
        Self { place: Place::Configured, look_after, least_look_after: look_after }
    }

    /// Where the next attempt goes. Without a learnt address there is one place only.
    pub fn place(&mut self, learnt: bool) -> Place {
        if !learnt {
            self.place = Place::Configured;
        }
        self.place
    }

    /// How long to wait before the configured address is looked at.
    pub const fn look_after(&self) -> Duration {
        self.look_after
    }

    /// Takes in how an attempt ended.
    pub fn ended(&mut self, outcome: Outcome, learnt: bool) -> Next {
        match (self.place, outcome) {
            (Place::Configured, Outcome::WasThere) => {
                self.look_after = self.least_look_after;
                Next::Later
            }
            (Place::Configured, _) if learnt => {
                self.place = Place::Learnt;
                Next::AtOnce
            }
            (Place::Configured, _) => Next::Later,
            (Place::Learnt, Outcome::ConfiguredListens) => {
                let most = self.least_look_after * MAX_LOOK_FACTOR;
                self.look_after = (self.look_after * 2).min(most);
                self.place = Place::Configured;
                Next::AtOnce
            }
            // It may have been restarted there.
            (Place::Learnt, Outcome::WasThere) => Next::Later,
            (Place::Learnt, Outcome::NotThere) => {
                self.place = Place::Configured;
                Next::Later
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: Duration = Duration::from_secs(10);

    #[test]
    fn what_others_cannot_connect_to_is_not_learnt() {
        for good in ["10.0.0.2:7400", "node-2.example:1", "[fe80::1]:7400"] {
            assert!(may_be_learnt(good), "{good}");
        }
        let long = format!("{}:7400", "x".repeat(MAX_LEARNT_BYTES));
        let everywhere = ["0.0.0.0:7400", "[::]:7400", "[::ffff:0.0.0.0]:7400"];
        for bad in ["", "x", "http://x:1", "a b:1", "x:0", &long].into_iter().chain(everywhere) {
            assert!(!may_be_learnt(bad), "{bad}");
        }
        for bad in everywhere {
            check_address(bad).unwrap();
            let why = check_reachable(bad).unwrap_err().to_string();
            assert!(why.contains("all addresses of a machine"), "{why}");
        }
    }

    #[test]
    fn only_a_change_of_what_is_named_is_a_move() {
        let mut named = Named::default();
        // Behind a proxy: it names itself, and is reached elsewhere. Whichever comes first.
        named.greeted(1, "b:1", "proxy:1");
        assert_eq!(named.moved_to(), Some("b:1"), "it was not reached yet");
        named.reached(1);
        assert_eq!(named.moved_to(), None, "the two are one place");
        named.greeted(2, "b:1", "proxy:1");
        assert_eq!(named.moved_to(), None, "it was restarted where it was");
        named.reached(2);
        named.greeted(3, "b:2", "proxy:1");
        assert_eq!(named.moved_to(), Some("b:2"));
        named.reached(3);
        assert_eq!(named.moved_to(), None, "the proxy leads to it");
        named.greeted(4, "b:2", "proxy:1");
        assert_eq!(named.moved_to(), None);
        for back in ["proxy:1", "0.0.0.0:1"] {
            named.greeted(5, "b:3", "proxy:1");
            assert_eq!(named.moved_to(), Some("b:3"));
            named.greeted(6, back, "proxy:1");
            assert_eq!(named.moved_to(), None, "{back}");
        }
        let mut late = Named::default();
        late.reached(1);
        late.greeted(1, "b:1", "a:1");
        late.greeted(2, "b:2", "a:1");
        assert_eq!(late.moved_to(), Some("b:2"));
    }

    #[test]
    fn whoever_starts_after_a_move_takes_what_is_named_or_was_found_before() {
        let mut named = Named::default();
        named.greeted(7, "b:2", "b:1");
        assert_eq!(named.moved_to(), Some("b:2"));
        for wrong in ["b:1", "0.0.0.0:1"] {
            named.greeted(8, wrong, "b:1");
            assert_eq!(named.moved_to(), None, "{wrong}");
        }

        let mut found = Named::default();
        found.remembered("b:1", "b:1");
        assert_eq!(found.moved_to(), None, "the configuration was corrected");
        found.remembered("b:2", "b:1");
        assert_eq!(found.moved_to(), Some("b:2"));
        found.greeted(9, "b:3", "b:1");
        assert_eq!(found.moved_to(), Some("b:3"), "it moved on");
        found.reached(10);
        assert_eq!(found.moved_to(), None);
    }

    #[test]
    fn the_learnt_address_is_tried_where_the_configured_one_does_not_lead_to_the_node() {
        let mut course = Course::new(LOOK);
        assert_eq!(course.place(true), Place::Configured);
        assert_eq!(course.ended(Outcome::NotThere, true), Next::AtOnce);
        assert_eq!(course.place(true), Place::Learnt);
        assert_eq!(course.ended(Outcome::NotThere, true), Next::Later);
        assert_eq!(course.place(true), Place::Configured);
    }

    #[test]
    fn a_node_that_answers_at_its_configured_address_is_not_looked_for_elsewhere() {
        let mut course = Course::new(LOOK);
        assert_eq!(course.ended(Outcome::WasThere, true), Next::Later);
        assert_eq!(course.place(true), Place::Configured);
        assert_eq!(course.ended(Outcome::NotThere, false), Next::Later);
        assert_eq!(course.place(false), Place::Configured);
    }

    #[test]
    fn a_lane_comes_back_to_the_configured_address_and_less_often_in_vain() {
        let mut course = Course::new(LOOK);
        let mut waits = Vec::new();
        for _ in 0..7 {
            course.ended(Outcome::NotThere, true);
            assert_eq!(course.place(true), Place::Learnt);
            waits.push(course.look_after().as_secs());
            assert_eq!(course.ended(Outcome::ConfiguredListens, true), Next::AtOnce);
            assert_eq!(course.place(true), Place::Configured);
        }
        assert_eq!(waits, [10, 20, 40, 80, 160, 320, 320]);
        course.ended(Outcome::WasThere, true);
        assert_eq!(course.look_after(), LOOK);
    }

    #[test]
    fn a_lane_that_broke_at_the_learnt_address_is_made_anew_there_once() {
        let mut course = Course::new(LOOK);
        course.ended(Outcome::NotThere, true);
        assert_eq!(course.ended(Outcome::WasThere, true), Next::Later);
        assert_eq!(course.place(true), Place::Learnt);
        course.ended(Outcome::NotThere, true);
        assert_eq!(course.place(true), Place::Configured);
    }
}
