//! The calls of all services, and who makes them.

/// Their paths, as `/shardhost.admin.v1.Admin/Status`.
pub const METHODS: &[&str] = include!(concat!(env!("OUT_DIR"), "/methods.rs"));

/// The reason of a listener that does not answer a call (`google.rpc.ErrorInfo`). Its facts are where who is not
/// served there is, by [`Audience::name`].
pub const OTHER_LISTENER: &str = "OTHER_LISTENER";

/// Who makes calls. A host may have a listener for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Audience {
    /// The nodes of the cluster, and those that join it.
    Nodes,
    Operators,
    /// Clients of tables and queues.
    Clients,
}

impl Audience {
    pub const ALL: [Self; 3] = [Self::Nodes, Self::Operators, Self::Clients];

    /// Its name in the facts of an [`OTHER_LISTENER`].
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nodes => "nodes",
            Self::Operators => "operators",
            Self::Clients => "clients",
        }
    }

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// Some audiences, or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Audiences(u8);

impl Audiences {
    /// All.
    pub const ALL: Self = Self::of(&Audience::ALL);

    /// These.
    #[must_use]
    pub const fn of(audiences: &[Audience]) -> Self {
        let (mut bits, mut at) = (0, 0);
        while at < audiences.len() {
            bits |= audiences[at].bit();
            at += 1;
        }
        Self(bits)
    }

    #[must_use]
    pub const fn has(self, audience: Audience) -> bool {
        self.0 & audience.bit() != 0
    }

    /// Whether one of them is among the others, too.
    #[must_use]
    pub const fn meet(self, others: Self) -> bool {
        self.0 & others.0 != 0
    }

    /// Nodes first, then operators.
    pub fn iter(self) -> impl Iterator<Item = Audience> {
        Audience::ALL.into_iter().filter(move |audience| self.has(*audience))
    }
}

/// Who makes a call, by its path. One of none of these services is for the listener of nodes, which each host
/// has.
#[must_use]
pub fn audiences_of(path: &str) -> Audiences {
    use Audience::{Clients, Nodes, Operators};
    match path {
        // A node that joins asks for it.
        "/shardhost.admin.v1.Admin/Join"
        // The command line changes and reads the catalog.
        | "/shardhost.system.v1.System/Propose"
        | "/shardhost.system.v1.System/Query" => Audiences::of(&[Nodes, Operators]),
        _ if is_of(path, &["client"]) => Audiences::of(&[Clients]),
        _ if is_of(path, &["admin", "balance"]) => Audiences::of(&[Operators]),
        _ => Audiences::of(&[Nodes]),
    }
}

/// Whether a call is one of the services of these names.
fn is_of(path: &str, names: &[&str]) -> bool {
    let name = path.strip_prefix("/shardhost.").and_then(|rest| rest.split_once(".v1."));
    name.is_some_and(|(name, _)| names.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(audience: Audience) -> Vec<&'static str> {
        let all = METHODS.iter().copied();
        let mut of: Vec<_> = all.filter(|path| audiences_of(path).has(audience)).collect();
        of.sort_unstable();
        of
    }

    #[test]
    fn the_calls_of_clients_are_those_of_their_services_and_no_others() {
        let services = ["Directory/Shards", "Queue/Pipeline", "Table/Pipeline"];
        let expected = services.map(|service| format!("/shardhost.client.v1.{service}"));
        assert_eq!(of(Audience::Clients), expected);
    }

    #[test]
    fn nodes_and_operators_share_what_joins_a_node_and_what_changes_and_reads_the_catalog() {
        let (nodes, mut operators) = (of(Audience::Nodes), of(Audience::Operators));
        let package = |path: &str| path.split('.').nth(1).map(str::to_owned);
        let services = |calls: &[&str]| -> std::collections::BTreeSet<String> {
            calls.iter().filter_map(|path| package(path)).collect()
        };
        assert_eq!(services(&nodes), ["admin", "peer", "system"].map(str::to_owned).into());
        assert_eq!(services(&operators), ["admin", "balance", "system"].map(str::to_owned).into());
        operators.retain(|path| nodes.contains(path));
        let both = ["admin.v1.Admin/Join", "system.v1.System/Propose", "system.v1.System/Query"];
        assert_eq!(operators, both.map(|path| format!("/shardhost.{path}")));
    }

    #[test]
    fn a_call_of_no_service_is_for_the_listener_of_nodes() {
        for path in
            ["/", "/nowhere", "/other.v1.Service/Call", "/shardhost.client.v2.Table/Pipeline"]
        {
            assert_eq!(audiences_of(path), Audiences::of(&[Audience::Nodes]), "{path}");
        }
    }

    #[test]
    fn audiences_are_a_set() {
        let some = Audiences::of(&[Audience::Clients, Audience::Nodes, Audience::Clients]);
        assert!(some.iter().eq([Audience::Nodes, Audience::Clients]));
        assert!(some.has(Audience::Nodes) && !some.has(Audience::Operators));
        assert!(some.meet(Audiences::ALL) && !some.meet(Audiences::of(&[Audience::Operators])));
        assert!(!Audiences::default().meet(Audiences::ALL));
    }
}
