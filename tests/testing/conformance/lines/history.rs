//! Clients that write and read one register, and the check of what they saw.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use shardhost_storage::GroupId;
use tokio::task::JoinHandle;

use super::super::World;
use super::super::world::{answered, eventually};
use crate::linearizability::table::{Action, Answer, Table, TableOp};
use crate::linearizability::{Limits, Recorder, Verdict, check};
use shardhost_groups::runtime::{Group, ReadMode};

/// The register is the last command of the journal.
type Register = Table<&'static str, String>;
type Notes = Recorder<TableOp<&'static str, String>, Answer<String>>;

pub(super) struct Clients {
    notes: Notes,
    done: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    running: Vec<JoinHandle<()>>,
}

impl Clients {
    /// Starts clients that write to the leader, and read in every mode at any replica.
    pub(super) fn start(world: &Arc<World>, group: GroupId, count: u64) -> Self {
        let (notes, done, answers) = (Notes::new(), Arc::default(), Arc::default());
        let mut clients = Self { notes, done, answers, running: Vec::new() };
        for number in 0..count {
            let client = Client {
                number,
                group,
                world: Arc::clone(world),
                notes: clients.notes.clone(),
                answers: Arc::clone(&clients.answers),
            };
            let done = Arc::clone(&clients.done);
            clients.running.push(tokio::spawn(client.run(done)));
        }
        clients
    }

    /// Waits until so many more operations were answered.
    pub(super) async fn wait_for_more(&self, count: u64) {
        let enough = self.answers.load(Ordering::Relaxed) + count;
        let reached = || self.answers.load(Ordering::Relaxed) >= enough;
        eventually("clients are answered", reached).await;
    }

    /// Ends the clients and judges what they saw.
    pub(super) async fn stop(self) -> Verdict<Register> {
        self.done.store(true, Ordering::Relaxed);
        for client in self.running {
            answered("a client's end", client).await.expect("clients do not panic");
        }
        check(&Register::new(), &self.notes.history(), Limits::default())
    }
}

struct Client {
    number: u64,
    group: GroupId,
    world: Arc<World>,
    notes: Notes,
    answers: Arc<AtomicU64>,
}

impl Client {
    async fn run(self, done: Arc<AtomicBool>) {
        for turn in 0.. {
            if done.load(Ordering::Relaxed) {
                return;
            }
            let replicas = self.world.replicas(self.group);
            let leads = replicas.iter().find(|(_, replica)| replica.status().is_leader());
            let any = replicas.get((turn as usize + self.number as usize) % replicas.len().max(1));
            let answered = match (turn % 4, leads, any) {
                (0, Some((_, leader)), _) => self.write(leader, turn).await,
                (1, Some((_, leader)), _) => self.read(leader, ReadMode::Linearizable).await,
                (2, _, Some((_, any))) => self.read(any, ReadMode::Follower).await,
                // Any replica that believes to lead, not only the leader.
                (3, _, Some((_, any))) => self.read(any, ReadMode::Lease).await,
                _ => false,
            };
            if answered {
                self.answers.fetch_add(1, Ordering::Relaxed);
            } else {
                tokio::time::sleep(self.world.ticks(1) / 4).await;
            }
        }
    }

    async fn write(&self, leader: &Group, turn: u64) -> bool {
        let value = format!("{}-{turn}", self.number);
        let call = self.notes.call(self.number, TableOp::new("last", Action::Put(value.clone())));
        match answered("a write", leader.propose(value).within(self.world.ticks(30))).await {
            Ok(_) => call.answered(Answer::Written),
            Err(error) if error.is_definite() => {
                call.refused();
                return false;
            }
            Err(_) => {
                call.unknown();
                return false;
            }
        }
        true
    }

    async fn read(&self, replica: &Group, mode: ReadMode) -> bool {
        let call = self.notes.call(self.number, TableOp::new("last", Action::Get));
        match answered("a read", replica.query(mode, "last")).await {
            Ok(last) => {
                let last = String::from_utf8_lossy(&last).into_owned();
                call.answered(Answer::Value((!last.is_empty()).then_some(last)));
                true
            }
            Err(_) => {
                call.refused();
                false
            }
        }
    }
}
