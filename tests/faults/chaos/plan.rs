//! What goes wrong, and when: drawn from a seed, without looking at what becomes of it.

use std::fmt;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// A kind of thing that goes wrong, by the name under which it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Kill,
    Power,
    Stop,
    LogHangs,
    LogSlow,
    LogFails,
    StateHangs,
    StateFull,
    StateFails,
    ClockAhead,
    ClockBehind,
    Cut,
    MuteClients,
    Transfer,
    Drain,
    Damage,
    Descriptors,
    Flood,
}

impl Kind {
    pub const ALL: [Self; 18] = [
        Self::Kill,
        Self::Power,
        Self::Stop,
        Self::LogHangs,
        Self::LogSlow,
        Self::LogFails,
        Self::StateHangs,
        Self::StateFull,
        Self::StateFails,
        Self::ClockAhead,
        Self::ClockBehind,
        Self::Cut,
        Self::MuteClients,
        Self::Transfer,
        Self::Drain,
        Self::Damage,
        Self::Descriptors,
        Self::Flood,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Power => "power",
            Self::Stop => "stop",
            Self::LogHangs => "log-hangs",
            Self::LogSlow => "log-slow",
            Self::LogFails => "log-fails",
            Self::StateHangs => "state-hangs",
            Self::StateFull => "state-full",
            Self::StateFails => "state-fails",
            Self::ClockAhead => "clock-ahead",
            Self::ClockBehind => "clock-behind",
            Self::Cut => "cut",
            Self::MuteClients => "mute-clients",
            Self::Transfer => "transfer",
            Self::Drain => "drain",
            Self::Damage => "damage",
            Self::Descriptors => "descriptors",
            Self::Flood => "flood",
        }
    }

    /// Kinds by their names, separated by commas.
    pub fn parse(names: &str) -> Vec<Self> {
        let known = || Self::ALL.map(Self::name).join(",");
        let one = |name: &str| {
            let found = Self::ALL.into_iter().find(|kind| kind.name() == name.trim());
            found.unwrap_or_else(|| panic!("`{name}` is no fault; there are {}", known()))
        };
        names.split(',').map(one).collect()
    }

    /// Whether the host ends, as it should.
    pub const fn may_end(self) -> bool {
        matches!(self, Self::LogFails | Self::StateFails)
    }
}

/// One thing that goes wrong for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub kind: Kind,
    /// The node concerned.
    pub node: u64,
    /// For what comes in variants.
    pub variant: u32,
    /// How long it lasts.
    pub hold: Duration,
    /// How long it is quiet before it.
    pub pause: Duration,
    /// It begins while the one before it lasts.
    pub beside: bool,
    /// When it is over every shard must be served.
    pub settles: bool,
}

impl Step {
    /// Whether it takes every node: nothing else can go wrong meanwhile.
    pub const fn takes_all(&self) -> bool {
        matches!(self.kind, Kind::Power) && self.variant.is_multiple_of(4) && !self.beside
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} at node {} (variant {}) for {:?}",
            self.kind.name(),
            self.node,
            self.variant,
            self.hold
        )
    }
}

/// An endless row of steps.
pub struct Plan {
    rng: SmallRng,
    kinds: Vec<Kind>,
    nodes: u64,
    /// The node of the step before.
    last: u64,
}

impl Plan {
    pub fn new(seed: u64, kinds: &[Kind], nodes: u64) -> Self {
        assert!(!kinds.is_empty(), "there is nothing to go wrong");
        Self { rng: SmallRng::seed_from_u64(seed), kinds: kinds.to_vec(), nodes, last: 0 }
    }
}

impl Iterator for Plan {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let rng = &mut self.rng;
        let kind = *self.kinds.choose(rng)?;
        let beside = rng.random_ratio(1, 4);
        let drawn = rng.random_range(1..=self.nodes);
        // Two things that are wrong with one node would undo each other.
        let node = if beside && drawn == self.last { drawn % self.nodes + 1 } else { drawn };
        self.last = node;
        Some(Step {
            kind,
            node,
            variant: rng.random_range(0..8),
            hold: Duration::from_millis(match rng.random_ratio(1, 8) {
                true => rng.random_range(8_000..20_000),
                false => rng.random_range(200..7_000),
            }),
            pause: Duration::from_millis(rng.random_range(0..2_500)),
            beside,
            settles: rng.random_ratio(1, 3),
        })
    }
}
