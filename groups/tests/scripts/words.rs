//! How things are written in a trace. `4@2` is the entry of term 2 at index 4.

use std::fmt::Write;

use prost::Message;
use shardhost_groups::leadership::{Edge, EdgeKind};
use shardhost_groups::storage::{Entry, EntryKind, GroupWrite, Member};
use shardhost_groups::{GroupStatus, LogPosition, Membership, NodeId, ProposeOutcome, Role};
use shardhost_proto::log;
use shardhost_proto::log::config_change::Kind;
use shardhost_proto::peer::transfer_refusal::Kind as Refused;
use shardhost_proto::peer::{GroupMessage, MessageKind};

/// One message: sender, receiver, and the fields that matter for its kind.
pub fn message(from: NodeId, to: NodeId, message: &GroupMessage) -> String {
    let kind = format!("{:?}", message.kind());
    format!("{from}->{to} g{} {kind} term={}{}", message.group, message.term, fields(message))
}

fn fields(m: &GroupMessage) -> String {
    let verdict = if m.reject { " rejected" } else { " granted" };
    match m.kind() {
        MessageKind::Append => {
            let entries = wire_entries(m.index, &m.entries);
            format!(" prev={}@{}{entries} commit={}", m.index, m.log_term, m.commit)
        }
        MessageKind::AppendResponse if m.reject => {
            format!(" rejected index={} hint={}@{}", m.index, m.reject_hint, m.log_term)
        }
        MessageKind::AppendResponse => format!(" index={}", m.index),
        MessageKind::Heartbeat => format!(" commit={}{}", m.commit, read_round(m)),
        MessageKind::HeartbeatResponse => read_round(m),
        MessageKind::ReadIndex | MessageKind::ReadIndexResponse => {
            let refused = if m.reject { " refused" } else { "" };
            let index = if m.index > 0 { format!(" index={}", m.index) } else { String::new() };
            format!("{index}{refused}{}", read_round(m))
        }
        MessageKind::PreVote | MessageKind::Vote => {
            let forced = if m.context.is_empty() { "" } else { " for a transfer" };
            let escape = if m.escape { " although unfit" } else { "" };
            format!(" last={}@{}{forced}{escape}", m.index, m.log_term)
        }
        MessageKind::PreVoteResponse | MessageKind::VoteResponse => verdict.to_owned(),
        MessageKind::Snapshot => snapshot_fields(m),
        MessageKind::Removed => format!(" config={}", m.index),
        MessageKind::CreateReplica => format!(" replica={}", m.to_replica),
        MessageKind::TransferAsk if !m.declined.is_empty() => {
            format!(" declined={:?}", m.declined)
        }
        MessageKind::TransferAnswer if m.reject => {
            let (kind, why) = m.refusal.as_ref().map_or((Refused::Unspecified, ""), |refusal| {
                (refusal.kind(), refusal.text.as_str())
            });
            format!(" declines {kind:?}: {why}")
        }
        MessageKind::TransferAnswer => " agrees".to_owned(),
        MessageKind::Checksum => format!(" at={}@{}{}", m.index, m.log_term, sum(m)),
        MessageKind::ChecksumVerdict => {
            format!(" at={}@{} {:?}{}", m.index, m.log_term, m.verdict(), sum(m))
        }
        MessageKind::Hibernate => format!(" last={} commit={}", m.index, m.commit),
        MessageKind::HibernateResponse => if m.reject { " refuses" } else { " agrees" }.to_owned(),
        _ => String::new(),
    }
}

fn sum(message: &GroupMessage) -> String {
    let sum = message.checksum.as_ref();
    sum.map_or_else(String::new, |sum| format!(" sum={:016x} bytes={}", sum.sum, sum.bytes))
}

/// Reads carry a context that ends in the number of their round.
fn read_round(message: &GroupMessage) -> String {
    let Some(number) = message.context.last_chunk::<8>() else { return String::new() };
    format!(" read-round={}", u64::from_be_bytes(*number))
}

fn snapshot_fields(message: &GroupMessage) -> String {
    let position = message.snapshot.as_ref().and_then(|meta| meta.position.as_ref());
    position.map_or_else(String::new, |at| format!(" at={}@{}", at.index, at.term))
}

fn wire_entries(previous: u64, entries: &[log::Entry]) -> String {
    let words = entries.iter().zip(previous + 1..).map(|(entry, index)| {
        if entry.kind() == log::EntryKind::Requirement {
            return format!("{} requirement", LogPosition::new(entry.term, index));
        }
        if entry.kind() == log::EntryKind::Command && !entry.context.is_empty() {
            return format!("{} check", LogPosition::new(entry.term, index));
        }
        let config = entry.kind() == log::EntryKind::Config;
        one_entry(LogPosition::new(entry.term, index), config, &entry.data)
    });
    list(" entries", words)
}

fn one_entry(at: LogPosition, config: bool, data: &[u8]) -> String {
    match data {
        data if config => format!("{at} {}", config_change(data)),
        [] => format!("{at} empty"),
        data => format!("{at} {:?}", String::from_utf8_lossy(data)),
    }
}

/// A change of membership, by replica.
fn config_change(data: &[u8]) -> String {
    let Ok(change) = log::ConfigChange::decode(data) else { return "unreadable".to_owned() };
    let steps = change.changes.iter().map(|step| {
        let replica = step.replica;
        match step.kind() {
            Kind::AddVoter => format!("voter r{replica}"),
            Kind::AddLearner => format!("learner r{replica}"),
            Kind::Remove => format!("remove r{replica}"),
        }
    });
    let steps: Vec<String> = steps.collect();
    if steps.is_empty() { "leave joint".to_owned() } else { steps.join(" + ") }
}

fn list(name: &str, words: impl Iterator<Item = String>) -> String {
    let words: Vec<String> = words.collect();
    if words.is_empty() { String::new() } else { format!("{name}=[{}]", words.join(", ")) }
}

pub fn entries(entries: &[Entry]) -> String {
    let words = entries.iter().map(|entry| {
        let at = LogPosition { term: entry.term, index: entry.index };
        match entry.kind {
            EntryKind::Requirement => format!("{at} requirement"),
            kind => one_entry(at, kind == EntryKind::Config, &entry.data),
        }
    });
    list(" entries", words)
}

/// What one group writes into the log; empty when nothing is worth a word.
pub fn write(write: &GroupWrite) -> String {
    let mut text = String::new();
    if let Some(state) = &write.hard_state {
        let vote = state.vote.map_or("none".to_owned(), |vote| vote.to_string());
        let _ = write!(text, " term={} vote={vote}", state.term);
    }
    if let Some(at) = write.reset {
        let _ = write!(text, " log-starts-after={at}");
    }
    text.push_str(&entries(&write.entries));
    if let Some(at) = write.compact {
        let _ = write!(text, " truncates-up-to={at}");
    }
    if let Some(meta) = &write.meta {
        let _ = write!(text, " config={}", meta.membership.config_index);
        if let Some(at) = meta.snapshot {
            let _ = write!(text, " snapshot={at}");
        }
    }
    if let Some(replica) = write.destroy {
        let _ = write!(text, " destroys replica {replica}");
    }
    text
}

pub fn edge(edge: &Edge) -> String {
    let term = edge.term;
    match &edge.kind {
        EdgeKind::Lost { cause, successor } => {
            let next = successor.map_or(String::new(), |next| format!(" successor={}", next.node));
            format!("edge Lost term={term} cause={cause:?}{next}")
        }
        kind => format!("edge {kind:?} term={term}"),
    }
}

/// What changed between two statuses, a line each.
pub fn changes(before: Option<&GroupStatus>, status: &GroupStatus) -> Vec<String> {
    let mut lines = Vec::new();
    let differs = |field: &dyn Fn(&GroupStatus) -> String| {
        before.is_none_or(|before| field(before) != field(status))
    };
    if differs(&role) {
        lines.push(role(status));
    }
    if differs(&|status| format!("{:?}", status.caretaker))
        && let Some(why) = &status.caretaker
    {
        lines.push(format!("serves no users: {why}"));
    }
    if differs(&|status| membership(&status.membership)) {
        lines.push(membership(&status.membership));
    }
    if differs(&|status| status.committed.to_string()) {
        lines.push(format!("commit {}", status.committed));
    }
    if differs(&|status| format!("{:?}", status.snapshot)) {
        lines.push(format!("snapshot {:?}", status.snapshot.unwrap_or_default()));
    }
    if differs(&|status| format!("{:?}", status.checked))
        && let Some(index) = status.checked
    {
        lines.push(format!("equal to a majority at {index}"));
    }
    if differs(&|status| format!("{:?}", status.differs)) {
        lines.push(match status.differs {
            Some(index) => format!("alarm: replicas differ at {index}, there is no majority"),
            None if before.is_none() => String::new(),
            None => "the alarm ends".to_owned(),
        });
        lines.retain(|line| !line.is_empty());
    }
    if differs(&|status| status.hibernating.to_string()) {
        lines.push(if status.hibernating { "hibernating" } else { "awake" }.to_owned());
    }
    lines
}

/// Role, term, and the leader that it follows.
pub fn role(status: &GroupStatus) -> String {
    let leader = match (&status.leader, status.is_leader()) {
        (Some(leader), false) => format!(" leader={}", leader.node),
        _ => String::new(),
    };
    let why =
        if let Role::Failed(fault) = &status.role { format!(": {fault}") } else { String::new() };
    format!("{} term={}{leader}{why}", status.role.name(), status.term)
}

/// The configuration: by node, with the replica's id where it is another number.
pub fn membership(membership: &Membership) -> String {
    let part = |name: &str, holds: &dyn Fn(&Member) -> bool| {
        let of = membership.members.iter().filter(|(_, member)| holds(member));
        let words: Vec<String> = of
            .map(|(id, member)| match id.get() == member.node.get() {
                true => member.node.to_string(),
                false => format!("{}(r{id})", member.node),
            })
            .collect();
        if words.is_empty() { String::new() } else { format!(" {name}={}", words.join(",")) }
    };
    let index = membership.config_index;
    let voters = part("voters", &|member| member.voter);
    let outgoing = part("outgoing", &|member| member.outgoing_voter);
    let learners = part("learners", &|member| member.learner);
    let node = |id| membership.node_of(id).map_or("gone".to_owned(), |node| node.to_string());
    let incoming = membership.incoming.map_or(String::new(), |incoming| {
        let instead = incoming.replaces.map_or(String::new(), |old| format!(" for {}", node(old)));
        format!(" incoming={}{instead}", node(incoming.replica))
    });
    let requires = match membership.requirement.is_empty() {
        true => String::new(),
        false => format!(" requires=({})", membership.requirement),
    };
    format!("config {index}{voters}{outgoing}{learners}{incoming}{requires}")
}

/// How a proposal ended, and whether that is certain.
pub fn outcome(outcome: &ProposeOutcome) -> String {
    match outcome {
        Ok(applied) => {
            let at = LogPosition { term: applied.term, index: applied.index };
            format!("applied at {at}, answer {}", String::from_utf8_lossy(&applied.response))
        }
        Err(error) if error.is_definite() => format!("not applied: {error}"),
        Err(error) => format!("unknown: {error}"),
    }
}
