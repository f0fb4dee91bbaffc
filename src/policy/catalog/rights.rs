//! What a command needs of the one who sends it.

use shardhost_proto::grants::Grant;

use super::command::{Command, Operation};

/// Who may send a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// Nodes alone: it is about what they know.
    Node,
    /// Users with this grant, and nodes, which do it for users that they checked.
    NodeOr(Grant),
    /// Users with this grant.
    User(Grant),
}

impl Command {
    /// Who may send it.
    #[must_use]
    pub const fn sender(&self) -> Sender {
        match &self.operation {
            // It changes nothing at time 0, and says whether the catalog answers. At another one it ends what is
            // due then.
            Operation::Tick if self.now_ms == 0 => Sender::NodeOr(Grant::Reader),
            Operation::SetPlacement { .. }
            | Operation::SetPlannerMode { .. }
            | Operation::SetPlannedMoves { .. }
            | Operation::SetReplicas { .. }
            | Operation::PutRule(_)
            | Operation::RemoveRule { .. }
            | Operation::BeginDrain(_)
            | Operation::ExtendDrain { .. }
            | Operation::EndDrain { .. } => Sender::NodeOr(Grant::Operator),
            Operation::CreateGroup(_)
            | Operation::SetRequirement { .. }
            | Operation::DestroyGroup { .. }
            | Operation::RemoveNode { .. }
            | Operation::RaiseVersion { .. } => Sender::NodeOr(Grant::Admin),
            // A node that was taken over makes no users.
            Operation::PutToken(_) | Operation::RemoveToken { .. } => Sender::User(Grant::Admin),
            Operation::Tick
            | Operation::RecordMembers { .. }
            | Operation::FinishDestroy { .. }
            | Operation::PutNode(_)
            | Operation::Advertise { .. }
            | Operation::FinishDrain { .. }
            | Operation::FoundShardMap { .. }
            | Operation::PassTime { .. } => Sender::Node,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_asks_and_does_not_let_time_pass() {
        let at = |now_ms| Command::new(now_ms, Operation::Tick).sender();
        assert_eq!(at(0), Sender::NodeOr(Grant::Reader));
        assert_eq!(at(1), Sender::Node);
    }

    #[test]
    fn a_node_makes_no_users() {
        let remove = Command::new(1, Operation::RemoveToken { id: 1 });
        assert_eq!(remove.sender(), Sender::User(Grant::Admin));
    }
}
