//! How a command ends that did not do all that it was asked for: errors that carry their exit code.

use std::fmt;

use shardhost_client::ClientError;

/// Exit code: something went wrong.
const FAILED: u8 = 1;
/// Exit code: the arguments make no sense. It is clap's, too.
const SENSELESS: u8 = 2;
/// Exit code: something that was named is undone, or its outcome is unknown.
pub const PARTLY: u8 = 3;

/// An error with an exit code of its own.
#[derive(Debug)]
struct Ended {
    code: u8,
    text: String,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Ended {}

/// Something remains undone or unknown, and the text says what.
pub fn partly(text: impl Into<String>) -> anyhow::Error {
    Ended { code: PARTLY, text: text.into() }.into()
}

/// The arguments make no sense together.
pub fn senseless(text: impl Into<String>) -> anyhow::Error {
    Ended { code: SENSELESS, text: text.into() }.into()
}

/// The exit code of a command that failed.
pub fn code_of(error: &anyhow::Error) -> u8 {
    if let Some(ended) = error.downcast_ref::<Ended>() {
        return ended.code;
    }
    match error.downcast_ref::<ClientError>() {
        Some(error) if !error.is_definite() => PARTLY,
        _ => FAILED,
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn an_error_keeps_its_exit_code_whatever_is_said_around_it() {
        let around = |error: anyhow::Error| Err::<(), _>(error).context("in group 7").unwrap_err();
        assert_eq!(code_of(&around(partly("it continues"))), PARTLY);
        assert_eq!(code_of(&around(senseless("node 1 is named twice"))), SENSELESS);
        assert_eq!(code_of(&around(anyhow::anyhow!("there is no group 7"))), FAILED);
    }

    #[test]
    fn a_write_of_unknown_outcome_did_not_fail() {
        let message = String::new;
        let unknown = ClientError::OutcomeUnknown { message: message() };
        assert_eq!(code_of(&unknown.into()), PARTLY);
        let refused = ClientError::Unavailable { message: message() };
        assert_eq!(code_of(&refused.into()), FAILED);
    }
}
