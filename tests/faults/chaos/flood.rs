//! Hundreds of connections that say nothing, the beginning of something, or all but what they want.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

const CONNECTIONS: usize = 400;
const CONNECTING: Duration = Duration::from_secs(1);
/// What a client of HTTP/2 begins with, and empty settings behind it.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
/// A frame of headers of a MiB, of which nothing follows.
const HALF_HEADERS: [u8; 9] = [16, 0, 0, 1, 4, 0, 0, 0, 1];

/// They are there until this is dropped, as far as the host lets them.
pub struct Flood {
    _connections: Vec<TcpStream>,
}

impl Flood {
    pub async fn connect(address: &str) -> Self {
        let made = (0..CONNECTIONS).map(|number| connect(address, number));
        let made = futures::future::join_all(made).await;
        Self { _connections: made.into_iter().flatten().collect() }
    }
}

async fn connect(address: &str, number: usize) -> Option<TcpStream> {
    let made = tokio::time::timeout(CONNECTING, TcpStream::connect(address)).await;
    let mut connection = made.ok()?.ok()?;
    let said = match number % 4 {
        0 => Vec::new(),
        1 => PREFACE[..PREFACE.len() / 2].to_vec(),
        2 => [PREFACE, &SETTINGS].concat(),
        _ => [PREFACE, &SETTINGS, &HALF_HEADERS].concat(),
    };
    connection.write_all(&said).await.ok()?;
    Some(connection)
}
