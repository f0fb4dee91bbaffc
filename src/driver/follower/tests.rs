//! Views that never go back, from replicas of which some are behind.

use std::collections::VecDeque;

use shardhost_storage::{GroupId, NodeId, Requirement};

use super::*;
use shardhost_policy::catalog::{Catalog, Command, Name, NewGroup, NewNode, Operation, Subject};

/// Answers come from these replicas in turn, without those that are behind the requested revision,
/// as the client skips them.
struct InTurn {
    replicas: VecDeque<Catalog>,
    asked: usize,
}

impl InTurn {
    fn new(replicas: impl IntoIterator<Item = Catalog>) -> Self {
        Self { replicas: replicas.into_iter().collect(), asked: 0 }
    }
}

impl Source for InTurn {
    async fn ask(&mut self, query: &Query, least: Revision) -> Result<Answer, CatalogError> {
        self.asked += 1;
        for _ in 0..self.replicas.len() {
            self.replicas.rotate_left(1);
            let answer = query.answer(self.replicas.back().unwrap()).unwrap();
            if answer.revision >= least {
                return Ok(answer);
            }
        }
        Err(CatalogError::Unknown { message: "all are behind".to_owned() })
    }
}

fn run(catalog: &mut Catalog, operation: Operation) -> Revision {
    catalog.apply(&Command::new(1, operation)).unwrap().revision
}

fn create(catalog: &mut Catalog, number: u64) -> Revision {
    let kind = Name::new(Subject::Kind, "table").unwrap();
    let new = NewGroup::new(GroupId::new(number), kind, [NodeId::must(1)]);
    run(catalog, Operation::CreateGroup(new))
}

fn require(catalog: &mut Catalog, number: u64, name: &str) -> Revision {
    let requirement = Requirement::hard([name]).unwrap();
    run(catalog, Operation::SetRequirement { group: GroupId::new(number), requirement })
}

/// A node, and so many groups.
fn catalog(groups: u64) -> Catalog {
    let mut catalog = Catalog::default();
    let id = NodeId::must(1);
    let (address, zone) = ("10.0.0.1:7400".to_owned(), None);
    run(&mut catalog, Operation::PutNode(NewNode { id, address, zone, weight: 1, store: 1 }));
    (1..=groups).for_each(|number| {
        create(&mut catalog, number);
    });
    catalog
}

/// Reads on from the known revision; the view is at least that.
async fn read(reader: &mut Reader, known: &mut CatalogView, source: &mut InTurn) -> Revision {
    let before = known.as_ref().map(|view| view.revision());
    if let Ok(Some(view)) = reader.catch_up(known.clone(), source).await {
        *known = Some(Arc::new(view));
    }
    let after = known.as_ref().map(|view| view.revision());
    assert!(after >= before, "the view went back from {before:?} to {after:?}");
    after.unwrap_or_default()
}

#[tokio::test]
async fn a_replica_that_is_behind_does_not_take_the_view_back() {
    let behind = catalog(3);
    let mut ahead = behind.clone();
    let required = require(&mut ahead, 2, "fifo");
    let (mut reader, mut known) = (Reader::default(), None);
    read(&mut reader, &mut known, &mut InTurn::new([ahead.clone()])).await;
    // No other node answers: the view stays as it is.
    let mut lagging = InTurn::new([behind.clone()]);
    assert_eq!(read(&mut reader, &mut known, &mut lagging).await, required);
    let held = known.as_ref().unwrap().groups()[&GroupId::new(2)].requirement();
    assert_eq!(held, Requirement::hard(["fifo"]).unwrap());
    // A node that knows more is asked.
    let later = create(&mut ahead, 9);
    let mut both = InTurn::new([behind, ahead]);
    assert_eq!(read(&mut reader, &mut known, &mut both).await, later);
}

#[tokio::test]
async fn pages_of_replicas_that_differ_make_the_view_that_one_of_them_has() {
    // More groups than a page has, which change between the pages.
    let behind = catalog(2_500);
    let mut ahead = behind.clone();
    for number in [1, 1_200, 2_400] {
        require(&mut ahead, number, "fifo");
    }
    run(&mut ahead, Operation::DestroyGroup { group: GroupId::new(7), generation: None });
    for order in [[behind.clone(), ahead.clone()], [ahead.clone(), behind]] {
        let (mut reader, mut known) = (Reader::default(), None);
        let mut source = InTurn::new(order);
        let through = read(&mut reader, &mut known, &mut source).await;
        assert!(source.asked > 5, "it took several pages");
        assert_eq!(through, ahead.view().revision());
        assert_eq!(known.as_deref(), Some(ahead.view()));
    }
}

/// Its first answers are those of the catalog; then no node answers.
struct Failing {
    catalog: Catalog,
    answers: usize,
}

impl Source for Failing {
    async fn ask(&mut self, query: &Query, _: Revision) -> Result<Answer, CatalogError> {
        let Some(left) = self.answers.checked_sub(1) else {
            return Err(CatalogError::Unknown { message: "no node answers".to_owned() });
        };
        self.answers = left;
        Ok(query.answer(&self.catalog).unwrap())
    }
}

/// A reader knows one group, and of the later changes it gets so many answers before no node
/// answers. Returns what it knows when a node answers again (nothing, if it had everything before)
/// and how many answers it got the first time.
async fn interrupted(later: &Catalog, answers: usize) -> (CatalogView, usize) {
    let (mut reader, mut known) = (Reader::default(), None);
    read(&mut reader, &mut known, &mut InTurn::new([catalog(1)])).await;
    let mut source = Failing { catalog: later.clone(), answers };
    let outcome = reader.catch_up(known.clone(), &mut source).await;
    if outcome.is_ok() {
        return (None, answers - source.answers);
    }
    read(&mut reader, &mut known, &mut InTurn::new([later.clone()])).await;
    (known, answers)
}

#[tokio::test]
async fn changes_of_a_page_behind_which_nobody_answers_are_asked_for_again() {
    // As many changes as are kept, and more: then everything is listed again.
    for groups in [2_500, 20_000] {
        let later = catalog(groups);
        let (_, whole) = interrupted(&later, usize::MAX).await;
        assert!(whole > 2, "it takes several pages");
        for answers in (0..whole).step_by(whole.div_ceil(12)).chain([whole - 1]) {
            let (known, _) = interrupted(&later, answers).await;
            let known = known.expect("it was interrupted");
            assert_eq!(known.groups().len(), later.view().groups().len(), "after {answers}");
            assert!(*known == *later.view(), "after {answers} answers");
        }
    }
}
