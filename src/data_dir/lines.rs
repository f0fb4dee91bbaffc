//! The form of the small files about peers: `<checksum>`, and behind it a line `<node> <value>` for each.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

use shardhost_storage::NodeId;

pub(super) fn text_of<V: Display>(values: &BTreeMap<NodeId, V>) -> String {
    let lines: String = values.iter().map(|(node, value)| format!("{node} {value}\n")).collect();
    format!("{:08x}\n{lines}", crc32fast::hash(lines.as_bytes()))
}

/// `None`: the file is damaged.
pub(super) fn parse<V: FromStr>(text: &str) -> Option<BTreeMap<NodeId, V>> {
    let (checksum, lines) = text.split_once('\n')?;
    if u32::from_str_radix(checksum, 16).ok()? != crc32fast::hash(lines.as_bytes()) {
        return None;
    }
    let pair = |line: &str| {
        let (node, value) = line.split_once(' ')?;
        Some((NodeId::new(node.parse().ok()?)?, value.parse().ok()?))
    };
    lines.lines().map(pair).collect()
}
