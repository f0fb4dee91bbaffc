//! A group's requirement of its leader. Replicated with its membership; the capabilities of nodes
//! are not known here.

use std::collections::BTreeSet;
use std::fmt;

/// Bytes of a capability's name at most.
pub const MAX_CAPABILITY_BYTES: usize = 64;
/// Capabilities that a group asks for, or a node has, at most.
pub const MAX_CAPABILITIES: usize = 64;

/// A group's requirement of its leader. No requirement is the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Requirement {
    /// The names of what the leader's node must have. A name that a node does not know is one that
    /// it lacks.
    pub capabilities: BTreeSet<String>,
    /// What happens when no voter that can be reached has all of them.
    pub mode: RequirementMode,
}

/// How strictly a requirement is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RequirementMode {
    /// A leader without the capabilities serves no users. It can be repaired: members and the
    /// requirement may be changed, leadership transferred.
    #[default]
    Hard,
    /// A leader without the capabilities serves, until one that has them can take over.
    Soft,
}

/// The name of a capability is not well formed, or there are too many.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CapabilityError {
    /// The name is empty, too long, or has a character that no name has.
    #[error(
        "{name:?} is no name of a capability: 1 to {MAX_CAPABILITY_BYTES} of a-z, 0-9, '.', '_', \
         '-' and '/'"
    )]
    Name {
        /// The name, as far as it is worth showing.
        name: String,
    },
    /// More than [`MAX_CAPABILITIES`].
    #[error("{count} capabilities, at most {MAX_CAPABILITIES} are possible")]
    TooMany { count: usize },
}

impl Requirement {
    /// Asks strictly for these.
    ///
    /// # Errors
    /// [`CapabilityError`].
    pub fn hard<N: Into<String>>(
        names: impl IntoIterator<Item = N>,
    ) -> Result<Self, CapabilityError> {
        let capabilities = capability_names(names)?;
        Ok(Self { capabilities, mode: RequirementMode::Hard })
    }

    /// Asks for these as long as they can be had.
    ///
    /// # Errors
    /// [`CapabilityError`].
    pub fn soft<N: Into<String>>(
        names: impl IntoIterator<Item = N>,
    ) -> Result<Self, CapabilityError> {
        let capabilities = capability_names(names)?;
        Ok(Self { capabilities, mode: RequirementMode::Soft })
    }

    /// Whether it asks for nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.capabilities.is_empty()
    }

    /// What of it is not among these.
    pub fn lacking<'a>(
        &'a self,
        present: &'a BTreeSet<String>,
    ) -> impl Iterator<Item = &'a String> + 'a {
        self.capabilities.iter().filter(|name| !present.contains(*name))
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("nothing");
        }
        let names: Vec<&str> = self.capabilities.iter().map(String::as_str).collect();
        let mode = match self.mode {
            RequirementMode::Hard => "",
            RequirementMode::Soft => " if possible",
        };
        write!(f, "{}{mode}", names.join(", "))
    }
}

/// A set of well-formed names.
///
/// # Errors
/// [`CapabilityError`].
pub fn capability_names<N: Into<String>>(
    names: impl IntoIterator<Item = N>,
) -> Result<BTreeSet<String>, CapabilityError> {
    let mut set = BTreeSet::new();
    for name in names {
        let name = name.into();
        if !is_capability(&name) {
            let name = name.chars().take(MAX_CAPABILITY_BYTES + 1).collect();
            return Err(CapabilityError::Name { name });
        }
        set.insert(name);
    }
    match set.len() {
        count if count > MAX_CAPABILITIES => Err(CapabilityError::TooMany { count }),
        _ => Ok(set),
    }
}

fn is_capability(name: &str) -> bool {
    let known = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-' | b'/');
    (1..=MAX_CAPABILITY_BYTES).contains(&name.len()) && name.bytes().all(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["fifo", "a", "disk/ssd", "v2.1_x-y", &"x".repeat(MAX_CAPABILITY_BYTES)] {
            capability_names([good]).unwrap();
        }
        for bad in ["", "Fifo", "a b", "ä", &"x".repeat(MAX_CAPABILITY_BYTES + 1)] {
            let error = capability_names([bad]).unwrap_err();
            assert!(matches!(error, CapabilityError::Name { .. }), "{bad:?}: {error}");
        }
    }

    #[test]
    fn there_is_a_bound_on_their_number() {
        let names = |count: usize| (0..count).map(|number| format!("c{number}"));
        capability_names(names(MAX_CAPABILITIES)).unwrap();
        let error = capability_names(names(MAX_CAPABILITIES + 1)).unwrap_err();
        assert_eq!(error, CapabilityError::TooMany { count: MAX_CAPABILITIES + 1 });
    }

    #[test]
    fn what_is_lacking_is_named() {
        let requirement = Requirement::hard(["fifo", "ssd"]).unwrap();
        let present = capability_names(["ssd", "gpu"]).unwrap();
        let lacking: Vec<_> = requirement.lacking(&present).collect();
        assert_eq!(lacking, ["fifo"]);
        assert_eq!(requirement.to_string(), "fifo, ssd");
        assert_eq!(Requirement::soft(["fifo"]).unwrap().to_string(), "fifo if possible");
        assert_eq!(Requirement::default().to_string(), "nothing");
    }
}
