//! Scripts.

mod answers;
mod arguments;
mod asking;
mod cluster;
mod commands;
mod forge;
mod machine;
mod network;
mod node;
mod parts;
mod time;
mod view;
mod words;

use commands::Script;

const CASES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scripts/cases");

/// A test for every folder of scripts.
macro_rules! folders {
    ($($name:ident)*) => {
        const FOLDERS: &[&str] = &[$(stringify!($name)),*];
        $(
            #[test]
            fn $name() {
                run(stringify!($name));
            }
        )*
    };
}

folders! { elections replication persistence proposals reads transfers sleep }

fn run(folder: &str) {
    datadriven::walk(&format!("{CASES}/{folder}"), |file| {
        let mut script = Script::default();
        file.run(|case| script.run(case));
    });
}

/// The names of what is in a folder, in order.
fn names(folder: &str) -> Vec<String> {
    let files = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn every_folder_of_scripts_is_run() {
    let mut folders: Vec<String> = FOLDERS.iter().map(|name| (*name).to_owned()).collect();
    folders.sort();
    assert_eq!(names(CASES), folders);
}

/// A command that cannot be carried out says so in the trace: such a script teaches nothing.
#[test]
fn no_script_holds_a_mistake() {
    for folder in FOLDERS {
        for name in names(&format!("{CASES}/{folder}")) {
            let text = std::fs::read_to_string(format!("{CASES}/{folder}/{name}")).unwrap();
            assert!(!text.contains(commands::MISTAKE), "{folder}/{name}");
        }
    }
}
