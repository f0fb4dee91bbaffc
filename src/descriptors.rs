//! How the open files of the process are shared out: so many for the databases, so many for
//! connections.
//!
//! A database that cannot open a file stops serving every group of the host, and any client that
//! reaches the port can open connections. So connections never get the descriptors of the
//! databases.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::transport::ConnectionLimits;

/// Descriptors that the databases and all else but connections get at most.
const MAX_RESERVE: u64 = 2_048;
/// Of the reserve, this part is for neither database: logs, snapshots, outgoing connections, epoll.
const OTHERS_PART: u64 = 4;
/// Connections at most, whatever the limit: each costs memory, too.
const MAX_CONNECTIONS: u64 = 8_192;
/// A limit that is this high, or none, counts as this.
const MAX_LIMIT: u64 = 1 << 20;

/// The shares of the open files of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Descriptors {
    /// What the system allows.
    pub limit: u64,
    /// Files that the log may hold open.
    pub log_files: usize,
    /// Files that the state of the shards may hold open.
    pub state_files: usize,
    /// Connections that the listener may hold open.
    pub connections: ConnectionLimits,
}

impl Descriptors {
    /// Raises the soft limit of open files to the hard one, and divides the allowed number.
    #[must_use]
    pub fn raise() -> Self {
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        if current != maximum
            && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
        {
            tracing::warn!(%error, ?current, ?maximum, "the limit of open files stays as it is");
        }
        Self::current()
    }

    /// Divides the number that is allowed at present.
    #[must_use]
    pub fn current() -> Self {
        Self::of(getrlimit(Resource::Nofile).current.unwrap_or(MAX_LIMIT))
    }

    /// Shares out `limit` descriptors: half for connections, unless the databases need less.
    #[must_use]
    pub fn of(limit: u64) -> Self {
        let limit = limit.min(MAX_LIMIT);
        let reserve = (limit / 2).min(MAX_RESERVE);
        let files = (reserve - reserve / OTHERS_PART) / 2;
        let connections = (limit - reserve).min(MAX_CONNECTIONS);
        Self {
            limit,
            log_files: as_size(files),
            state_files: as_size(files),
            connections: ConnectionLimits::of(as_size(connections)),
        }
    }
}

fn as_size(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_are_within_the_limit_whatever_it_is() {
        for limit in [0, 1, 20, 64, 256, 1_024, 4_096, 65_536, u64::MAX] {
            let shares = Descriptors::of(limit);
            let ConnectionLimits { silent, clients, operators, peers, .. } = shares.connections;
            let sum = shares.log_files + shares.state_files + silent + clients + operators + peers;
            let reserved = as_size((shares.limit / 2).min(MAX_RESERVE) / OTHERS_PART);
            assert!((sum + reserved) as u64 <= shares.limit.max(3), "{shares:?}");
            assert!(silent > 0 && clients > 0 && peers > 0, "{shares:?}");
        }
    }

    #[test]
    fn a_usual_limit_leaves_the_databases_what_they_need() {
        let shares = Descriptors::of(1_024);
        assert!(shares.log_files >= 128 && shares.state_files >= 128, "{shares:?}");
        assert_eq!(Descriptors::of(65_536).state_files, 768);
    }
}
