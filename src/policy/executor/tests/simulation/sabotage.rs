//! Executors and hosts that are broken on purpose, to see that the checks notice.

use super::super::super::back_offs::BackOffs;
use super::super::super::ledger::Ledger;
use super::super::super::load::Loads;
use super::super::super::pace::Pace;
use super::super::super::warm_up::WarmUp;
use super::super::super::{BackOffSettings, Executor, ExecutorSettings, Last, Mode, OrderRefusal};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sabotage {
    Nothing,
    /// The executor forgets what it ordered.
    ForgetLedger,
    /// The executor lets groups rest for no time.
    NoCoolDown,
    /// The executor forgets which targets failed.
    ForgetBackOffs,
    /// The executor ignores the kill switch.
    IgnoreStop,
    /// Hosts obey planners that were replaced.
    IgnorePlannerTerm,
    /// Hosts hand over whatever the term.
    IgnoreTerm,
    /// The executor takes each measurement of load for the first.
    ForgetLoads,
    /// A fresh executor begins at once.
    NoWarmUp,
    /// The executor forgets that something may be under way.
    LoseOutcomes,
    /// A target that failed once is left alone for a day.
    BackOffForADay,
    /// A full ledger is no reason to wait.
    NoLedgerBound,
}

impl Sabotage {
    pub(super) fn settings(self, mut settings: ExecutorSettings) -> ExecutorSettings {
        match self {
            Self::ForgetLoads => {
                settings.planner.load_tier = true;
                settings.planner.load_tolerance_percent = 5;
            }
            Self::BackOffForADay => {
                settings.back_off =
                    BackOffSettings { first_ms: 86_400_000, longest_ms: 86_400_000 };
            }
            Self::NoCoolDown => settings.planner.cool_down_ms = 0,
            _ => {}
        }
        settings
    }

    pub(super) fn before_round(self, executor: &mut Executor) {
        if self == Self::ForgetBackOffs {
            executor.back_offs = BackOffs::new(executor.settings.back_off, 1_000);
        }
        if self == Self::ForgetLoads {
            executor.loads = Loads::new(executor.settings.load);
        }
        if self == Self::NoWarmUp {
            executor.warm_up = WarmUp::new(0, &executor.settings);
        }
        if self == Self::NoLedgerBound {
            executor.settings.bounds.ledger = usize::MAX;
        }
    }

    pub(super) fn after_control(self, executor: &mut Executor) {
        if self != Self::IgnoreStop {
            return;
        }
        (executor.mode, executor.stopped) = (Mode::On, None);
        if let Some(Last { made: Ok(made), .. }) = &executor.last {
            executor.queue.fill(&made.plan.moves, executor.settings.bounds.queue);
        }
    }

    pub(super) fn after_orders(self, executor: &mut Executor) {
        if matches!(self, Self::LoseOutcomes | Self::ForgetLedger) {
            executor.pace = Pace::new(&executor.settings, executor.now_ms);
        }
        if self == Self::ForgetLedger {
            executor.ledger = Ledger::default();
        }
    }

    pub(super) fn hosts_forget_planner_terms(self) -> bool {
        self == Self::IgnorePlannerTerm
    }

    pub(super) fn overrules(self, refusal: Option<&OrderRefusal>) -> bool {
        match (self, refusal) {
            (_, None) => false,
            (Self::IgnorePlannerTerm, Some(refusal)) => {
                matches!(refusal, OrderRefusal::StalePlannerTerm { .. })
            }
            (Self::IgnoreTerm, Some(refusal)) => {
                matches!(refusal, OrderRefusal::OtherTerm { .. } | OrderRefusal::NotLeader)
            }
            _ => false,
        }
    }

    pub(super) fn moves_whatever_the_term(self) -> bool {
        self == Self::IgnoreTerm
    }
}
