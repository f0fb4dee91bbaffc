//! Messages that no correct peer sends: refused before raft sees them.
//!
//! | file | what |
//! |---|---|
//! | `table` | every known trap of raft 0.7, as one mutation of a sound message |
//! | `bare_raft` | the same messages without the validator: raft panics |
//! | `garbage` | random messages against replicas in every state: none fails |
//! | `containment` | a replica that panics all the same is parked alone |
//! | `installing` | a replica that installs a snapshot does not campaign |
//! | `notices` | a replica is not talked out of its group by what is no news |
//! | `two_snapshots_in_one_round` | the membership is that of the snapshot that raft took |
//! | `victim` | a worker under the test's control |

mod bare_raft;
mod containment;
mod garbage;
mod installing;
mod notices;
mod table;
mod two_snapshots_in_one_round;
mod victim;
