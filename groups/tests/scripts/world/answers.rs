//! Callers that wait, and their answers.

use std::fmt::Display;
use std::sync::{Arc, Mutex};

use shardhost_groups::completion::Reply;
use shardhost_groups::completion::{Charge, Completion, Pending};
use shardhost_groups::{GroupId, ProposalSink, ProposeOutcome};

use crate::words;

#[derive(Default)]
struct Outcomes(Mutex<Vec<(u64, ProposeOutcome)>>);

impl ProposalSink for Outcomes {
    fn complete(&self, token: u64, outcome: ProposeOutcome) {
        self.0.lock().unwrap().push((token, outcome));
    }
}

/// An answer that is waited for, and how it is put into words.
struct Asked {
    who: String,
    poll: Box<dyn FnMut() -> Option<String>>,
}

/// All callers, by the line that they wait under.
#[derive(Default)]
pub struct Answers {
    outcomes: Arc<Outcomes>,
    proposals: Vec<String>,
    asked: Vec<Asked>,
}

impl Answers {
    /// The caller of a proposal.
    pub fn proposal(&mut self, group: GroupId, who: String) -> Pending {
        let token = self.proposals.len() as u64;
        self.proposals.push(who);
        let sink: Arc<dyn ProposalSink> = self.outcomes.clone();
        let completion = Completion::Sink { sink, token };
        Pending::new(group, completion, Charge::default(), std::time::Instant::now())
    }

    /// A caller that waits for an answer, and the text of a good one.
    pub fn ask<T: 'static, E: Display + 'static>(
        &mut self,
        who: String,
        good: impl Fn(T) -> String + 'static,
    ) -> Reply<Result<T, E>> {
        self.ask_why(who, good, |error| format!("no: {error}"))
    }

    /// The same, with a way to put a bad one into words.
    pub fn ask_why<T: 'static, E: 'static>(
        &mut self,
        who: String,
        good: impl Fn(T) -> String + 'static,
        bad: impl Fn(E) -> String + 'static,
    ) -> Reply<Result<T, E>> {
        let (completion, mut answer) = shardhost_groups::completion::answer::<Result<T, E>>();
        let poll = Box::new(move || Some(answer.try_recv().ok()?.map_or_else(&bad, &good)));
        self.asked.push(Asked { who, poll });
        completion
    }

    /// The caller under this line goes away. False when there is none.
    pub fn cancel(&mut self, who: &str) -> bool {
        let before = self.asked.len();
        self.asked.retain(|asked| asked.who != who);
        self.asked.len() < before
    }

    /// What was answered since the last call, a line each.
    pub fn take(&mut self) -> Vec<String> {
        let outcomes = std::mem::take(&mut *self.outcomes.0.lock().unwrap());
        let mut lines = Vec::new();
        for (token, outcome) in outcomes {
            let who = usize::try_from(token).ok().and_then(|token| self.proposals.get(token));
            let who = who.map_or("somebody", String::as_str);
            lines.push(format!("{who}: {}", words::outcome(&outcome)));
        }
        self.asked.retain_mut(|asked| match (asked.poll)() {
            Some(answer) => {
                lines.push(format!("{}: {answer}", asked.who));
                false
            }
            None => true,
        });
        lines
    }

    /// The process `node` died, and with it all its callers.
    pub fn forget(&mut self, node: &str) {
        self.outcomes.0.lock().unwrap().clear();
        self.asked.retain(|asked| !asked.who.starts_with(node));
    }
}
