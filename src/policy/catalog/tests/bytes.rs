//! Encoded commands and replies: each is read as it was written, and nothing else is accepted.

use ::bytes::Bytes;
use proptest::prelude::*;
use prost::Message;

use super::*;

fn sample() -> Command {
    Command::new(NOW, Operation::CreateGroup(new_group(7, &[1, 2])))
}

#[test]
fn a_command_of_another_version_is_refused_and_changes_nothing() {
    let mut data = sample().encode().to_vec();
    data[0] = 2;
    let refusal = Command::decode(&data.into()).unwrap_err();
    assert_eq!(refusal, Refusal::UnknownVersion { given: 2, known: 1 });
    says(&refusal, &["version 2", "version 1"]);
}

#[test]
fn an_operation_that_is_not_known_is_refused() {
    // Field 999, which a later version may use for an operation.
    let mut data = vec![1];
    prost::encoding::bytes::encode(999, &Bytes::from_static(b"later"), &mut data);
    let refusal = Command::decode(&data.into()).unwrap_err();
    assert_eq!(refusal.name(), "MALFORMED");
    let empty = Command::decode(&vec![1].into()).unwrap_err();
    says(&empty, &["lacks the operation", "later version"]);
}

#[test]
fn a_field_that_is_not_known_is_refused_and_not_passed_over() {
    let mut data = sample().encode().to_vec();
    prost::encoding::uint64::encode(999, &1, &mut data);
    let refusal = Command::decode(&data.into()).unwrap_err();
    says(&refusal, &["fields that are not known"]);
}

#[test]
fn enumerators_that_are_not_known_are_refused() {
    let mode = wire::SetPlannerMode { mode: 77 };
    let operation = Some(wire::command::Operation::SetPlannerMode(mode));
    let message = wire::Command { now_ms: 0, expected: None, operation };
    let data = [&[1][..], &message.encode_to_vec()].concat();
    says(&Command::decode(&data.into()).unwrap_err(), &["mode of the planner 77 is not known"]);
}

#[test]
fn node_zero_and_nodes_named_twice_are_refused() {
    let create = |founders: Vec<u64>| {
        let create = wire::CreateGroup { kind: "queue".to_owned(), founders, ..Default::default() };
        let operation = Some(wire::command::Operation::CreateGroup(create));
        let message = wire::Command { now_ms: 0, expected: None, operation };
        let data = [&[1][..], &message.encode_to_vec()].concat();
        Command::decode(&data.into()).unwrap_err()
    };
    says(&create(vec![0]), &["numbered from 1"]);
    let (subject, given) = (Subject::Founder, "2".to_owned());
    assert_eq!(create(vec![2, 1, 2]), Refusal::Repeated { subject, given });
}

#[test]
fn a_command_over_its_bound_is_not_even_read() {
    let refusal = Command::decode(&vec![1; MAX_COMMAND_BYTES + 1].into()).unwrap_err();
    says(&refusal, &["command's length is 65537", "at most 65536"]);
}

#[test]
fn a_refusal_that_a_later_version_knows_is_shown_as_it_is() {
    let refusal = wire::Refusal {
        name: "TOO_LATE".to_owned(),
        message: "after midnight".to_owned(),
        ..Default::default()
    };
    let outcome = Some(wire::reply::Outcome::Refusal(refusal));
    let data = [&[1][..], &wire::Reply { outcome }.encode_to_vec()].concat();
    let refusal = decode_reply(&data.into()).unwrap_err();
    assert_eq!(refusal.name(), "TOO_LATE");
    says(&refusal, &["TOO_LATE: after midnight"]);
}

#[test]
fn subjects_have_numbers_that_stay() {
    for subject in Subject::ALL {
        assert_eq!(Subject::from_number(subject.number()), Some(*subject));
    }
    assert_eq!(Subject::from_number(0), None);
    assert_eq!((Subject::Kind.number(), Subject::Lives.number()), (1, 21));
}

#[test]
fn the_formats_stay() {
    // Bytes of logs and of messages between versions: a change of these bytes is a new version.
    let command = Command::new(5, Operation::DestroyGroup { group: group(300), generation: None });
    let destroy = [1, 0x08, 5, 0x3a, 3, 0x08, 0xac, 0x02];
    assert_eq!(command.encode()[..], destroy);
    let done = Done { revision: revision(9), effect: Effect::Changed, incarnation: Some(0) };
    assert_eq!(encode_reply(&Ok(done))[..], [1, 0x0a, 4, 0x08, 9, 0x18, 0]);
    let refusal = Refusal::LifeOver { group: group(7), given: 2, next: 4 };
    let data = encode_reply(&Err(refusal));
    let message = wire::Reply::decode(&data[1..]).unwrap();
    let Some(wire::reply::Outcome::Refusal(refusal)) = message.outcome else {
        panic!("{message:?}")
    };
    let fields = (refusal.group, refusal.given, refusal.actual);
    assert_eq!((refusal.name.as_str(), fields), ("LIFE_OVER", (7, 2, 4)));
    let mut snapshot = Vec::new();
    write_snapshot(&Catalog::default(), &mut snapshot).unwrap();
    assert_eq!(snapshot[..8], *b"SHCATAL\x01");
}

proptest! {
    #[test]
    fn garbage_is_refused_and_does_not_panic(mut data: Vec<u8>) {
        data.insert(0, 1);
        let data = Bytes::from(data);
        if let Ok(command) = Command::decode(&data) {
            prop_assert_eq!(&command.encode(), &data);
        }
        let read = (Query::decode(&data), Answer::decode(&data), decode_reply(&data));
        drop(read);
    }

    #[test]
    fn a_command_with_a_byte_changed_is_refused_or_another_command(at: usize, byte: u8) {
        let mut data = sample().encode().to_vec();
        let at = at % data.len();
        data[at] = byte;
        let data = Bytes::from(data);
        if let Ok(command) = Command::decode(&data) {
            prop_assert_eq!(&command.encode(), &data);
        }
    }
}
