//! A policy of one's own: groups labelled `needs=gpu` are led where there is a GPU. The program of
//! the README's section on refusing leadership.

use std::error::Error;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use shardhost::*;

/// Whether this node may lead: it may while there is a GPU.
#[derive(Debug)]
struct NeedsGpu {
    there: Arc<AtomicBool>,
}

impl LeadershipPolicy for NeedsGpu {
    fn name(&self) -> &'static str {
        "needs-gpu"
    }

    fn may_lead(&self, candidate: &Candidate<'_>) -> Opinion {
        // The node that is to take over is asked there first.
        if !candidate.is_here {
            return Opinion::Unknown;
        }
        if self.there.load(Ordering::Relaxed) {
            return Opinion::Fit;
        }
        let reason = format!("node {} has no GPU", candidate.node).into();
        Opinion::Unfit(Unfit { policy: self.name(), mode: RequirementMode::Hard, reason })
    }
}

/// A state machine without a state.
#[derive(Default)]
struct Nothing(Option<LogPosition>);

impl StateMachine for Nothing {
    fn applied(&self) -> Result<Option<LogPosition>, ApplyFault> {
        Ok(self.0)
    }

    fn apply(&mut self, batch: &mut ApplyBatch<'_>) -> Result<(), ApplyFault> {
        self.0 = Some(batch.last());
        Ok(())
    }

    fn query(&self, _: &Bytes) -> Result<Bytes, QueryError> {
        Ok(Bytes::new())
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotWriter>, ApplyFault> {
        Ok(Box::new(View))
    }

    fn restore(&mut self, at: LogPosition, _: &mut dyn Read) -> Result<(), ApplyFault> {
        self.0 = Some(at);
        Ok(())
    }
}

struct View;

impl SnapshotWriter for View {
    fn write_to(self: Box<Self>, _: &mut dyn Write) -> std::io::Result<()> {
        Ok(())
    }
}

const GROUP: GroupId = GroupId::new(7);
const TIMEOUT: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let data = tempfile::tempdir()?;
    let nodes = [1, 2, 3].map(NodeId::must);
    let (mut sockets, mut peers) = (Vec::new(), Vec::new());
    for node in nodes {
        let socket = std::net::TcpListener::bind("127.0.0.1:0")?;
        peers.push((node, socket.local_addr()?.to_string()));
        sockets.push(socket);
    }

    let (mut hosts, mut gpus, mut groups, mut guards) = (vec![], vec![], vec![], vec![]);
    for (node, socket) in nodes.into_iter().zip(sockets) {
        let config = HostConfig::new(node, data.path().join(node.to_string())).peers(peers.clone());
        let host = Host::builder(config).listener(socket).start().await?;
        host.serve(Default::default());
        // There is one GPU, in node 3. The policy is there before the group is.
        let gpu = Arc::new(AtomicBool::new(node.get() == 3));
        let needs = GroupSelector::Label { key: "needs".into(), value: "gpu".into() };
        guards.push(host.register_policy(needs, NeedsGpu { there: Arc::clone(&gpu) }));
        let spec = GroupSpec::new(GROUP, nodes).label("needs", "gpu");
        groups.push(host.create_or_open_group(spec, Nothing::default()).await?);
        hosts.push(host);
        gpus.push(gpu);
    }
    let serves = |at: usize| groups[at].wait_for(|status| status.serving, TIMEOUT);

    serves(2).await.ok_or("node 3 does not serve")?;
    let refused = groups[2].transfer_leadership(Some(nodes[0])).await.unwrap_err();
    println!("{refused}");
    assert!(refused.to_string().contains("node 1 has no GPU"));

    // The GPU moves to node 2, and leadership follows.
    gpus[1].store(true, Ordering::Relaxed);
    gpus[2].store(false, Ordering::Relaxed);
    hosts[2].reevaluate(GROUP);
    serves(1).await.ok_or("node 2 does not serve")?;
    println!("node 2 serves");

    for host in hosts {
        host.shutdown(Shutdown::Immediate).await;
    }
    Ok(())
}
