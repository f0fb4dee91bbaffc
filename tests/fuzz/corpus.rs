//! The corpus of a target: a folder of small files. Those that are `made` come from the encoders of the
//! target; those that were `found` once made it fail.

use std::fs;
use std::path::{Path, PathBuf};

use shardhost_storage::testing::fuzz::{Seed, Target};

/// All files of a target, by name; written anew with `REWRITE=1`.
pub fn of(target: &Target) -> Vec<Seed> {
    let folder =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus").join(target.name);
    let made = (target.seeds)();
    if std::env::var_os("REWRITE").is_some() {
        rewrite(&folder, &made);
    }
    let mut corpus: Vec<Seed> = files(&folder).iter().map(|path| read(path)).collect();
    corpus.sort_by(|one, other| one.name.cmp(&other.name));
    for seed in made {
        let name = file_name(&seed);
        let there = corpus.iter().any(|file| file.name == name);
        assert!(there, "{name} is missing in {}; write it with REWRITE=1", folder.display());
    }
    corpus
}

fn file_name(seed: &Seed) -> String {
    format!("made-{}", seed.name)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let listed = fs::read_dir(folder);
    let listed = listed.unwrap_or_else(|error| {
        panic!("{}: {error}; write the corpus with REWRITE=1", folder.display())
    });
    listed.map(|file| file.expect("a file").path()).collect()
}

fn read(path: &Path) -> Seed {
    let name = path.file_name().expect("a name").to_string_lossy().into_owned();
    Seed::new(name, fs::read(path).expect("readable"))
}

fn rewrite(folder: &Path, made: &[Seed]) {
    fs::create_dir_all(folder).expect("a folder");
    let old = files(folder).into_iter().filter(|path| read(path).name.starts_with("made-"));
    old.for_each(|path| fs::remove_file(path).expect("removed"));
    for seed in made {
        fs::write(folder.join(file_name(seed)), &seed.bytes).expect("written");
    }
}
