//! Many write benchmarks in a row, as one table.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use serde_json::Value;

use super::{MachineKind, MatrixArguments, WriteArguments, write};

/// What the table shows, and how many digits of it stand behind the point.
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
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    let names = COLUMNS.map(|(name, _)| name.replace('_', " "));
    table.set_header(std::iter::once("machine".to_owned()).chain(names));
    for one in shapes(arguments) {
        let figures = write::measure(&one).await?;
        if arguments.json {
            println!("{figures}");
        } else {
            table.add_row(row(&figures));
            eprintln!(
                "measured {} groups, {} B, {} outstanding",
                one.groups, one.size, one.outstanding
            );
        }
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    if !arguments.json {
        println!("{table}");
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
        directory: arguments.directory.clone(),
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

fn row(figures: &Value) -> Vec<String> {
    let machine = figures["machine"].as_str().unwrap_or("?").to_owned();
    let numbers = COLUMNS.map(|(name, digits)| {
        figures[name].as_f64().map_or_else(String::new, |value| format!("{value:.digits$}"))
    });
    std::iter::once(machine).chain(numbers).collect()
}
