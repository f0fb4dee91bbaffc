//! What is asked of a group, and in which words it answers.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use shardhost_groups::core::{
    BarrierOrder, MembershipOrder, MembershipRequest, Proposal, ReadBarrier, ReadNeed, ReadRequest,
    TransferRequest, TransferTarget,
};
use shardhost_groups::worker::Input;
use shardhost_groups::{
    CaughtUp, GroupId, LogIndex, Membership, MembershipChange, NodeId, Term, TransferError,
};
use shardhost_proto::peer::MessageKind;

use crate::commands::arguments::Arguments;
use crate::words;
use crate::world::network::Pattern;
use crate::world::node::Part;
use crate::world::{Cluster, Done};

/// Who asks, and under which line the answer appears.
pub(super) struct Asker {
    pub(super) node: NodeId,
    pub(super) group: GroupId,
    name: String,
}

impl Asker {
    pub(super) fn new(arguments: &mut Arguments<'_>) -> Result<Self, String> {
        let name: Option<String> = arguments.maybe("as")?;
        let name = name.map_or(String::new(), |name| format!(" {name}"));
        Ok(Self { node: arguments.node("node")?, group: arguments.group()?, name })
    }

    pub(super) fn line(&self, what: &str) -> String {
        format!("n{} g{} {what}{}", self.node, self.group, self.name)
    }
}

impl Cluster {
    pub fn propose(&mut self, arguments: &mut Arguments<'_>) -> Done {
        let Asker { node, group, .. } = Asker::new(arguments)?;
        let in_term = arguments.maybe("term")?.map(Term::new);
        let through_barrier = arguments.flag("through-barrier")?;
        let mut data: Vec<String> = arguments.all("data")?;
        if let Some(count) = arguments.maybe("count")? {
            data = data.iter().cycle().take(count).cloned().collect();
        }
        let proposals = data.into_iter().map(|text| {
            let pending = self.answers.proposal(group, format!("n{node} g{group} propose {text}"));
            Proposal { command: Bytes::from(text), in_term, through_barrier, pending }
        });
        let input = Input::Propose { group, open_id: None, proposals: proposals.collect() };
        if arguments.flag("round-goes-on")? {
            self.begin(node)?.handle(input);
            return Ok(());
        }
        self.input(node, input)
    }

    /// A lease read needs no round trip while the lease lasts, and is an ordinary one after that.
    pub fn read(&mut self, arguments: &mut Arguments<'_>) -> Done {
        let asker = Asker::new(arguments)?;
        let Asker { node, group, .. } = asker;
        let need = match (arguments.flag("follower")?, arguments.flag("leadership")?) {
            (true, _) => ReadNeed::FromLeader,
            (_, true) => ReadNeed::Leadership,
            _ => ReadNeed::Applied,
        };
        if arguments.flag("lease")? && self.node(node)?.holds_lease(group) {
            let applied = self.node(node)?.status(group).map(|status| status.applied);
            let applied = applied.unwrap_or_default();
            self.say(format!("{}: sees {applied} by lease", asker.line("read")));
            return Ok(());
        }
        let good = |barrier: ReadBarrier| {
            format!("sees {}, applied {}", barrier.read_index, barrier.applied)
        };
        let completion = self.answers.ask(asker.line("read"), good);
        self.input(node, Input::Read { group, request: ReadRequest { need, completion } })
    }

    /// The caller of a read goes away.
    pub fn cancel(&mut self, arguments: &mut Arguments<'_>) -> Done {
        let asker = Asker::new(arguments)?;
        let gone = self.answers.cancel(&asker.line("read"));
        if gone { Ok(()) } else { Err("nobody waits under that name".to_owned()) }
    }

    pub fn transfer(&mut self, arguments: &mut Arguments<'_>) -> Done {
        let asker = Asker::new(arguments)?;
        let candidates = arguments.nodes("to")?;
        let targets: Vec<String> = candidates.iter().map(|node| format!("n{node}")).collect();
        let to = match (candidates.first().copied(), arguments.maybe("max-lag")?) {
            (_, Some(max_lag)) => TransferTarget::FirstFit { candidates, max_lag },
            (Some(node), None) => TransferTarget::Node(node),
            (None, None) => TransferTarget::Furthest,
        };
        let targets = if targets.is_empty() { "anybody".to_owned() } else { targets.join(" or ") };
        let good = |(node, term, _)| format!("done, node {node} leads in term {term}");
        let bad = |error: TransferError| format!("no, {}: {error}", error.reason().name());
        let line = asker.line(&format!("transfer to {targets}"));
        let completion = self.answers.ask_why(line, good, bad);
        let request = TransferRequest { to, completion };
        self.input(asker.node, Input::Transfer { group: asker.group, request })
    }

    /// The leader asks its peers first. They answer at once, which is not shown, unless that is left to the script.
    pub fn change(&mut self, command: &str, arguments: &mut Arguments<'_>) -> Done {
        let asker = Asker::new(arguments)?;
        let unanswered = arguments.flag("unanswered")?;
        let order = order(command, arguments)?;
        let good =
            |membership: Arc<Membership>| format!("done, {}", words::membership(&membership));
        let completion = self.answers.ask(asker.line(command), good);
        let request = Box::new(MembershipRequest { order, completion });
        let input = Input::ChangeMembership { group: asker.group, request };
        if unanswered {
            return self.input(asker.node, input);
        }
        self.hides_heartbeats = true;
        let heartbeats = self.heartbeats_of(asker.node, asker.group).len();
        self.input(asker.node, input)?;
        let asks = self.heartbeats_of(asker.node, asker.group).len() > heartbeats;
        if asks {
            self.answer_heartbeats(asker.node, asker.group)?;
        }
        self.hides_heartbeats = false;
        Ok(())
    }

    fn heartbeats_of(&self, leader: NodeId, group: GroupId) -> Vec<NodeId> {
        let kind = Some(MessageKind::Heartbeat);
        let pattern =
            Pattern { from: Some(leader), group: Some(group.get()), kind, ..Pattern::default() };
        let on_their_way = self.network.all().filter(|(_, _, held)| held.is_empty());
        let fit = on_their_way.filter(|((from, to), message, _)| pattern.fits(*from, *to, message));
        fit.map(|((_, to), _, _)| to).collect()
    }

    /// Heartbeats that are on their way arrive, and so do their answers.
    fn answer_heartbeats(&mut self, leader: NodeId, group: GroupId) -> Done {
        let mut asked: BTreeSet<NodeId> = self.heartbeats_of(leader, group).into_iter().collect();
        asked.retain(|peer| self.moves(*peer, Part::Worker));
        for peer in asked {
            for (from, to, kind) in [
                (leader, peer, MessageKind::Heartbeat),
                (peer, leader, MessageKind::HeartbeatResponse),
            ] {
                let kind = Some(kind);
                let group = Some(group.get());
                let pattern = Pattern { group, kind, ..Pattern::link(from, to) };
                let frame = self.network.take(&pattern, usize::MAX);
                self.arrive(from, to, frame.into_iter().map(|(_, message)| message).collect())?;
            }
        }
        Ok(())
    }

    pub fn take_snapshot(&mut self, arguments: &mut Arguments<'_>) -> Done {
        let asker = Asker::new(arguments)?;
        let completion = self.answers.ask(asker.line("snapshot"), |at| format!("taken at {at}"));
        self.input(asker.node, Input::TakeSnapshot { group: asker.group, completion })
    }

    pub fn barrier(&mut self, arguments: &mut Arguments<'_>) -> Done {
        let asker = Asker::new(arguments)?;
        let close: Option<u64> = arguments.maybe("close")?;
        let drain: Option<u64> = arguments.maybe("drain")?;
        let order = match (close, drain) {
            (Some(number), _) => BarrierOrder::Close(number),
            (_, Some(number)) => {
                let good = |index| format!("nothing is under way behind {index}");
                let line = asker.line(&format!("barrier {number} drains"));
                BarrierOrder::Drain { number, completion: self.answers.ask(line, good) }
            }
            _ => {
                let good = |(term, number)| format!("number {number} is open in term {term}");
                BarrierOrder::Open(self.answers.ask(asker.line("barrier"), good))
            }
        };
        self.input(asker.node, Input::Barrier { group: asker.group, order })
    }
}

/// A change of membership, as a command says it.
fn order(command: &str, arguments: &mut Arguments<'_>) -> Result<MembershipOrder, String> {
    let expecting = arguments.maybe("expecting")?.map(LogIndex::new);
    if command == "cancel-addition" {
        return Ok(MembershipOrder::CancelAddition { expecting });
    }
    if command == "replace" {
        let (old, new) = (arguments.node("old")?, arguments.node("new")?);
        return Ok(MembershipOrder::Replace { old, new, expecting });
    }
    let mut change = MembershipChange::new();
    let when = caught_up(arguments)?;
    for node in arguments.nodes("add-voter")? {
        change = change.add_voter(node);
    }
    for node in arguments.nodes("add-learner")? {
        change = change.add_learner(node);
    }
    for node in arguments.nodes("promote")? {
        change = change.promote(node, when);
    }
    for node in arguments.nodes("demote")? {
        change = change.demote(node);
    }
    for node in arguments.nodes("remove")? {
        change = change.remove(node);
    }
    if let Some(index) = expecting {
        change = change.expecting(index);
    }
    Ok(MembershipOrder::Change(change))
}

/// What a promotion asks for; unless it is said otherwise, the whole log.
fn caught_up(arguments: &mut Arguments<'_>) -> Result<CaughtUp, String> {
    if arguments.flag("unchecked")? {
        return Ok(CaughtUp::Unchecked);
    }
    let at_least: Option<u64> = arguments.maybe("at-least")?;
    let max_lag: Option<u64> = arguments.maybe("max-lag")?;
    Ok(match at_least {
        Some(index) => CaughtUp::AtLeast(LogIndex::new(index)),
        None => CaughtUp::MaxLag(max_lag.unwrap_or(0)),
    })
}
