//! Asking the node that leads the catalog: the planner and the allocator run there.

use anyhow::bail;
use shardhost_proto::balance::balance_client::BalanceClient;
use shardhost_security::channel::Channel;
use tokio::time::Instant;
use tonic::{Code, Response, Status};

use super::target::{Target, channel, operators_at, said};

/// Between two questions.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

/// What a node says that may lead the catalog.
pub trait Answer: Default {
    /// Whether it leads the catalog, and this is the answer.
    fn is_known(&self) -> bool;
    /// Who leads, as far as it knows; 0: it does not know.
    fn leader_node(&self) -> u64;
}

/// The answer of the node that leads the catalog, found by asking from node to node. `missing` says what it
/// means that there is none.
pub async fn ask<A: Answer>(
    target: &Target,
    missing: &str,
    ask: impl AsyncFn(&mut BalanceClient<Channel>) -> Result<Response<A>, Status>,
) -> anyhow::Result<A> {
    let deadline = Instant::now() + target.timeout();
    let start = target.node().await?;
    let mut address = start.address.clone();
    loop {
        let mut client = BalanceClient::new(channel(&address)?);
        let asked = tokio::time::timeout_at(deadline, ask(&mut client)).await;
        let Ok(asked) = asked else { bail!("{address} does not answer; {missing}") };
        if let Err(status) = &asked
            && let Some(at) = operators_at(status).filter(|at| *at != address)
        {
            // The node that named the address had not heard of this one yet.
            address = at;
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        let answer = match asked {
            Ok(answer) => answer.into_inner(),
            Err(status) if is_final(status.code()) => return Err(said(&address, &status)),
            // One that is gone is skipped.
            Err(_) => A::default(),
        };
        if answer.is_known() {
            return Ok(answer);
        }
        if Instant::now() > deadline {
            bail!("{missing}");
        }
        address = start.address_after(&address, answer.leader_node());
        tokio::time::sleep(PAUSE).await;
    }
}

/// It knows why there is no answer, or that there will be none.
const fn is_final(code: Code) -> bool {
    matches!(
        code,
        Code::FailedPrecondition
            | Code::Unimplemented
            | Code::PermissionDenied
            | Code::Unauthenticated
    )
}
