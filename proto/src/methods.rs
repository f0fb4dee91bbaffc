//! The calls of all services.

/// Their paths, as `/shardhost.admin.v1.Admin/Status`.
pub const METHODS: &[&str] = include!(concat!(env!("OUT_DIR"), "/methods.rs"));

/// Whether a call is one of clients of tables and queues.
#[must_use]
pub fn is_of_clients(path: &str) -> bool {
    path.starts_with("/shardhost.client.v1.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_calls_of_clients_are_those_of_their_services_and_no_others() {
        let of_clients: Vec<&str> =
            METHODS.iter().copied().filter(|path| is_of_clients(path)).collect();
        let services = ["Directory/Shards", "Queue/Pipeline", "Table/Pipeline"];
        let mut expected = services.map(|service| format!("/shardhost.client.v1.{service}"));
        expected.sort();
        let mut found = of_clients;
        found.sort_unstable();
        assert_eq!(found, expected);
    }
}
