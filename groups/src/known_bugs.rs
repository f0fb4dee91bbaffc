//! Bugs that multi-Raft hosts are known for, which tests put back to show that they are noticed.
//!
//! Only builds with the feature `testing` can switch one on; in every other build
//! [`KnownBugs::has`] is `false` at compile time and the wrong branch is not in the program.

/// A bug that can be put back on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KnownBug {
    /// A replica counts as one that takes part as soon as its node answers.
    CountNodesForReplicas,
    /// A change of members counts on what replicas answered before it was asked for.
    CountEarlierAnswers,
    /// A change of members counts voters that answer and do not take what is committed.
    CountVotersThatTakeNothing,
    /// Messages that promise durability leave before the sync.
    AcknowledgeBeforeSync,
    /// The vote is not written.
    ForgetVote,
    /// A change of configuration is acknowledged without a durable word that the one before it was
    /// committed.
    ForgetCommit,
    /// A demoted voter whose disk was replaced is created again under the number that voted.
    RecreateVoter,
    /// A completion is resolved by whatever is committed at its index.
    CompletionByIndex,
    /// A lease counts from the answer to a heartbeat.
    LeaseFromAnswer,
    /// A lease counts before an entry of the own term is applied.
    LeaseBeforeReady,
    /// A lease stays valid during a transfer.
    LeaseInTransfer,
    /// A lease lasts as long as the vote lock behind it, and longer.
    LeaseWithoutMargin,
    /// A voter forgets its vote locks when it starts.
    ForgetVoteLock,
    /// The same, where its own membership knows of no other voter.
    LockOnlyAmongVoters,
    /// `TimeoutNow` is followed however late it comes, and a failed transfer is over at once.
    LateTimeoutNow,
    /// A vote that was prepared is relied on before it is durable.
    TrustUnwrittenVote,
    /// A leader that must not serve answers reads that it does not hear of as their leader only.
    CaretakerAnswersReads,
    /// An answer of policies to an earlier question counts, and no question is asked while one is
    /// out.
    AnyAnswerCounts,
    /// Hibernating followers do not hear that their leader's replica ended while its node lives.
    HibernateThroughAnEnd,
    /// A follower hibernates for a leader whose process ended, and a leader without a quorum that
    /// lives.
    HibernateAfterTheLoss,
    /// The drawn election timeout replaces the turn of a voter whose leader's node was lost.
    TurnOfOneTick,
    /// A learner whose leader's node was lost divides the election timeout among the voters only, and may
    /// get a turn after all of them.
    TurnsOfVotersOnly,
    /// Proposals that a leader holds before they enter its log wait for ever.
    HoldForEver,
    /// After a failed transfer a lease waits for the answer of a target that was removed.
    AwaitRemovedTargets,
    /// A create request counts for every group of the same id.
    CreateRequestOfAnotherGroup,
    /// A proposal that a state machine has is waited for as long as the machine takes.
    AwaitHungMachines,
    /// The membership of a snapshot that raft took is lost.
    LoseSnapshotMembership,
    /// What else raft wanted done is done after a snapshot could not be installed.
    GoOnAfterFault,
    /// A replica that hears of another group of its id keeps it to itself.
    OneGroupIsTold,
    /// A replica is closed while the log writer still holds what it handed over.
    CloseBeforeLog,
    /// A replica whose log may have lost something takes part as if it had not.
    IgnoreDoubt,
    /// A replica with a notice of its removal campaigns at every election timeout.
    RemovedCampaigns,
    /// A leader whose policy panics or gives no answer keeps the leadership, and asks no more.
    SilentPolicyKeepsLeadership,
    /// What a learner acknowledged counts when it gets a vote, although its node may have lost its
    /// disk.
    CountLostLearner,
    /// An answer of a learner that was on its way when the learner's disk was lost counts.
    CountLateAnswers,
    /// A change of members is made although too few of the voters of then answer.
    ChangeIntoStandstill,
    /// A vote lock is forgotten when the clock cannot be read.
    UnlockWithoutClock,
    /// Of several successors that failed by accident only the last is asked again.
    ForgiveTheLast,
    /// A successor that declined for a temporary reason is not asked again.
    RefusedForGood,
    /// A successor that declined for a reason of which no other hears when it is over, as a lost state or a
    /// requirement that it had not applied, is not asked again, nor is a former leader.
    ImpairedForGood,
    /// All that is committed and not applied is read at once: when a replica is opened, and before
    /// it campaigns.
    ReadBacklogAtOnce,
    /// Entries stay in memory until they are applied, however many they are.
    KeepBacklogInMemory,
    /// A node or replica that is impaired, as by a disk that hangs, leads on.
    LeadImpaired,
    /// A leader hands over only once its own disk has a vote for the target.
    WaitForOwnDisk,
    /// A replica whose state is lost continues from the start of its log.
    ApplyWithoutState,
    /// Such a replica takes no entries before it has a snapshot: it asks by raft's own request.
    StopLogForState,
    /// A snapshot becomes the state before the changes of members are taken that it has passed.
    StateBeforeMembership,
    /// Changes of members wait for a state machine that stands still or lost its state.
    MembershipWaitsForMachine,
    /// A leader whose state machine stands still hands over only once it has applied an entry of
    /// its term.
    StalledLeaderWaits,
    /// A leader without a state keeps the leadership for a voter that cannot take it over, and does
    /// not ask again one that could.
    KeepForTheUnlevel,
    /// A leader whose state machine stands still does not leave a joint configuration.
    JointWaitsForMachine,
    /// A replica whose snapshot is not restored yet stays out of elections and changes of members.
    InstallStaysOut,
    /// No replica but a leader, or one that knows of its removal, gives its state to one that lost its
    /// own.
    OnlyLeadersGiveState,
    /// A leader forgets which replicas are without their state.
    ForgetLostStates,
    /// The replica with the number 3 does not apply every fifth entry.
    SkipCommands,
    /// A replica whose log is rewritten for the skip of a command stays in its term.
    SkipKeepsTerm,
    /// The skip of a command ends at a replica that lacks the command and has not entered the term of the skip.
    EndSkipUnentered,
}

/// The bugs that are switched on. None by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KnownBugs(u64);

impl KnownBugs {
    /// No bug.
    #[must_use]
    pub const fn none() -> Self {
        Self(0)
    }

    /// These, and one more.
    #[cfg(feature = "testing")]
    #[must_use]
    pub const fn and(self, bug: KnownBug) -> Self {
        Self(self.0 | Self::bit(bug))
    }

    /// Whether a bug is switched on.
    #[must_use]
    pub const fn has(self, bug: KnownBug) -> bool {
        cfg!(feature = "testing") && self.0 & Self::bit(bug) != 0
    }

    const fn bit(bug: KnownBug) -> u64 {
        1 << bug as u64
    }
}

#[cfg(feature = "testing")]
impl<const N: usize> From<[KnownBug; N]> for KnownBugs {
    fn from(bugs: [KnownBug; N]) -> Self {
        bugs.into_iter().fold(Self::none(), Self::and)
    }
}
