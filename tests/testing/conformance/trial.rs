//! One showing of one line: the worlds that it makes, and what became of it.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use shardhost_storage::{GroupId, NodeId};

use super::{Factory, Keeps, Line, Plan, Scale, Shown, Weather, World};
use crate::network::Trouble;
use shardhost_groups::config::GroupsConfig;

/// How long one line may take.
const LINE_PATIENCE: Duration = Duration::from_secs(120);
/// The first of the groups that work beside the one that is looked at.
const FIRST_OTHER: u64 = 1_000_001;

/// A factory lacks this, which a line needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unmet(pub &'static str);

/// What a line comes to that does not panic.
pub type Outcome = Result<(), Unmet>;

/// What a line gets: a way to make worlds.
#[derive(Clone)]
pub struct Trial {
    factory: Arc<dyn Factory>,
    scale: Scale,
    worlds: Arc<Mutex<Vec<Arc<World>>>>,
    noise: Arc<Mutex<Vec<tokio::task::JoinHandle<()>>>>,
}

impl fmt::Debug for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "trial with {}", self.scale)
    }
}

impl Trial {
    /// The scale.
    #[must_use]
    pub const fn scale(&self) -> Scale {
        self.scale
    }

    /// A world of the scale, all of whose nodes run.
    ///
    /// # Errors
    /// [`Unmet`] when the factory cannot make the weather of the scale.
    pub async fn world(&self) -> Result<Arc<World>, Unmet> {
        self.world_with(|_| ()).await
    }

    /// As [`Trial::world`], with other settings.
    ///
    /// # Errors
    /// As [`Trial::world`].
    pub async fn world_with(&self, tune: impl FnOnce(&mut Plan)) -> Result<Arc<World>, Unmet> {
        let mut plan = self.plan();
        tune(&mut plan);
        self.make(self.scale.nodes, plan).await
    }

    /// As [`Trial::world`], with at least so many nodes.
    ///
    /// # Errors
    /// As [`Trial::world`].
    pub async fn world_of(&self, nodes: u64) -> Result<Arc<World>, Unmet> {
        self.make(self.scale.nodes.max(nodes), self.plan()).await
    }

    fn plan(&self) -> Plan {
        let tick = self.factory.tick();
        let mut config = GroupsConfig::new(NodeId::must(1));
        config.tick = tick;
        config.lease_margin = Some(tick * 3);
        // Lines that hold a transfer back look at it meanwhile.
        config.freeze_timeout = tick * 8;
        Plan { config, keeps: Keeps::Nothing, others: true }
    }

    async fn make(&self, nodes: u64, plan: Plan) -> Result<Arc<World>, Unmet> {
        let nodes: Vec<_> = (1..=nodes).filter_map(NodeId::new).collect();
        let (tick, others) = (self.factory.tick(), plan.others);
        let cluster = self.factory.cluster(nodes.clone()).await;
        let world = Arc::new(World::new(cluster, nodes, plan));
        self.worlds.lock().push(Arc::clone(&world));
        for node in world.nodes() {
            world.start(*node).await;
        }
        let storm = Trouble::none().lose(10).late_by(tick);
        if self.scale.weather == Weather::Stormy && !world.links()?.trouble(storm) {
            return Err(Unmet("messages that are late or lost"));
        }
        if others {
            self.populate(&world).await;
        }
        Ok(world)
    }

    /// The groups that work beside the one that is looked at.
    async fn populate(&self, world: &Arc<World>) {
        for group in self.others() {
            world.create(group).await;
        }
        if self.scale.other_groups > 0 {
            let noise = tokio::spawn(make_noise(Arc::clone(world), self.others().collect()));
            self.noise.lock().push(noise);
        }
    }

    fn others(&self) -> impl Iterator<Item = GroupId> + use<> {
        (FIRST_OTHER..)
            .take(usize::try_from(self.scale.other_groups).unwrap_or(0))
            .map(GroupId::new)
    }

    /// After a line: the groups beside it work, and everything stops.
    async fn end(&self, line_holds: bool) {
        self.noise.lock().drain(..).for_each(|noise| noise.abort());
        let worlds = std::mem::take(&mut *self.worlds.lock());
        for world in worlds {
            if line_holds && let Ok(links) = world.links() {
                links.trouble(Trouble::none());
                links.heal();
            }
            let others = self.others().filter(|group| world.is_everywhere(*group));
            for group in others.take_while(|_| line_holds) {
                world.settled(group).await;
            }
            world.end().await;
        }
    }
}

/// Commands for other groups, a few at a time.
async fn make_noise(world: Arc<World>, groups: Vec<GroupId>) {
    for group in groups.iter().cycle() {
        for (_, replica) in world.replicas(*group) {
            if replica.status().serving {
                // Whatever becomes of it: others look at outcomes.
                drop(replica.propose("noise").within(Duration::from_secs(1)).await);
            }
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Shows a line, whatever it does.
pub(super) async fn show(line: &'static Line, factory: Arc<dyn Factory>, scale: Scale) -> Shown {
    if !line.place.is_at(scale) {
        return Shown::Elsewhere;
    }
    let (worlds, noise) = Default::default();
    let trial = Trial { factory, scale, worlds, noise };
    let run = tokio::spawn((line.run)(trial.clone()));
    let abort = run.abort_handle();
    let shown = match tokio::time::timeout(LINE_PATIENCE, run).await {
        Ok(Ok(Ok(()))) => Shown::Holds,
        Ok(Ok(Err(Unmet(needs)))) => Shown::Skipped(needs),
        Ok(Err(error)) => Shown::Broken(panic_text(error)),
        Err(_) => {
            abort.abort();
            Shown::Broken(format!("it did not end within {LINE_PATIENCE:?}"))
        }
    };
    let holds = shown == Shown::Holds;
    let ended = tokio::spawn(async move { trial.end(holds).await }).await;
    match ended {
        Ok(()) => shown,
        Err(error) if holds => Shown::Broken(format!("afterwards: {}", panic_text(error))),
        Err(_) => shown,
    }
}

fn panic_text(error: tokio::task::JoinError) -> String {
    let panic: Box<dyn Any + Send> = match error.try_into_panic() {
        Ok(panic) => panic,
        Err(error) => return error.to_string(),
    };
    shardhost_groups::testing::panic_text(&*panic)
}
