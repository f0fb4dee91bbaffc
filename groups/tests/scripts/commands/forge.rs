//! Messages that no correct peer sent, put together by a script.

use bytes::Bytes;
use shardhost_groups::storage::convert::membership_to_message;
use shardhost_groups::{Membership, ReplicaId};
use shardhost_proto::{log, peer};

use crate::commands::arguments::{Arguments, kind_named};

/// A message from the arguments of `forge`; what is not given is zero or empty.
pub fn message(arguments: &mut Arguments<'_>) -> Result<peer::GroupMessage, String> {
    let kind: String = arguments.one("kind")?;
    let entries: Vec<String> = arguments.all("entries")?;
    let mut number = |name| arguments.maybe::<u64>(name).map(Option::unwrap_or_default);
    let mut message = peer::GroupMessage {
        term: number("term")?,
        index: number("index")?,
        log_term: number("log-term")?,
        commit: number("commit")?,
        stamp: number("stamp")?,
        reject_hint: number("hint")?,
        request_snapshot: number("request-snapshot")?,
        kind: kind_named(&kind)?.into(),
        ..peer::GroupMessage::default()
    };
    let at = (number("at-index")?, number("at-term")?);
    message.reject = arguments.flag("rejected")?;
    message.any_giver = arguments.flag("any-giver")?;
    message.entries = entries.iter().map(|entry| parse_entry(entry)).collect::<Result<_, _>>()?;
    if at != (0, 0) {
        let position = Some(log::LogPosition { index: at.0, term: at.1 });
        message.snapshot = Some(peer::SnapshotMeta { position, membership: None });
    }
    Ok(message)
}

/// The configuration that a create request or a notice of removal shows: the one that the receiver
/// knows, or that of a group with other `founders`, `without` some nodes, at index `config`.
pub fn create_request(
    arguments: &mut Arguments<'_>,
    known: Option<Membership>,
) -> Result<peer::CreateRequest, String> {
    let (founders, without) = (arguments.nodes("founders")?, arguments.nodes("without")?);
    let founded = (!founders.is_empty()).then(|| Membership::initial(founders));
    let mut membership = founded.or(known).ok_or("the receiver holds no group")?;
    membership.members.retain(|_, member| !without.contains(&member.node));
    membership.config_index = arguments.maybe::<u64>("config")?.unwrap_or_default().into();
    membership.newest_replica = arguments.maybe("newest")?.and_then(ReplicaId::new);
    let membership = Some(membership_to_message(&membership));
    Ok(peer::CreateRequest { membership, ..peer::CreateRequest::default() })
}

/// `2.x` is an entry of term 2 with the command `x`; `2.` is an empty one.
fn parse_entry(text: &str) -> Result<log::Entry, String> {
    let (term, data) = text.split_once('.').ok_or("an entry is written TERM.DATA")?;
    let term = term.parse().map_err(|error| format!("{text}: {error}"))?;
    let kind = log::EntryKind::Command.into();
    Ok(log::Entry { kind, term, data: Bytes::from(data.to_owned()), ..log::Entry::default() })
}
