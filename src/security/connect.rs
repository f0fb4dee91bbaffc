//! The side that connects.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError};
use shardhost_proto::ids::NodeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
pub use tokio_rustls::client::TlsStream;

use super::accept::WANTS_TLS_TEXT;
use super::credentials::Credentials;
use super::identity::{CertificateFacts, Identity};

/// Connects over TLS to the node at an address, `host:port`. Which one it is is checked if that is known: an
/// address may lead to another node since it was learnt.
///
/// # Errors
/// The address does not lead to a node, or to another one than is meant; the text says which.
pub async fn connect(
    address: &str,
    credentials: &Credentials,
    meant: Option<NodeId>,
) -> io::Result<TlsStream<TcpStream>> {
    credentials.look().await;
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    // Not sent, and not compared: the certificate names the node.
    let name = ServerName::IpAddress(IpAddr::from([127, 0, 0, 1]).into());
    let connector = TlsConnector::from(credentials.client());
    let stream = connector.connect(name, stream).await.map_err(|error| in_words(&error))?;
    match meant {
        Some(meant) => check(&stream, meant).map(|()| stream),
        None => Ok(stream),
    }
}

/// Whether the node at an address speaks TLS alone, as it says to those who speak none. Not known within so
/// long: no.
pub async fn wants_tls(address: &str, within: Duration) -> bool {
    let asked = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        stream.write_all(HTTP_BEGINS).await.ok()?;
        let mut said = Vec::new();
        let mut part = [0; 256];
        // It says less.
        while said.len() < 1_024 {
            match stream.read(&mut part).await {
                Ok(0) | Err(_) => break,
                Ok(length) => said.extend_from_slice(&part[..length]),
            }
            if said.ends_with(WANTS_TLS_TEXT) {
                return Some(());
            }
        }
        None
    };
    tokio::time::timeout(within, asked).await.ok().flatten().is_some()
}

/// How HTTP/2 begins.
const HTTP_BEGINS: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn check(stream: &TlsStream<TcpStream>, meant: NodeId) -> io::Result<()> {
    let (_, session) = stream.get_ref();
    let certificate = session.peer_certificates().and_then(<[_]>::first);
    let certificate = certificate.ok_or_else(|| io::Error::other("it showed no certificate"))?;
    match CertificateFacts::read(certificate).map_err(io::Error::other)?.identity {
        Identity::Node { node, .. } if node == meant => Ok(()),
        found => Err(io::Error::other(format!("node {meant} was meant, and {found} was reached"))),
    }
}

/// What went wrong, for people.
fn in_words(error: &io::Error) -> io::Error {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let text = match inner {
        Some(rustls::Error::InvalidMessage(_)) => "it does not speak TLS".to_owned(),
        Some(rustls::Error::AlertReceived(AlertDescription::ProtocolVersion)) => {
            "it speaks no TLS, or not version 1.3".to_owned()
        }
        Some(rustls::Error::AlertReceived(AlertDescription::CertificateExpired)) => {
            "it refuses the certificate that was shown: it expired".to_owned()
        }
        Some(rustls::Error::AlertReceived(
            AlertDescription::UnknownCA | AlertDescription::DecryptError,
        )) => "it refuses the certificate that was shown: another authority signed it".to_owned(),
        Some(rustls::Error::AlertReceived(alert)) => {
            format!("it refuses the connection: {alert:?}")
        }
        Some(rustls::Error::InvalidCertificate(refused)) => of_certificate(refused),
        _ => return io::Error::new(error.kind(), error.to_string()),
    };
    io::Error::new(error.kind(), text)
}

fn of_certificate(refused: &CertificateError) -> String {
    match refused {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate expired".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet; see that the clocks are right".to_owned()
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "another authority signed its certificate".to_owned()
        }
        CertificateError::Other(other) => other.0.to_string(),
        other => format!("its certificate is refused: {other}"),
    }
}
