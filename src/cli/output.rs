//! How things are shown: aligned tables with numbers at the right, and JSON.

use std::io::IsTerminal;
use std::sync::OnceLock;
use std::time::Duration;

use comfy_table::presets::{ASCII_FULL_CONDENSED, UTF8_FULL_CONDENSED};
use comfy_table::{CellAlignment, ContentArrangement, Table};
use serde_json::{Value, json};

use super::shown::shown;

/// The alignment of the cells of a column.
#[derive(Clone, Copy, Debug)]
pub enum Column {
    Left(&'static str),
    Right(&'static str),
}

impl Column {
    const fn title(self) -> &'static str {
        match self {
            Self::Left(title) | Self::Right(title) => title,
        }
    }

    const fn alignment(self) -> CellAlignment {
        match self {
            Self::Left(_) => CellAlignment::Left,
            Self::Right(_) => CellAlignment::Right,
        }
    }
}

/// A cell of a table, with nothing in it that controls a terminal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell(String);

impl From<String> for Cell {
    /// One line, whatever the text is.
    fn from(text: String) -> Self {
        Self(shown(&text))
    }
}

impl Cell {
    /// A line for each of these texts.
    pub fn of_lines(texts: impl IntoIterator<Item = String>) -> Self {
        let lines: Vec<String> = texts.into_iter().map(|text| shown(&text)).collect();
        Self(lines.join("\n"))
    }
}

/// What tables are drawn for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Screen {
    /// A terminal with lines; tables are as wide as it is.
    Lines,
    /// A terminal that shows ASCII; tables are as wide as it is.
    Ascii,
    /// A file or a pipe: ASCII, a line per row, however long.
    Pipe,
}

impl Screen {
    fn current() -> Self {
        static SCREEN: OnceLock<Screen> = OnceLock::new();
        *SCREEN.get_or_init(|| {
            let variable = |name: &str| std::env::var(name).ok();
            Self::of(std::io::stdout().is_terminal(), variable)
        })
    }

    /// The first of these variables that is set names the encoding.
    fn of(is_terminal: bool, variable: impl Fn(&str) -> Option<String>) -> Self {
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .into_iter()
            .find_map(|name| variable(name).filter(|locale| !locale.is_empty()));
        let encoding = locale.unwrap_or_default().to_ascii_lowercase().replace('-', "");
        match (is_terminal, encoding.contains("utf8")) {
            (false, _) => Self::Pipe,
            (true, true) => Self::Lines,
            (true, false) => Self::Ascii,
        }
    }

    fn empty_table(self) -> Table {
        let mut table = Table::new();
        table.load_style(if self == Self::Lines {
            UTF8_FULL_CONDENSED
        } else {
            ASCII_FULL_CONDENSED
        });
        if self != Self::Pipe {
            table.set_content_arrangement(ContentArrangement::Dynamic);
        }
        table
    }
}

/// A table with a line per row.
pub fn table(columns: &[Column], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    drawn(Screen::current().empty_table(), columns, rows)
}

fn drawn(
    mut table: Table,
    columns: &[Column],
    rows: impl IntoIterator<Item = Vec<String>>,
) -> String {
    table.set_header(columns.iter().map(|column| column.title()));
    for row in rows {
        table.add_row(row.into_iter().map(|text| Cell::from(text).0));
    }
    for (at, column) in columns.iter().enumerate() {
        if let Some(shown) = table.column_mut(at) {
            shown.set_cell_alignment(column.alignment());
        }
    }
    table.to_string()
}

/// A table of names and what they are.
pub fn facts<C: Into<Cell>>(rows: impl IntoIterator<Item = (&'static str, C)>) -> String {
    let mut table = Screen::current().empty_table();
    for (name, value) in rows {
        table.add_row([name.to_owned(), value.into().0]);
    }
    table.to_string()
}

/// Where operators, or clients, reach a node: where nodes do, unless it says another address.
pub const fn address_for<'a>(address: &'a str, said: &'a str) -> &'a str {
    if said.is_empty() { address } else { said }
}

/// Where nodes reach a node, and what it says of operators and clients, if they do so elsewhere.
pub fn reached_at(address: &str, admin: &str, client: &str) -> String {
    let mut all = address.to_owned();
    for (who, said) in [("operators", admin), ("clients", client)] {
        let other = address_for(address, said);
        if other != address {
            all.push_str(&format!(", {who} {other}"));
        }
    }
    all
}

/// A whole number with its thousands apart.
pub fn number(value: u64) -> String {
    let digits = value.to_string();
    let mut shown = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}

/// So many of a thing, by its word for one of them.
pub fn counted(count: u64, thing: &str) -> String {
    format!("{} {thing}{}", number(count), by_count(count, "", "s"))
}

/// What is said of one thing, or of several.
pub const fn by_count<'a>(count: u64, one: &'a str, several: &'a str) -> &'a str {
    if count == 1 { one } else { several }
}

/// A whole number as it is typed, or as [`number`] prints it.
pub fn whole(text: &str) -> Result<u64, String> {
    let plain = text.replace(',', "");
    match plain.parse::<u64>() {
        Ok(value) if text == plain || text == number(value) => Ok(value),
        _ => Err("it is no whole number".to_owned()),
    }
}

/// The same within bounds.
pub fn whole_in<N: TryFrom<u64>>(
    bounds: std::ops::RangeInclusive<u64>,
) -> impl Fn(&str) -> Result<N, String> + Clone {
    move |text| {
        let value = whole(text)?;
        let kept = Some(value).filter(|value| bounds.contains(value));
        let kept = kept.and_then(|value| N::try_from(value).ok());
        kept.ok_or_else(|| format!("it is not in {}..={}", bounds.start(), bounds.end()))
    }
}

/// Microseconds as milliseconds; nothing for none.
pub fn millis(micros: u64) -> String {
    match micros {
        0 => "-".to_owned(),
        micros => format!("{:.1} ms", micros as f64 / 1e3),
    }
}

/// Seconds with two digits behind the point.
pub fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}

/// A time span of milliseconds in its two largest units.
pub fn span(millis: u64) -> String {
    let seconds = millis.div_ceil(1_000);
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

/// Bytes for people, on one line.
pub fn text(bytes: &[u8]) -> String {
    shown(&String::from_utf8_lossy(bytes))
}

/// Bytes for programs: a string, or their hexadecimal digits where they are none.
pub fn bytes_json(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => {
            let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            json!({ "hex": digits })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_once_where_others_reach_the_node_there_too() {
        assert_eq!(reached_at("n:1", "", ""), "n:1");
        assert_eq!(reached_at("n:1", "n:1", "c:1"), "n:1, clients c:1");
        assert_eq!(reached_at("n:1", "o:1", ""), "n:1, operators o:1");
        assert_eq!(reached_at("n:1", "o:1", "c:1"), "n:1, operators o:1, clients c:1");
    }

    #[test]
    fn thousands_stand_apart() {
        let shown = [0, 7, 999, 1_000, 208_668, 1_234_567].map(number);
        assert_eq!(shown, ["0", "7", "999", "1,000", "208,668", "1,234,567"]);
    }

    #[test]
    fn one_thing_is_no_several() {
        let all = [0, 1, 2, 1_000].map(|count| counted(count, "voter"));
        assert_eq!(all, ["0 voters", "1 voter", "2 voters", "1,000 voters"]);
    }

    #[test]
    fn numbers_that_are_printed_can_be_typed() {
        for value in [0, 999, 1_000, 1_176, u64::MAX] {
            assert_eq!(whole(&number(value)), Ok(value));
            assert_eq!(whole(&value.to_string()), Ok(value));
        }
        for wrong in ["", "1,17", ",1", "1.176", "-1", "1,,176", "18446744073709551616"] {
            assert!(whole(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn numbers_with_bounds_can_be_typed_as_they_are_printed() {
        let parse = whole_in::<u32>(1..=10_000);
        assert_eq!((parse("1,000"), parse("10000")), (Ok(1_000), Ok(10_000)));
        for wrong in ["0", "10,001", "1,00", "-1", ""] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        assert!(whole_in::<u32>(0..=u64::MAX)("4294967296").is_err());
    }

    #[test]
    fn spans_of_time_have_units() {
        let shown = [0, 1, 59_000, 3_599_000, 3_600_000, 86_399_000, 90_000_000].map(span);
        assert_eq!(
            shown,
            ["0 s", "1 s", "59 s", "59 min 59 s", "1 h 0 min", "23 h 59 min", "1 d 1 h"]
        );
    }

    #[test]
    fn numbers_stand_at_the_right_of_their_column() {
        let columns = [Column::Left("name"), Column::Right("count")];
        let rows = [("a", "1"), ("b", "1,000")];
        let shown = |screen: Screen| {
            let rows = rows.map(|(name, count)| vec![name.into(), count.into()]);
            drawn(screen.empty_table(), &columns, rows)
        };
        let lines = shown(Screen::Lines);
        assert!(lines.contains("┆     1 │"), "{lines}");
        assert!(lines.contains("┆ 1,000 │"), "{lines}");
        for screen in [Screen::Ascii, Screen::Pipe] {
            let plain = shown(screen);
            assert!(plain.is_ascii() && plain.contains("| 1,000 |"), "{plain}");
        }
    }

    #[test]
    fn nothing_that_clients_write_controls_a_terminal() {
        let evil = "a\u{1b}[2J\n| 7 | forged\u{9b}\r\u{202e}";
        let columns = [Column::Left("key"), Column::Left("value")];
        for screen in [Screen::Lines, Screen::Ascii, Screen::Pipe] {
            let rows = [vec![evil.to_owned(), text(evil.as_bytes())]];
            let drawn = drawn(screen.empty_table(), &columns, rows);
            assert!(!drawn.contains(|c: char| c != '\n' && c.is_control()), "{drawn:?}");
            assert!(!drawn.contains('\u{202e}') && drawn.contains("\\u001b[2J\\n| 7"), "{drawn}");
        }
        let shown = facts([("asked by", evil.to_owned())]);
        assert!(shown.contains("\\u001b[2J\\n| 7") && !shown.contains('\u{1b}'), "{shown}");
        let cells = Cell::of_lines(["one\n".to_owned(), evil.to_owned()]);
        assert_eq!(cells.0.lines().count(), 2, "{cells:?}");
        assert!(!text(b"\x1b\xff\x07\n").contains(char::is_control));
    }

    #[test]
    fn a_table_is_no_wider_than_its_terminal() {
        let columns = [Column::Left("name"), Column::Left("what")];
        let long = "a long word ".repeat(20);
        let rows = || [vec!["a".to_owned(), long.clone()]];
        let mut narrow = Screen::Ascii.empty_table();
        narrow.set_width(60);
        let narrow = drawn(narrow, &columns, rows());
        assert!(narrow.lines().all(|line| line.len() <= 60), "{narrow}");
        let pipe = drawn(Screen::Pipe.empty_table(), &columns, rows());
        assert_eq!(pipe.lines().count(), 5, "a line per row: {pipe}");
    }

    #[test]
    fn lines_are_drawn_where_they_can_be_seen() {
        let of = |is_terminal, locale: &[(&str, &str)]| {
            let variable = |name: &str| {
                let found = locale.iter().find(|(key, _)| *key == name);
                found.map(|(_, value)| (*value).to_owned())
            };
            Screen::of(is_terminal, variable)
        };
        let utf8 = [("LANG", "de_DE.UTF-8")];
        assert_eq!(of(true, &utf8), Screen::Lines);
        assert_eq!(of(true, &[("LC_ALL", ""), ("LC_CTYPE", "C.utf8")]), Screen::Lines);
        assert_eq!(of(false, &utf8), Screen::Pipe);
        assert_eq!(of(true, &[("LC_ALL", "C"), ("LANG", "de_DE.UTF-8")]), Screen::Ascii);
        assert_eq!(of(true, &[]), Screen::Ascii);
    }

    #[test]
    fn bytes_that_are_no_text_are_shown_in_hexadecimal() {
        assert_eq!(bytes_json(b"word"), json!("word"));
        assert_eq!(bytes_json(&[0xff, 0x01]), json!({ "hex": "ff01" }));
    }
}
