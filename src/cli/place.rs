//! `shardhost group place`: where the leader of a group is wanted.

use clap::Args;
use serde_json::json;
use shardhost::{GroupId, NodeId};
use shardhost_policy::catalog::{
    Operation, Place, Placement, Record, RecordKey, Revision, Subject,
};

use super::catalog::{Catalog, typed_name};
use super::ended::{partly, senseless};
use super::output::whole;
use super::target::Target;

/// Where a leader is wanted. Without any wish: anywhere.
#[derive(Debug, Args)]
pub struct PlaceArguments {
    /// Number of the group.
    group: u64,
    /// The one node that is to lead it; a member of the group.
    #[arg(long, value_name = "NODE")]
    pin: Option<u64>,
    /// Where it should rather be led, the best first: numbers of nodes, or `zone/NAME`.
    #[arg(long, value_name = "PLACES", value_delimiter = ',')]
    prefer: Vec<String>,
    /// Leaders of groups with the same word are spread over zones.
    #[arg(long, value_name = "WORD")]
    spread: Option<String>,
    /// Only if the group's record in the catalog was not changed since this revision.
    #[arg(long, value_name = "REVISION", value_parser = whole)]
    expect: Option<u64>,
    #[command(flatten)]
    target: Target,
}

/// Replaces what the catalog knows of where the leader is wanted.
pub async fn place(arguments: &PlaceArguments) -> anyhow::Result<()> {
    let PlaceArguments { target, .. } = arguments;
    let group = GroupId::new(arguments.group);
    let placement = placement_of(arguments)?;
    let catalog = Catalog::reach(target).await?;
    let operation = Operation::SetPlacement { group, placement };
    let done = catalog.apply(arguments.expect.map(Revision::new), operation).await?;
    let record = catalog.record_since(RecordKey::Group(group), done.revision).await;
    let record =
        record.map_err(|error| partly(format!("it is recorded, but not shown: {error:#}")))?;
    let Some(Record::Group(record)) = record else {
        return Err(partly(format!("it was recorded, and group {group} was destroyed meanwhile")));
    };
    let wanted = match record.placement.as_deref() {
        None => "anywhere".to_owned(),
        Some(placement) => described(placement),
    };
    if target.json {
        println!(
            "{}",
            json!({ "group": group.get(), "revision": done.revision.get(), "leader": wanted })
        );
    } else {
        println!("the leader of group {group} is wanted {wanted} (revision {})", done.revision);
    }
    Ok(())
}

fn placement_of(arguments: &PlaceArguments) -> anyhow::Result<Placement> {
    let pin = arguments
        .pin
        .map(|node| NodeId::new(node).ok_or_else(|| senseless("nodes are numbered from 1")));
    let places = arguments.prefer.iter().map(|text| place_of(text));
    let spread = arguments.spread.as_deref().map(|word| typed_name(Subject::Spread, word));
    Ok(Placement {
        pin: pin.transpose()?,
        preference: places.collect::<anyhow::Result<_>>()?,
        spread: spread.transpose()?,
    })
}

fn place_of(text: &str) -> anyhow::Result<Place> {
    if let Some(zone) = text.strip_prefix("zone/") {
        return Ok(Place::Zone(typed_name(Subject::Zone, zone)?));
    }
    let node = text.parse().ok().and_then(NodeId::new);
    let node = node
        .ok_or_else(|| senseless(format!("`{text}` is neither a number of a node nor zone/NAME")));
    Ok(Place::Node(node?))
}

fn described(placement: &Placement) -> String {
    let mut words = Vec::new();
    if let Some(pin) = placement.pin {
        words.push(format!("on node {pin}"));
    }
    if !placement.preference.is_empty() {
        let places: Vec<String> = placement.preference.iter().map(ToString::to_string).collect();
        words.push(format!("rather on {}", places.join(", then ")));
    }
    if let Some(spread) = &placement.spread {
        words.push(format!("away from others of `{spread}`"));
    }
    if words.is_empty() { "anywhere".to_owned() } else { words.join(", ") }
}

#[cfg(test)]
mod tests {
    use shardhost_policy::catalog::Name;

    use super::*;
    use crate::ended::code_of;

    #[test]
    fn a_place_is_a_node_or_a_zone() {
        assert_eq!(place_of("3").unwrap(), Place::Node(NodeId::must(3)));
        let zone = Name::new(Subject::Zone, "rack-7").unwrap();
        assert_eq!(place_of("zone/rack-7").unwrap(), Place::Zone(zone));
        for (text, says) in [("rack-7", "zone/NAME"), ("0", "zone/NAME"), ("zone/R 7", "no zone")] {
            let refused = place_of(text).unwrap_err();
            assert!(refused.to_string().contains(says), "{refused}");
            assert_eq!(code_of(&refused), 2, "{refused}");
        }
    }
}
