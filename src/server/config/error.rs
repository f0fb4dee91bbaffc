//! What is wrong with a configuration, where, and what to do.

use std::path::Path;

use toml::de::{DeTable, DeValue};

/// What is wrong with a configuration, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {error}; name a file that is there")]
    Read { path: String, error: std::io::Error },
    /// The file is not what it should be; the message names the line.
    #[error("the configuration {path} is wrong: {message}")]
    Parse { path: String, message: String },
    /// A value makes no sense.
    #[error("`{key}` is wrong: {message}")]
    Value {
        key: &'static str,
        /// Why, and what to do.
        message: String,
    },
}

pub(super) const fn wrong(key: &'static str, message: String) -> ConfigError {
    ConfigError::Value { key, message }
}

impl ConfigError {
    /// The same error with the line of a file, if the value that makes no sense stands there. A file
    /// that cannot be read any more adds nothing.
    #[must_use]
    pub fn in_file(self, path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        self.in_text(&path.display().to_string(), &text)
    }

    pub(super) fn in_text(self, path: &str, text: &str) -> Self {
        let Self::Value { key, message } = self else { return self };
        match line_of(text, key) {
            Some(line) => Self::Parse {
                path: path.to_owned(),
                message: format!("line {line}: `{key}` is wrong: {message}"),
            },
            None => Self::Value { key, message },
        }
    }
}

/// The line, from 1, at which a key stands, in whatever table.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let table = DeTable::parse(text).ok()?;
    let at = place_of(table.get_ref(), key)?;
    Some(text.get(..at)?.matches('\n').count() + 1)
}

fn place_of(table: &DeTable<'_>, key: &str) -> Option<usize> {
    if let Some((found, _)) = table.iter().find(|(name, _)| name.get_ref() == key) {
        return Some(found.span().start);
    }
    table.values().find_map(|value| match value.get_ref() {
        DeValue::Table(inner) => place_of(inner, key),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "node = 1\nworkers = 0\n\n[nodes]\n1 = \"x:1\"\n[shards]\nqueues = 3\n";

    #[test]
    fn a_value_that_makes_no_sense_is_refused_with_its_line() {
        for (key, line) in [("workers", 2), ("nodes", 4), ("queues", 7)] {
            let refused = wrong(key, "too many".to_owned()).in_text("a.toml", TEXT).to_string();
            let expected = format!("a.toml is wrong: line {line}: `{key}` is wrong: too many");
            assert!(refused.contains(&expected), "{refused}");
        }
    }

    #[test]
    fn what_a_flag_says_has_no_line() {
        let refused = wrong("weight", "too much".to_owned()).in_text("a.toml", TEXT).to_string();
        assert_eq!(refused, "`weight` is wrong: too much");
    }
}
