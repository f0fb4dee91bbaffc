//! Planners, hosts and cores that are broken on purpose, to see that the checks notice.

use shardhost_proto::system as wire;

use super::host::Host;
use super::shape::Shape;
use crate::executor::{BackOffSettings, ExecutorSettings, OrderRefusal};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sabotage {
    Nothing,
    /// The planner lets groups rest for no time.
    NoCoolDown,
    /// The planner ignores a kill switch.
    IgnoreStop,
    /// A fresh planner begins at once.
    NoWarmUp,
    /// A target that failed once is left alone for a day.
    BackOffForADay,
    /// Each measurement of load is taken for the truth.
    BelieveNoise,
    /// Hosts obey planners that were replaced.
    IgnorePlannerTerm,
    /// Hosts hand over whatever the term.
    IgnoreTerm,
    /// Hosts repeat their first report.
    RepeatReports,
    /// A node that loses a capability advertises it, and does not apply it itself.
    DeafCore,
    /// Nodes keep advertising their first capabilities, whatever changes.
    KeepAdvertisements,
    /// Planners go by the time of day.
    TimeOfDay,
    /// Another balancer moves leaders too.
    SecondBalancer,
}

impl Sabotage {
    pub(super) fn settings(self, mut settings: ExecutorSettings) -> ExecutorSettings {
        match self {
            Self::NoCoolDown => settings.planner.cool_down_ms = 0,
            Self::NoWarmUp => (settings.warm_up_ms, settings.warm_up_longest_ms) = (0, 0),
            Self::BackOffForADay => {
                settings.back_off =
                    BackOffSettings { first_ms: 86_400_000, longest_ms: 86_400_000 };
            }
            Self::BelieveNoise => {
                settings.planner.load_tolerance_percent = 1;
                settings.load.smoothing_ms = 0;
            }
            _ => {}
        }
        settings
    }

    /// What is needed for it to show.
    pub(super) fn shape(self, mut shape: Shape) -> Shape {
        if self == Self::BelieveNoise {
            shape.settings.planner.load_tier = true;
            shape.rates.values_mut().zip(1..).for_each(|(rate, place)| *rate = 20 * place);
        }
        shape
    }

    pub(super) fn overrules(self, refusal: &OrderRefusal) -> bool {
        match self {
            Self::IgnorePlannerTerm => matches!(refusal, OrderRefusal::StalePlannerTerm { .. }),
            Self::IgnoreTerm => matches!(refusal, OrderRefusal::OtherTerm { .. }),
            _ => false,
        }
    }

    pub(super) fn report(self, host: &mut Host, report: wire::NodeReport) -> wire::NodeReport {
        match self {
            Self::RepeatReports => host.first_report.get_or_insert(report).clone(),
            _ => report,
        }
    }
}
