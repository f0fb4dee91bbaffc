//! Real processes whose machines lie: disks that hang, fail and are slow, clocks that are wrong.

#[path = "../cli/process.rs"]
#[allow(dead_code, reason = "shared with the tests of the command line")]
mod process;
#[path = "../conformance/road.rs"]
#[allow(dead_code, reason = "shared with the suite of conformance")]
mod road;
#[path = "../cli/servers.rs"]
#[allow(dead_code, reason = "shared with the tests of the command line")]
mod servers;

mod chaos;
mod clocks;
mod cluster;
mod descriptors;
mod disks;
mod machine;
mod power;
mod queues;
mod shim;
mod tables;
