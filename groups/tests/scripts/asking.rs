//! What is asked of a group, and in which words it answers.

use shardhost_groups::core::{
    BarrierOrder, MembershipOrder, MembershipRequest, ReadBarrier, ReadNeed, ReadRequest,
    TransferRequest, TransferTarget,
};
use shardhost_groups::worker::Input;
use shardhost_groups::{CaughtUp, GroupId, LogIndex, MembershipChange, NodeId};

use crate::arguments::Arguments;
use crate::cluster::{Cluster, Done};
use crate::words;

impl Cluster {
    pub fn ask(&mut self, command: &str, arguments: &mut Arguments<'_>) -> Done {
        let name: Option<String> = arguments.maybe("as")?;
        let (node, group) = (arguments.node("node")?, arguments.group()?);
        let name = name.map_or(String::new(), |name| format!(" {name}"));
        let who = format!("n{node} g{group} {command}{name}");
        match command {
            "read" => self.read(node, group, who, arguments),
            "transfer" => self.transfer(node, group, &name, arguments),
            "snapshot" => {
                let waiter = self.answers.ask(who, |at| format!("taken at {at}"));
                self.input(node, Input::TakeSnapshot { group, waiter })
            }
            "barrier" => self.barrier(node, group, who, arguments),
            "cancel" => {
                let gone = self.answers.cancel(&format!("n{node} g{group} read{name}"));
                if gone { Ok(()) } else { Err("nobody waits under that name".to_owned()) }
            }
            _ => {
                let order = order(command, arguments)?;
                let good = |membership: std::sync::Arc<_>| {
                    format!("done, {}", words::membership(&membership))
                };
                let waiter = self.answers.ask(who, good);
                let request = Box::new(MembershipRequest { order, waiter });
                self.input(node, Input::ChangeMembership { group, request })
            }
        }
    }

    /// A lease read needs nobody while the lease lasts, and is an ordinary one after that.
    fn read(
        &mut self,
        node: NodeId,
        group: GroupId,
        who: String,
        arguments: &mut Arguments<'_>,
    ) -> Done {
        let need = match (arguments.flag("follower")?, arguments.flag("leadership")?) {
            (true, _) => ReadNeed::FromLeader,
            (_, true) => ReadNeed::Leadership,
            _ => ReadNeed::Applied,
        };
        if arguments.flag("lease")? && self.node(node)?.holds_lease(group) {
            let applied = self.node(node)?.status(group).map(|status| status.applied);
            self.say(format!("{who}: sees {} by lease", applied.unwrap_or_default()));
            return Ok(());
        }
        let good = |barrier: ReadBarrier| {
            format!("sees {}, applied {}", barrier.read_index, barrier.applied)
        };
        let waiter = self.answers.ask(who, good);
        self.input(node, Input::Read { group, request: ReadRequest { need, waiter } })
    }

    fn transfer(
        &mut self,
        node: NodeId,
        group: GroupId,
        name: &str,
        arguments: &mut Arguments<'_>,
    ) -> Done {
        let candidates = arguments.nodes("to")?;
        let max_lag = arguments.maybe("max-lag")?;
        let targets: Vec<String> = candidates.iter().map(|node| format!("n{node}")).collect();
        let to = match (candidates[..].first(), max_lag) {
            (_, Some(max_lag)) => TransferTarget::FirstFit { candidates, max_lag },
            (Some(node), None) => TransferTarget::Node(*node),
            (None, None) => TransferTarget::Furthest,
        };
        let targets = if targets.is_empty() { "anybody".to_owned() } else { targets.join(" or ") };
        let good = |(node, term)| format!("done, node {node} leads in term {term}");
        let who = format!("n{node} g{group} transfer to {targets}{name}");
        let waiter = self.answers.ask(who, good);
        self.input(node, Input::Transfer { group, request: TransferRequest { to, waiter } })
    }

    fn barrier(
        &mut self,
        node: NodeId,
        group: GroupId,
        who: String,
        arguments: &mut Arguments<'_>,
    ) -> Done {
        let close: Option<u64> = arguments.maybe("close")?;
        let drain: Option<u64> = arguments.maybe("drain")?;
        let order = match (close, drain) {
            (Some(number), _) => BarrierOrder::Close(number),
            (_, Some(number)) => {
                let good = |index| format!("nothing is under way behind {index}");
                let waiter = self.answers.ask(format!("{who} {number} drains"), good);
                BarrierOrder::Drain { number, waiter }
            }
            _ => {
                let good = |(term, number)| format!("number {number} is open in term {term}");
                BarrierOrder::Open(self.answers.ask(who, good))
            }
        };
        self.input(node, Input::Barrier { group, order })
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
