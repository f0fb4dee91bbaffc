//! What a run of the suite showed.

use std::fmt;

use super::Scale;

/// What became of one line.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Shown {
    Holds,
    /// It does not: the message of the panic.
    Broken(String),
    /// The factory lacks what it needs: this.
    Skipped(&'static str),
    /// It cannot be shown at this scale.
    Elsewhere,
}

/// What became of each line.
#[must_use = "a report that nobody looks at shows nothing"]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    scale: Scale,
    lines: Vec<(&'static str, Shown)>,
}

impl Report {
    pub(super) fn new(scale: Scale, mut lines: Vec<(&'static str, Shown)>) -> Self {
        lines.sort_unstable_by_key(|(name, _)| *name);
        Self { scale, lines }
    }

    /// Every line by its name.
    #[must_use]
    pub fn lines(&self) -> &[(&'static str, Shown)] {
        &self.lines
    }

    /// The lines that were skipped.
    #[must_use]
    pub fn skipped(&self) -> Vec<&'static str> {
        let skipped = |(name, shown): &(&'static str, Shown)| {
            matches!(shown, Shown::Skipped(_)).then_some(*name)
        };
        self.lines.iter().filter_map(skipped).collect()
    }

    /// For tests: accepts nothing but lines that hold, and exactly these that are skipped.
    ///
    /// # Panics
    /// With the report, on anything else.
    #[track_caller]
    pub fn demand(&self, skipped: &[&str]) {
        let broken = self.lines.iter().any(|(_, shown)| matches!(shown, Shown::Broken(_)));
        assert!(!broken, "{self}");
        let mut expected = skipped.to_vec();
        expected.sort_unstable();
        assert_eq!(self.skipped(), expected, "skipped, and expected to be\n{self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |wanted: fn(&Shown) -> bool| {
            self.lines.iter().filter(|(_, shown)| wanted(shown)).count()
        };
        let holds = count(|shown| *shown == Shown::Holds);
        let elsewhere = count(|shown| *shown == Shown::Elsewhere);
        writeln!(f, "{}: {holds} lines hold, {elsewhere} are for other scales", self.scale)?;
        for (name, shown) in &self.lines {
            match shown {
                Shown::Holds | Shown::Elsewhere => {}
                Shown::Broken(message) => writeln!(f, "BROKEN {name}: {message}")?,
                Shown::Skipped(needs) => writeln!(f, "skipped {name}: needs {needs}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(lines: Vec<(&'static str, Shown)>) -> Report {
        Report::new(Scale::one(), lines)
    }

    #[test]
    fn what_holds_or_belongs_elsewhere_is_accepted() {
        report(vec![("b", Shown::Holds), ("a", Shown::Elsewhere)]).demand(&[]);
    }

    #[test]
    #[should_panic(expected = "BROKEN p1: it broke")]
    fn what_is_broken_is_named() {
        report(vec![("p1", Shown::Broken("it broke".to_owned()))]).demand(&[]);
    }

    #[test]
    #[should_panic(expected = "skipped p1: needs links")]
    fn what_is_skipped_in_silence_is_named() {
        report(vec![("p1", Shown::Skipped("links"))]).demand(&[]);
    }

    #[test]
    #[should_panic(expected = "expected to be")]
    fn what_is_expected_to_be_skipped_and_is_not_is_refused() {
        report(vec![("p1", Shown::Holds)]).demand(&["p1"]);
    }

    #[test]
    fn expected_skips_are_accepted_and_shown() {
        let report = report(vec![("p2", Shown::Skipped("links")), ("p1", Shown::Holds)]);
        report.demand(&["p2"]);
        assert!(report.to_string().contains("skipped p2: needs links"), "{report}");
    }
}
