//! One host restarted as an operator does it: drained, stopped, started, and caught up, under load.

use std::time::{Duration, Instant};

use super::nodes::Nodes;
use super::{TIMEOUT, drain};
use crate::observe::Observer;
use crate::output::{number, seconds};

/// The result.
#[derive(Clone, Debug)]
pub struct Restarted {
    pub node: u64,
    /// Leaderships that it handed on, and that it kept.
    pub moved: u64,
    pub left: u64,
    pub why: Option<String>,
    pub drain: Duration,
    /// From SIGTERM until it served again.
    pub down: Duration,
    /// From then until it had caught up.
    pub catch_up: Duration,
}

impl Restarted {
    /// What happened, in a line.
    pub fn event(&self) -> String {
        let why = self.why.as_deref().unwrap_or("it came to lead them while the drain ended");
        let kept = match self.left {
            0 => String::new(),
            left => format!(" and kept {left} ({why})"),
        };
        format!(
            "node {} handed {} leaderships on in {}{kept}, was back {} after SIGTERM, and had caught up \
             {} later",
            self.node,
            number(self.moved),
            seconds(self.drain),
            seconds(self.down),
            seconds(self.catch_up)
        )
    }
}

/// Restarts a host. It leads nothing at first.
pub async fn restart(
    node: u64,
    nodes: &mut Nodes,
    observer: &Observer,
) -> anyhow::Result<Restarted> {
    nodes.check()?;
    let drained = drain::drain(node, nodes.address(node)?, "a rolling restart").await?;
    let stopped = Instant::now();
    nodes.stop(node).await?;
    nodes.restart(node).await?;
    let down = stopped.elapsed();
    let started = Instant::now();
    drain::end(node, nodes.address(node)?).await?;
    observer.await_caught_up(node, TIMEOUT).await?;
    Ok(Restarted {
        node,
        moved: drained.moved,
        left: drained.left,
        why: drained.why,
        drain: drained.took,
        down,
        catch_up: started.elapsed(),
    })
}
