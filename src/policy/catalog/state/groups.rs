//! Groups: created, described, destroyed, and remembered when they are gone.

use std::sync::Arc;

use shardhost_storage::{GroupId, NodeId, Requirement};

use super::super::command::NewGroup;
use super::super::convert::{boxed, compact, sorted};
use super::super::error::{Refusal, Subject};
use super::super::record::{
    EndedGroup, GroupRecord, GroupState, Members, Place, Placement, Record, RecordKey, Revision,
};
use super::super::reply::{Done, Reply};
use super::super::{MAX_ENDED, MAX_GROUPS, MAX_LIVES, RULES_KNOWN};
use super::{Catalog, check_limit};

impl Catalog {
    pub(super) fn create_group(&mut self, new: &NewGroup) -> Reply {
        let group = new.id;
        if self.view.groups().contains_key(&group) {
            let founded = self.active(group)?.founded;
            return Err(Refusal::GroupExists { group, founded });
        }
        check_limit(Subject::Groups, self.view.groups().len() + 1, MAX_GROUPS)?;
        if let Some(node) = new.founders.iter().find(|node| !self.view.nodes().contains_key(node)) {
            return Err(Refusal::UnknownNode { node: *node });
        }
        let (incarnation, ended_from) = self.next_life(new)?;
        let founders = sorted(new.founders.clone());
        self.check_placement(group, &new.placement, &founders)?;
        let (capabilities, mode) = compact(&new.requirement)?;
        let record = GroupRecord {
            id: group,
            revision: Revision::default(),
            founded: self.view.revision().next(),
            incarnation,
            ended_from,
            state: GroupState::Active,
            kind: new.kind.clone(),
            founders,
            labels: new.labels.clone().into(),
            capabilities,
            mode,
            placement: boxed(new.placement.clone()),
            reported: None,
        };
        let done = self.store(Record::Group(Arc::new(record)))?;
        if self.view.ended().contains_key(&group) {
            self.remove(RecordKey::Ended(group));
        }
        Ok(Done { incarnation: Some(incarnation), ..done })
    }

    /// The number of the life that begins, and that of the first that ended by order before it.
    fn next_life(&self, new: &NewGroup) -> Result<(u32, u32), Refusal> {
        let group = new.id;
        let ended = self.view.ended().get(&group);
        let next = ended.map_or(self.ended_floor, |ended| ended.next);
        let wanted = new.incarnation.unwrap_or(next);
        check_limit(Subject::Lives, wanted as usize, MAX_LIVES as usize)?;
        match wanted {
            given if given < next => Err(Refusal::LifeOver { group, given, next }),
            // Lives that the catalog knows nothing of lie between: what it ordered is not
            // contiguous with this one, and is forgotten.
            given if given > next => Ok((given, given)),
            given => Ok((given, ended.map_or(given, |ended| ended.first))),
        }
    }

    pub(super) fn set_requirement(&mut self, group: GroupId, asked: &Requirement) -> Reply {
        let (capabilities, mode) = compact(asked)?;
        let record = GroupRecord { capabilities, mode, ..self.active(group)?.clone() };
        self.store(Record::Group(Arc::new(record)))
    }

    pub(super) fn set_placement(&mut self, group: GroupId, placement: &Placement) -> Reply {
        let known = self.active(group)?;
        self.check_placement(group, placement, known.members())?;
        let record = GroupRecord { placement: boxed(placement.clone()), ..known.clone() };
        self.store(Record::Group(Arc::new(record)))
    }

    pub(super) fn record_members(
        &mut self,
        group: GroupId,
        told: Members,
        generation: Option<u32>,
    ) -> Reply {
        let known = self.active(group)?;
        check_generation(known, generation)?;
        if told.learners.is_some() {
            self.check_version(RULES_KNOWN)?;
        }
        if let Some(last) = known.reported.as_deref().filter(|last| !told.supersedes(last)) {
            let (given, actual) = (told.config_index, last.config_index);
            return Err(Refusal::StaleMembers { group, given, actual });
        }
        let record = GroupRecord { reported: Some(Box::new(told)), ..known.clone() };
        self.store(Record::Group(Arc::new(record)))
    }

    pub(super) fn destroy_group(&mut self, group: GroupId, generation: Option<u32>) -> Reply {
        check_generation(self.group(group)?, generation)?;
        let record = GroupRecord { state: GroupState::Destroying, ..self.active(group)?.clone() };
        Ok(Done::changed(self.put(Record::Group(Arc::new(record)))))
    }

    pub(super) fn finish_destroy(&mut self, group: GroupId) -> Reply {
        let known = self.group(group)?;
        if known.state == GroupState::Active {
            return Err(Refusal::NotDestroying { group, founded: known.founded });
        }
        // At most `MAX_LIVES`, so there is a number after it.
        let next = known.incarnation + 1;
        let (first, revision) = (known.ended_from, Revision::default());
        self.remove(RecordKey::Group(group));
        self.forget_an_end();
        let ended = EndedGroup { id: group, revision, first, next };
        Ok(Done::changed(self.put(Record::Ended(ended))))
    }

    /// Makes room for the end of a group. The dropped one is not destroyed on hosts that were away
    /// all the time; its next generation still gets a new number.
    fn forget_an_end(&mut self) {
        let first = self.view.ended().values().next().copied();
        if let Some(ended) = first.filter(|_| self.view.ended().len() >= MAX_ENDED) {
            self.ended_floor = self.ended_floor.max(ended.next);
            self.remove(RecordKey::Ended(ended.id));
        }
    }

    fn group(&self, group: GroupId) -> Result<&GroupRecord, Refusal> {
        self.view.groups().get(&group).map(AsRef::as_ref).ok_or(Refusal::UnknownGroup { group })
    }

    /// A group whose end was not ordered.
    fn active(&self, group: GroupId) -> Result<&GroupRecord, Refusal> {
        let known = self.group(group)?;
        match known.state {
            GroupState::Active => Ok(known),
            // Nothing changes a group after the order, so its revision is that of the order.
            GroupState::Destroying => Err(Refusal::Destroying { group, since: known.revision }),
        }
    }

    fn check_placement(
        &self,
        group: GroupId,
        placement: &Placement,
        members: &[NodeId],
    ) -> Result<(), Refusal> {
        for place in &placement.preference {
            self.check_place(place)?;
        }
        let Some(pin) = placement.pin else { return Ok(()) };
        if members.binary_search(&pin).is_err() {
            return Err(Refusal::NotMember { group, node: pin, members: members.to_vec() });
        }
        match placement.preference.first() {
            Some(first) if !self.is_in(pin, first) => {
                Err(Refusal::PinContradicts { group, pin, first: first.clone() })
            }
            _ => Ok(()),
        }
    }

    fn check_place(&self, place: &Place) -> Result<(), Refusal> {
        match place {
            Place::Node(node) if !self.view.nodes().contains_key(node) => {
                Err(Refusal::UnknownNode { node: *node })
            }
            Place::Zone(zone)
                if !self.view.nodes().values().any(|node| node.zone.as_ref() == Some(zone)) =>
            {
                Err(Refusal::UnknownZone { zone: zone.to_string() })
            }
            _ => Ok(()),
        }
    }

    fn is_in(&self, node: NodeId, place: &Place) -> bool {
        match place {
            Place::Node(named) => *named == node,
            Place::Zone(zone) => {
                let known = self.view.nodes().get(&node);
                known.is_some_and(|known| known.zone.as_ref() == Some(zone))
            }
        }
    }
}

/// Refuses a report about another generation of a group.
fn check_generation(known: &GroupRecord, given: Option<u32>) -> Result<(), Refusal> {
    let (group, actual) = (known.id, known.incarnation);
    match given {
        Some(given) if given != actual => Err(Refusal::OtherGeneration { group, given, actual }),
        _ => Ok(()),
    }
}
