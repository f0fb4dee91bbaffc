//! Commands that look and change nothing.

use shardhost_groups::storage::{LogStore, PersistedGroup};
use shardhost_groups::{GroupId, NodeId};

use crate::commands::arguments::Arguments;
use crate::words;
use crate::world::{Cluster, Done};

impl Cluster {
    pub fn look(&mut self, command: &str, arguments: &mut Arguments<'_>) -> Done {
        let (named, group) = (arguments.nodes("node")?, arguments.maybe_group()?);
        let peers = arguments.flag("peers")?;
        let nodes = if named.is_empty() { self.node_ids() } else { named };
        nodes.into_iter().try_for_each(|node| match command {
            "status" => self.show_status(node, group, peers),
            "disk" => self.show_disk(node, group),
            "membership" => self.show_membership(node, group),
            "lease" => self.show_lease(node, group),
            _ => self.show_machine(node, group),
        })
    }

    /// What a node says of its groups, and on leaders of the peers.
    fn show_status(&mut self, id: NodeId, only: Option<GroupId>, peers: bool) -> Done {
        if !self.runs(id) {
            self.say(format!("n{id} down"));
            return Ok(());
        }
        for group in self.groups_on(id, only) {
            let Some(status) = self.nodes[&id].status(group).cloned() else {
                self.say(format!("n{id} g{group} not running"));
                continue;
            };
            let serving = if status.serving { " serving" } else { "" };
            let hibernating = if status.hibernating { " hibernating" } else { "" };
            let to =
                status.transferring_to.map_or(String::new(), |to| format!(" transferring-to={to}"));
            let contested =
                status.conflicting.map_or(String::new(), |node| format!(" contested-by=n{node}"));
            let differs =
                status.differs.map_or(String::new(), |index| format!(" differ-at={index}"));
            self.say(format!(
                "n{id} g{group} {}{serving} log={}..{} commit={} applied={}{to}{hibernating}{contested}{differs}",
                words::role(&status),
                status.first,
                status.last,
                status.committed,
                status.applied
            ));
            for peer in status.peers.iter().filter(|_| peers) {
                let (node, matched, next) = (peer.node, peer.matched, peer.next);
                let active = if peer.recently_active { "" } else { " silent" };
                let state = peer.state;
                self.say(format!("  peer n{node} matched={matched} next={next} {state}{active}"));
            }
        }
        Ok(())
    }

    fn groups_on(&self, id: NodeId, only: Option<GroupId>) -> Vec<GroupId> {
        let groups = self.nodes[&id].disks.machines.keys().copied();
        groups.filter(|group| only.is_none_or(|only| only == *group)).collect()
    }

    /// What of a node's log would survive a crash.
    fn show_disk(&mut self, id: NodeId, only: Option<GroupId>) -> Done {
        for group in self.groups_on(id, only) {
            let line = match self.nodes[&id].disks.store.load_durable(group) {
                Some(stored) => self.stored(id, &stored)?,
                None => "nothing".to_owned(),
            };
            self.say(format!("n{id} g{group} disk: {line}"));
        }
        Ok(())
    }

    fn stored(&self, id: NodeId, stored: &PersistedGroup) -> Result<String, String> {
        let state = stored.hard_state;
        let vote = state.vote.map_or("none".to_owned(), |vote| vote.to_string());
        let (group, first) = (stored.meta.group, stored.base.index.next());
        let mut entries = Vec::new();
        let end = stored.last.index.next();
        if first < end {
            let store = &self.nodes[&id].disks.store;
            store.entries(group, first, end, u64::MAX, &mut entries).map_err(|e| e.to_string())?;
        }
        let base = match stored.base.index.get() {
            0 => String::new(),
            _ => format!(" log-starts-after={}", stored.base),
        };
        let config = words::membership(&stored.meta.membership);
        let entries = words::entries(&entries);
        Ok(format!("term={} vote={vote}{base}{entries} {config}", state.term))
    }

    /// What a node's state machines hold.
    fn show_machine(&mut self, id: NodeId, only: Option<GroupId>) -> Done {
        for group in self.groups_on(id, only) {
            let live = self.nodes[&id].disks.machines[&group].lock().unwrap().live.clone();
            let mut words: Vec<String> =
                live.commands.into_iter().map(|(_, text)| text.0).collect();
            if words.is_empty() {
                words.push("empty".to_owned());
            }
            self.say(format!("n{id} g{group} machine: {}", words.join(" ")));
        }
        Ok(())
    }

    /// Who belongs to the groups, as a node has applied.
    fn show_membership(&mut self, id: NodeId, only: Option<GroupId>) -> Done {
        for group in self.groups_on(id, only) {
            let Some(status) = self.nodes[&id].status(group) else { continue };
            let line = words::membership(&status.membership);
            self.say(format!("n{id} g{group} {line}"));
        }
        Ok(())
    }

    /// Whether a node may answer reads without a round trip.
    fn show_lease(&mut self, id: NodeId, only: Option<GroupId>) -> Done {
        for group in self.groups_on(id, only) {
            let lease = if self.nodes[&id].holds_lease(group) { "lease" } else { "no lease" };
            self.say(format!("n{id} g{group} {lease}"));
        }
        Ok(())
    }

    /// What a node counted of leaderships since it started, and how long users stood still.
    fn counters_of(&self, id: NodeId) -> Vec<String> {
        let Some(process) = self.nodes[&id].process.as_ref() else { return Vec::new() };
        let counters = &process.core.counters().policy;
        let by_reason = [
            ("did not ask", &counters.candidates_refused),
            ("did not take", &counters.leaderships_refused),
            ("did not stand", &counters.campaigns_vetoed),
            ("refused pre-votes", &counters.pre_votes_refused),
            ("transfers failed", &counters.transfers_failed),
        ];
        let of_reasons = by_reason.into_iter().flat_map(|(what, counts)| {
            counts.counted().map(move |(reason, count)| format!("{what} {}={count}", reason.name()))
        });
        let plain = [
            ("transfers done", counters.transfers_done),
            ("stood unfit", counters.stood_unfit),
            ("caretakers", counters.caretakers_begun),
            ("freezes", counters.freezes),
            ("ended by the watchdog", counters.watchdog_endings),
            ("stood again", counters.stood_again),
        ];
        let plain = plain.into_iter().filter(|(_, count)| *count > 0);
        let plain = plain.map(|(what, count)| format!("{what}={count}"));
        let froze = process.froze.iter().map(|stood| format!("froze for {stood:?}"));
        of_reasons.chain(plain).chain(froze).collect()
    }

    pub fn show_counters(&mut self, id: NodeId) -> Done {
        for line in self.counters_of(id) {
            self.say(format!("n{id} counted: {line}"));
        }
        Ok(())
    }

    /// What is on its way.
    pub fn show_network(&mut self) -> Done {
        let messages: Vec<String> = self
            .network
            .all()
            .map(|((from, to), message, note)| {
                format!("{}{note}", words::message(from, to, message))
            })
            .collect();
        messages.into_iter().for_each(|line| self.say(line));
        Ok(())
    }
}
