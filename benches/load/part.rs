//! The part of a benchmark that runs on a node, and all parts that a node has.

use std::collections::BTreeMap;
use std::future::Future;

use anyhow::Context;
use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::Value;

use crate::member::Member;
use crate::task::Task;

/// Executes the tasks of one benchmark on a node, and keeps what it needs from task to task.
pub trait Part: Default + Send + 'static {
    type Task: Task;

    /// Executes a task.
    fn execute(
        &mut self,
        task: Self::Task,
        node: &mut Member,
    ) -> impl Future<Output = anyhow::Result<<Self::Task as Task>::Answer>> + Send;

    /// Ends what runs, before the node ends.
    fn end(self) -> impl Future<Output = ()> + Send {
        async {}
    }
}

trait AnyPart: Send {
    fn execute<'a>(
        &'a mut self,
        task: Value,
        node: &'a mut Member,
    ) -> BoxFuture<'a, anyhow::Result<Value>>;
    fn end(self: Box<Self>) -> BoxFuture<'static, ()>;
}

impl<P: Part> AnyPart for P {
    fn execute<'a>(
        &'a mut self,
        task: Value,
        node: &'a mut Member,
    ) -> BoxFuture<'a, anyhow::Result<Value>> {
        async move {
            let task = serde_json::from_value(task)?;
            Ok(serde_json::to_value(Part::execute(self, task, node).await?)?)
        }
        .boxed()
    }

    fn end(self: Box<Self>) -> BoxFuture<'static, ()> {
        Part::end(*self).boxed()
    }
}

/// The parts of a node, by the name of their tasks.
#[derive(Default)]
pub struct Parts {
    parts: BTreeMap<&'static str, Box<dyn AnyPart>>,
}

impl Parts {
    /// Adds a part.
    #[must_use]
    pub fn with<P: Part>(mut self) -> Self {
        self.parts.insert(P::Task::NAME, Box::new(P::default()));
        self
    }

    /// Executes a task of this name.
    pub async fn execute(
        &mut self,
        name: &str,
        task: Value,
        node: &mut Member,
    ) -> anyhow::Result<Value> {
        let part = self.parts.get_mut(name).with_context(|| format!("no part does {name}"))?;
        part.execute(task, node).await
    }

    /// Ends all parts.
    pub async fn end(self) {
        for part in self.parts.into_values() {
            part.end().await;
        }
    }
}
