//! Bytes as a configuration file.

use shardhost_storage::testing::fuzz::{Seed, Target, names_what_is_wrong};

use super::ServerConfig;

/// The target.
#[must_use]
pub fn configurations() -> Target {
    // A tree of the text, with places for messages, and what is made of it.
    Target { name: "configurations", run: check, seeds, memory_factor: 512 }
}

fn check(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let config = match ServerConfig::from_text("a.toml", &text) {
        Ok(config) => config,
        Err(error) => return names_what_is_wrong(&error),
    };
    let written = toml::to_string(&config).expect("a configuration is written");
    let again = ServerConfig::from_text("a.toml", &written).expect("what was written is read");
    assert_eq!(again, config, "a configuration is not read as it was written");
    match config.validate() {
        Ok(()) => {
            let host = config.host();
            assert_eq!(host.node.get(), config.node);
            drop(config.node_addresses().expect("the addresses of a valid configuration"));
        }
        Err(error) => names_what_is_wrong(&error),
    }
}

const WHOLE: &str = r#"cluster = "shop"
node = 1
data-dir = "/var/lib/shardhost"
listen = "0.0.0.0:7400"
capabilities = ["fifo"]
zone = "east"
weight = 2
planner = "shadow"
planner-warm-up = 10
planner-rest = 300
consistency-check = 3600
consistency-check-hibernating = 86400
catalog = true
repair = false
workers = 2
apply-threads = 4
client-memory-mib = 256

[nodes]
1 = "10.0.0.1:7400"
2 = "host-2.example:7400"
3 = "[::1]:7400"

[shards]
tables = 32
queues = 32
voters = [1, 2, 3]
tables-require = []
queues-require = ["fifo"]
"#;

fn seeds() -> Vec<Seed> {
    let seed = |name: &str, text: &str| Seed::new(format!("{name}.toml"), text);
    let nested = format!("capabilities = {}", "[".repeat(20_000));
    let dotted = format!("{}a = 1", "a.".repeat(10_000));
    vec![
        seed("whole", WHOLE),
        seed("alone", "node = 1\nalone = true\ndata-dir = \"d\"\n"),
        seed("empty", ""),
        seed("unknown-key", "nod = 1\n"),
        seed("cut", &WHOLE[..WHOLE.len() / 2]),
        seed("largest", "node = 9223372036854775807\nweight = 4294967296\n"),
        seed("negative", "node = -1\nplanner-rest = -1\n"),
        seed("voters-twice", &WHOLE.replace("voters = [1, 2, 3]", "voters = [1, 1, 2]")),
        seed("nodes-twice", &WHOLE.replace("2 = \"host", "01 = \"host")),
        seed("address-of-a-link", &WHOLE.replace("host-2.example:7400", "http://x")),
        seed("listens-by-name", &WHOLE.replace("0.0.0.0:7400", "localhost:7400")),
        seed("nested", &nested),
        seed("dotted", &dotted),
    ]
}
