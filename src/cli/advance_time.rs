//! `shardhost group advance-time`: messages of a queue shard that no consumer will ack come back
//! now.

use clap::Args;
use serde_json::json;
use shardhost_proto::admin::AdvanceTimeRequest;

use super::change::confirmed;
use super::output::{number, whole_in};
use super::target::Target;

/// By how much, and where.
#[derive(Debug, Args)]
pub struct AdvanceTimeArguments {
    /// Number of the group.
    group: u64,
    /// Messages whose visibility ends within so many seconds are received again at once, and ids for
    /// de-duplication are forgotten so much earlier. It cannot be undone.
    #[arg(long, value_name = "SECONDS", value_parser = whole_in::<u64>(1..=43_200))]
    by: u64,
    #[command(flatten)]
    target: Target,
}

/// Moves the time, at the leader.
pub async fn advance_time(arguments: &AdvanceTimeArguments) -> anyhow::Result<()> {
    let AdvanceTimeArguments { group, by, target } = arguments;
    let (mut leader, _) = target.leader_of(*group).await?;
    let timeout_ms = target.timeout.saturating_mul(1_000);
    let request = AdvanceTimeRequest { group: *group, by_ms: by * 1_000, timeout_ms };
    let advanced = leader.admin.advance_time(request);
    let time_ms = confirmed(&leader.address, target.timeout(), advanced).await?.time_ms;
    if target.json {
        println!("{}", json!({ "group": group, "advanced_s": by, "time_ms": time_ms }));
    } else {
        println!("the time of group {group} moved forward by {} s", number(*by));
    }
    Ok(())
}
