//! What was measured, for people and for programs.

use std::path::Path;

use anyhow::Context;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use plotters::prelude::*;
use serde_json::{Value, json};

use super::arguments::WriteArguments;
use super::nodes::Measured;

/// Latencies of all nodes together: how long and how often, ascending.
pub struct Latencies(Vec<(u64, u64)>);

impl Latencies {
    /// Of how long and how often, in any order.
    pub fn of(counted: impl IntoIterator<Item = (u64, u64)>) -> Self {
        let mut all: Vec<(u64, u64)> = counted.into_iter().collect();
        all.sort_unstable();
        Self(all)
    }

    /// What so large a part of them does not exceed.
    pub fn quantile(&self, quantile: f64) -> u64 {
        let total: u64 = self.0.iter().map(|(_, count)| count).sum();
        let target = (total as f64 * quantile).ceil() as u64;
        let mut seen = 0;
        for (value, count) in &self.0 {
            seen += count;
            if seen >= target {
                return *value;
            }
        }
        0
    }
}

/// The figures of a write benchmark, and its chart. `client_cpu_seconds` is what a client beside the nodes used.
pub fn write(
    arguments: &WriteArguments,
    measured: &[Measured],
    client_cpu_seconds: Option<f64>,
) -> anyhow::Result<Value> {
    let latencies = Latencies::of(measured.iter().flat_map(|node| node.latencies.iter().copied()));
    let sum = |pick: &dyn Fn(&Measured) -> f64| measured.iter().map(pick).sum::<f64>();
    let seconds = measured.iter().map(|node| node.usage.seconds).fold(0.001, f64::max);
    let acknowledged = sum(&|node| node.acknowledged as f64);
    let per_op = |value: f64| value / acknowledged.max(1.0);
    let writes = sum(&|node| node.usage.log_writes as f64);
    let mut figures = json!({
        "mode": arguments.mode,
        "groups": arguments.groups,
        "size": arguments.size,
        "outstanding": arguments.outstanding,
        "rate": arguments.rate,
        "machine": arguments.machine,
        "nodes": arguments.nodes,
        "seconds": seconds,
        "writes_per_second": acknowledged / seconds,
        "p50_us": latencies.quantile(0.5),
        "p99_us": latencies.quantile(0.99),
        "p999_us": latencies.quantile(0.999),
        "max_us": latencies.quantile(1.0),
        "failed": sum(&|node| node.failed as f64),
        "cpu_us_per_write": per_op(sum(&|node| node.usage.cpu_seconds) * 1e6),
        "cores": sum(&|node| node.usage.cpu_seconds) / seconds,
        "syncs_per_write": per_op(writes),
        "groups_per_sync": sum(&|node| node.usage.log_group_writes as f64) / writes.max(1.0),
        "messages_per_frame": sum(&|node| node.usage.messages as f64)
            / sum(&|node| node.usage.frames as f64).max(1.0),
        "resident_mib": sum(&|node| node.usage.resident_bytes as f64) / 1_048_576.0,
    });
    if let Some(used) = client_cpu_seconds {
        figures["client_cpu_us_per_write"] = json!(per_op(used * 1e6));
        figures["client_cores"] = json!(used / seconds);
    }
    if let Some(path) = &arguments.chart {
        chart(path, arguments, &latencies).with_context(|| format!("{}", path.display()))?;
    }
    Ok(figures)
}

/// Prints figures, for programs or for people.
pub fn print(figures: &Value, as_json: bool) {
    if as_json {
        println!("{figures}");
    } else {
        print_figures(figures);
    }
}

/// Many figures of the same kind, a row each. `first` is the title of the rows; each column has its
/// figure and its digits behind the point.
pub fn table(first: &str, columns: &[(&str, usize)], rows: &[Value]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    let names = columns.iter().map(|(name, _)| name.replace('_', " "));
    table.set_header(std::iter::once(first.to_owned()).chain(names));
    for row in rows {
        let name = row[first].as_str().unwrap_or("?").to_owned();
        let numbers = columns.iter().map(|(name, digits)| {
            row[name].as_f64().map_or_else(String::new, |value| format!("{value:.digits$}"))
        });
        table.add_row(std::iter::once(name).chain(numbers));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn print_figures(figures: &serde_json::Value) {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(["figure", "value"]);
    for (name, value) in figures.as_object().into_iter().flatten() {
        let text = match value.as_f64() {
            Some(number) if number.fract() != 0.0 && number.abs() < 100.0 => format!("{number:.3}"),
            Some(number) => format!("{number:.0}"),
            None => value.as_str().unwrap_or_default().to_owned(),
        };
        table.add_row([name.replace('_', " "), text]);
    }
    if let Some(column) = table.column_mut(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}");
}

/// Which part of the writes took at most how long.
fn chart(path: &Path, arguments: &WriteArguments, latencies: &Latencies) -> anyhow::Result<()> {
    let total: u64 = latencies.0.iter().map(|(_, count)| count).sum();
    let longest = latencies.0.last().map_or(1.0, |(value, _)| *value as f64 / 1e3);
    let mut seen = 0;
    let points: Vec<(f64, f64)> = latencies
        .0
        .iter()
        .map(|(value, count)| {
            seen += count;
            (*value as f64 / 1e3, seen as f64 / total.max(1) as f64 * 100.0)
        })
        .collect();
    let root = SVGBackend::new(path, (900, 420)).into_drawing_area();
    let trouble = |error: &dyn std::fmt::Display| anyhow::anyhow!("cannot draw: {error}");
    root.fill(&WHITE).map_err(|error| trouble(&error))?;
    let caption = format!(
        "{} groups, {} B, {} outstanding",
        arguments.groups, arguments.size, arguments.outstanding
    );
    let mut chart = ChartBuilder::on(&root)
        .caption(caption, ("sans-serif", 20))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(52)
        .build_cartesian_2d(0.0..longest, 0.0..100.0)
        .map_err(|error| trouble(&error))?;
    chart
        .configure_mesh()
        .x_desc("latency, ms")
        .y_desc("writes, %")
        .draw()
        .map_err(|error| trouble(&error))?;
    chart.draw_series(LineSeries::new(points, &BLUE)).map_err(|error| trouble(&error))?;
    root.present().map_err(|error| trouble(&error))?;
    Ok(())
}
