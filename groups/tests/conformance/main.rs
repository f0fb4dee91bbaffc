//! The suite of what a group promises, on hosts in memory.

use shardhost_groups::testing::conformance::InMemory;

shardhost_groups::conformance_tests!(InMemory::new());
