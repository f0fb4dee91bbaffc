//! `shardhost group require`: what a group asks of its leader; and how it and what nodes have is
//! shown.

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};
use shardhost::storage::convert::requirement_from_message;
use shardhost_proto::admin::{ChangeRequirementRequest, NodeAdvertisement};
use shardhost_proto::log::{Membership, Requirement};
use tonic::Code;
use tonic_types::StatusExt;

use super::change::{answered, unconfirmed};
use super::output::whole;
use super::target::Target;

/// The requirement of a group.
#[derive(Debug, Args)]
pub struct RequireArguments {
    /// Number of the group.
    group: u64,
    /// What the leader's node must have.
    #[arg(value_name = "NAME", required_unless_present = "nothing")]
    names: Vec<String>,
    /// Ask for nothing.
    #[arg(long, conflicts_with_all = ["names", "soft"])]
    nothing: bool,
    /// A leader that lacks something serves until one that has it can take over.
    #[arg(long)]
    soft: bool,
    /// Only if the configuration is still that of this index; see `member list`.
    #[arg(long, value_name = "INDEX", value_parser = whole)]
    expect: Option<u64>,
    /// Also when no voter is known to have it: then no user is served until one has.
    #[arg(long)]
    even_if_ineligible: bool,
    #[command(flatten)]
    target: Target,
}

/// Changes what a group asks of its leader.
pub async fn require(arguments: &RequireArguments) -> anyhow::Result<()> {
    let RequireArguments { group, target, .. } = arguments;
    let (mut leader, _) = target.leader_of(*group).await?;
    let request = ChangeRequirementRequest {
        group: *group,
        requirement: Some(Requirement {
            capabilities: arguments.names.clone(),
            soft: arguments.soft,
        }),
        expect: arguments.expect,
        even_if_ineligible: arguments.even_if_ineligible,
        timeout_ms: target.timeout.saturating_mul(1_000),
    };
    let changed = leader.admin.change_requirement(request);
    let changed = answered(&leader.address, target.timeout(), changed).await?;
    let changed = changed.map_err(|status| refused(&leader.address, &status))?;
    let membership = changed.membership.context("the node named no configuration")?;
    if target.json {
        let index = membership.config_index;
        let requirement = requirement_json(Some(&membership));
        println!(
            "{}",
            json!({ "group": group, "config_index": index, "requirement": requirement })
        );
    } else {
        let (index, asked) = (membership.config_index, requirement_text(Some(&membership)));
        println!("group {group} requires {asked} of its leader, by the configuration of {index}");
    }
    Ok(())
}

/// A refusal, with what can be done about it here.
fn refused(address: &str, status: &tonic::Status) -> anyhow::Error {
    let error = unconfirmed(address, status);
    let details = status.get_error_details();
    let reason = details.error_info().map(|info| info.reason.as_str());
    if status.code() == Code::FailedPrecondition && reason == Some("NOBODY_FIT") {
        let todo = "give a node what it lacks first, or say --even-if-ineligible: then no user is \
                    served until one has it";
        return anyhow::anyhow!("{error}; {todo}");
    }
    error
}

/// What a group requires, for people.
pub fn requirement_text(membership: Option<&Membership>) -> String {
    let requirement = membership.and_then(|membership| membership.requirement.as_ref());
    match requirement_from_message(requirement) {
        Ok(requirement) => requirement.to_string(),
        Err(error) => format!("what cannot be read: {error}"),
    }
}

/// What a group requires, for programs.
pub fn requirement_json(membership: Option<&Membership>) -> Value {
    let requirement = membership.and_then(|membership| membership.requirement.clone());
    let Requirement { capabilities, soft } = requirement.unwrap_or_default();
    json!({ "capabilities": capabilities, "soft": soft })
}

/// What a node has, for people.
pub fn capabilities_text(advertisement: Option<&NodeAdvertisement>) -> String {
    let Some(advertisement) = advertisement else { return "unknown".to_owned() };
    match advertisement.capabilities.is_empty() {
        true => "-".to_owned(),
        false => advertisement.capabilities.join(", "),
    }
}

/// Whether a node is draining, for people.
pub const fn draining_text(advertisement: Option<&NodeAdvertisement>) -> &'static str {
    match advertisement {
        Some(NodeAdvertisement { draining: true, .. }) => "yes",
        Some(_) => "no",
        None => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requiring(names: &[&str], soft: bool) -> Membership {
        let capabilities = names.iter().map(|name| (*name).to_owned()).collect();
        let requirement = Some(Requirement { capabilities, soft });
        Membership { requirement, ..Membership::default() }
    }

    #[test]
    fn a_requirement_is_shown_with_how_it_is_meant() {
        let shown = |names, soft| requirement_text(Some(&requiring(names, soft)));
        assert_eq!(shown(&["fifo", "ssd"], false), "fifo, ssd");
        assert_eq!(shown(&["fifo"], true), "fifo if possible");
        assert_eq!(requirement_text(None), "nothing");
    }

    #[test]
    fn a_node_that_did_not_say_is_not_one_that_has_nothing() {
        let nothing = NodeAdvertisement::default();
        assert_eq!(capabilities_text(Some(&nothing)), "-");
        assert_eq!(capabilities_text(None), "unknown");
        assert_eq!((draining_text(Some(&nothing)), draining_text(None)), ("no", "unknown"));
    }
}
