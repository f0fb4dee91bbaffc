//! What goes wrong during a run, and how often.

use shardhost_groups::NodeId;

use super::chance::Chance;
use super::cluster::Cluster;
use super::network::Weather;

impl Cluster {
    /// Draws the next fault, and when the one after it comes.
    pub fn next_fault(&mut self) -> Result<u64, String> {
        let mut chance = self.chance.clone();
        chance.draw();
        let node = self.pick_node(&mut chance);
        if self.shape().impairs {
            self.next_impairment(node, &mut chance);
            let every = self.fault_every();
            let next = chance.between(every / 3, every * 2);
            self.chance = chance;
            return Ok(next);
        }
        match chance.below(if self.shape().closes { 18 } else { 12 }) {
            0..=2 => self.crash_and_come_back(node, &mut chance),
            3 => self.crash_all(&mut chance),
            4..=6 => self.partition_for_a_while(&mut chance),
            7 if self.shape().lost_tails && chance.per_mille(700) => {
                self.lose_a_tail(node, &mut chance);
            }
            7 if self.shape().lost_states && chance.per_mille(700) => {
                let down = chance.between(50, 2_000);
                self.lose_a_state(down);
            }
            7 => self.stall(node, chance.between(100, 3_000)),
            8 => self.slow_disk(node, chance.between(20, 400)),
            7..=9 if self.shape().lost_disks && chance.per_mille(700) => {
                let down = chance.between(50, 2_000);
                self.lose_a_disk(down);
            }
            9 => self.change_weather(&mut chance),
            10 if self.shape().slow_machines => {
                self.slow_machines(node, chance.between(1_000, 8_000));
            }
            10 => self.flush_machines(node),
            11 => self.transfer_something(&mut chance),
            _ => self.close_something(&mut chance)?,
        }
        let every = self.fault_every();
        let next = chance.between(every / 3, every * 2);
        self.chance = chance;
        Ok(next)
    }

    /// Of a shape in which disks fill up and states are lost.
    fn next_impairment(&mut self, node: NodeId, chance: &mut Chance) {
        match chance.below(12) {
            0..=2 => {
                let length = chance.between(300, 8_000);
                self.fill_disk(node, length);
                // Who is elected next is often the one that stands still.
                if let Some(leader) = self.any_leader().filter(|_| chance.per_mille(400)) {
                    self.crash_and_come_back(leader, chance);
                }
            }
            3 | 4 => {
                let down = chance.between(50, 2_000);
                self.lose_any_state(node, down);
            }
            5 | 6 => self.crash_and_come_back(node, chance),
            7 => self.partition_for_a_while(chance),
            8 => self.slow_machines(node, chance.between(1_000, 4_000)),
            9 => self.flush_machines(node),
            10 => self.transfer_something(chance),
            _ => self.change_weather(chance),
        }
    }

    fn crash_and_come_back(&mut self, node: NodeId, chance: &mut Chance) {
        let keep = usize::try_from(chance.below(3)).unwrap_or(0);
        self.crash(node, keep);
        let down = chance.between(50, 6_000);
        self.restart_later(node, down);
    }

    fn crash_all(&mut self, chance: &mut Chance) {
        for node in self.node_ids() {
            self.crash_and_come_back(node, chance);
        }
    }

    fn partition_for_a_while(&mut self, chance: &mut Chance) {
        let nodes = self.node_ids();
        self.network.partition(&nodes, chance);
        let length = chance.between(200, 5_000);
        self.heal_network_later(length);
    }

    fn change_weather(&mut self, chance: &mut Chance) {
        self.weather = Weather {
            loss: chance.below(200),
            duplication: chance.below(100),
            delay: chance.between(1, 60),
            late: chance.below(20),
            late_orders: chance.below(500),
        };
    }
}
