//! Whole runs, and what must hold at their end.

use super::*;

/// Parts of four seconds that a replica gets to catch up in, at most.
const CATCH_UP_PARTS: u32 = 15;

impl Cluster {
    /// Clients, operators and faults are at work for as long as the shape says.
    ///
    /// # Errors
    /// What a checker found.
    pub fn run_with_faults(&mut self) -> Result<(), String> {
        self.faulty = true;
        self.after(300, Event::Load);
        self.after(500, Event::Read);
        self.after(600, Event::LeaseRead);
        if self.shape.transfers {
            self.after(1_200, Event::Transfer);
        }
        if self.shape.policies {
            self.after(700, Event::Policy);
        }
        if self.shape.changes {
            self.after(1_500, Event::Change);
        }
        self.after(2_000, Event::Fault);
        self.pass(self.shape.duration)?;
        self.faulty = false;
        Ok(())
    }

    pub(in super::super) const fn fault_every(&self) -> u64 {
        self.shape.fault_every
    }

    pub(in super::super) const fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Clients propose and read from here on, until `clients_work(false)`.
    pub fn clients_work(&mut self, work: bool) {
        self.faulty = work;
        if work {
            self.after(5, Event::Load);
            self.after(5, Event::LeaseRead);
            self.after(5, Event::Read);
        }
    }

    /// The node that serves a group.
    pub fn leader_of(&self, group: GroupId) -> Option<NodeId> {
        self.nodes.values().find(|node| node.serves(group)).map(|node| node.id)
    }

    /// Ends what is wrong with the network, the disks and the processes.
    ///
    /// # Errors
    /// A node's disks hold what it cannot start from.
    pub fn heal(&mut self) -> Result<(), String> {
        self.network.heal();
        self.weather = Weather::CALM;
        for id in self.node_ids() {
            self.restart(id)?;
            if let Some(node) = self.nodes.get_mut(&id) {
                node.stalled_until = 0;
                node.machines_slow_until = 0;
                node.full_until = 0;
                node.disk_delay = 4;
                node.blind = false;
                node.blind_windows = 0;
            }
        }
        Ok(())
    }

    /// Ends all faults; then everything must be well again within a bound.
    ///
    /// # Errors
    /// It is not, or a checker found something.
    pub fn heal_and_settle(&mut self) -> Result<(), String> {
        self.everybody_is_fit()?;
        self.heal()?;
        if self.shape.impairs {
            self.something_lasts()?;
            self.heal()?;
        }
        self.pass(15_000)?;
        self.every_group_with_a_quorum_is_led()?;
        self.reopen_all()?;
        self.remove_lost_members()?;
        self.write_to_every_group()?;
        self.pass(8_000)?;
        self.catch_up()?;
        self.every_replica_holds_the_same()?;
        self.every_leader_asked_its_policies()?;
        self.every_leader_gets_a_lease()?;
        self.checks.histories.check()
    }

    /// Each group that works has a leader with a lease before long.
    ///
    /// # Errors
    /// One has none, or a checker found something.
    pub fn every_leader_gets_a_lease(&mut self) -> Result<(), String> {
        for group in (1..=self.shape.groups).map(GroupId::new) {
            let Some(leader) = self.leader_of(group) else { continue };
            self.propose(leader, group, 1)?;
            let mut waited = 0;
            while !self.holds_lease(leader, group) {
                if waited == 2_000 {
                    return Err(format!("{group:?} has no lease: {}", self.describe(group)));
                }
                self.pass(20)?;
                waited += 20;
            }
        }
        Ok(())
    }

    fn holds_lease(&self, id: NodeId, group: GroupId) -> bool {
        let node = &self.nodes[&id];
        let lease = node.process.as_ref().and_then(|process| process.leases.get(&group));
        lease.is_some_and(|lease| node.clock(self.now) < lease.until)
    }

    fn every_leader_asked_its_policies(&self) -> Result<(), String> {
        for (id, group) in self
            .node_ids()
            .into_iter()
            .flat_map(|id| (1..=self.shape.groups).map(move |group| (id, GroupId::new(group))))
        {
            let status = self.status(id, group);
            status.map_or(Ok(()), |status| self.checks.serving.settled(id, status))?;
        }
        Ok(())
    }

    /// Each group is served.
    ///
    /// # Errors
    /// A group that no node serves.
    pub fn every_group_is_led_by_a_live_node(&self) -> Result<(), String> {
        for group in (1..=self.shape.groups).map(GroupId::new) {
            if !self.nodes.values().any(|node| node.serves(group)) {
                return Err(format!("{group:?} is not led: {}", self.describe(group)));
            }
        }
        Ok(())
    }

    /// Each group of which enough replicas are open is served, without a request for it.
    ///
    /// # Errors
    /// A group that no node serves.
    pub fn every_group_with_a_quorum_is_led(&self) -> Result<(), String> {
        let all = self.nodes.len();
        for group in (1..=self.shape.groups).map(GroupId::new) {
            let closed = self.nodes.values().filter(|node| node.closed.contains(&group)).count();
            let led = self.nodes.values().any(|node| node.serves(group));
            if !led && all - closed > all / 2 {
                return Err(format!("{group:?} is not led: {}", self.describe(group)));
            }
        }
        Ok(())
    }

    fn reopen_all(&mut self) -> Result<(), String> {
        let closed = |node: &Node| node.closed.iter().map(|group| (node.id, *group)).collect();
        let closed: Vec<(NodeId, GroupId)> =
            self.nodes.values().flat_map(|node| -> Vec<_> { closed(node) }).collect();
        if closed.is_empty() {
            return Ok(());
        }
        for (id, group) in closed {
            self.reopen(id, group)?;
        }
        self.pass(10_000)
    }

    /// Each group takes a write.
    ///
    /// # Errors
    /// One does not, within two seconds, or a checker found something.
    pub fn write_to_every_group(&mut self) -> Result<(), String> {
        self.every_group_is_led_by_a_live_node()?;
        let before = self.checks.acknowledged();
        for group in (1..=self.shape.groups).map(GroupId::new) {
            let leader = self.nodes.values().find(|node| node.serves(group)).map(|node| node.id);
            if let Some(leader) = leader {
                self.propose(leader, group, 1)?;
            }
        }
        self.pass(2_000)?;
        let written = (self.checks.acknowledged() - before) as u64;
        if written == self.shape.groups {
            return Ok(());
        }
        Err(format!("only {written} of {} groups take writes", self.shape.groups))
    }

    /// A replica that was away for long gets its entries one by one where few may be on their way.
    fn catch_up(&mut self) -> Result<(), String> {
        for _ in 0..CATCH_UP_PARTS {
            let mut groups = (1..=self.shape.groups).map(GroupId::new);
            if groups.all(|group| self.is_level(group)) {
                break;
            }
            self.pass(4_000)?;
        }
        Ok(())
    }

    fn is_level(&self, group: GroupId) -> bool {
        let statuses = self.nodes.keys().filter_map(|node| self.status(*node, group));
        let mut applied = statuses.map(|status| status.applied);
        let first = applied.next();
        applied.all(|other| Some(other) == first)
    }

    pub(super) fn every_replica_holds_the_same(&self) -> Result<(), String> {
        for group in (1..=self.shape.groups).map(GroupId::new) {
            let mut first = None;
            let members = self.members_of(group)?;
            let led = self.leader_of(group).and_then(|leader| self.status(leader, group));
            let config = led.map(|status| status.membership.config_index);
            for node in self.nodes.values().filter(|node| members.contains(&node.id)) {
                let known = self.status(node.id, group);
                if known.is_some_and(|known| Some(known.membership.config_index) != config) {
                    return Err(format!("memberships differ: {}", self.describe(group)));
                }
                let Some(disk) = node.disks.machines.get(&group) else {
                    return Err(format!("{:?} has no replica: {}", node.id, self.describe(group)));
                };
                let contents = disk.lock().unwrap().live.clone();
                let settled = self.checks.settled(group, &contents.commands);
                settled
                    .map_err(|why| format!("on {:?} {why}: {}", node.id, self.describe(group)))?;
                match &first {
                    None => first = Some(contents.commands),
                    Some(first) if *first == contents.commands => {}
                    Some(_) => {
                        return Err(format!("replicas differ: {}", self.describe(group)));
                    }
                }
            }
        }
        Ok(())
    }

    /// The nodes that the leader says are members; no other node has a replica.
    fn members_of(&self, group: GroupId) -> Result<Vec<NodeId>, String> {
        let leader = self.nodes.values().find(|node| node.serves(group));
        let core = leader.and_then(|node| node.process.as_ref()?.core.group(group));
        let core = core.ok_or_else(|| format!("{group:?} is not led: {}", self.describe(group)))?;
        let status = core.status();
        if status.pending_change.is_some() || status.membership.incoming.is_some() {
            return Err(format!("a change is not finished: {}", self.describe(group)));
        }
        let members: Vec<NodeId> = status.membership.members.values().map(|m| m.node).collect();
        let others = self.nodes.values().filter(|node| !members.contains(&node.id));
        for node in others {
            if node.process.as_ref().is_some_and(|process| process.core.group(group).is_some()) {
                let all = self.describe(group);
                return Err(format!("{:?} was removed and does not end: {all}", node.id));
            }
        }
        Ok(members)
    }

    /// Lets time pass until all groups hibernate.
    ///
    /// # Errors
    /// They do not, or a checker found something.
    pub fn settle_until_hibernating(&mut self) -> Result<(), String> {
        for _ in 0..40 {
            self.pass(500)?;
            let hibernating =
                self.nodes.values().filter_map(|node| node.process.as_ref()).all(|p| {
                    let (groups, awake) = p.core.population();
                    groups > 0 && awake == 0
                });
            if hibernating {
                return Ok(());
            }
        }
        Err(format!("groups stay awake: {}", self.describe(GroupId::new(1))))
    }

    pub(super) fn describe(&self, group: GroupId) -> String {
        let mut text = String::new();
        for node in self.nodes.values() {
            let status = node.process.as_ref().and_then(|p| p.core.group(group)).map(|core| {
                let s = core.status();
                let stored = node.disks.store.load(group).ok().flatten().map(|p| (p.base, p.last));
                format!(
                    "{} term {} leader {:?} serving {} log {}..{} committed {} applied {} hibernating \
                     {} members {:?} peers {:?} stored {stored:?}",
                    s.role.name(),
                    s.term,
                    s.leader,
                    s.serving,
                    s.first,
                    s.last,
                    s.committed,
                    s.applied,
                    s.hibernating,
                    s.membership,
                    s.peers
                )
            });
            text.push_str(&format!("\n  {:?}: {status:?}", node.id));
        }
        text
    }
}
