//! A benchmark's requests to its nodes. Each benchmark has separate tasks; orders carry them as
//! JSON, so that nothing but the benchmark knows them.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A task for a node.
pub trait Task: Serialize + DeserializeOwned + Send + 'static {
    /// Names the kind of task in an order.
    const NAME: &'static str;

    /// The answer of the node.
    type Answer: Serialize + DeserializeOwned + Send;
}
