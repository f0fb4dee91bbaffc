//! Lines for standard error that never block the code that logs.
//!
//! A thread writes them. Lines that it cannot write in time are dropped and counted: a terminal
//! that was stopped, a pipe without a reader, or one that is closed, must not block a host.

use std::ffi::OsStr;
use std::io::{self, IsTerminal, Write};
use std::panic::PanicHookInfo;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::ended::code_of;

/// Lines that wait to be written.
const MAX_LINES: usize = 16_384;
const MAX_BYTES: usize = 4 * 1024 * 1024;
/// How long the end of the process waits for the last lines.
const LAST_LINES: Duration = Duration::from_millis(500);
/// Exit code of a command whose output has no reader any more: the one that a shell gives to
/// SIGPIPE.
const CLOSED_PIPE: i32 = 128 + 13;

static LINES: OnceLock<Lines> = OnceLock::new();

/// Starts to log to standard error, from `level` on unless the environment sets another one.
///
/// # Errors
/// The environment's filter makes no sense, or the system refuses a thread.
pub fn start(level: &str) -> anyhow::Result<()> {
    let lines = Lines::start(io::stderr())?;
    let _ = LINES.set(lines.clone());
    std::panic::set_hook(Box::new(note_panic));
    let colors =
        io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(filter(level)?)
        .with_writer(lines)
        .with_ansi(colors)
        .init();
    Ok(())
}

fn filter(level: &str) -> anyhow::Result<EnvFilter> {
    let given = std::env::var_os("SHARDHOST_LOG");
    log_filter(given.as_deref(), level)
        .map_err(|why| anyhow::anyhow!("SHARDHOST_LOG is wrong: {why}"))
}

/// The filter: that of the environment, if it is set.
fn log_filter(given: Option<&OsStr>, level: &str) -> Result<EnvFilter, String> {
    let Some(given) = given.filter(|given| !given.is_empty()) else {
        return Ok(EnvFilter::new(level));
    };
    let given = given.to_str().ok_or("it is not UTF-8")?;
    for directive in given.split(',').map(str::trim).filter(|directive| !directive.is_empty()) {
        let is_level = directive.parse::<LevelFilter>().is_ok();
        let names_level = directive.contains(['=', '[']);
        // A module alone silences all others, a misspelt level would too.
        if !is_level && !names_level && !directive.starts_with("shardhost") {
            return Err(format!(
                "`{directive}` is no level: those are off, error, warn, info, debug and trace; \
                 a module is written `module=level`"
            ));
        }
    }
    EnvFilter::builder().parse(given).map_err(|error| format!("`{given}`: {error}"))
}

/// Prints a line that is not part of the log.
pub fn complain(text: &str) {
    let text = super::shown::lines(text);
    match LINES.get() {
        Some(lines) => lines.add(format!("{text}\n").into_bytes()),
        // A failure to write has no reader either.
        None => drop(writeln!(io::stderr(), "{text}")),
    }
}

/// Waits, not for long, until what was logged is written.
pub fn flush() {
    if let Some(lines) = LINES.get() {
        lines.flush();
    }
}

/// The argument by which this program ends with a code at once.
pub const EXIT: &str = "--exit-now";

/// Ends the process at once, with its last lines.
///
/// The destructors that run as a program ends, as RocksDB's, must not meet threads at work: they
/// would access freed memory. So this image is replaced by a fresh one, which only ends with the
/// code.
pub fn exit(code: i32) -> ! {
    use std::os::unix::process::CommandExt;
    flush();
    let error = std::process::Command::new("/proc/self/exe").args([EXIT, &code.to_string()]).exec();
    tracing::debug!(%error, "the program ends the ordinary way");
    std::process::exit(code)
}

/// How the program ends when a command failed.
pub fn failed(error: &anyhow::Error) -> ExitCode {
    complain(&format!("error: {error:#}"));
    ExitCode::from(code_of(error))
}

/// A print that fails panics. When that is because the reader is gone, the command has nothing more to
/// do; other panics are logged as everything else is.
fn note_panic(panic: &PanicHookInfo<'_>) {
    let payload = panic.payload();
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let text = text.unwrap_or("a panic without a message");
    if let Some(why) = text.strip_prefix("failed printing to stdout: ") {
        if why.contains("Broken pipe") {
            exit(CLOSED_PIPE);
        }
        complain(&format!("error: the output cannot be written: {why}"));
        exit(1);
    }
    if text.starts_with("failed printing to stderr") {
        exit(1);
    }
    let thread = thread::current();
    let name = thread.name().unwrap_or("without a name").to_owned();
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    complain(&format!("thread '{name}' panicked at {place}:\n{text}"));
}

enum Message {
    Line(Vec<u8>),
    /// Answered when everything before is written.
    Flush(Sender<()>),
}

/// The near end of the thread that writes.
#[derive(Clone)]
struct Lines {
    sender: Sender<Message>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    waiting: AtomicUsize,
    /// Lines that were dropped since the last note about it.
    dropped: AtomicU64,
}

impl Lines {
    fn start(target: impl Write + Send + 'static) -> io::Result<Self> {
        let (sender, receiver) = bounded(MAX_LINES);
        let counts = Arc::<Counts>::default();
        let written = Arc::clone(&counts);
        let write = move || write(&receiver, target, &written);
        thread::Builder::new().name("log".into()).spawn(write)?;
        Ok(Self { sender, counts })
    }

    fn add(&self, line: Vec<u8>) {
        let bytes = line.len();
        let waiting = self.counts.waiting.fetch_add(bytes, Ordering::Relaxed);
        if waiting + bytes > MAX_BYTES || self.sender.try_send(Message::Line(line)).is_err() {
            self.counts.waiting.fetch_sub(bytes, Ordering::Relaxed);
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn flush(&self) {
        let (written, wait) = bounded(1);
        if self.sender.send_timeout(Message::Flush(written), LAST_LINES).is_ok() {
            // Too late is as good as never: the process ends.
            let _ = wait.recv_timeout(LAST_LINES);
        }
    }
}

fn write(messages: &Receiver<Message>, mut target: impl Write, counts: &Counts) {
    for message in messages {
        let line = match message {
            Message::Line(line) => line,
            Message::Flush(written) => {
                // Refused when the end of the process waited long enough.
                let _ = written.send(());
                continue;
            }
        };
        let ended = target.write_all(&line).and_then(|()| target.flush());
        counts.waiting.fetch_sub(line.len(), Ordering::Relaxed);
        if ended.is_err() {
            counts.dropped.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        let dropped = counts.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0
            && writeln!(
                target,
                "{dropped} lines were dropped here, because they were read too slowly"
            )
            .is_err()
        {
            counts.dropped.fetch_add(dropped, Ordering::Relaxed);
        }
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { lines: self, bytes: Vec::new() }
    }
}

/// A line as it is put together.
struct Line<'a> {
    lines: &'a Lines,
    bytes: Vec<u8>,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        if !self.bytes.is_empty() {
            self.lines.add(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// A writer that blocks until its gate is open.
    #[derive(Clone, Default)]
    struct Slow {
        gate: Arc<Mutex<()>>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _open = self.gate.lock().unwrap();
            self.written.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_is_too_slow_loses_lines_and_is_told_how_many() {
        let slow = Slow::default();
        let lines = Lines::start(slow.clone()).unwrap();
        let closed = slow.gate.lock().unwrap();
        let each = MAX_BYTES / 4;
        for _ in 0..10 {
            lines.add(vec![b'x'; each]);
        }
        assert!(lines.counts.waiting.load(Ordering::Relaxed) <= MAX_BYTES);
        let dropped = lines.counts.dropped.load(Ordering::Relaxed);
        assert_eq!(dropped, 6);
        drop(closed);
        lines.flush();
        let written = slow.written.lock().unwrap();
        let text = String::from_utf8_lossy(&written);
        assert!(text.contains("6 lines were dropped here"), "{} bytes", text.len());
        assert_eq!(text.matches('x').count(), 4 * each);
    }

    #[test]
    fn an_end_that_is_closed_stops_nobody() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let lines = Lines::start(Closed).unwrap();
        for _ in 0..3 {
            lines.add(b"line\n".to_vec());
        }
        lines.flush();
        assert_eq!(lines.counts.dropped.load(Ordering::Relaxed), 3);
        assert_eq!(lines.counts.waiting.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_is_logged_is_what_was_meant_or_it_is_refused() {
        let filter = |given: &str| log_filter(Some(OsStr::new(given)), "info");
        for good in
            ["", "debug", "WARN", "off", "shardhost=trace,warn", "h2=info", "shardhost_client"]
        {
            filter(good).unwrap();
        }
        for bad in ["debgu", "foo=bar=baz", "warn,verbose", "shardhost=loud"] {
            let refused = filter(bad).unwrap_err();
            assert!(refused.contains('`'), "{bad}: {refused}");
        }
        assert_eq!(log_filter(None, "warn").unwrap().to_string(), "warn");
    }
}
