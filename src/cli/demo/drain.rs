//! Draining a host while the load goes on.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use shardhost::proto::balance::balance_client::BalanceClient;
use shardhost::proto::balance::drain_status::State;
use shardhost::proto::balance::{DrainRequest, GetDrainRequest, UndrainRequest};

use super::PATIENCE;
use crate::cli::target::channel;

/// Between two looks at how far it is.
const LOOK: Duration = Duration::from_millis(10);

/// What came of a drain.
#[derive(Clone, Copy, Debug)]
pub struct Drained {
    pub node: u64,
    pub moved: u64,
    pub left: u64,
    pub took: Duration,
}

/// Drains a host until it is empty, and lets it take leaderships again.
pub async fn drain(node: u64, address: &str) -> anyhow::Result<Drained> {
    let mut balance = BalanceClient::new(channel(address)?);
    let began = Instant::now();
    let request = DrainRequest { owner: "the demo".to_owned(), ..DrainRequest::default() };
    let refused = || format!("node {node} cannot be drained");
    let mut status = balance.drain(request).await.with_context(refused)?.into_inner();
    while status.state() == State::Running {
        if began.elapsed() > PATIENCE {
            bail!("node {node} still has {} leaderships after {PATIENCE:?}", status.left);
        }
        tokio::time::sleep(LOOK).await;
        status = balance.get_drain(GetDrainRequest {}).await.with_context(refused)?.into_inner();
    }
    let took = Duration::from_millis(status.elapsed_ms);
    balance.undrain(UndrainRequest {}).await.with_context(refused)?;
    Ok(Drained { node, moved: status.moved, left: status.left, took })
}
