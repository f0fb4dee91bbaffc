//! What nodes say of themselves, as it travels: with greetings, and with heartbeats when it
//! changed.
//!
//! Knows neither streams nor liveness; `liveness` remembers the advertisements.

use shardhost_groups::RequirementMode;
use shardhost_groups::nodes::{Advert, Impairment};
use shardhost_proto::peer;
use shardhost_storage::CapabilityError;
use shardhost_storage::requirement::{MAX_CAPABILITIES, MAX_CAPABILITY_BYTES, capability_names};

/// Most bytes of an advert within another message: each name with its tag and length, the flag,
/// and the tag and length of the whole.
pub(super) const ADVERT_MAX_BYTES: usize = MAX_CAPABILITIES * (MAX_CAPABILITY_BYTES + 2) + 2 + 4;

/// Characters of the reason why a node is impaired, at most.
const MAX_REASON_CHARS: usize = 512;

/// The advertisement of this node.
pub(super) fn to_wire(advert: &Advert) -> peer::Advert {
    peer::Advert {
        capabilities: advert.capabilities.iter().cloned().collect(),
        draining: advert.draining,
        impaired: advert.impaired.as_ref().map(said).unwrap_or_default(),
        impaired_softly: advert
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
pub(super) fn from_wire(advert: peer::Advert) -> Result<Advert, CapabilityError> {
    let count = advert.capabilities.len();
    if count > MAX_CAPABILITIES {
        return Err(CapabilityError::TooMany { count });
    }
    let capabilities = capability_names(advert.capabilities)?;
    let mode = if advert.impaired_softly { RequirementMode::Soft } else { RequirementMode::Hard };
    let reason: String = advert.impaired.chars().take(MAX_REASON_CHARS).collect();
    let impaired = (!reason.is_empty()).then(|| Impairment { reason: reason.into(), mode });
    Ok(Advert { capabilities, draining: advert.draining, impaired })
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    fn said(capabilities: Vec<String>) -> peer::Advert {
        peer::Advert { capabilities, draining: true, ..peer::Advert::default() }
    }

    fn longest_names(count: usize) -> Vec<String> {
        (0..count).map(|number| format!("{number:0>MAX_CAPABILITY_BYTES$}")).collect()
    }

    #[test]
    fn an_advert_comes_back_as_it_was() {
        for names in [&[][..], &["fifo", "disk/ssd"]] {
            let capabilities = names.iter().map(|name| (*name).to_owned()).collect();
            let impaired =
                Some(Impairment { reason: "a disk".into(), mode: RequirementMode::Soft });
            let advert = Advert { capabilities, draining: true, impaired };
            assert_eq!(from_wire(to_wire(&advert)), Ok(advert));
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
    fn the_largest_advert_is_within_its_bound() {
        let largest = said(longest_names(MAX_CAPABILITIES));
        from_wire(largest.clone()).unwrap();
        let heartbeat =
            peer::NodeHeartbeat { sequence: 0, advert: Some(largest), founding: 0, wall_ms: 0 };
        let length = heartbeat.encoded_len();
        assert!((ADVERT_MAX_BYTES - 4..=ADVERT_MAX_BYTES).contains(&length), "{length}");
    }
}
