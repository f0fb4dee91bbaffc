//! A node that says what a test wants.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Answers scrapes with values that are set, and with counters that grow with each scrape.
#[derive(Clone, Debug, Default)]
pub struct Exporter {
    gauges: Arc<Mutex<BTreeMap<String, f64>>>,
    /// What is added with each scrape.
    counters: Arc<Mutex<BTreeMap<String, (f64, f64)>>>,
    scrapes: Arc<AtomicU64>,
}

impl Exporter {
    /// Answers from now on, at the address that it returns.
    pub async fn listen(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let this = self.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let text = this.text();
                let mut request = vec![0; 4096];
                // One that goes away gets no answer.
                if stream.read(&mut request).await.is_err() {
                    continue;
                }
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nConnection: close\r\n\
                     Content-Length: {}\r\n\r\n{text}",
                    text.len()
                );
                drop(stream.write_all(answer.as_bytes()).await);
            }
        });
        address
    }

    /// A value from now on.
    pub fn set(&self, series: &str, value: f64) {
        self.gauges.lock().insert(series.to_owned(), value);
    }

    /// By how much a counter grows with each scrape from now on.
    pub fn grow(&self, series: &str, by: f64) {
        self.counters.lock().entry(series.to_owned()).or_default().1 = by;
    }

    /// The same of one that begins at this value, which it may have as a value that is set.
    pub fn change(&self, series: &str, begins: Option<f64>, by: f64) {
        self.gauges.lock().remove(series);
        let mut counters = self.counters.lock();
        let counter = counters.entry(series.to_owned()).or_default();
        *counter = (begins.unwrap_or(counter.0), by);
    }

    /// How often it was scraped.
    pub fn scrapes(&self) -> u64 {
        self.scrapes.load(Ordering::SeqCst)
    }

    fn text(&self) -> String {
        self.scrapes.fetch_add(1, Ordering::SeqCst);
        let mut text = String::new();
        for (series, value) in &*self.gauges.lock() {
            writeln!(text, "{series} {value}").unwrap();
        }
        for (series, (value, by)) in &mut *self.counters.lock() {
            *value += *by;
            writeln!(text, "{series} {value}").unwrap();
        }
        text
    }
}
