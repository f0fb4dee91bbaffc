//! What nodes say of themselves, as it travels: with greetings, and with heartbeats when it
//! changed.
//!
//! Knows neither streams nor liveness; `liveness` remembers the advertisements.

use shardhost_groups::RequirementMode;
use shardhost_groups::nodes::{Advertisement, Impairment};
use shardhost_proto::peer;
use shardhost_storage::CapabilityError;
use shardhost_storage::requirement::{MAX_CAPABILITIES, MAX_CAPABILITY_BYTES, capability_names};

/// Most bytes of an advertisement within another message: each name with its tag and length, the
/// flag, and the tag and length of the whole.
pub(super) const ADVERTISEMENT_MAX_BYTES: usize =
    MAX_CAPABILITIES * (MAX_CAPABILITY_BYTES + 2) + 2 + 4;

/// Characters of the reason why a node is impaired, at most.
const MAX_REASON_CHARS: usize = 512;

/// The advertisement of this node.
pub(super) fn to_wire(advertisement: &Advertisement) -> peer::Advertisement {
    peer::Advertisement {
        capabilities: advertisement.capabilities.iter().cloned().collect(),
        draining: advertisement.draining,
        impaired: advertisement.impaired.as_ref().map(said).unwrap_or_default(),
        impaired_softly: advertisement
            .impaired
            .as_ref()
            .is_some_and(|impairment| impairment.mode == RequirementMode::Soft),
    }
}

/// The reason, which is never empty and not longer than a peer reads.
fn said(impairment: &Impairment) -> String {
    let reason: String = impairment.reason.chars().take(MAX_REASON_CHARS).collect();
    if reason.is_empty() { "it does not say why".to_owned() } else { reason }
}

/// The advertisement of a peer.
///
/// # Errors
/// [`CapabilityError`] when there are too many names, or one is not well formed.
pub(super) fn from_wire(
    advertisement: peer::Advertisement,
) -> Result<Advertisement, CapabilityError> {
    let count = advertisement.capabilities.len();
    if count > MAX_CAPABILITIES {
        return Err(CapabilityError::TooMany { count });
    }
    let capabilities = capability_names(advertisement.capabilities)?;
    let mode =
        if advertisement.impaired_softly { RequirementMode::Soft } else { RequirementMode::Hard };
    let reason: String = advertisement.impaired.chars().take(MAX_REASON_CHARS).collect();
    let impaired = (!reason.is_empty()).then(|| Impairment { reason: reason.into(), mode });
    Ok(Advertisement { capabilities, draining: advertisement.draining, impaired })
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    fn said(capabilities: Vec<String>) -> peer::Advertisement {
        peer::Advertisement { capabilities, draining: true, ..peer::Advertisement::default() }
    }

    fn longest_names(count: usize) -> Vec<String> {
        (0..count).map(|number| format!("{number:0>MAX_CAPABILITY_BYTES$}")).collect()
    }

    #[test]
    fn an_advertisement_comes_back_as_it_was() {
        for names in [&[][..], &["fifo", "disk/ssd"]] {
            let capabilities = names.iter().map(|name| (*name).to_owned()).collect();
            let impaired =
                Some(Impairment { reason: "a disk".into(), mode: RequirementMode::Soft });
            let advertisement = Advertisement { capabilities, draining: true, impaired };
            assert_eq!(from_wire(to_wire(&advertisement)), Ok(advertisement));
        }
    }

    #[test]
    fn names_that_are_none_and_too_many_names_are_refused() {
        let bad = from_wire(said(vec!["fifo".into(), "Fi fo".into()])).unwrap_err();
        assert_eq!(bad, CapabilityError::Name { name: "Fi fo".into() });
        let count = MAX_CAPABILITIES + 1;
        let repeated = from_wire(said(vec!["fifo".into(); count])).unwrap_err();
        assert_eq!(repeated, CapabilityError::TooMany { count });
    }

    #[test]
    fn the_largest_advertisement_is_within_its_bound() {
        let largest = said(longest_names(MAX_CAPABILITIES));
        from_wire(largest.clone()).unwrap();
        let heartbeat = peer::NodeHeartbeat {
            sequence: 0,
            advertisement: Some(largest),
            founding: 0,
            wall_ms: 0,
        };
        let length = heartbeat.encoded_len();
        assert!(
            (ADVERTISEMENT_MAX_BYTES - 4..=ADVERTISEMENT_MAX_BYTES).contains(&length),
            "{length}"
        );
    }
}
