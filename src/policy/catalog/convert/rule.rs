//! Rules for replicas and their messages.

use shardhost_storage::GroupId;

use super::super::error::{Refusal, Subject};
use super::super::name::Name;
use super::super::record::{ReplicaRule, Selection};
use super::super::wire;
use super::super::wire::replica_rule::Groups;
use super::{label_from, label_to, malformed, names_from, names_to, present};

pub(super) fn rule_to(rule: &ReplicaRule) -> wire::ReplicaRule {
    wire::ReplicaRule {
        name: rule.name.as_str().to_owned(),
        groups: Some(match &rule.groups {
            Selection::All => Groups::All(true),
            Selection::Kind(kind) => Groups::Kind(kind.as_str().to_owned()),
            Selection::Label(label) => Groups::Label(label_to(label)),
            Selection::Group(group) => Groups::Group(group.get()),
        }),
        voters: rule.voters,
        learners: rule.learners,
        zones: names_to(&rule.zones),
        capabilities: names_to(&rule.capabilities),
    }
}

pub(super) fn rule_from(message: wire::ReplicaRule) -> Result<ReplicaRule, Refusal> {
    let groups = match present(message.groups, "selection of a rule")? {
        Groups::All(true) => Selection::All,
        Groups::All(false) => return Err(malformed("a rule that selects no group")),
        Groups::Kind(kind) => Selection::Kind(Name::new(Subject::Kind, &kind)?),
        Groups::Label(label) => Selection::Label(label_from(label)?),
        Groups::Group(group) => Selection::Group(GroupId::new(group)),
    };
    Ok(ReplicaRule {
        name: Name::new(Subject::Rule, &message.name)?,
        groups,
        voters: message.voters,
        learners: message.learners,
        zones: names_from(Subject::Zone, &message.zones)?.into_iter().collect(),
        capabilities: names_from(Subject::Capability, &message.capabilities)?.into_iter().collect(),
    })
}
