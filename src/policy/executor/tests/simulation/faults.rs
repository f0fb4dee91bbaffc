//! What goes wrong, how often, and how all of it ends.

use shardhost_storage::NodeId;

use super::super::super::Mode;
use super::cluster::{Cluster, Event, Weather};
use super::host::Version;
use super::shape::requirement;

/// Something goes wrong, or becomes right again.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    Restart(NodeId, Version),
    Undrain(NodeId),
    Reconnect,
    Calm,
    Control(Mode, bool),
}

impl Cluster {
    pub(super) fn strike(&mut self, fault: Fault) {
        match fault {
            // It came back when everything did.
            Fault::Restart(..) if !self.faulty => {}
            Fault::Restart(id, version) => {
                let now = self.now;
                self.host(id, |host| host.restart(version, now));
                let stopped = self.stopped;
                self.after(300, Event::HostHears { host: id, stopped });
            }
            Fault::Undrain(id) => self.host(id, |host| host.draining = false),
            Fault::Reconnect => {
                self.seats.values_mut().for_each(|planner_instance| planner_instance.cut.clear())
            }
            Fault::Calm => self.weather = Weather::default(),
            Fault::Control(mode, stopped) => self.control(mode, stopped),
        }
    }

    fn host(&mut self, id: NodeId, change: impl FnOnce(&mut super::host::Host)) {
        if let Some(host) = self.hosts.get_mut(&id) {
            change(host);
        }
    }

    /// The catalog changes. Hosts learn it soon; the planner in charge at once, or at its next
    /// pass.
    fn control(&mut self, mode: Mode, stopped: bool) {
        (self.mode, self.stopped) = (mode, stopped);
        let hosts: Vec<NodeId> = self.hosts.keys().copied().collect();
        for host in hosts {
            let delay = self.chance.between(1, 1_500);
            self.after(delay, Event::HostHears { host, stopped });
        }
        let (stop, at_once) = (self.stop(), self.chance.per_mille(500));
        if let Some(mut planner_instance) = self.seats.last_entry().filter(|_| at_once) {
            planner_instance.get_mut().control(mode, stop);
            self.sabotage.after_control(&mut planner_instance.get_mut().executor);
        }
    }

    pub(super) fn next_fault(&mut self) {
        if !self.faulty {
            return;
        }
        let nodes: Vec<NodeId> = self.hosts.keys().copied().collect();
        let node = self.chance.one_of(&nodes);
        let lasts = self.chance.between(1_000, 30_000);
        match self.chance.below(12) {
            0 | 1 => self.crash(node, lasts),
            2 => self.hang(node, lasts),
            3 => self.lag(node, lasts),
            4 | 5 => self.flip_capability(node),
            6 => self.drain(node, lasts),
            7 => self.partition(lasts),
            8 => self.worsen_weather(lasts),
            9 => self.new_planner(),
            10 => self.switch(lasts),
            _ => self.change_group(),
        }
        let pause = self.chance.between(500, 6_000);
        self.after(pause, Event::NextFault);
    }

    fn crash(&mut self, node: NodeId, lasts: u64) {
        let version = if self.chance.per_mille(300) { Version::Old } else { Version::Current };
        self.host(node, |host| host.up = false);
        self.after(lasts, Event::Fault(Fault::Restart(node, version)));
    }

    fn hang(&mut self, node: NodeId, lasts: u64) {
        let (until, in_part) = (self.now + lasts, self.chance.per_mille(500));
        self.host(node, |host| (host.hung_until_ms, host.hangs_in_part) = (until, in_part));
    }

    fn lag(&mut self, node: NodeId, lasts: u64) {
        let until = self.now + lasts;
        self.host(node, |host| host.lags_until_ms = until);
    }

    fn flip_capability(&mut self, node: NodeId) {
        let now = self.now;
        self.host(node, |host| {
            host.news_at_ms = now;
            if !host.capabilities.remove("fifo") {
                host.capabilities.insert("fifo".to_owned());
            }
        });
    }

    fn drain(&mut self, node: NodeId, lasts: u64) {
        self.host(node, |host| host.draining = true);
        self.after(lasts, Event::Fault(Fault::Undrain(node)));
    }

    fn partition(&mut self, lasts: u64) {
        for planner_instance in self.seats.values_mut() {
            let chance = &mut self.chance;
            planner_instance.cut =
                self.hosts.keys().copied().filter(|_| chance.per_mille(400)).collect();
        }
        self.after(lasts, Event::Fault(Fault::Reconnect));
    }

    fn worsen_weather(&mut self, lasts: u64) {
        self.weather = Weather { loss: self.chance.below(300), late: self.chance.below(300) };
        self.after(lasts, Event::Fault(Fault::Calm));
    }

    fn switch(&mut self, lasts: u64) {
        let mode = self.chance.one_of(&[Mode::Off, Mode::Shadow, Mode::On]);
        let stopped = self.chance.per_mille(500);
        self.control(mode, stopped);
        self.after(lasts.min(10_000), Event::Fault(Fault::Control(Mode::On, false)));
    }

    fn change_group(&mut self) {
        let ids: Vec<_> = self.shards.keys().copied().collect();
        let id = self.chance.one_of(&ids);
        let (members, fifo) = (self.chance.per_mille(500), self.chance.per_mille(500));
        let voters = self.voters_of(id);
        let spare: Vec<NodeId> =
            self.hosts.keys().copied().filter(|node| !voters.contains(node)).collect();
        let Some(shard) = self.shards.get_mut(&id) else { return };
        shard.news_at_ms = self.now;
        if !members {
            shard.requirement = requirement(fifo);
        } else if !spare.is_empty() {
            let gone = voters.into_iter().find(|node| shard.leader != Some(*node));
            gone.map(|node| shard.voters.remove(&node));
            shard.voters.insert(self.chance.one_of(&spare));
        }
    }

    /// Everything that goes wrong ends. What hosts can do, and groups want, stays as it is.
    pub(super) fn heal(&mut self) {
        self.faulty = false;
        self.weather = Weather::default();
        let now = self.now;
        for host in self.hosts.values_mut() {
            if !host.up || host.version == Version::Old {
                host.restart(Version::Current, now);
            }
            host.draining = false;
            host.hung_until_ms = 0;
            host.lags_until_ms = 0;
        }
        self.seats.values_mut().for_each(|planner_instance| planner_instance.cut.clear());
        self.control(Mode::On, false);
    }
}
