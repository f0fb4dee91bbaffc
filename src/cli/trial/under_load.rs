//! An event under load.

use std::sync::Arc;

use anyhow::{Context, bail};
use shardhost_client::Client;

use super::load::Load;
use super::screen::Screen;
use crate::output::{number, seconds};

/// Writes while `act` runs, and then until every line is written. Returns the load, and the result
/// of the act.
pub async fn under_load<T>(
    load: Load,
    client: &Client,
    screen: &Screen,
    act: impl AsyncFnOnce(&Load) -> anyhow::Result<T>,
) -> anyhow::Result<(Load, T)> {
    let (load, began) = (Arc::new(load), std::time::Instant::now());
    let mut running = load.start(client);
    let came = tokio::select! {
        came = act(&load) => came?,
        ended = running.join_next() => {
            ended.context("there is no load")?.context("the load broke off")??;
            bail!("the load ended before it was enough");
        }
    };
    load.pace.enough();
    while let Some(ended) = running.join_next().await {
        ended.context("the load broke off")??;
    }
    let acknowledged = number(load.tally.acknowledged());
    screen.event(format!("loaded: {acknowledged} writes in {}", seconds(began.elapsed())));
    Ok((Arc::into_inner(load).context("the load continues")?, came))
}
