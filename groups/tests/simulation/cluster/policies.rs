//! What nodes say of themselves, and what policies are asked.

use shardhost_groups::worker::Advert;

use super::*;

impl Cluster {
    /// Policies take their time.
    pub(super) fn ask_policies(&mut self, node: NodeId, request: AdmissionRequest) {
        let life = self.nodes[&node].life;
        let delay = self.chance.between(1, 60);
        self.after(delay, Event::Admission { node, life, request: Box::new(request) });
    }

    pub(super) fn admit(
        &mut self,
        node: NodeId,
        life: u64,
        request: &AdmissionRequest,
    ) -> Result<(), String> {
        if !self.is_running(node, life) {
            return Ok(());
        }
        let event = GroupEvent::Admission { term: request.term(), answer: request.ask() };
        self.input(node, Input::Group { group: request.group, epoch: request.epoch, event })
    }

    /// Whether the leader's users wait for a transfer.
    pub fn is_frozen(&self, node: NodeId, group: GroupId) -> bool {
        let core = self.nodes[&node].process.as_ref().and_then(|one| one.core.group(group));
        core.is_some_and(shardhost_groups::core::GroupCore::is_frozen)
    }

    /// From here on the node says this of itself.
    pub fn advertise(&mut self, id: NodeId, advert: Advert) -> Result<(), String> {
        self.tell(|| format!("{id:?} says {advert:?}"));
        let advert = Arc::new(advert);
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        node.advert = Arc::clone(&advert);
        self.input(id, Input::OwnAdvert(advert))
    }
}
