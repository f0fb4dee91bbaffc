//! Knowledge of nodes: which answer, and what they advertise.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use shardhost_storage::{NodeId, RequirementMode};

/// Why a node should lead nothing for now, as a disk that hangs or fills up. It passes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Impairment {
    /// For people: the problem, and what to do.
    pub reason: Arc<str>,
    /// Hard: what it leads all the same is not served. Soft: it is, until others take over.
    pub mode: RequirementMode,
}

/// The advertisement of a node, once per pair of nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Advertisement {
    /// The names of what it has; groups may require some of their leaders.
    pub capabilities: BTreeSet<String>,
    /// It hands its leaderships away, and takes none as long as others can.
    pub draining: bool,
    /// Why it should lead nothing for now; `None`: nothing is wrong.
    pub impaired: Option<Impairment>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct LiveNode {
    incarnation: u64,
    /// The advertisement of this incarnation.
    advertisement: Option<Arc<Advertisement>>,
}

/// The nodes that answer, and what they and this one say of themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LiveNodes {
    nodes: BTreeMap<NodeId, LiveNode>,
    own: Arc<Advertisement>,
    /// The state machines here are busy; peers do not hear of it.
    busy: bool,
    revision: u64,
}

impl LiveNodes {
    pub(super) fn new(own: Advertisement) -> Self {
        Self { own: Arc::new(own), ..Self::default() }
    }

    /// Whether the node answers.
    #[must_use]
    pub fn contains(&self, node: NodeId) -> bool {
        self.nodes.contains_key(&node)
    }

    /// Whether this process of the node answers.
    #[must_use]
    pub fn is_live(&self, node: NodeId, incarnation: u64) -> bool {
        self.nodes.get(&node).is_some_and(|known| known.incarnation == incarnation)
    }

    /// The advertisement of a node that answers; `None`: none.
    #[must_use]
    pub fn advertisement(&self, node: NodeId) -> Option<&Advertisement> {
        self.nodes.get(&node)?.advertisement.as_deref()
    }

    /// The advertisement of this node.
    #[must_use]
    pub fn own(&self) -> &Advertisement {
        &self.own
    }

    /// Whether calls into state machines that take long hold this node's threads.
    #[must_use]
    pub const fn is_busy(&self) -> bool {
        self.busy
    }

    /// Grows with every change of the knowledge.
    #[must_use]
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// The node answers; returns whether that is news. The advertisement of an earlier incarnation
    /// is forgotten.
    pub(super) fn insert(&mut self, node: NodeId, incarnation: u64) -> bool {
        let known = self.nodes.get(&node).map(|known| known.incarnation);
        if known == Some(incarnation) {
            return false;
        }
        self.nodes.insert(node, LiveNode { incarnation, advertisement: None });
        self.revision += 1;
        true
    }

    /// The node stopped answering; returns whether that is news.
    pub(super) fn remove(&mut self, node: NodeId) -> bool {
        let known = self.nodes.remove(&node).is_some();
        self.revision += u64::from(known);
        known
    }

    /// The advertisement of an incarnation of a node; returns whether that is news.
    pub(super) fn note(
        &mut self,
        node: NodeId,
        incarnation: u64,
        advertisement: Arc<Advertisement>,
    ) -> bool {
        let Some(known) = self.nodes.get_mut(&node) else { return false };
        if known.incarnation != incarnation || known.advertisement.as_ref() == Some(&advertisement)
        {
            return false;
        }
        known.advertisement = Some(advertisement);
        self.revision += 1;
        true
    }

    /// The advertisement of this node; returns whether that is news.
    pub(super) fn note_own(&mut self, advertisement: Arc<Advertisement>) -> bool {
        let news = self.own != advertisement;
        self.own = advertisement;
        self.revision += u64::from(news);
        news
    }

    /// Whether the state machines here are busy; returns whether that is news. It says nothing
    /// about who may lead, only about who takes over, so the revision stays.
    pub(super) const fn note_busy(&mut self, busy: bool) -> bool {
        std::mem::replace(&mut self.busy, busy) != busy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn advertisement(name: &str) -> Arc<Advertisement> {
        Arc::new(Advertisement {
            capabilities: [name.to_owned()].into(),
            ..Advertisement::default()
        })
    }

    #[test]
    fn what_another_incarnation_said_is_forgotten() {
        let node = NodeId::must(2);
        let mut nodes = LiveNodes::default();
        assert!(!nodes.note(node, 1, advertisement("fifo")), "it does not answer");
        assert!(nodes.insert(node, 1) && !nodes.insert(node, 1));
        assert!(!nodes.note(node, 2, advertisement("fifo")), "it is not that incarnation");
        assert!(
            nodes.note(node, 1, advertisement("fifo"))
                && !nodes.note(node, 1, advertisement("fifo"))
        );
        assert_eq!(nodes.advertisement(node), Some(&*advertisement("fifo")));
        assert!(nodes.insert(node, 2));
        assert_eq!(nodes.advertisement(node), None);
    }

    #[test]
    fn every_change_has_a_revision_of_its_own() {
        let (node, mut nodes) = (NodeId::must(2), LiveNodes::default());
        let mut seen = vec![nodes.revision()];
        nodes.insert(node, 1);
        seen.push(nodes.revision());
        nodes.note(node, 1, advertisement("fifo"));
        seen.push(nodes.revision());
        nodes.note_own(advertisement("ssd"));
        seen.push(nodes.revision());
        nodes.remove(node);
        seen.push(nodes.revision());
        nodes.remove(node);
        assert_eq!(seen, [0, 1, 2, 3, 4]);
        assert_eq!(nodes.revision(), 4, "nothing happened");
    }
}
