//! Three hosts in one process, one group on all of them: propose, read, listen to leadership,
//! hand it over, stop, start again. The program of the README's first page, with more words.

use std::io::{Read, Write};
use std::time::Duration;

use shardhost::{
    ApplyBatch, ApplyFault, Group, GroupId, GroupSelector, GroupSpec, Host, HostConfig,
    LogPosition, NodeId, QueryError, ReadMode, Shutdown, SnapshotWriter, StateMachine,
};

/// A register: the last value wins.
#[derive(Default)]
struct Register {
    value: Vec<u8>,
    applied: Option<LogPosition>,
}

impl StateMachine for Register {
    fn applied(&self) -> Result<Option<LogPosition>, ApplyFault> {
        Ok(self.applied)
    }

    fn apply(&mut self, batch: &mut ApplyBatch<'_>) -> Result<(), ApplyFault> {
        for command in batch.commands() {
            let before = std::mem::replace(&mut self.value, command.data().to_vec());
            command.respond(before);
        }
        self.applied = Some(batch.last());
        Ok(())
    }

    fn query(&self, _: &bytes::Bytes) -> Result<bytes::Bytes, QueryError> {
        Ok(self.value.clone().into())
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotWriter>, ApplyFault> {
        Ok(Box::new(View(self.value.clone())))
    }

    fn restore(&mut self, at: LogPosition, source: &mut dyn Read) -> Result<(), ApplyFault> {
        self.value.clear();
        source.read_to_end(&mut self.value).map_err(ApplyFault::new)?;
        self.applied = Some(at);
        Ok(())
    }
}

/// A value as it was when the snapshot was taken; written while the register continues.
struct View(Vec<u8>);

impl SnapshotWriter for View {
    fn write_to(self: Box<Self>, sink: &mut dyn Write) -> std::io::Result<()> {
        sink.write_all(&self.0)
    }
}

const GROUP: GroupId = GroupId::new(7);
const TIMEOUT: Duration = Duration::from_secs(20);

/// Starts three hosts that know each other, each with its replica of the group.
async fn start(
    directory: &std::path::Path,
) -> Result<(Vec<Host>, Vec<Group>), Box<dyn std::error::Error>> {
    let nodes: Vec<NodeId> = (1..=3).filter_map(NodeId::new).collect();
    // Ports are bound first, so that every host gets the addresses of the others.
    let mut listeners = Vec::new();
    let mut addresses = Vec::new();
    for &node in &nodes {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        addresses.push((node, listener.local_addr()?.to_string()));
        listeners.push(listener);
    }
    let (mut hosts, mut groups) = (Vec::new(), Vec::new());
    for (&node, listener) in nodes.iter().zip(listeners) {
        let config = HostConfig::new(node, directory.join(format!("node-{node}")))
            .peers(addresses.iter().cloned());
        let host = Host::builder(config).listener(listener).start().await?;
        host.serve(Default::default());
        let spec = GroupSpec::new(GROUP, nodes.iter().copied());
        groups.push(host.create_or_open_group(spec, Register::default()).await?);
        hosts.push(host);
    }
    Ok((hosts, groups))
}

/// The replica that leads and serves.
async fn leader(groups: &[Group]) -> Option<&Group> {
    let waits = groups.iter().map(|group| {
        Box::pin(async move { group.wait_for(|s| s.serving, TIMEOUT).await.map(|_| group) })
    });
    futures::future::select_all(waits).await.0
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let (hosts, groups) = start(directory.path()).await?;

    let _hooks: Vec<_> = hosts
        .iter()
        .map(|host| {
            let node = host.node_id();
            host.on_leader_acquired(GroupSelector::One(GROUP), move |event| {
                println!("node {node} leads {:?} in {:?}", event.group, event.term);
            })
        })
        .collect();

    let first = leader(&groups).await.ok_or("no leader")?;
    let written = first.propose("hello").await?;
    println!("written at index {}", written.index);
    println!("read {:?}", first.query(ReadMode::Linearizable, "").await?);

    let moved = first.transfer_leadership(None).await?;
    println!("handed over to node {} in {:?}", moved.to, moved.took);

    for host in hosts {
        host.shutdown(Shutdown::Immediate).await;
    }
    drop(groups);

    let (hosts, groups) = start(directory.path()).await?;
    let again = leader(&groups).await.ok_or("no leader")?;
    let value = again.query(ReadMode::Linearizable, "").await?;
    println!("after the restart {value:?}");
    assert_eq!(value, "hello");
    for host in hosts {
        host.shutdown(Shutdown::Immediate).await;
    }
    Ok(())
}
