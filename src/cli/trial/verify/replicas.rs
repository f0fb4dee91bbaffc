//! All replicas of a group must hold the same at the same index.

use std::collections::BTreeSet;

use anyhow::bail;
use futures::StreamExt;
use futures::future::try_join_all;
use shardhost_proto::admin::ChecksumReply;
use tokio::time::Instant;

use super::{Verification, Verified};
use crate::trial::TIMEOUT;

/// Groups compared side by side.
const IN_FLIGHT: usize = 8;

/// Compares all replicas of all groups; a group counts as equal only if it always was.
pub async fn compare(on: &Verification<'_>, verified: &mut Verified) -> anyhow::Result<()> {
    let leaders = on.observer.await_led(TIMEOUT).await?;
    let mut progress = on.screen.progress("compare", leaders.len() as u64);
    let groups = leaders
        .iter()
        .map(|(group, leader)| compare_group(on, &leader.voters, *group, leader.committed));
    let mut compared = futures::stream::iter(groups).buffer_unordered(IN_FLIGHT);
    let mut done = 0;
    verified.items.clear();
    while let Some(outcome) = compared.next().await {
        let (group, compared) = outcome?;
        match compared {
            Compared::Equal { items } => drop(verified.items.insert(group, items)),
            Compared::Different(how) => drop(verified.unequal.insert(group, how)),
        }
        done += 1;
        progress.set(done);
    }
    verified.equal_groups = on.layout.shards() - verified.unequal.len() as u64;
    Ok(())
}

/// What comparing the replicas of a group came to.
#[derive(Debug, PartialEq, Eq)]
enum Compared {
    /// They hold the same, so many items.
    Equal { items: u64 },
    /// They do not, and how.
    Different(String),
}

/// Asks until all replicas answer for the same index, and compares them.
async fn compare_group(
    on: &Verification<'_>,
    nodes: &[u64],
    group: u64,
    mut from: u64,
) -> anyhow::Result<(u64, Compared)> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let ask = nodes.iter().map(|node| on.observer.checksum(*node, group, from));
        let replies = try_join_all(ask).await?;
        let at: BTreeSet<u64> = replies.iter().map(|reply| reply.applied).collect();
        if at.len() == 1 {
            return Ok((group, judge(nodes, &replies)));
        }
        from = at.last().copied().unwrap_or(from);
        if Instant::now() > deadline {
            bail!("the replicas of group {group} do not come to the same index: {at:?}");
        }
    }
}

fn judge(nodes: &[u64], replies: &[ChecksumReply]) -> Compared {
    let states: BTreeSet<(u64, u64)> =
        replies.iter().map(|reply| (reply.checksum, reply.items)).collect();
    if let [(_, items)] = states.iter().copied().collect::<Vec<_>>()[..] {
        return Compared::Equal { items };
    }
    let each = nodes.iter().zip(replies).map(|(node, reply)| {
        let ChecksumReply { applied, checksum, items } = reply;
        format!("node {node} has {items} items and {checksum:016x} at {applied}")
    });
    Compared::Different(each.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_that_differ_are_told_apart() {
        let reply = |checksum| ChecksumReply { applied: 7, checksum, items: 1 };
        assert_eq!(judge(&[1, 2], &[reply(5), reply(5)]), Compared::Equal { items: 1 });
        let Compared::Different(how) = judge(&[1, 2], &[reply(5), reply(6)]) else {
            panic!("they differ");
        };
        assert!(how.contains("node 1") && how.contains("node 2"), "{how}");
    }
}
