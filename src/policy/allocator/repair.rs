//! Replicas that groups lack: on nodes that are gone, and those that their rules ask for.

use shardhost_storage::NodeId;

use super::choose::{Held, Standing, Work, bug};
use super::{Reason, Step};
use crate::catalog::{MAX_MEMBERS, SYSTEM_GROUP};

impl Work<'_> {
    pub(super) fn replace_gone(&mut self) {
        let mut lost: Vec<(bool, usize, &Held<'_>)> = Vec::new();
        for held in self.picture.groups {
            if held.members.iter().any(|member| self.is(*member, Standing::Gone)) {
                let here = |node: &&NodeId| {
                    self.is(**node, Standing::Open) || self.is(**node, Standing::Closed)
                };
                let left = held.members.iter().filter(here).count();
                lost.push((held.group != SYSTEM_GROUP, left, held));
            }
        }
        lost.sort_by_key(|(other, left, held)| (*other, *left, held.group));
        if bug!(self.picture, ReplacesOne) {
            lost.truncate(1);
        }
        for (_, _, held) in lost {
            let mut gone =
                held.members.iter().copied().filter(|node| self.is(*node, Standing::Gone));
            let Some(old) = gone.next() else { continue };
            if self.is_changing(held.group) {
                continue;
            }
            let learner = held.is_learner(old);
            let step = match held.wanted(learner).filter(|_| held.lacks(learner) < 0) {
                Some(wanted) => Some(Step::Remove { old, learner, wanted }),
                None => self.successor(held, Some(old)).map(|new| Step::Replace { old, new }),
            };
            match step {
                None => {
                    let stuck = self.why_stuck(held);
                    self.choice.stuck.insert(held.group, stuck);
                }
                Some(step) if self.may_choose() && self.is_free(held.group) => {
                    self.take(held, step, Reason::Gone);
                }
                Some(_) => self.choice.waiting += 1,
            }
        }
    }

    /// Adds what rules ask for: voters to the groups that have fewest, then learners.
    pub(super) fn add_missing(&mut self) {
        for learner in [false, true] {
            let lacking = self.picture.groups.iter().filter(|held| held.lacks(learner) > 0);
            let mut lacking: Vec<&Held<'_>> = lacking.collect();
            lacking.sort_by_key(|held| {
                (held.group != SYSTEM_GROUP, held.voters().count(), held.group)
            });
            for held in lacking {
                if !self.is_free(held.group) || self.choice.stuck.contains_key(&held.group) {
                    continue;
                }
                let Some(wanted) = held.wanted(learner) else { continue };
                let room = held.members.len() < MAX_MEMBERS;
                match self.successor(held, None).filter(|_| room) {
                    Some(new) if self.may_choose() => {
                        self.take(held, Step::Add { new, learner, wanted }, Reason::Missing);
                    }
                    Some(_) => {}
                    None => {
                        let stuck = self.why_stuck(held);
                        self.choice.stuck.insert(held.group, stuck);
                    }
                }
            }
        }
    }
}
