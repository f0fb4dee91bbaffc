//! Many write benchmarks in a row, as one table.

use clap::Args;

use super::arguments::{MachineKind, Output, WriteArguments};
use super::{report, write};

/// How a row of write benchmarks runs.
#[derive(Clone, Debug, Args)]
pub struct MatrixArguments {
    /// Seconds to measure each shape, after two to warm up.
    #[arg(long, default_value_t = 5)]
    pub seconds: u64,
    #[command(flatten)]
    pub output: Output,
}

/// The columns of the table, and their digits behind the point.
const COLUMNS: [(&str, usize); 10] = [
    ("groups", 0),
    ("size", 0),
    ("outstanding", 0),
    ("writes_per_second", 0),
    ("p50_us", 0),
    ("p99_us", 0),
    ("cpu_us_per_write", 1),
    ("syncs_per_write", 4),
    ("groups_per_sync", 1),
    ("messages_per_frame", 1),
];

/// Runs them all.
pub async fn run(arguments: &MatrixArguments) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for one in shapes(arguments) {
        let figures = write::measure(&one).await?;
        if arguments.output.json {
            println!("{figures}");
        } else {
            eprintln!(
                "measured {} groups, {} B, {} outstanding",
                one.groups, one.size, one.outstanding
            );
            rows.push(figures);
        }
    }
    if !arguments.output.json {
        println!("{}", report::table("machine", &COLUMNS, &rows));
    }
    Ok(())
}

fn shapes(arguments: &MatrixArguments) -> Vec<WriteArguments> {
    let of = |machine: MachineKind, groups: u64, size: usize, outstanding: usize| WriteArguments {
        groups,
        size,
        outstanding,
        machine,
        seconds: arguments.seconds,
        output: arguments.output.clone(),
        ..WriteArguments::default()
    };
    let mut shapes = Vec::new();
    for groups in [1, 48, 1_000] {
        for size in [16, 1_024] {
            for outstanding in [1, 64, 4_096] {
                shapes.push(of(MachineKind::Trivial, groups, size, outstanding));
            }
        }
    }
    shapes.push(of(MachineKind::Trivial, 48, 16, 48));
    for size in [16, 1_024] {
        for outstanding in [64, 4_096] {
            shapes.push(of(MachineKind::Table, 48, size, outstanding));
        }
    }
    shapes
}
