//! Output while a trial runs: events with their time, and a bar for long work.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::Mutex;

use crate::output::number;

/// Something that happened.
#[derive(Clone, Debug)]
pub struct Event {
    pub at: Duration,
    pub text: String,
}

/// Work of fewer steps is over before a line about it could be read.
const WORTH_A_LINE: u64 = 20_000;

/// Where a trial writes to.
#[derive(Debug)]
pub struct Screen {
    started: Instant,
    /// Standard output belongs to the JSON at the end.
    json: bool,
    terminal: bool,
    events: Mutex<Vec<Event>>,
    bar: Mutex<Option<ProgressBar>>,
}

impl Screen {
    /// A screen whose time begins now.
    pub fn new(json: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let (events, bar) = (Mutex::default(), Mutex::default());
        Self { started: Instant::now(), json, terminal, events, bar }
    }

    /// Shows and keeps an event.
    pub fn event(&self, text: impl Into<String>) {
        let event = Event { at: self.started.elapsed(), text: text.into() };
        let line = format!("{:>7.2} s  {}", event.at.as_secs_f64(), event.text);
        self.events.lock().push(event);
        match &*self.bar.lock() {
            Some(bar) => bar.suspend(|| self.print(&line)),
            None => self.print(&line),
        }
    }

    fn print(&self, line: &str) {
        if self.json { eprintln!("{line}") } else { println!("{line}") }
    }

    /// All events.
    pub fn events(&self) -> Vec<Event> {
        self.events.lock().clone()
    }

    /// How long the trial has run.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Begins to show the progress of `total` steps.
    pub fn progress(&self, what: &'static str, total: u64) -> Progress<'_> {
        let bar = self.terminal.then(|| bar(what, total));
        self.bar.lock().clone_from(&bar);
        Progress { screen: self, what, total, bar, shown: 0 }
    }
}

fn bar(what: &'static str, total: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template(
        "          {prefix} [{bar:30}] {human_pos}/{human_len}  {per_sec}",
    );
    if let Ok(style) = style {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_prefix(what);
    bar
}

/// A bar on a terminal, and elsewhere a line at every tenth of long work. Gone when dropped.
#[derive(Debug)]
pub struct Progress<'a> {
    screen: &'a Screen,
    what: &'static str,
    total: u64,
    bar: Option<ProgressBar>,
    shown: u64,
}

impl Progress<'_> {
    /// So many steps are done.
    pub fn set(&mut self, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            return;
        }
        let tenths = done * 10 / self.total.max(1);
        if tenths > self.shown && self.total >= WORTH_A_LINE {
            self.shown = tenths;
            let (done, total) = (number(done), number(self.total));
            eprintln!("          {} {}% ({done} of {total})", self.what, tenths * 10);
        }
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        if let Some(bar) = self.screen.bar.lock().take() {
            bar.finish_and_clear();
        }
    }
}
