//! What a leader that is not ready holds is given up after the ticks of the configuration.

#![expect(clippy::unwrap_used, reason = "a test that broke ends with a panic")]

use std::io::Read;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use shardhost_groups::machine::{ApplyBatch, ApplyFault, SnapshotWriter, StateMachine};
use shardhost_groups::transport::{Outgoing, SnapshotShipment, Transport};
use shardhost_groups::{Group, GroupSpec, Groups, GroupsBuilder, GroupsConfig};
use shardhost_storage::{GroupId, LogPosition, MemorySnapshots, MemoryStore, NodeId};

const SOON: Duration = Duration::from_secs(5);
const ID: GroupId = GroupId::new(7);

#[derive(Debug)]
struct Alone;

impl Transport for Alone {
    fn send(&self, _: Vec<Outgoing>) {}
    fn send_snapshot(&self, _: SnapshotShipment) {}
}

/// Applies nothing before its gate opens.
#[derive(Default)]
struct Gated(Option<mpsc::Receiver<()>>);

impl StateMachine for Gated {
    fn applied(&self) -> Result<Option<LogPosition>, ApplyFault> {
        Ok(None)
    }
    fn apply(&mut self, batch: &mut ApplyBatch<'_>) -> Result<(), ApplyFault> {
        if let Some(gate) = &self.0 {
            gate.recv().ok();
        }
        batch.commands().for_each(|command| command.respond("applied"));
        Ok(())
    }
    fn snapshot(&mut self) -> Result<Box<dyn SnapshotWriter>, ApplyFault> {
        Err(ApplyFault::new("none"))
    }
    fn restore(&mut self, _: LogPosition, _: &mut dyn Read) -> Result<(), ApplyFault> {
        Err(ApplyFault::new("none"))
    }
}

fn host() -> Groups {
    let mut config = GroupsConfig::new(NodeId::must(1));
    config.tick = Duration::from_millis(2);
    GroupsBuilder::new(config)
        .start(Arc::new(MemoryStore::new()), Arc::new(MemorySnapshots::new()), Arc::new(Alone))
        .unwrap()
}

async fn reopened_behind(gate: mpsc::Receiver<()>, groups: &Groups) -> Group {
    let spec = GroupSpec::new(ID, [NodeId::must(1)]);
    let group = groups.create(spec, Box::<Gated>::default()).unwrap();
    group.wait_for(|status| status.serving, SOON).await.unwrap();
    group.propose("one").await.unwrap();
    groups.close(ID).await;
    let group = groups.open(ID, Box::new(Gated(Some(gate)))).unwrap();
    group.wait_for(|status| status.is_leader(), SOON).await.expect("it leads");
    group
}

#[tokio::test]
async fn a_proposal_is_given_up_after_the_ticks_of_the_configuration() {
    let groups = host();
    let (open, gate) = mpsc::channel::<()>();
    let group = reopened_behind(gate, &groups).await;
    let wait = groups.config().tick * u32::from(groups.config().propose_give_up_ticks) * 20;
    let answer = group.propose("two").within(wait).await.expect_err("it is not ready");
    drop(open);
    assert!(answer.is_definite(), "it never entered the log: {answer}");
}
