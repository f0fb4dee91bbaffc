//! Draining a host under load.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use shardhost_proto::balance::balance_client::BalanceClient;
use shardhost_proto::balance::drain_status::State;
use shardhost_proto::balance::{DrainRequest, GetDrainRequest, UndrainRequest};
use shardhost_security::channel::Channel;

use super::TIMEOUT;
use crate::target::{channel, said};

/// Between two looks at how far it is.
const LOOK: Duration = Duration::from_millis(10);

/// The result of a drain.
#[derive(Clone, Debug)]
pub struct Drained {
    pub moved: u64,
    pub left: u64,
    /// Why one of those that are left cannot go.
    pub why: Option<String>,
    pub took: Duration,
}

/// Drains a host until it is empty. It takes no leaderships from then on.
pub async fn drain(node: u64, address: &str, owner: &str) -> anyhow::Result<Drained> {
    let refused = || format!("node {node} cannot be drained");
    let mut balance = client(address)?;
    let began = Instant::now();
    let request = DrainRequest { owner: owner.to_owned(), ..DrainRequest::default() };
    let told = |status: tonic::Status| said(address, &status).context(refused());
    let mut status = balance.drain(request).await.map_err(told)?.into_inner();
    while status.state() == State::Running {
        if began.elapsed() > TIMEOUT {
            bail!("node {node} still has {} leaderships after {TIMEOUT:?}", status.left);
        }
        tokio::time::sleep(LOOK).await;
        status = balance.get_drain(GetDrainRequest {}).await.map_err(told)?.into_inner();
    }
    if !matches!(status.state(), State::Done | State::Overdue) {
        bail!("the drain of node {node} was ended before it was over");
    }
    let took = Duration::from_millis(status.elapsed_ms);
    let stuck = status.undrainable.first();
    let why = stuck.map(|one| format!("for example that of group {}: {}", one.group, one.reason));
    Ok(Drained { moved: status.moved, left: status.left, why, took })
}

/// Lets a host take leaderships again.
pub async fn end(node: u64, address: &str) -> anyhow::Result<()> {
    let ended = client(address)?.undrain(UndrainRequest {}).await;
    ended
        .map_err(|status| said(address, &status))
        .with_context(|| format!("the drain of node {node} cannot be ended"))?;
    Ok(())
}

fn client(address: &str) -> anyhow::Result<BalanceClient<Channel>> {
    Ok(BalanceClient::new(channel(address)?))
}
