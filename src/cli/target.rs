//! Which cluster a command speaks to, and how it is reached.

use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use shardhost::driver::ANSWERS_WITHIN;
use shardhost_client::{Client, ClientOptions};
use shardhost_proto::admin::admin_client::AdminClient;
use shardhost_proto::admin::{
    GroupStatus, HostStatus, ListGroupsRequest, ShowGroupRequest, StatusRequest,
};
use shardhost_proto::methods::{Audience, OTHER_LISTENER};
use shardhost_security::channel::{Channel, deepest_cause};
use shardhost_security::connect::wants_tls;
use shardhost_server::config::check_address;
use tokio::time::Instant;
use tonic::transport::Endpoint;
use tonic_types::StatusExt;

use super::ended::senseless;
use super::output::address_for;
use super::security::security;
use super::shown::shown;

/// How long one node may take for an answer that it knows.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// How long it may take for one for which it asks the catalog: it gives up itself before that, and says why.
const CATALOG_ANSWER_TIMEOUT: Duration = ANSWERS_WITHIN.saturating_add(ANSWER_TIMEOUT);
/// How long a node may take to say that it speaks TLS.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);
/// Between two questions for a leader.
const PAUSE: Duration = Duration::from_millis(50);

/// Where the cluster is.
#[derive(Clone, Debug, Args)]
pub struct Target {
    /// Where to reach the cluster; one node that answers is enough.
    #[arg(
        long = "at",
        env = "SHARDHOST_AT",
        value_name = "ADDRESS",
        value_delimiter = ',',
        default_value = "127.0.0.1:7400"
    )]
    pub at: Vec<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// How long to try, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(..=86_400))]
    pub timeout: u64,
}

/// A node that answered.
#[derive(Clone, Debug)]
pub struct Node {
    pub address: String,
    pub admin: AdminClient<Channel>,
    /// Its status.
    pub status: HostStatus,
}

impl Target {
    /// How long to try.
    pub const fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }

    /// A client of the shards.
    pub async fn client(&self) -> anyhow::Result<Client> {
        let security = security();
        let options =
            ClientOptions { deadline: self.timeout(), security, ..ClientOptions::default() };
        let unreachable = || {
            format!(
                "no node at {} says where the shards are; start one with `shardhost serve`, or name another with --at",
                self.at.join(", ")
            )
        };
        Client::connect(self.at.iter().cloned(), options).await.with_context(unreachable)
    }

    /// The first node that answers.
    pub async fn node(&self) -> anyhow::Result<Node> {
        let mut last = None;
        for address in &self.at {
            match Node::at(address).await {
                Ok(node) => return Ok(node),
                // What a node says that answers is more helpful than that another one does not.
                Err(error) if error.answers() || !last.as_ref().is_some_and(NoStatus::answers) => {
                    last = Some(error);
                }
                Err(_) => {}
            }
        }
        Err(match last {
            Some(refused) if refused.answers() => refused.into(),
            Some(silent) => anyhow::Error::from(silent).context(self.unreachable()),
            None => anyhow::anyhow!("no address was given").context(self.unreachable()),
        })
    }

    fn unreachable(&self) -> String {
        format!(
            "no node answers at {}; start one with `shardhost serve`, or name another with --at",
            self.at.join(", ")
        )
    }

    /// The node with this number, at the address that the cluster knows.
    pub async fn node_numbered(&self, number: u64) -> anyhow::Result<Node> {
        let start = self.node().await?;
        if start.status.node == number {
            return Ok(start);
        }
        Node::connect(&start.known_address(number)?).await
    }

    /// The first node that holds a replica of a group, and its status.
    pub async fn holder_of(&self, group: u64) -> anyhow::Result<(Node, GroupStatus)> {
        let start = self.node().await?;
        let unknown = match start.group(group).await {
            Ok(status) => return Ok((start, status)),
            Err(error) => error,
        };
        for address in start.all_addresses() {
            if let Ok(node) = Node::connect(&address).await
                && let Ok(status) = node.group(group).await
            {
                return Ok((node, status));
            }
        }
        Err(unknown)
    }

    /// The node that leads a group, found by asking from node to node; the first need not hold a replica.
    pub async fn leader_of(&self, group: u64) -> anyhow::Result<(Node, GroupStatus)> {
        let deadline = Instant::now() + self.timeout();
        let mut node = self.node().await?;
        let mut all = All { addresses: node.all_addresses(), at: 0, strangers: 0 };
        let mut said = None;
        loop {
            let status = match node.group(group).await {
                Ok(status) if is_settled(&status) => return Ok((node, status)),
                Ok(status) => {
                    (all.strangers, said) = (0, None);
                    status
                }
                Err(error) => {
                    all.strangers += 1;
                    said.get_or_insert(error);
                    GroupStatus::default()
                }
            };
            if all.are_strangers()
                && let Some(said) = said
            {
                return Err(said);
            }
            if Instant::now() > deadline {
                bail!(
                    "group {group} has no leader that can be reached after {:?}; `shardhost \
                     status` shows which nodes are missing",
                    self.timeout()
                );
            }
            node = match leader_named(&node, &status).await {
                Some(leader) => leader,
                None => all.next().await.unwrap_or(node),
            };
        }
    }
}

/// All nodes of a cluster, asked one after the other.
struct All {
    addresses: Vec<String>,
    at: usize,
    /// How many in a row know nothing of the group, or do not answer.
    strangers: usize,
}

impl All {
    /// The next one that answers; `None`: none does.
    async fn next(&mut self) -> Option<Node> {
        tokio::time::sleep(PAUSE).await;
        for _ in 0..self.addresses.len() {
            self.at = (self.at + 1) % self.addresses.len();
            match Node::connect(&self.addresses[self.at]).await {
                Ok(node) => return Some(node),
                Err(_) => self.strangers += 1,
            }
        }
        None
    }

    fn are_strangers(&self) -> bool {
        self.strangers >= self.addresses.len()
    }
}

/// The leader that `node` named.
async fn leader_named(node: &Node, status: &GroupStatus) -> Option<Node> {
    let address = node.address_of(status.leader_node)?;
    Node::connect(&address).await.ok()
}

/// Whether a node leads a group and has found out whether it serves.
fn is_settled(status: &GroupStatus) -> bool {
    status.role == "leader" && (status.serving || !status.caretaker.is_empty())
}

impl Node {
    /// Asks the node at `address` who it is. Where operators have an address of their own that who named this
    /// one had not heard of yet, it is asked there.
    pub async fn connect(address: &str) -> anyhow::Result<Self> {
        match Self::at(address).await {
            Err(NoStatus::Elsewhere { operators, .. }) if operators != address => {
                Ok(Self::at(&operators).await?)
            }
            asked => Ok(asked?),
        }
    }

    /// The same at this address alone.
    async fn at(address: &str) -> Result<Self, NoStatus> {
        let mut admin = admin(address).map_err(NoStatus::Silent)?;
        let asked = tokio::time::timeout(ANSWER_TIMEOUT, admin.status(StatusRequest {})).await;
        let status = match asked {
            Ok(Ok(status)) => status.into_inner(),
            Ok(Err(status)) => return Err(NoStatus::of(address, &status).await),
            Err(_) => return Err(with_the_way_in(address, silent(address, ANSWER_TIMEOUT)).await),
        };
        Ok(Self { address: address.to_owned(), admin, status })
    }

    /// Its status of a group.
    pub async fn group(&self, group: u64) -> anyhow::Result<GroupStatus> {
        let mut admin = self.admin.clone();
        promptly(&self.address, admin.show_group(ShowGroupRequest { group })).await
    }

    /// Where nodes reach it; where this one did, if operators do so there, too.
    pub fn address_of_nodes(&self) -> &str {
        let HostStatus { address, admin_address, .. } = &self.status;
        if admin_address.is_empty() || address.is_empty() { &self.address } else { address }
    }

    /// The other nodes, and where operators reach them; empty: it does not know.
    pub fn peers(&self) -> impl Iterator<Item = (u64, &str)> {
        let peers = self.status.peers.iter();
        peers.map(|peer| (peer.node, address_for(&peer.address, &peer.admin_address)))
    }

    /// Where operators reach this node and those that it knows.
    pub fn all_addresses(&self) -> Vec<String> {
        let peers = self.peers().map(|(_, address)| address);
        let known = peers.filter(|address| !address.is_empty() && *address != self.address);
        std::iter::once(self.address.as_str()).chain(known).map(str::to_owned).collect()
    }

    /// Where operators reach a node, this one or another that it knows.
    pub fn known_address(&self, number: u64) -> anyhow::Result<String> {
        if self.status.node == number {
            return Ok(self.address.clone());
        }
        self.address_of(number).with_context(|| {
            format!("{} knows no node {number}; `shardhost status` shows the nodes", self.address)
        })
    }

    /// Where operators reach another node.
    pub fn address_of(&self, node: u64) -> Option<String> {
        let peer = self.peers().find(|(peer, address)| *peer == node && !address.is_empty());
        peer.map(|(_, address)| address.to_owned())
    }

    /// The node to ask after `asked`, which named `leader` (0: it does not know): that one, or the
    /// next of all nodes.
    pub fn address_after(&self, asked: &str, leader: u64) -> String {
        if let Some(leader) = self.address_of(leader).filter(|address| address != asked) {
            return leader;
        }
        let all = self.all_addresses();
        let at = all.iter().position(|address| address == asked).unwrap_or(0);
        all.get((at + 1) % all.len().max(1)).cloned().unwrap_or_else(|| asked.to_owned())
    }
}

/// Why a node gave no status.
#[derive(Debug)]
enum NoStatus {
    /// There is none, or not one of this cluster.
    Silent(anyhow::Error),
    /// There is one, which says what is wrong.
    Refused(anyhow::Error),
    /// Operators are served at another address.
    Elsewhere { operators: String, error: anyhow::Error },
}

impl NoStatus {
    async fn of(address: &str, status: &tonic::Status) -> Self {
        let error = said(address, status);
        if let Some(operators) = operators_at(status) {
            return Self::Elsewhere { operators, error };
        }
        // An error of the connection has a code, too, and is not said by a node.
        let is_said = std::error::Error::source(status).is_none();
        match status.code() {
            tonic::Code::PermissionDenied
            | tonic::Code::Unauthenticated
            | tonic::Code::ResourceExhausted
                if is_said =>
            {
                Self::Refused(error)
            }
            _ => with_the_way_in(address, error).await,
        }
    }

    const fn answers(&self) -> bool {
        !matches!(self, Self::Silent(_))
    }
}

impl From<NoStatus> for anyhow::Error {
    fn from(error: NoStatus) -> Self {
        match error {
            NoStatus::Silent(error)
            | NoStatus::Refused(error)
            | NoStatus::Elsewhere { error, .. } => error,
        }
    }
}

/// The same error, unless the node speaks TLS and this process does not.
async fn with_the_way_in(address: &str, error: anyhow::Error) -> NoStatus {
    if security().credentials.is_none() && wants_tls(address, PROBE_TIMEOUT).await {
        return NoStatus::Refused(anyhow::anyhow!(
            "{address} speaks TLS; name the authority of the cluster and a certificate (--tls-ca, --tls-cert, \
             --tls-key) or a token (--token-file)"
        ));
    }
    NoStatus::Silent(error)
}

/// Where the operators of a node are served, as its listener for others says.
pub fn operators_at(status: &tonic::Status) -> Option<String> {
    let details = status.get_error_details();
    let info = details.error_info().filter(|info| info.reason == OTHER_LISTENER)?;
    info.metadata.get(Audience::Operators.name()).cloned()
}

/// Whether a listener refused it that is for others.
pub fn is_elsewhere(status: &tonic::Status) -> bool {
    status.get_error_details().error_info().is_some_and(|info| info.reason == OTHER_LISTENER)
}

/// A client of a node's operators.
pub fn admin(address: &str) -> anyhow::Result<AdminClient<Channel>> {
    Ok(AdminClient::new(channel(address)?))
}

/// A channel to a node; it connects when it is used, and again whenever that is needed.
pub fn channel(address: &str) -> anyhow::Result<Channel> {
    check_address(address)?;
    let uri = format!("http://{address}");
    let endpoint = Endpoint::from_shared(uri)
        .with_context(|| format!("`{address}` is no address; write host:port"))?
        .connect_timeout(ANSWER_TIMEOUT)
        .tcp_nodelay(true);
    Ok(security().lazily(&endpoint, None))
}

/// The answer of a node that asks the catalog for it, or may.
pub async fn in_time<T>(
    address: &str,
    answer: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> anyhow::Result<T> {
    within(CATALOG_ANSWER_TIMEOUT, address, answer).await
}

/// The answer of a node that asks no other one for it.
pub async fn promptly<T>(
    address: &str,
    answer: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> anyhow::Result<T> {
    within(ANSWER_TIMEOUT, address, answer).await
}

async fn within<T>(
    limit: Duration,
    address: &str,
    answer: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> anyhow::Result<T> {
    let Ok(answer) = tokio::time::timeout(limit, answer).await else {
        return Err(silent(address, limit));
    };
    Ok(answer.map_err(|status| said(address, &status))?.into_inner())
}

fn silent(address: &str, limit: Duration) -> anyhow::Error {
    anyhow::anyhow!("{address} does not answer within {} s", limit.as_secs())
}

/// All groups of a node, page by page.
pub async fn all_groups(
    admin: &mut AdminClient<Channel>,
) -> Result<tonic::Response<Vec<GroupStatus>>, tonic::Status> {
    let mut groups: Vec<GroupStatus> = Vec::new();
    loop {
        let after_group = groups.last().map(|group| group.group);
        let request = ListGroupsRequest { after_group, limit: 0 };
        let page = admin.list_groups(request).await?.into_inner();
        let ends = !page.more || page.groups.is_empty();
        groups.extend(page.groups);
        if ends {
            return Ok(tonic::Response::new(groups));
        }
    }
}

/// What a node refused, without the wrapping: its words, and the name of the reason.
pub fn said(address: &str, status: &tonic::Status) -> anyhow::Error {
    let details = status.get_error_details();
    // It may quote what clients and other operators said.
    let words = shown(status.message());
    match (status.code(), details.error_info()) {
        (_, Some(info)) if info.reason == "UNKNOWN_KIND" => {
            senseless(format!("{address}: {words} [{}]", info.reason))
        }
        (_, Some(info)) => anyhow::anyhow!("{address}: {words} [{}]", info.reason),
        // A node that gives a cause was reached.
        (tonic::Code::Unavailable, None) => match deepest_cause(status) {
            Some(cause) => anyhow::anyhow!("{address} cannot be reached: {}", shown(&cause)),
            None => anyhow::anyhow!("{address} cannot be reached"),
        },
        (_, None) => anyhow::anyhow!("{address}: {words}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node waits for its catalog longer than for anything else, and says itself that it does not answer.
    #[tokio::test(start_paused = true)]
    async fn a_node_that_asks_the_catalog_is_given_time_to_say_that_it_does_not_answer() {
        let unreachable = async || {
            tokio::time::sleep(ANSWERS_WITHIN).await;
            Err::<tonic::Response<()>, _>(tonic::Status::unavailable("the catalog does not answer"))
        };
        let said = in_time("n1", unreachable()).await.unwrap_err();
        assert!(!said.to_string().contains("within"), "{said}");
        let silent = promptly("n1", unreachable()).await.unwrap_err();
        assert_eq!(silent.to_string(), "n1 does not answer within 3 s");
    }
}
