//! Counts the requests of a batch before they are built: one of two bytes takes a hundred times that in
//! memory, so the size of a batch alone is no bound.

use bytes::Bytes;
use prost::Message;
use tonic::Status;

use shardhost_proto::fields::next_field;
use shardhost_proto::limits::MAX_BATCH_REQUESTS;

/// Field number of the requests in a batch, of either kind of shard.
const REQUESTS: u64 = 1;

/// Reads a batch, of either kind of shard, after counting its requests.
pub(in crate::service) fn decode<B: Message + Default>(whole: Bytes) -> Result<B, Status> {
    let (mut rest, mut requests) = (&whole[..], 0usize);
    while let Some((number, _)) = next_field(&mut rest).map_err(malformed)? {
        requests += usize::from(number == REQUESTS);
        if requests > MAX_BATCH_REQUESTS {
            return Err(Status::invalid_argument(format!(
                "a batch of more than {MAX_BATCH_REQUESTS} requests; send smaller ones"
            )));
        }
    }
    B::decode(whole).map_err(malformed)
}

fn malformed(error: impl std::fmt::Display) -> Status {
    Status::invalid_argument(format!("a batch of requests cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use shardhost_proto::client::{QueueBatch, TableBatch};

    use super::*;
    use shardhost_proto::limits::MAX_BATCH_BYTES;

    /// Built, these would take hundreds of MiB.
    #[test]
    fn the_requests_of_a_batch_are_counted_before_they_are_built() {
        let empty = |count: usize| Bytes::from([REQUESTS as u8 * 8 + 2, 0].repeat(count));
        assert_eq!(decode::<TableBatch>(empty(MAX_BATCH_REQUESTS)).unwrap().requests.len(), 16_384);
        for count in [MAX_BATCH_REQUESTS + 1, MAX_BATCH_BYTES / 2] {
            let refused = decode::<TableBatch>(empty(count)).unwrap_err();
            assert!(refused.message().contains("more than 16384 requests"), "{refused}");
            let refused = decode::<QueueBatch>(empty(count)).unwrap_err();
            assert!(refused.message().contains("more than 16384 requests"), "{refused}");
        }
    }

    #[test]
    fn bytes_that_are_no_batch_are_refused_with_a_cause() {
        let refused = decode::<TableBatch>(Bytes::from_static(&[10, 200])).unwrap_err();
        assert!(refused.message().contains("cannot be read"), "{refused}");
    }
}
