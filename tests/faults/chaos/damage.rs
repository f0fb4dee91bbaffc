//! One damaged block in the state of a host.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use shardhost_proto::admin::ChecksumRequest;
use shardhost_proto::admin::admin_client::AdminClient;

/// Times that one cell is damaged at most: after three times an operator has to look at the disk.
const TIMES: u32 = 2;
/// Bytes that are changed.
const BYTES: usize = 16;
/// The answer of one group.
const ANSWER: Duration = Duration::from_secs(5);

/// The cells that were damaged, and how often.
#[derive(Debug, Default)]
pub struct Damages(BTreeMap<PathBuf, u32>);

impl Damages {
    /// Damages the largest table of a cell of the state, if one has a table and was not damaged too
    /// often; the file.
    pub fn damage(&mut self, state: &Path, drawn: u32) -> Option<PathBuf> {
        let mut cells: Vec<PathBuf> = entries(state)
            .into_iter()
            .filter(|path| path.is_dir() && path.extension().is_none())
            .collect();
        cells.sort();
        let count = cells.len().max(1);
        cells.rotate_left(drawn as usize % count);
        for cell in cells {
            let times = self.0.entry(cell.clone()).or_default();
            if *times >= TIMES {
                continue;
            }
            let Some(table) = largest_table(&cell) else { continue };
            *times += 1;
            change_block(&table);
            return Some(table);
        }
        None
    }
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

fn largest_table(cell: &Path) -> Option<PathBuf> {
    let is_table = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "sst");
    let size = |path: &PathBuf| path.metadata().map_or(0, |file| file.len());
    entries(cell).into_iter().filter(is_table).max_by_key(size)
}

/// Changes bytes of the first block.
fn change_block(table: &Path) {
    let file = File::options().read(true).write(true).open(table).unwrap();
    let mut bytes = [0; BYTES];
    let at = (file.metadata().unwrap().len() / 8).min(1_024);
    file.read_exact_at(&mut bytes, at).unwrap();
    bytes.iter_mut().for_each(|byte| *byte = !*byte);
    file.write_all_at(&bytes, at).unwrap();
}

/// Has a host read all that it has of these groups.
pub async fn read_all(address: &str, groups: impl Iterator<Item = u64>) {
    let Ok(mut admin) = AdminClient::connect(format!("http://{address}")).await else { return };
    for group in groups {
        let request = ChecksumRequest { group, min_applied: 0, timeout_ms: 1_000 };
        // It may be closed meanwhile, or damaged.
        drop(tokio::time::timeout(ANSWER, admin.checksum(request)).await);
    }
}
