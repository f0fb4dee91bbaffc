//! Why a leadership is not moved, or not taken: the one list of it. The leader, the target, the
//! planner, its executor, counters, statuses and tests all name a cause by the same variant. Data
//! only: the subject and the finding are beside it.

use std::fmt;

/// Declares the reasons once: variant, stable name, words.
macro_rules! reasons {
    ($($variant:ident $name:literal $words:literal)+) => {
        /// Why a leadership is not moved to a node, is not accepted by it, or is not campaigned
        /// for.
        ///
        /// Closed on purpose: code that shows, counts or handles reasons handles each. The names
        /// never change; docs/policy.md has the remedy for each.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum RejectReason {
            $(#[doc = concat!("`", $name, "`: ", $words, ".")] $variant,)+
        }

        impl RejectReason {
            /// All of them, in the order in which they are looked at.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The name in statuses, counters and over the network. Never changes.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// A few words for people, without what was found.
            #[must_use]
            pub const fn words(self) -> &'static str {
                match self { $(Self::$variant => $words),+ }
            }
        }
    };
}

reasons! {
    // Orders that came too late.
    StaleTerm "STALE_TERM" "the order was given for another term"
    StalePlanner "STALE_PLANNER" "a later planner has given orders"
    // Moves of the planner are held back.
    KillSwitch "KILL_SWITCH" "planned moves are switched off"
    PlannerOff "PLANNER_OFF" "the planner is off"
    PlannerShadow "PLANNER_SHADOW" "the planner only shows what it would do"
    StartUpGrace "START_UP_GRACE" "the planner is new and warms up"
    BreakerOpen "BREAKER_OPEN" "too many moves failed or delayed users, so planned moves pause"
    RoundBudget "ROUND_BUDGET" "the pass has as many moves as it may"
    OutBudget "OUT_BUDGET" "the giving node gives away as many leaders as it may"
    InBudget "IN_BUDGET" "the receiving node gets as many leaders as it may"
    Paced "PACED" "as many moves are in flight, or were started, as the rate allows"
    WaitsForOthers "WAITS_FOR_OTHERS" "it helps only together with moves that wait or failed"
    // The group and its leader.
    UnknownGroup "UNKNOWN_GROUP" "no node that answers reports the group"
    UnknownLeader "UNKNOWN_LEADER" "no node reports a leader of the group"
    LeaderNotLive "LEADER_NOT_LIVE" "the leader's node is not live, so its voters elect another"
    NotLeader "NOT_LEADER" "the node that was asked does not lead the group"
    AlreadyLeads "ALREADY_LEADS" "the node leads the group already"
    ConfigChangePending "CONFIG_CHANGE_PENDING" "a change of members is not applied yet"
    TransferInProgress "TRANSFER_IN_PROGRESS" "another move of the group is in progress"
    // The target.
    NoCandidates "NO_CANDIDATES" "no candidate was named"
    NotVoter "NOT_VOTER" "the node holds no voter of the group"
    NotLive "NOT_LIVE" "the node does not answer"
    Incapable "INCAPABLE" "the node lacks what the group requires"
    PolicyDeclined "POLICY_DECLINED" "a policy refuses that the node leads the group"
    Draining "DRAINING" "the node is draining"
    Unfit "UNFIT" "an operator or its health excludes the node from leading"
    NoWeight "NO_WEIGHT" "the node has no weight: it takes no leaders"
    Snapshotting "SNAPSHOTTING" "the node is being given a snapshot of the group"
    LagUnknown "LAG_UNKNOWN" "the end of the node's log is not known"
    NotCaughtUp "NOT_CAUGHT_UP" "the node lacks more of the log than is allowed"
    ApplyBacklog "APPLY_BACKLOG" "the node has too much of the log to apply yet"
    BackedOff "BACKED_OFF" "moves to the node failed; it gets a back-off"
    UnknownCapabilities "UNKNOWN_CAPABILITIES" "the node did not advertise its capabilities"
    Warming "WARMING" "the node came up a short time ago"
    HandedOn "HANDED_ON" "the node transferred this leadership a moment ago"
    NoTarget "NO_TARGET" "none of the other voters can take the leadership"
    // While it was tried.
    Refused "REFUSED" "the node declined without a reason"
    Silent "SILENT" "the node did not answer whether it accepts the leadership"
    Aborted "ABORTED" "the transfer was given up, or another node won"
    NoAnswer "NO_ANSWER" "the leader was ordered to move it and did not answer"
    LeaderUnreachable "LEADER_UNREACHABLE" "the leader's node could not be reached with the order"
    Stopped "STOPPED" "the replica or its host stopped"
    Faulted "GROUP_FAILED" "the replica failed"
    // It is well where it is.
    Pinned "PINNED" "the group is pinned to where it is"
    Dwell "DWELL" "the group moved a short time ago"
    Optimal "OPTIMAL" "no move of the group would improve anything"
    WouldWorsen "WOULD_WORSEN" "an objective of higher priority would get worse"
}

impl RejectReason {
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();

    /// Its place among [`Self::ALL`], for counters.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The reason of this name, as it comes from another node. `None`: that node knows more.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.name() == name)
    }

    /// Whether it ends soon without an action: worth another try in a moment.
    #[must_use]
    pub const fn passes_by_itself(self) -> bool {
        self.is_congestion()
            || matches!(
                self,
                Self::NotCaughtUp
                    | Self::ApplyBacklog
                    | Self::Snapshotting
                    | Self::ConfigChangePending
                    | Self::TransferInProgress
            )
    }

    /// Whether it means that the others are busy, rather than unwilling.
    #[must_use]
    pub const fn is_congestion(self) -> bool {
        matches!(self, Self::Aborted | Self::Silent | Self::NoAnswer)
    }
}

impl fmt::Display for RejectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_reason_has_a_name_of_its_own_that_finds_it() {
        let names: BTreeSet<_> = RejectReason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), RejectReason::COUNT);
        for reason in RejectReason::ALL {
            assert_eq!(RejectReason::by_name(reason.name()), Some(*reason));
        }
        assert_eq!(RejectReason::by_name("not_leader"), None);
    }

    #[test]
    fn every_reason_has_a_counter_of_its_own() {
        for (index, reason) in RejectReason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), index);
        }
    }

    #[test]
    fn the_page_for_operators_has_every_reason_once_and_no_other() {
        let page = include_str!("../../../docs/policy.md");
        let (_, list) = page.split_once("## Why a leadership is not moved").expect("the section");
        let rows = list.lines().filter(|line| line.starts_with("| `"));
        let listed: Vec<String> =
            rows.map(|row| row.split('|').skip(1).take(2).collect::<Vec<_>>().join("|")).collect();
        let known = RejectReason::ALL.iter();
        let known: Vec<String> =
            known.map(|reason| format!(" `{}` | {} ", reason.name(), reason.words())).collect();
        assert_eq!(listed, known);
    }
}
