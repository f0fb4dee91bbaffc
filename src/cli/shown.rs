//! Text from outside on a terminal. Clients choose keys and bodies, operators choose owners and reasons:
//! what controls a terminal or changes the order of letters is shown as its number.
//!
//! The macros of this module take the place of those of the same name in the whole program, so that no
//! line is printed without this. What they escape is escaped as in JSON, so JSON stays what it is.

use std::borrow::Cow;
use std::fmt::Write;

/// Prints a line to standard output, with what controls a terminal escaped.
macro_rules! println {
    () => { std::println!() };
    ($($text:tt)*) => { std::println!("{}", $crate::shown::lines(&format!($($text)*))) };
}

/// Prints a line to standard error, with what controls a terminal escaped.
macro_rules! eprintln {
    () => { std::eprintln!() };
    ($($text:tt)*) => { std::eprintln!("{}", $crate::shown::lines(&format!($($text)*))) };
}

/// A text from outside, on one line.
pub fn shown(text: &str) -> String {
    escaped(text, &is_escaped).into_owned()
}

/// Lines of this program, of which each may quote a text from outside.
pub fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, &|letter| letter != '\n' && is_escaped(letter))
}

fn escaped<'a>(text: &'a str, is_escaped: &dyn Fn(char) -> bool) -> Cow<'a, str> {
    if !text.contains(is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for letter in text.chars() {
        match letter {
            plain if !is_escaped(plain) => safe.push(plain),
            '\n' => safe.push_str("\\n"),
            '\r' => safe.push_str("\\r"),
            '\t' => safe.push_str("\\t"),
            // All of them have four digits.
            other => drop(write!(safe, "\\u{:04x}", u32::from(other))),
        }
    }
    Cow::Owned(safe)
}

/// Controls, what ends a line elsewhere, and what changes the order of the letters around it.
fn is_escaped(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{feff}')
        || matches!(letter, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_controls_a_terminal_is_shown_as_its_number() {
        for (text, safe) in [
            ("red", "red"),
            ("größer ✓", "größer ✓"),
            ("\u{1b}[2J\u{7}", "\\u001b[2J\\u0007"),
            ("\u{9b}31m\u{7f}", "\\u009b31m\\u007f"),
            ("a\r\n\tb", "a\\r\\n\\tb"),
            ("\u{202e}drow\u{2028}", "\\u202edrow\\u2028"),
        ] {
            assert_eq!(shown(text), safe);
        }
        assert_eq!(lines("a\nb\u{1b}"), "a\nb\\u001b");
    }

    #[test]
    fn json_stays_what_it_is() {
        let text: String = (0..0x3000).filter_map(char::from_u32).collect();
        let value = serde_json::json!({ "key": text, "more": [text] });
        for written in [value.to_string(), serde_json::to_string_pretty(&value).unwrap()] {
            let printed = lines(&written);
            assert!(!printed.chars().any(|letter| letter != '\n' && is_escaped(letter)));
            assert_eq!(serde_json::from_str::<serde_json::Value>(&printed).unwrap(), value);
        }
    }
}
