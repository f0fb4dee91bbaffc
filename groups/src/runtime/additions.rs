//! Hooks that are asked before a node is added to a group.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use shardhost_storage::{GroupId, Membership, NodeId};

use crate::panics::{Foreign, contain};

type Hook = dyn Fn(GroupId, NodeId, &Membership) -> Result<(), String> + Send + Sync;
type HookFn = Foreign<Arc<Hook>>;

/// A hook, and the number by which its guard knows it.
type Numbered = (u64, HookFn);

/// The hooks of a host, in the order in which they were registered.
#[derive(Clone, Default)]
pub struct AdditionHooks {
    hooks: Arc<Mutex<Vec<Numbered>>>,
    next: Arc<AtomicU64>,
}

impl fmt::Debug for AdditionHooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} addition hooks", self.hooks.lock().len())
    }
}

/// Keeps a hook registered.
#[must_use = "dropping the guard removes the hook"]
#[derive(Debug)]
pub struct AdditionGuard {
    hooks: AdditionHooks,
    number: u64,
}

impl Drop for AdditionGuard {
    fn drop(&mut self) {
        self.hooks.hooks.lock().retain(|(number, _)| *number != self.number);
    }
}

impl AdditionHooks {
    pub(super) fn register(
        &self,
        hook: impl Fn(GroupId, NodeId, &Membership) -> Result<(), String> + Send + Sync + 'static,
    ) -> AdditionGuard {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let hook: HookFn = Foreign::new("a hook of additions", Arc::new(hook));
        self.hooks.lock().push((number, hook));
        AdditionGuard { hooks: self.clone(), number }
    }

    /// The error of the first hook that refuses. One that panics refuses.
    pub(crate) fn ask(
        &self,
        group: GroupId,
        node: NodeId,
        membership: &Membership,
    ) -> Result<(), String> {
        // A hook may register and remove hooks: none is called under the lock.
        let hooks: Vec<HookFn> = self.hooks.lock().iter().map(|(_, hook)| hook.clone()).collect();
        hooks.iter().try_for_each(|hook| {
            let asked = contain(|| hook(group, node, membership));
            asked.unwrap_or_else(|panic| Err(format!("a hook panicked: {panic}")))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_hook_that_refuses_decides_until_its_guard_is_dropped() {
        let hooks = AdditionHooks::default();
        let ask = |node| hooks.ask(GroupId::new(1), NodeId::must(node), &Membership::default());
        assert_eq!(ask(7), Ok(()));
        let only_odd = |_, node: NodeId, _: &Membership| {
            if node.get() % 2 == 1 { Ok(()) } else { Err("even".to_owned()) }
        };
        let guard = hooks.register(only_odd);
        let _second = hooks.register(|_, _, _| Err("nobody".to_owned()));
        assert_eq!(ask(8), Err("even".to_owned()));
        assert_eq!(ask(7), Err("nobody".to_owned()));
        drop(guard);
        assert_eq!(ask(8), Err("nobody".to_owned()));
    }

    #[test]
    fn a_hook_that_panics_refuses() {
        let hooks = AdditionHooks::default();
        let _guard = hooks.register(|_, _, _| panic!("told to panic"));
        let refused = hooks.ask(GroupId::new(1), NodeId::must(7), &Membership::default());
        assert_eq!(refused, Err("a hook panicked: told to panic".to_owned()));
    }
}
