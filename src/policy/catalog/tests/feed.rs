//! Reading: records, pages, and what changed.

use super::*;

fn ask(catalog: &Catalog, query: Query) -> Answer {
    assert_eq!(Query::decode(&query.encode()), Ok(query));
    let answer = query.answer(catalog).unwrap();
    assert_eq!(Answer::decode(&answer.encode()).as_ref(), Ok(&answer));
    answer
}

fn list(catalog: &Catalog, after: Option<u64>, limit: u32) -> (Vec<u64>, bool) {
    let answer = ask(catalog, Query::List { kind: RecordKind::Group, after, limit });
    let Content::Page { records, more } = answer.content else { panic!("{answer:?}") };
    (records.iter().map(|record| record.key().id()).collect(), more)
}

fn changes(catalog: &Catalog, since: u64, limit: u32) -> (Vec<Change>, Revision, bool) {
    match ask(catalog, Query::Changes { since: revision(since), limit }).content {
        Content::Changes { changes, through, more } => (changes, through, more),
        other => panic!("{other:?}"),
    }
}

fn set_weight(catalog: &mut Catalog, weight: u32) {
    put_node(catalog, NewNode { weight, ..new_node(1) });
}

/// What a reader of the changes does with them.
fn follow(view: &mut View, changes: Vec<Change>, through: Revision) {
    for change in changes {
        match change.record {
            Some(record) => view.put(record),
            None => view.remove(change.key),
        }
    }
    view.advance(through);
}

#[test]
fn one_record_is_found_or_not() {
    let catalog = with_group();
    let get = |key| ask(&catalog, Query::Get(key)).content;
    let Content::Found(Some(Record::Group(found))) = get(RecordKey::Group(group(7))) else {
        panic!("group 7 is not found");
    };
    assert_eq!(*found, *catalog.view().groups()[&group(7)]);
    assert_eq!(get(RecordKey::Node(node(9))), Content::Found(None));
    assert_eq!(get(RecordKey::Ended(group(7))), Content::Found(None));
    assert!(matches!(get(RecordKey::Settings), Content::Found(Some(Record::Settings(_)))));
}

#[test]
fn groups_are_listed_page_by_page() {
    let mut catalog = three_nodes();
    for number in [30, 10, 20, 40] {
        create(&mut catalog, new_group(number, &[1]));
    }
    assert_eq!(list(&catalog, None, 3), (vec![10, 20, 30], true));
    assert_eq!(list(&catalog, Some(30), 3), (vec![40], false));
    assert_eq!(list(&catalog, Some(40), 3), (vec![], false));
    assert_eq!(list(&catalog, None, 0).0.len(), 4);
    let limit = MAX_PAGE_LIMIT + 1;
    let query = Query::List { kind: RecordKind::Node, after: None, limit };
    says(&query.answer(&catalog).unwrap_err(), &["limit of a page is 10001", "at most 10000"]);
}

#[test]
fn a_page_has_a_bound_in_bytes() {
    let mut catalog = three_nodes();
    let text: Box<str> = "x".repeat(MAX_LABEL_BYTES).into();
    let label = |number: usize| Label { key: name(&number.to_string()), value: text.clone() };
    let labels: Vec<Label> = (0..MAX_LABELS).map(label).collect();
    for number in 1..=1_000 {
        create(&mut catalog, NewGroup { labels: labels.clone(), ..new_group(number, &[1]) });
    }
    let query = Query::List { kind: RecordKind::Group, after: None, limit: 0 };
    let bytes = ask(&catalog, query).encode().len();
    assert!((MAX_PAGE_BYTES - 10_000..MAX_PAGE_BYTES + 10_000).contains(&bytes), "{bytes}");
    let (groups, more) = list(&catalog, None, 0);
    assert!(more && groups.len() < 300, "{} groups", groups.len());
}

#[test]
fn changes_are_told_in_order_each_record_once_and_as_it_is() {
    let mut catalog = with_group();
    set_weight(&mut catalog, 5);
    destroy(&mut catalog, 7);
    let (told, through, more) = changes(&catalog, 1, 0);
    let shown: Vec<_> =
        told.iter().map(|change| (change.revision.get(), change.key.to_string())).collect();
    let gone = |revision| (revision, "group 7".to_owned());
    assert_eq!(
        shown,
        [
            (2, "node 2".to_owned()),
            (3, "node 3".to_owned()),
            gone(4),
            (5, "node 1".to_owned()),
            gone(6),
            gone(7),
            (8, "the end of group 7".to_owned()),
        ]
    );
    assert!(
        told.iter()
            .all(|change| change.record.is_none() == (change.key == RecordKey::Group(group(7))))
    );
    assert_eq!((through, more), (revision(8), false));
    assert_eq!(changes(&catalog, 8, 0), (vec![], revision(8), false));
}

#[test]
fn a_reader_that_follows_sees_what_is() {
    let mut catalog = three_nodes();
    let mut view = View::default();
    for number in 0..40 {
        create(&mut catalog, new_group(1 + number % 7, &[1, 2]));
        if number % 3 == 0 {
            set_weight(&mut catalog, number as u32);
        }
        // Three at a time, so that some records change again before they are listed.
        let (told, through, _) = changes(&catalog, view.revision().get(), 3);
        follow(&mut view, told, through);
        destroy(&mut catalog, 1 + number % 7);
    }
    // Each page lists at least one of the changes that are left.
    for _ in 0..catalog.view().revision().get() {
        let (told, through, _) = changes(&catalog, view.revision().get(), 3);
        follow(&mut view, told, through);
    }
    assert_eq!(view, *catalog.view());
}

#[test]
fn a_reader_that_is_too_far_behind_lists_anew() {
    let mut catalog = three_nodes();
    for weight in 0..MAX_CHANGES as u32 {
        set_weight(&mut catalog, weight + 2);
    }
    // 3 + MAX_CHANGES revisions, of which the last MAX_CHANGES are known.
    let compacted = |since| match ask(&catalog, Query::Changes { since, limit: 0 }).content {
        Content::Compacted(compacted) => Some(compacted.oldest),
        _ => None,
    };
    assert_eq!(compacted(revision(2)), Some(revision(3)));
    assert_eq!(compacted(revision(3)), None);
    let last = catalog.view().revision();
    assert_eq!(compacted(last), None);
    assert_eq!(compacted(last.next()), Some(revision(3)), "of another catalog");
    let (told, through, more) = changes(&catalog, 3, 10);
    assert_eq!((told.len(), through, more), (1, last, false), "only as it is");
}
