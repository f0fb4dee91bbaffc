//! The arguments of a command, by name and type.

use std::str::FromStr;

use datadriven::TestCase;
use shardhost_groups::{GroupId, NodeId};
use shardhost_proto::peer::MessageKind;

use crate::world::network::Pattern;

/// The arguments of one command. Each is taken once; what is left over is a mistake.
pub struct Arguments<'a>(pub &'a mut TestCase);

impl Arguments<'_> {
    /// Whether a word stands alone.
    pub fn flag(&mut self, name: &str) -> Result<bool, String> {
        self.0.take_flag(name).map_err(|error| error.to_string())
    }

    /// One value, if it is given.
    pub fn maybe<T>(&mut self, name: &str) -> Result<Option<T>, String>
    where
        T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
    {
        self.0.try_take_arg(name).map_err(|error| format!("{name}: {error}"))
    }

    /// One value.
    pub fn one<T>(&mut self, name: &str) -> Result<T, String>
    where
        T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
    {
        self.maybe(name)?.ok_or_else(|| format!("{name}= is missing"))
    }

    /// All values, none if it is not given.
    pub fn all<T>(&mut self, name: &str) -> Result<Vec<T>, String>
    where
        T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
    {
        let values = self.0.try_take_args(name).map_err(|error| format!("{name}: {error}"))?;
        Ok(values.unwrap_or_default())
    }

    pub fn node(&mut self, name: &str) -> Result<NodeId, String> {
        NodeId::new(self.one(name)?).ok_or_else(|| format!("{name} is never 0"))
    }

    pub fn maybe_node(&mut self, name: &str) -> Result<Option<NodeId>, String> {
        Ok(self.maybe(name)?.and_then(NodeId::new))
    }

    pub fn nodes(&mut self, name: &str) -> Result<Vec<NodeId>, String> {
        Ok(self.all(name)?.into_iter().filter_map(NodeId::new).collect())
    }

    /// The group, 1 if none is named.
    pub fn group(&mut self) -> Result<GroupId, String> {
        Ok(GroupId::new(self.maybe("group")?.unwrap_or(1)))
    }

    pub fn maybe_group(&mut self) -> Result<Option<GroupId>, String> {
        Ok(self.maybe("group")?.map(GroupId::new))
    }

    /// Which messages: `from=`, `to=`, `group=`, `kind=`.
    pub fn pattern(&mut self) -> Result<Pattern, String> {
        let kind: Option<String> = self.maybe("kind")?;
        Ok(Pattern {
            from: self.maybe_node("from")?,
            to: self.maybe_node("to")?,
            group: self.maybe("group")?,
            kind: kind.map(|kind| kind_named(&kind)).transpose()?,
        })
    }
}

/// The kind of message with this name, as in `AppendResponse`.
pub fn kind_named(name: &str) -> Result<MessageKind, String> {
    let kinds = (0..64).filter_map(|number| MessageKind::try_from(number).ok());
    kinds
        .into_iter()
        .find(|kind| format!("{kind:?}") == name)
        .ok_or_else(|| format!("there is no message {name}"))
}
