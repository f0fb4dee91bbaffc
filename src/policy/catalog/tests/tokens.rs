//! Tokens of clients and operators.

use ::bytes::Bytes;
use prost::Message;
use shardhost_proto::grants::{Grant, Grants};
use shardhost_proto::version::ClusterVersion;

use super::*;

fn at(version: u32) -> Catalog {
    let mut catalog = three_nodes();
    let prepared = (1..=3).map(|number| (node(number), 100 + number)).collect();
    let version = ClusterVersion::new(version);
    run(&mut catalog, Operation::RaiseVersion { version, prepared }).unwrap();
    catalog
}

fn token(id: u64) -> NewToken {
    NewToken {
        id,
        name: Name::new(Subject::Token, "billing").unwrap(),
        grants: Grants::CLIENT,
        digest: TokenDigest::new([0xab; TokenDigest::BYTES]),
        expires_ms: Some(NOW + 1_000),
    }
}

fn put(catalog: &mut Catalog, new: NewToken) -> Done {
    run(catalog, Operation::PutToken(new)).unwrap()
}

fn written(catalog: &Catalog) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_snapshot(catalog, &mut bytes).unwrap();
    bytes
}

#[test]
fn a_token_is_created_and_the_same_again_changes_nothing() {
    let mut catalog = at(3);
    let done = put(&mut catalog, token(7));
    let held = catalog.view().token(7).unwrap();
    let expected = Token {
        id: 7,
        revision: done.revision,
        name: name("billing"),
        grants: Grants::CLIENT,
        digest: TokenDigest::new([0xab; TokenDigest::BYTES]),
        made_ms: NOW,
        expires_ms: Some(NOW + 1_000),
    };
    assert_eq!(*held, expected);
    assert_eq!(catalog.view().tokens().len(), 1);
    assert_eq!(catalog.view().token(8), None);
    // Again and later, even after it has expired: whatever a proposer repeats.
    for now_ms in [NOW, NOW + 5, NOW + 1_000_000] {
        let again = Command::new(now_ms, Operation::PutToken(token(7)));
        assert_eq!(run_command(&mut catalog, &again), Ok(Done::unchanged(done.revision)));
    }
    assert_eq!(*catalog.view().token(7).unwrap(), expected);
    // Another one may have the same name, and may never expire.
    put(&mut catalog, NewToken { expires_ms: None, ..token(u64::MAX) });
    put(&mut catalog, NewToken { expires_ms: Some(MAX_TIME_MS), ..token(0) });
    assert!(catalog.view().tokens().keys().eq(&[0, 7, u64::MAX]));
}

#[test]
fn an_id_in_use_with_other_content_is_refused() {
    let mut catalog = at(3);
    let made = put(&mut catalog, token(7)).revision;
    for other in [
        NewToken { name: name("other"), ..token(7) },
        NewToken { grants: Grants::ALL, ..token(7) },
        NewToken { digest: TokenDigest::new([0xac; TokenDigest::BYTES]), ..token(7) },
        NewToken { expires_ms: None, ..token(7) },
        NewToken { expires_ms: Some(NOW + 1_001), ..token(7) },
    ] {
        let refusal = refused(&mut catalog, Operation::PutToken(other));
        assert_eq!(refusal, Refusal::TokenExists { token: 7, made });
        says(&refusal, &["token 0000000000000007", "choose another id"]);
    }
    let absent = Command::new(NOW, Operation::PutToken(token(7))).expecting(revision(0));
    assert_eq!(refused_command(&mut catalog, &absent).name(), "WRONG_REVISION");
}

#[test]
fn tokens_need_the_third_version_of_the_cluster() {
    for version in [1, 2] {
        let mut catalog = at(version);
        let refusal = refused(&mut catalog, Operation::PutToken(token(7)));
        let (needed, present) = (ClusterVersion::new(3), ClusterVersion::new(version));
        assert_eq!(refusal, Refusal::NeedsVersion { needed, present });
        let refusal = refused(&mut catalog, Operation::RemoveToken { id: 7 });
        assert_eq!(refusal, Refusal::UnknownToken { token: 7 });
    }
    let since = |kind: RecordKind| kind.since().get();
    assert!(RecordKind::ALL.map(since).is_sorted(), "settings, which name the version, come first");
    assert_eq!(since(RecordKind::Token), 3);
}

#[test]
fn a_token_is_removed_and_its_id_is_free() {
    let mut catalog = at(3);
    let made = put(&mut catalog, token(7)).revision;
    let unknown = refused(&mut catalog, Operation::RemoveToken { id: 8 });
    assert_eq!(unknown, Refusal::UnknownToken { token: 8 });
    says(&unknown, &["token 0000000000000008"]);
    let stale = Command::new(NOW, Operation::RemoveToken { id: 7 }).expecting(made.next());
    assert_eq!(refused_command(&mut catalog, &stale).name(), "WRONG_REVISION");
    let done = run(&mut catalog, Operation::RemoveToken { id: 7 }).unwrap();
    assert_eq!(done, Done::changed(made.next()));
    assert_eq!(catalog.view().token(7), None);
    assert_eq!(catalog.view().record(RecordKey::Token(7)), None);
    let again = refused(&mut catalog, Operation::RemoveToken { id: 7 });
    assert_eq!(again, Refusal::UnknownToken { token: 7 });
    put(&mut catalog, NewToken { grants: Grants::ALL, ..token(7) });
}

#[test]
fn there_are_so_many_tokens_and_no_more() {
    let mut catalog = at(3);
    for id in 0..MAX_TOKENS as u64 {
        put(&mut catalog, token(id));
    }
    let refusal = refused(&mut catalog, Operation::PutToken(token(5_000)));
    says(&refusal, &["number of tokens is 1001", "at most 1000"]);
    assert_eq!(put(&mut catalog, token(5)).effect, Effect::Unchanged);
    run(&mut catalog, Operation::RemoveToken { id: 5 }).unwrap();
    put(&mut catalog, token(5_000));
    assert_eq!(read_snapshot(&mut &written(&catalog)[..]).unwrap(), catalog);
}

#[test]
fn a_token_that_allows_nothing_or_is_expired_from_the_start_is_refused() {
    let mut catalog = at(3);
    let nothing = NewToken { grants: Grants::NONE, ..token(7) };
    let refusal = refused(&mut catalog, Operation::PutToken(nothing));
    assert_eq!(refusal, Refusal::Missing { subject: Subject::Grants });
    says(&refusal, &["there is no grant"]);
    for expires_ms in [0, NOW, MAX_TIME_MS + 1, u64::MAX] {
        let new = NewToken { expires_ms: Some(expires_ms), ..token(7) };
        let refusal = refused(&mut catalog, Operation::PutToken(new));
        says(&refusal, &["expiry", &expires_ms.to_string(), "from 1000001 to 253402300799999"]);
    }
}

/// The catalog keeps no time of day: time passes for drains only.
#[test]
fn an_expired_token_stays_until_it_is_removed() {
    let mut catalog = at(3);
    put(&mut catalog, token(7));
    let late = Command::new(NOW + 1_000_000, Operation::Tick);
    assert_eq!(run_command(&mut catalog, &late).unwrap().effect, Effect::Unchanged);
    let held = catalog.view().token(7).unwrap();
    assert!(!held.is_expired(NOW + 999));
    assert!(held.is_expired(NOW + 1_000));
    assert!(!Token { expires_ms: None, ..held.clone() }.is_expired(u64::MAX));
}

#[test]
fn tokens_are_part_of_snapshot_and_digest_and_catalogs_without_are_as_before() {
    let empty = at(3);
    let mut catalog = empty.clone();
    put(&mut catalog, token(7));
    put(&mut catalog, NewToken { expires_ms: None, grants: Grants::of(Grant::Reader), ..token(9) });
    let restored = read_snapshot(&mut &written(&catalog)[..]).unwrap();
    assert_eq!(restored, catalog);
    assert_eq!(restored.digest(), catalog.digest());
    let mut other = empty.clone();
    put(&mut other, token(7));
    let grants = Grants::of(Grant::Operator);
    put(&mut other, NewToken { expires_ms: None, grants, ..token(9) });
    assert_ne!(other.digest(), catalog.digest());
}

/// Programs that know no tokens read it.
#[test]
fn a_catalog_without_tokens_has_the_bytes_that_it_always_had() {
    for (version, expected) in [(1, SNAPSHOT_AT_FIRST), (2, SNAPSHOT_AT_SECOND)] {
        let mut catalog = at(version);
        let mut refused = |operation| run(&mut catalog, operation).unwrap_err();
        refused(Operation::PutToken(token(7)));
        refused(Operation::RemoveToken { id: 7 });
        create(&mut catalog, new_group(7, &[1, 2]));
        run(&mut catalog, Operation::SetPlannerMode { mode: PlannerMode::On }).unwrap();
        let bytes = written(&catalog);
        // As 23abf044 wrote it after these commands.
        let found = (bytes.len(), crc32fast::hash(&bytes), catalog.digest());
        assert_eq!(found, expected, "version {version}");
    }
}

/// Length, CRC-32 and digest.
const SNAPSHOT_AT_FIRST: (usize, u32, u64) = (211, 3_094_008_765, 8_129_318_536_352_055_915);
const SNAPSHOT_AT_SECOND: (usize, u32, u64) = (217, 2_204_665_734, 13_394_576_538_418_780_830);

#[test]
fn tokens_are_listed_found_and_followed() {
    let mut catalog = at(3);
    let since = catalog.view().revision();
    for id in [u64::MAX, 5, 9] {
        put(&mut catalog, token(id));
    }
    let ask = |catalog: &Catalog, query: Query| {
        assert_eq!(Query::decode(&query.encode()), Ok(query));
        let answer = query.answer(catalog).unwrap();
        assert_eq!(Answer::decode(&answer.encode()).as_ref(), Ok(&answer));
        answer.content
    };
    let list = |after, limit| {
        let query = Query::List { kind: RecordKind::Token, after, limit };
        let Content::Page { records, more } = ask(&catalog, query) else { panic!("no page") };
        (records.iter().map(|record| record.key().id()).collect::<Vec<_>>(), more)
    };
    assert_eq!(list(None, 2), (vec![5, 9], true));
    assert_eq!(list(Some(9), 2), (vec![u64::MAX], false));
    assert_eq!(list(Some(u64::MAX), 2), (vec![], false));
    let get = |id| ask(&catalog, Query::Get(RecordKey::Token(id)));
    let found = catalog.view().record(RecordKey::Token(9));
    assert!(matches!(&found, Some(Record::Token(token)) if token.id == 9));
    assert_eq!((get(9), get(6)), (Content::Found(found), Content::Found(None)));

    run(&mut catalog, Operation::RemoveToken { id: 9 }).unwrap();
    let Content::Changes { changes, through, more: false } =
        ask(&catalog, Query::Changes { since, limit: 0 })
    else {
        panic!("no changes")
    };
    assert_eq!(through, catalog.view().revision());
    let shown: Vec<_> =
        changes.iter().map(|change| (change.key, change.record.is_some())).collect();
    let token = RecordKey::Token;
    let expected =
        [(token(u64::MAX), true), (token(5), true), (token(9), false), (token(9), false)];
    assert_eq!(shown, expected);
    let mut view = at(3).view().clone();
    for change in changes {
        match change.record {
            Some(record) => view.put(record),
            None => view.remove(change.key),
        }
    }
    view.advance(through);
    assert_eq!(view, *catalog.view());
}

/// The refusal of a command, and that of a record, with these fields.
fn damaged(name: &str, grants: u32, digest: &[u8]) -> [Refusal; 2] {
    let (name, digest) = (name.to_owned(), Bytes::copy_from_slice(digest));
    let record = wire::Token {
        token: 7,
        name: name.clone(),
        grants,
        digest: digest.clone(),
        ..wire::Token::default()
    };
    let put = wire::PutToken { token: 7, name, grants, digest, expires_ms: None };
    let operation = Some(wire::command::Operation::PutToken(put));
    let command = wire::Command { now_ms: 0, expected: None, operation };
    let found = wire::Found {
        record: Some(wire::Record { record: Some(wire::record::Record::Token(record)) }),
    };
    let answer = wire::Answer { revision: 9, answer: Some(wire::answer::Answer::Found(found)) };
    let bytes = |message: Vec<u8>| Bytes::from([&[1][..], &message].concat());
    [
        Command::decode(&bytes(command.encode_to_vec())).unwrap_err(),
        Answer::decode(&bytes(answer.encode_to_vec())).unwrap_err(),
    ]
}

#[test]
fn damaged_tokens_are_refused_by_what_is_wrong() {
    let whole = [0xab; 32];
    for length in [0, 31, 33, 64] {
        for refusal in damaged("billing", 1, &vec![0xab; length]) {
            says(&refusal, &[&format!("digest of a token has {length} bytes, not 32")]);
            assert!(!refusal.to_string().contains("171"), "{refusal}");
        }
    }
    for bits in [0x80, 0xff, 0x100, u32::MAX] {
        for refusal in damaged("billing", bits, &whole) {
            says(&refusal, &["is no grant", &format!("{bits:#x}")]);
        }
    }
    let long = "x".repeat(MAX_NAME_BYTES + 1);
    for name in ["", "bil\nling", "bil\u{7f}ling", "\0", "Billing", "b illing", &long] {
        for refusal in damaged(name, 1, &whole) {
            assert_eq!(refusal, Refusal::BadName { subject: Subject::Token, given: name.into() });
            assert!(!refusal.to_string().contains(char::is_control), "{refusal:?}");
        }
    }
}

#[test]
fn fields_of_a_token_that_are_not_known_are_refused() {
    let put = |more: &[u8]| {
        let known = wire::PutToken {
            token: 7,
            name: "billing".to_owned(),
            grants: 1,
            digest: vec![0xab; 32].into(),
            expires_ms: None,
        };
        // The operation is the last field of a command, and this the last one of the operation.
        let inner = [&known.encode_to_vec(), more].concat();
        let mut data = vec![1];
        prost::encoding::bytes::encode(22, &Bytes::from(inner), &mut data);
        Command::decode(&data.into())
    };
    assert!(put(&[]).is_ok());
    let mut later = Vec::new();
    prost::encoding::uint64::encode(99, &1, &mut later);
    says(&put(&later).unwrap_err(), &["fields that are not known"]);
}

#[test]
fn no_digest_is_printed() {
    let mut catalog = at(3);
    put(&mut catalog, token(7));
    let record = catalog.view().record(RecordKey::Token(7)).unwrap();
    let command = Command::new(NOW, Operation::PutToken(token(7)));
    for shown in [format!("{record:?}"), format!("{command:?}"), format!("{catalog:#?}")] {
        assert!(shown.contains("billing") && shown.contains("<redacted>"), "{shown}");
        assert!(!shown.contains("171") && !shown.contains("abab"), "{shown}");
    }
}

#[test]
fn the_format_of_tokens_stays() {
    let new = NewToken { grants: Grants::of(Grant::TableRead), expires_ms: Some(300), ..token(5) };
    let put = Command::new(5, Operation::PutToken(new)).encode();
    let mut expected = vec![1, 0x08, 5, 0xb2, 1, 50, 0x08, 5, 0x12, 7];
    expected.extend_from_slice(b"billing");
    expected.extend_from_slice(&[0x18, 8, 0x22, 32]);
    expected.extend_from_slice(&[0xab; 32]);
    expected.extend_from_slice(&[0x28, 0xac, 0x02]);
    assert_eq!(put[..], expected);
    let remove = Command::new(5, Operation::RemoveToken { id: 300 }).encode();
    assert_eq!(remove[..], [1, 0x08, 5, 0xba, 1, 3, 0x08, 0xac, 0x02]);
}
