//! What an operation needs of the user who sends it.

use shardhost_proto::grants::Grant;

use super::command::Operation;

impl Operation {
    /// The grant that a user needs for it; `None`: it is said by nodes alone, about what they know.
    #[must_use]
    pub const fn grant(&self) -> Option<Grant> {
        match self {
            // At time 0 it changes nothing: it says whether the catalog answers.
            Self::Tick => Some(Grant::Reader),
            Self::SetPlacement { .. }
            | Self::SetPlannerMode { .. }
            | Self::SetPlannedMoves { .. }
            | Self::SetReplicas { .. }
            | Self::BeginDrain(_)
            | Self::ExtendDrain { .. }
            | Self::EndDrain { .. } => Some(Grant::Operator),
            Self::CreateGroup(_)
            | Self::SetRequirement { .. }
            | Self::DestroyGroup { .. }
            | Self::RemoveNode { .. }
            | Self::RaiseVersion { .. }
            | Self::PutToken(_)
            | Self::RemoveToken { .. } => Some(Grant::Admin),
            Self::RecordMembers { .. }
            | Self::FinishDestroy { .. }
            | Self::PutNode(_)
            | Self::Advertise { .. }
            | Self::FinishDrain { .. }
            | Self::FoundShardMap { .. }
            | Self::PassTime { .. } => None,
        }
    }
}
