//! The listeners of a host: the one that everything is served on, or some more, for operators, for clients or for
//! each of them.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use shardhost_proto::methods::{Audience, Audiences};
use tokio::net::TcpListener;

use super::builder::StartError;
use super::config::HostConfig;
use crate::transport::{Connections, Served};

/// A socket on which connections are accepted, which calls are answered there, and its connections.
#[derive(Debug)]
pub(super) struct Listener {
    pub socket: TcpListener,
    pub served: Served,
    pub connections: Arc<Connections>,
}

/// Where a listener of some is bound, and where they reach it.
#[derive(Clone, Debug)]
pub(super) struct Apart {
    pub bound: SocketAddr,
    pub reached: String,
}

/// Those of one host, which are bound and answer nothing yet.
#[derive(Debug)]
pub(super) struct Listeners {
    /// That of nodes first.
    pub all: Vec<Listener>,
    /// Where the first one listens, and where peers reach it.
    pub address: SocketAddr,
    pub advertise: String,
    /// Who has a listener apart from that.
    pub apart: BTreeMap<Audience, Apart>,
}

impl Listeners {
    /// Binds what the configuration names; `given` is bound already, and takes the place of the first.
    pub fn bind(
        given: Option<std::net::TcpListener>,
        config: &HostConfig,
    ) -> Result<Self, StartError> {
        let (socket, address) = bind(given, config.listen)?;
        let advertise = config.advertise.clone().unwrap_or_else(|| address.to_string());
        let (mut sockets, mut apart) = (vec![socket], BTreeMap::new());
        for (audience, listen, named) in [
            (Audience::Operators, config.admin_listen, &config.admin_advertise),
            (Audience::Clients, config.client_listen, &config.client_advertise),
        ] {
            let Some(listen) = listen else { continue };
            let (socket, bound) = bind(None, listen)?;
            let reached = named.clone().unwrap_or_else(|| beside(&advertise, bound));
            sockets.push(socket);
            apart.insert(audience, Apart { bound, reached });
        }
        let served = served(&advertise, &apart);
        let sets: Vec<Audiences> = served.iter().map(Served::here).collect();
        let connections = config.connections.divided(&sets).into_iter().map(Connections::new);
        let all = sockets.into_iter().zip(served).zip(connections);
        let all =
            all.map(|((socket, served), connections)| Listener { socket, served, connections });
        Ok(Self { all: all.collect(), address, advertise, apart })
    }
}

/// What the listeners serve: that of nodes, and then those apart from it.
fn served(advertise: &str, apart: &BTreeMap<Audience, Apart>) -> Vec<Served> {
    let at = |one: Audience| apart.get(&one).map_or(advertise, |apart| &apart.reached).to_owned();
    let elsewhere = |is: &dyn Fn(Audience) -> bool| {
        let others = Audience::ALL.into_iter().filter(|one| is(*one));
        Served::all_but(others.map(|one| (one, at(one))).collect())
    };
    let first = elsewhere(&|one| apart.contains_key(&one));
    let others = apart.keys().map(|own| elsewhere(&|one| one != *own));
    std::iter::once(first).chain(others).collect()
}

/// Where a listener is reached that is bound there, on a machine whose other one is reached at `advertise`.
fn beside(advertise: &str, bound: SocketAddr) -> String {
    match advertise.rsplit_once(':') {
        Some((host, _)) if bound.ip().is_unspecified() => format!("{host}:{}", bound.port()),
        _ => bound.to_string(),
    }
}

fn bind(
    given: Option<std::net::TcpListener>,
    address: SocketAddr,
) -> Result<(TcpListener, SocketAddr), StartError> {
    let bound = given.map_or_else(|| std::net::TcpListener::bind(address), Ok);
    let bound = bound.and_then(|listener| {
        listener.set_nonblocking(true)?;
        let local = listener.local_addr()?;
        Ok((TcpListener::from_std(listener)?, local))
    });
    bound.map_err(|error: io::Error| StartError::Listen { address, error })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> HostConfig {
        let mut config = HostConfig::new(shardhost_storage::NodeId::must(1), "unused");
        config.advertise = Some("node-1.example:7400".to_owned());
        config
    }

    fn elsewhere(others: &[(Audience, &str)]) -> Served {
        Served::all_but(others.iter().map(|(one, at)| (*one, (*at).to_owned())).collect())
    }

    #[tokio::test]
    async fn each_listener_knows_the_addresses_of_the_others() {
        use Audience::{Clients, Nodes, Operators};
        let local = || Some("127.0.0.1:0".parse().unwrap());
        let mut config = config();
        let bind = |config: &HostConfig| {
            let bound = Listeners::bind(None, config).unwrap();
            let served: Vec<Served> = bound.all.into_iter().map(|one| one.served).collect();
            (bound.address, bound.apart, served)
        };
        let (_, apart, served) = bind(&config);
        assert!(apart.is_empty() && served == [Served::all()], "{served:?}");
        config.client_listen = local();
        let (address, apart, served) = bind(&config);
        let clients = &apart[&Clients];
        assert_ne!(address, clients.bound);
        assert_eq!(clients.reached, clients.bound.to_string());
        let (node, client) = ("node-1.example:7400", clients.reached.as_str());
        let of_clients = elsewhere(&[(Nodes, node), (Operators, node)]);
        assert_eq!(served, [elsewhere(&[(Clients, client)]), of_clients]);
        config.admin_listen = local();
        config.admin_advertise = Some("node-1.example:7600".to_owned());
        let (_, apart, served) = bind(&config);
        let (admin, client) = ("node-1.example:7600", apart[&Clients].reached.as_str());
        assert_eq!(apart[&Operators].reached, admin);
        let expected = [
            elsewhere(&[(Operators, admin), (Clients, client)]),
            elsewhere(&[(Nodes, node), (Clients, client)]),
            elsewhere(&[(Nodes, node), (Operators, admin)]),
        ];
        assert_eq!(served, expected);
        config.client_listen = None;
        let (_, _, served) = bind(&config);
        let of_operators = elsewhere(&[(Nodes, node), (Clients, node)]);
        assert_eq!(served, [elsewhere(&[(Operators, admin)]), of_operators]);
    }

    #[tokio::test]
    async fn an_address_that_is_taken_is_named() {
        let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = holder.local_addr().unwrap();
        for apart in [
            |config: &mut HostConfig, at| config.client_listen = Some(at),
            |config: &mut HostConfig, at| config.admin_listen = Some(at),
        ] {
            let mut config = config();
            apart(&mut config, taken);
            let refused = Listeners::bind(None, &config).unwrap_err();
            assert!(refused.to_string().contains(&taken.to_string()), "{refused}");
        }
    }

    #[test]
    fn clients_are_given_an_address_that_they_can_connect_to() {
        let at = |bound: &str| beside("node-1.example:7400", bound.parse().unwrap());
        assert_eq!(at("10.0.0.1:7500"), "10.0.0.1:7500");
        assert_eq!(at("0.0.0.0:7500"), "node-1.example:7500");
        assert_eq!(beside("[fd00::1]:7400", "[::]:7500".parse().unwrap()), "[fd00::1]:7500");
    }
}
