//! Whole hosts in one process, on real sockets and a real log: what users rely on, and what goes
//! wrong around them.
//!
//! | file | what |
//! |---|---|
//! | `writes` | proposals, reads, snapshots, and what stops a group or a host |
//! | `leaders` | transfers, hooks, tasks of leaders |
//! | `starts` | restarts, data directories, shutdowns |

mod leaders;
mod starts;
mod writes;

use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use shardhost::{
    ApplyBatch, ApplyFault, Group, GroupId, GroupSpec, Host, HostConfig, LogPosition, NodeId,
    QueryError, Shutdown, SnapshotWriter, StateMachine,
};

const TIMEOUT: Duration = Duration::from_secs(30);

/// Remembers every command; panics or fails on command.
#[derive(Default)]
struct List {
    commands: Vec<Bytes>,
    applied: Option<LogPosition>,
}

impl StateMachine for List {
    fn applied(&self) -> Result<Option<LogPosition>, ApplyFault> {
        Ok(self.applied)
    }
    fn apply(&mut self, batch: &mut ApplyBatch<'_>) -> Result<(), ApplyFault> {
        for command in batch.commands() {
            match command.data().as_ref() {
                b"panic" => panic!("told to panic"),
                b"fail" => return Err(ApplyFault::new("told to fail")),
                _ => self.commands.push(command.data().clone()),
            }
            command.respond(self.commands.len().to_string());
        }
        self.applied = Some(batch.last());
        Ok(())
    }
    fn query(&self, request: &Bytes) -> Result<Bytes, QueryError> {
        match request.as_ref() {
            b"count" => Ok(self.commands.len().to_string().into()),
            b"last" => Ok(self.commands.last().cloned().unwrap_or_default()),
            other => Err(QueryError::Invalid(format!("{other:?}"))),
        }
    }
    fn snapshot(&mut self) -> Result<Box<dyn SnapshotWriter>, ApplyFault> {
        Ok(Box::new(View(self.commands.clone())))
    }
    fn restore(&mut self, at: LogPosition, source: &mut dyn Read) -> Result<(), ApplyFault> {
        let mut bytes = Vec::new();
        source.read_to_end(&mut bytes).map_err(ApplyFault::new)?;
        let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        self.commands = lines.map(Bytes::copy_from_slice).collect();
        self.applied = Some(at);
        Ok(())
    }
}

struct View(Vec<Bytes>);

impl SnapshotWriter for View {
    fn write_to(self: Box<Self>, sink: &mut dyn Write) -> std::io::Result<()> {
        for command in self.0 {
            sink.write_all(&command)?;
            sink.write_all(b"\n")?;
        }
        Ok(())
    }
}

fn nodes(count: u64) -> Vec<NodeId> {
    (1..=count).filter_map(NodeId::new).collect()
}

/// Hosts that know each other, on free ports.
struct Cluster {
    hosts: Vec<Host>,
    addresses: Vec<(NodeId, String)>,
}

impl Cluster {
    async fn start(count: u64, directory: &Path, tune: impl Fn(&mut HostConfig)) -> Self {
        let listeners: Vec<_> = nodes(count)
            .into_iter()
            .map(|node| (node, std::net::TcpListener::bind("127.0.0.1:0").unwrap()))
            .collect();
        let addresses: Vec<_> = listeners
            .iter()
            .map(|(node, listener)| (*node, listener.local_addr().unwrap().to_string()))
            .collect();
        let mut hosts = Vec::new();
        for (node, listener) in listeners {
            hosts.push(Self::host(node, directory, &addresses, Some(listener), &tune).await);
        }
        Self { hosts, addresses }
    }

    async fn host(
        node: NodeId,
        directory: &Path,
        addresses: &[(NodeId, String)],
        listener: Option<std::net::TcpListener>,
        tune: impl Fn(&mut HostConfig),
    ) -> Host {
        let mut config = HostConfig::new(node, directory.join(format!("node-{node}")))
            .peers(addresses.iter().cloned());
        let own = addresses.iter().find(|(id, _)| *id == node).unwrap();
        config.listen = own.1.parse().unwrap();
        tune(&mut config);
        let mut builder = Host::builder(config);
        if let Some(listener) = listener {
            builder = builder.listener(listener);
        }
        let host = builder.start().await.unwrap();
        host.serve(Default::default());
        host
    }

    async fn create(&self, groups: u64) {
        for host in &self.hosts {
            let voters: Vec<_> = self.addresses.iter().map(|(node, _)| *node).collect();
            let specs = (1..=groups).map(|id| {
                let spec = GroupSpec::new(GroupId::new(id), voters.iter().copied());
                let spec = spec.label("parity", if id % 2 == 0 { "even" } else { "odd" });
                (spec, Box::new(List::default()) as Box<dyn StateMachine>)
            });
            host.create_groups(specs.collect()).await.unwrap();
        }
    }

    async fn leader(&self, group: u64) -> Group {
        leader_of(self.replicas(group)).await
    }

    fn replicas(&self, group: u64) -> Vec<Group> {
        self.hosts.iter().filter_map(|host| host.group(GroupId::new(group))).collect()
    }

    async fn stop(self) {
        for host in self.hosts {
            host.shutdown(Shutdown::Immediate).await;
        }
    }
}

async fn leader_of(replicas: Vec<Group>) -> Group {
    let waits = replicas.into_iter().map(|group| {
        Box::pin(async move {
            group.wait_for(|status| status.serving, TIMEOUT).await.expect("no leader");
            group
        })
    });
    futures::future::select_all(waits).await.0
}

async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + TIMEOUT;
    while !done() {
        assert!(tokio::time::Instant::now() < deadline, "not within {TIMEOUT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
