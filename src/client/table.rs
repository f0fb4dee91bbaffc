//! What a client does with tables.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::try_join_all;
use shardhost_proto::client::table_reply::Result as Answer;
use shardhost_proto::client::table_request::Operation;
use shardhost_proto::client::{
    CompareAndSet, Consistency, Delete, Get, Pair, Pairs, Put, Scan, Value, Written,
};
use shardhost_proto::ids::{GroupId, NodeId};

use super::caller::{Caller, Nature};
use super::error::ClientError;
use super::routes::Target;
use super::wire::TableWire;
use shardhost_proto::limits::{DEFAULT_SCAN_LIMIT, MAX_SCAN_LIMIT};

/// A client of the cluster's tables. Cheap to clone.
#[derive(Clone)]
pub struct TableClient {
    caller: Arc<Caller<TableWire>>,
}

/// A part of a range.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScanPage {
    /// The pairs, in the order of their keys.
    pub pairs: Vec<Pair>,
    /// Where to continue, if there is more.
    pub next: Option<Bytes>,
}

impl TableClient {
    pub(super) const fn new(caller: Arc<Caller<TableWire>>) -> Self {
        Self { caller }
    }

    /// How many shards the cluster's tables have.
    #[must_use]
    pub fn shards(&self) -> usize {
        self.caller.routes().len()
    }

    /// The group that a key belongs to.
    #[must_use]
    pub fn group_of(&self, key: &[u8]) -> Option<GroupId> {
        let located = self.caller.routes().locate(&Target::Key(Bytes::copy_from_slice(key)))?;
        Some(GroupId::new(located.place.group))
    }

    /// Sets a value.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn put(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<Written, ClientError> {
        let (key, value) = (key.into(), value.into());
        let target = Target::Key(key.clone());
        let operation = Operation::Put(Put { key, value });
        written(self.caller.call(target, operation, Nature::Idempotent).await?)
    }

    /// Removes a key.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<Written, ClientError> {
        let key = key.into();
        let target = Target::Key(key.clone());
        let operation = Operation::Delete(Delete { key });
        written(self.caller.call(target, operation, Nature::Idempotent).await?)
    }

    /// Sets or removes (`value` of `None`) a value if the present one is `expect` (`None`:
    /// nothing). `done` of the answer is whether it was.
    ///
    /// # Errors
    /// [`ClientError`]. `actual` is absent, though `existed`, if the answer had to be repeated and
    /// the value is longer than about 100 bytes.
    pub async fn compare_and_set(
        &self,
        key: impl Into<Bytes>,
        expect: Option<Bytes>,
        value: Option<Bytes>,
    ) -> Result<Written, ClientError> {
        let key = key.into();
        let target = Target::Key(key.clone());
        let operation = Operation::CompareAndSet(CompareAndSet { key, expect, value });
        written(self.caller.call(target, operation, Nature::Once).await?)
    }

    /// The value of a key, as fresh as can be: it sees every write acknowledged before.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Bytes>, ClientError> {
        self.get_with(key, Consistency::Linearizable).await
    }

    /// The value of a key, from the leader of its shard, as fresh as `consistency` asks for.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get_with(
        &self,
        key: impl Into<Bytes>,
        consistency: Consistency,
    ) -> Result<Option<Bytes>, ClientError> {
        let key = key.into();
        let target = Target::Key(key.clone());
        let operation = Operation::Get(Get { key, consistency: consistency.into() });
        value(self.caller.call(target, operation, Nature::Read).await?)
    }

    /// The value of a key as the replica on `node` has it, however old. Wait with
    /// [`super::Client::wait_applied`] for what it must have seen.
    ///
    /// # Errors
    /// [`ClientError`]; the node is asked once, and no other in its place.
    pub async fn get_via(
        &self,
        node: NodeId,
        key: impl Into<Bytes>,
    ) -> Result<Option<Bytes>, ClientError> {
        let key = key.into();
        let target = Target::Key(key.clone());
        let operation = Operation::Get(Get { key, consistency: Consistency::Stale.into() });
        value(self.caller.call_at(node.get(), target, operation).await?)
    }

    /// The first pairs of the range `from` (inclusive) to `to` (exclusive; empty: to the end),
    /// over all shards: at most `limit`, by default 1,000. Each shard is read as fresh as can be,
    /// but they are not read at one instant.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn scan(
        &self,
        from: impl Into<Bytes>,
        to: impl Into<Bytes>,
        limit: Option<u32>,
    ) -> Result<ScanPage, ClientError> {
        let limit = limit.unwrap_or(DEFAULT_SCAN_LIMIT).clamp(1, MAX_SCAN_LIMIT);
        let consistency = Consistency::Linearizable.into();
        let scan = Scan { from: from.into(), to: to.into(), limit, consistency };
        let shards = 0..self.shards();
        let parts = try_join_all(shards.map(|shard| self.scan_shard(shard, &scan))).await?;
        Ok(merge(parts, limit as usize))
    }

    async fn scan_shard(&self, shard: usize, scan: &Scan) -> Result<Pairs, ClientError> {
        let operation = Operation::Scan(scan.clone());
        match self.caller.call(Target::Shard(shard), operation, Nature::Read).await? {
            Answer::Pairs(pairs) => Ok(pairs),
            other => Err(unexpected(&other)),
        }
    }
}

/// Puts the parts of a scan together. A shard that has more may hold keys between its last one
/// here and the last ones of the others, so the page ends with the smallest such key.
fn merge(parts: Vec<Pairs>, limit: usize) -> ScanPage {
    let horizon = parts
        .iter()
        .filter(|part| part.more)
        .filter_map(|part| part.pairs.last().map(|pair| pair.key.clone()))
        .min();
    let mut pairs: Vec<Pair> = parts.into_iter().flat_map(|part| part.pairs).collect();
    pairs.sort_unstable_by(|one, other| one.key.cmp(&other.key));
    if let Some(horizon) = &horizon {
        pairs.retain(|pair| pair.key <= *horizon);
    }
    let more = horizon.is_some() || pairs.len() > limit;
    pairs.truncate(limit);
    let next = pairs.last().filter(|_| more).map(|last| successor(&last.key));
    ScanPage { pairs, next }
}

/// The smallest key behind `key`.
fn successor(key: &[u8]) -> Bytes {
    [key, &[0]].concat().into()
}

fn written(answer: Answer) -> Result<Written, ClientError> {
    match answer {
        Answer::Written(written) => Ok(written),
        other => Err(unexpected(&other)),
    }
}

fn value(answer: Answer) -> Result<Option<Bytes>, ClientError> {
    match answer {
        Answer::Value(Value { value }) => Ok(value),
        other => Err(unexpected(&other)),
    }
}

fn unexpected(answer: &Answer) -> ClientError {
    let kind = match answer {
        Answer::Written(_) => "a written",
        Answer::Value(_) => "a value",
        Answer::Pairs(_) => "pairs",
        Answer::Failure(_) => "a failure",
    };
    ClientError::Protocol { message: format!("the reply is {kind}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(keys: &[&str], more: bool) -> Pairs {
        let pair = |key: &&str| Pair { key: (*key).to_owned().into(), value: Bytes::new() };
        Pairs { pairs: keys.iter().map(pair).collect(), more }
    }

    fn page(parts: Vec<Pairs>, limit: usize) -> (Vec<String>, Option<String>) {
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        let page = merge(parts, limit);
        (page.pairs.iter().map(|pair| text(&pair.key)).collect(), page.next.as_ref().map(text))
    }

    #[test]
    fn a_page_is_sorted_over_all_shards() {
        let merged = page(vec![part(&["b", "d"], false), part(&["a", "c"], false)], 10);
        assert_eq!(merged, (["a", "b", "c", "d"].map(str::to_owned).to_vec(), None));
    }

    #[test]
    fn a_page_ends_where_a_shard_may_hold_more() {
        let merged = page(vec![part(&["b"], true), part(&["a", "c"], false)], 10);
        assert_eq!(merged, (["a", "b"].map(str::to_owned).to_vec(), Some("b\0".to_owned())));
    }

    #[test]
    fn a_page_ends_at_its_limit() {
        let merged = page(vec![part(&["b"], false), part(&["a", "c"], false)], 2);
        assert_eq!(merged, (["a", "b"].map(str::to_owned).to_vec(), Some("b\0".to_owned())));
    }
}
