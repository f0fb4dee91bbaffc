//! What is checked of a configuration beyond what its types say.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use shardhost::driver::SYSTEM_GROUP;
use shardhost::transport::address::check_reachable;
use shardhost_policy::catalog::{MAX_REPLACE_AFTER_MS, MIN_REPLACE_AFTER_MS, Name, Subject};
use shardhost_policy::planner::snapshot::MAX_WEIGHT;
use shardhost_proto::shard_map::MAX_SHARDS;
use shardhost_proto::version::ClusterVersion;
use shardhost_storage::NodeId;
use shardhost_storage::requirement::capability_names;

use super::error::{ConfigError, wrong};
use super::{MAX_CLIENT_MEMORY_MIB, ServerConfig};
use crate::service::MIN_CLIENT_BYTES;

/// Longest time in the configuration.
const MAX_SECONDS: u64 = 365 * 24 * 60 * 60;

/// Whether of two listeners the second finds its address taken. Port 0 is a free one.
fn clash(one: SocketAddr, other: SocketAddr) -> bool {
    let everywhere = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port() && one.port() != 0 && (everywhere || one.ip() == other.ip())
}

/// A listener of some alone, as the configuration names it.
struct Apart<'a> {
    who: &'static str,
    key: &'static str,
    listen: Option<SocketAddr>,
    advertise_key: &'static str,
    advertise: Option<&'a str>,
}

impl Apart<'_> {
    fn check_beside(
        &self,
        listen: SocketAddr,
        others: &[(&str, SocketAddr)],
    ) -> Result<(), ConfigError> {
        let Self { who, key, .. } = *self;
        let Some((other, at)) = others.iter().find(|(_, other)| clash(*other, listen)) else {
            return Ok(());
        };
        let message = format!(
            "{listen} and `{other}`, {at}, are one address; give {who} another one, or leave this out to serve them \
             at `listen`"
        );
        Err(wrong(key, message))
    }

    /// Where they reach it is not where nodes are reached, and somewhere.
    fn check_reached(&self, nodes: &BTreeMap<NodeId, String>) -> Result<(), ConfigError> {
        let Self { who, key, listen, advertise_key, advertise } = *self;
        if let Some(address) = advertise {
            let refused = |message| Err(wrong(advertise_key, message));
            if listen.is_none() {
                return refused(format!(
                    "it names where {who} reach `{key}`, {address}, and that is not set; set it, or leave this out"
                ));
            }
            check_reachable(address).map_err(|error| wrong(advertise_key, error.to_string()))?;
        }
        let Some((key, address)) = self.reached() else { return Ok(()) };
        let Some((node, _)) = nodes.iter().find(|(_, of_node)| **of_node == address) else {
            return Ok(());
        };
        let message = format!(
            "{address} is that of node {node} among `nodes`, where nodes reach it; give {who} another one"
        );
        Err(wrong(key, message))
    }

    /// Where they reach it, and what says so. Port 0 becomes another one.
    fn reached(&self) -> Option<(&'static str, String)> {
        let listen = self.listen?;
        match self.advertise {
            Some(address) => Some((self.advertise_key, address.to_owned())),
            None => (listen.port() != 0).then(|| (self.key, listen.to_string())),
        }
    }
}

impl ServerConfig {
    /// Checks what the types do not.
    ///
    /// # Errors
    /// [`ConfigError::Value`].
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.cluster.is_empty() || self.cluster.len() > 64 {
            return Err(wrong("cluster", "it must have 1 to 64 bytes".to_owned()));
        }
        let node = NodeId::new(self.node)
            .ok_or_else(|| wrong("node", "nodes are numbered from 1".to_owned()))?;
        if self.data_dir.as_os_str().is_empty() {
            let message = "name the directory of this node; it is created when missing";
            return Err(wrong("data-dir", message.to_owned()));
        }
        let nodes = self.node_addresses()?;
        if !nodes.is_empty() && !nodes.contains_key(&node) {
            let message = format!("this node, {node}, is not among them; add its address");
            return Err(wrong("nodes", message));
        }
        if nodes.is_empty() != self.alone {
            let message = "name the nodes of the cluster, this one too; or say `alone = true`, and \
                           no nodes, for a cluster of this node alone";
            return Err(wrong("nodes", message.to_owned()));
        }
        let mut named = BTreeSet::new();
        for voter in &self.shards.voters {
            if !named.insert(voter) {
                return Err(wrong("voters", format!("node {voter} is named twice")));
            }
            if !NodeId::new(*voter).is_some_and(|voter| nodes.contains_key(&voter)) {
                let message = format!("node {voter} is not among the nodes; add its address");
                return Err(wrong("voters", message));
            }
        }
        let mut seen = BTreeMap::new();
        for (node, address) in &nodes {
            if let Some(other) = seen.insert(address, node) {
                let message = format!("nodes {other} and {node} both have the address {address}");
                return Err(wrong("nodes", message));
            }
        }
        for (key, count) in [("tables", self.shards.tables), ("queues", self.shards.queues)] {
            if count > MAX_SHARDS {
                return Err(wrong(key, format!("{count} shards; at most {MAX_SHARDS}")));
            }
        }
        for (key, seconds) in [
            ("planner-warm-up", self.planner_warm_up),
            ("planner-rest", self.planner_rest),
            ("consistency-check", self.consistency_check),
            ("consistency-check-hibernating", self.consistency_check_hibernating),
        ] {
            if seconds > MAX_SECONDS {
                let bounds = format!("{seconds} seconds; at most {MAX_SECONDS}, which is a year");
                return Err(wrong(key, bounds));
            }
        }
        self.validate_left_out(node)?;
        self.validate_capabilities()?;
        if let Some(zone) = &self.zone {
            Name::new(Subject::Zone, zone).map_err(|error| wrong("zone", error.to_string()))?;
        }
        if self.weight > MAX_WEIGHT {
            return Err(wrong("weight", format!("{}; at most {MAX_WEIGHT}", self.weight)));
        }
        let (least, most) = (MIN_REPLACE_AFTER_MS / 1_000, MAX_REPLACE_AFTER_MS / 1_000);
        if !(least..=most).contains(&self.replace_after) {
            return Err(wrong("replace-after", format!("it must be {least} to {most} seconds")));
        }
        if self.workers == 0 || self.workers > 64 {
            return Err(wrong("workers", "it must be 1 to 64".to_owned()));
        }
        if self.apply_threads == 0 || self.apply_threads > 64 {
            return Err(wrong("apply-threads", "it must be 1 to 64".to_owned()));
        }
        let (version, newest) = (self.cluster_version_max, ClusterVersion::NEWEST);
        if version == 0 || !ClusterVersion::new(version).is_known() {
            let bounds = format!(
                "it must be {} to {newest}, which this program knows",
                ClusterVersion::FIRST
            );
            return Err(wrong("cluster-version-max", bounds));
        }
        if self.park.contains(&SYSTEM_GROUP.get()) {
            let message = "group 0 is the catalog, without which a host of it does not start";
            return Err(wrong("park", message.to_owned()));
        }
        let least = MIN_CLIENT_BYTES / (1024 * 1024);
        if !(least..=MAX_CLIENT_MEMORY_MIB).contains(&self.client_memory_mib) {
            let bounds = format!("it must be {least} to {MAX_CLIENT_MEMORY_MIB}");
            return Err(wrong("client-memory-mib", bounds));
        }
        self.validate_apart()?;
        self.validate_http_listener()?;
        self.validate_listeners()
    }

    /// Each listener has an address of its own, and so has where it is reached.
    fn validate_apart(&self) -> Result<(), ConfigError> {
        let [admin, client] = self.apart();
        let nodes = self.node_addresses()?;
        let mut others = vec![("listen", self.listen)];
        for apart in [&admin, &client] {
            let Some(listen) = apart.listen else { continue };
            apart.check_beside(listen, &others)?;
            others.push((apart.key, listen));
        }
        for apart in [&admin, &client] {
            apart.check_reached(&nodes)?;
        }
        if let (Some((_, admin)), Some((key, client))) = (admin.reached(), client.reached())
            && admin == client
        {
            let message =
                format!("{client} is where operators reach this node; give clients another one");
            return Err(wrong(key, message));
        }
        Ok(())
    }

    /// The listeners beside `listen`.
    fn apart(&self) -> [Apart<'_>; 2] {
        let admin = Apart {
            who: "operators",
            key: "admin-listen",
            listen: self.admin_listen,
            advertise_key: "admin-advertise",
            advertise: self.admin_advertise.as_deref(),
        };
        let client = Apart {
            who: "clients",
            key: "client-listen",
            listen: self.client_listen,
            advertise_key: "client-advertise",
            advertise: self.client_advertise.as_deref(),
        };
        [admin, client]
    }

    /// The listener for HTTP is another one than those for calls.
    fn validate_http_listener(&self) -> Result<(), ConfigError> {
        let Some(http) = self.http_listen else { return Ok(()) };
        let apart = self.apart().map(|apart| (apart.key, apart.listen));
        let same =
            [("listen", Some(self.listen))].into_iter().chain(apart).find_map(|(key, address)| {
                address.filter(|address| clash(*address, http)).map(|address| (key, address))
            });
        let Some((key, address)) = same else { return Ok(()) };
        let message =
            format!("{http} and `{key}`, {address}, are one address; give HTTP another one");
        Err(wrong("http-listen", message))
    }

    /// All who reach a listener without TLS may do everything that is served there.
    fn validate_listeners(&self) -> Result<(), ConfigError> {
        if self.tls.is_some() && self.insecure {
            let message = "a node with TLS is not insecure; leave one of them out";
            return Err(wrong("insecure", message.to_owned()));
        }
        if self.tls.is_some() || self.insecure {
            return Ok(());
        }
        let apart = self.apart().map(|apart| (apart.key, apart.listen));
        let own = [("listen", Some(self.listen)), ("http-listen", self.http_listen)];
        let listeners = own.into_iter().chain(apart);
        let reached = listeners.into_iter().find_map(|(key, address)| {
            address.filter(|address| !address.ip().is_loopback()).map(|address| (key, address))
        });
        let Some((key, address)) = reached else { return Ok(()) };
        let message = format!(
            "other machines reach {address}, and without TLS all who reach it may do everything; name certificates \
             (`shardhost cert` makes some), or say `--insecure` (in a file: `insecure = true`) if every machine \
             that reaches it is trusted"
        );
        Err(wrong(key, message))
    }

    fn validate_left_out(&self, own: NodeId) -> Result<(), ConfigError> {
        let founders = if self.catalog { self.system_founders() } else { self.shard_founders() };
        for node in &self.bootstrap_without {
            let named = NodeId::new(*node).filter(|node| *node != own);
            if !named.is_some_and(|node| founders.contains(&node)) {
                let message = format!("node {node} is not another founder of the cluster");
                return Err(wrong("bootstrap-without", message));
            }
        }
        Ok(())
    }

    fn validate_capabilities(&self) -> Result<(), ConfigError> {
        let lists = [
            ("capabilities", &self.capabilities),
            ("tables-require", &self.shards.tables_require),
            ("queues-require", &self.shards.queues_require),
        ];
        for (key, names) in lists {
            capability_names(names.iter().cloned())
                .map_err(|error| wrong(key, error.to_string()))?;
        }
        Ok(())
    }

    /// The addresses, by node.
    ///
    /// # Errors
    /// [`ConfigError::Value`].
    pub fn node_addresses(&self) -> Result<BTreeMap<NodeId, String>, ConfigError> {
        let mut nodes = BTreeMap::new();
        for (number, address) in &self.nodes {
            let node = number.parse().ok().and_then(NodeId::new).ok_or_else(|| {
                wrong("nodes", format!("`{number}` is no number of a node; they start at 1"))
            })?;
            check_reachable(address)
                .map_err(|error| wrong("nodes", format!("that of node {node}: {error}")))?;
            if nodes.insert(node, address.clone()).is_some() {
                return Err(wrong(
                    "nodes",
                    format!("node {node} is named twice, once as `{number}`"),
                ));
            }
        }
        Ok(nodes)
    }
}
