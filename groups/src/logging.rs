//! Raft's log lines as tracing events, with the group that they are about.

use slog::{Drain, KV, Logger, OwnedKVList, Record, Serializer, o};

/// A logger for one group. Lines below the level that tracing takes are not even formatted.
pub(crate) fn logger(group: u64) -> Logger {
    Logger::root(TracingDrain, o!("group" => group))
}

struct TracingDrain;

impl Drain for TracingDrain {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), slog::Never> {
        // What raft calls info are its steps; an operator wants them when he looks for them.
        match record.level() {
            slog::Level::Critical | slog::Level::Error => {
                tracing::error!(target: "raft", "{}", text(record, values));
            }
            slog::Level::Warning if tracing::enabled!(target: "raft", tracing::Level::WARN) => {
                tracing::warn!(target: "raft", "{}", text(record, values));
            }
            slog::Level::Info if tracing::enabled!(target: "raft", tracing::Level::DEBUG) => {
                tracing::debug!(target: "raft", "{}", text(record, values));
            }
            slog::Level::Debug | slog::Level::Trace if tracing::enabled!(target: "raft", tracing::Level::TRACE) =>
            {
                tracing::trace!(target: "raft", "{}", text(record, values));
            }
            _ => {}
        }
        Ok(())
    }

    fn is_enabled(&self, level: slog::Level) -> bool {
        match level {
            slog::Level::Critical | slog::Level::Error => true,
            slog::Level::Warning => tracing::enabled!(target: "raft", tracing::Level::WARN),
            slog::Level::Info => tracing::enabled!(target: "raft", tracing::Level::DEBUG),
            _ => tracing::enabled!(target: "raft", tracing::Level::TRACE),
        }
    }
}

fn text(record: &Record<'_>, values: &OwnedKVList) -> String {
    let mut text = Text(record.msg().to_string());
    // Writing into a string does not fail.
    let own = record.kv().serialize(record, &mut text);
    let shared = values.serialize(record, &mut text);
    if own.is_err() || shared.is_err() {
        text.0.push_str(" (incomplete)");
    }
    text.0
}

struct Text(String);

impl Serializer for Text {
    fn emit_arguments(&mut self, key: slog::Key, value: &std::fmt::Arguments<'_>) -> slog::Result {
        use std::fmt::Write;
        write!(self.0, " {key}={value}")?;
        Ok(())
    }
}
