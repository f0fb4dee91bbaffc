//! The listeners of a host: the one that everything is served on, or two, of which one is for clients.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;

use super::builder::StartError;
use super::config::HostConfig;
use crate::transport::{ConnectionLimits, Connections, Served};

/// A socket on which connections are accepted, which calls are answered there, and its connections.
#[derive(Debug)]
pub(super) struct Listener {
    pub socket: TcpListener,
    pub served: Served,
    pub connections: Arc<Connections>,
}

/// Those of one host, which are bound and answer nothing yet.
#[derive(Debug)]
pub(super) struct Listeners {
    pub all: Vec<Listener>,
    /// Where the first one listens, and where peers reach it.
    pub address: SocketAddr,
    pub advertise: String,
    /// The same of the one for clients.
    pub clients: Option<(SocketAddr, String)>,
}

impl Listeners {
    /// Binds what the configuration names; `given` is bound already, and takes the place of the first.
    pub fn bind(
        given: Option<std::net::TcpListener>,
        config: &HostConfig,
    ) -> Result<Self, StartError> {
        let (socket, address) = bind(given, config.listen)?;
        let advertise = config.advertise.clone().unwrap_or_else(|| address.to_string());
        let Some(listen) = config.client_listen else {
            let main = listener(socket, Served::All, config.connections);
            return Ok(Self { all: vec![main], address, advertise, clients: None });
        };
        let (for_clients, clients) = bind(None, listen)?;
        let clients_at = config.client_advertise.clone();
        let clients_at = clients_at.unwrap_or_else(|| beside(&advertise, clients));
        let served = [
            Served::AllButClients { clients_at: clients_at.clone() },
            Served::Clients { others_at: advertise.clone() },
        ];
        let limits = config.connections.divided();
        let sockets = [socket, for_clients].into_iter().zip(served).zip(limits);
        let all = sockets.map(|((socket, served), limits)| listener(socket, served, limits));
        let clients = Some((clients, clients_at));
        Ok(Self { all: all.collect(), address, advertise, clients })
    }
}

fn listener(socket: TcpListener, served: Served, limits: ConnectionLimits) -> Listener {
    Listener { socket, served, connections: Connections::new(limits) }
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

    #[tokio::test]
    async fn with_a_listener_for_clients_each_of_the_two_knows_the_address_of_the_other() {
        let local = || "127.0.0.1:0".parse().unwrap();
        let mut config = HostConfig::new(shardhost_storage::NodeId::must(1), "unused");
        config.advertise = Some("node-1.example:7400".to_owned());
        config.client_listen = Some(local());
        let bound = Listeners::bind(None, &config).unwrap();
        let (clients, clients_at) = bound.clients.unwrap();
        assert_ne!(bound.address, clients);
        assert_eq!(clients_at, clients.to_string());
        let served: Vec<&Served> = bound.all.iter().map(|listener| &listener.served).collect();
        let others_at = "node-1.example:7400".to_owned();
        assert_eq!(served, [&Served::AllButClients { clients_at }, &Served::Clients { others_at }]);
        config.client_listen = Some(clients);
        let taken = Listeners::bind(None, &config).unwrap_err();
        assert!(taken.to_string().contains(&clients.to_string()), "{taken}");
    }

    #[test]
    fn clients_are_given_an_address_that_they_can_connect_to() {
        let at = |bound: &str| beside("node-1.example:7400", bound.parse().unwrap());
        assert_eq!(at("10.0.0.1:7500"), "10.0.0.1:7500");
        assert_eq!(at("0.0.0.0:7500"), "node-1.example:7500");
        assert_eq!(beside("[fd00::1]:7400", "[::]:7500".parse().unwrap()), "[fd00::1]:7500");
    }
}
