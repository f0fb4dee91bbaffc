//! Code of users: how it is called, and how what they gave is let go of. A panic in it concerns what
//! was asked of it, and ends no thread of the host.

use std::any::Any;
use std::fmt;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::sync::watch;

/// The message of a panic.
#[must_use]
pub fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned())
}

/// Runs code of a user. An error is what its panic says.
///
/// # Errors
/// The message of the panic.
pub(crate) fn contain<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic_text(&*panic);
        // It is a value of the user, too. One that panics again is not dropped.
        if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
            std::mem::forget(second);
        }
        text
    })
}

/// Lets go of something of a user, which may run code of theirs.
pub(crate) fn let_go<T>(what: &'static str, value: T) {
    if let Err(panic) = contain(|| drop(value)) {
        tracing::error!(what, %panic, "what a user gave panicked when it was dropped");
    }
}

/// Wakes those who wait, which runs code of their executors. Returns whether it ended with a panic.
pub(crate) fn wake(who: &'static str, run: impl FnOnce()) -> bool {
    let panic = contain(run).err();
    if let Some(panic) = &panic {
        tracing::error!(who, %panic, "an executor panicked when its task was woken");
    }
    panic.is_some()
}

/// A value that users watch. Its changes wake them, by code of whatever executors they wait in: a panic there
/// costs no thread of the host. Others that wait may then see a change only with the next one.
pub(crate) struct Watched<T>(Option<watch::Sender<T>>);

impl<T> Watched<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Some(watch::Sender::new(value)))
    }

    fn sender(&self) -> &watch::Sender<T> {
        self.0.as_ref().unwrap_or_else(|| unreachable!("it is only taken when it goes"))
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<T> {
        self.sender().subscribe()
    }

    /// The value now, which does not change while this is held.
    pub(crate) fn borrow(&self) -> watch::Ref<'_, T> {
        self.sender().borrow()
    }

    /// The value from here on.
    pub(crate) fn set(&self, value: T) {
        self.change(|old| {
            *old = value;
            true
        });
    }

    /// Changes the value, and wakes those who watch it if that is news.
    pub(crate) fn change(&self, change: impl FnOnce(&mut T) -> bool) {
        let mut panicked = wake(WATCHES, || {
            self.sender().send_if_modified(change);
        });
        // A panic ends the round: another one wakes those that it did not come to. Each takes at least one task
        // out of those that wait, unless that waits again at once.
        for _ in 0..self.sender().receiver_count() {
            if !panicked {
                return;
            }
            panicked = wake(WATCHES, || self.sender().send_modify(|_| {}));
        }
    }
}

const WATCHES: &str = "who watches a value of the host";

impl<T> Drop for Watched<T> {
    fn drop(&mut self) {
        if let Some(sender) = self.0.take() {
            wake(WATCHES, || drop(sender));
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for Watched<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Something of a user that the host holds, and may be the last to drop, on any of its threads.
pub(crate) struct Foreign<T> {
    what: &'static str,
    /// `None` only while it is being dropped.
    value: Option<T>,
}

impl<T> Foreign<T> {
    /// Holds `value`, of which people know `what` it is.
    pub(crate) const fn new(what: &'static str, value: T) -> Self {
        Self { what, value: Some(value) }
    }

    /// The value, for code that is contained.
    pub(crate) fn into_inner(mut self) -> T {
        self.value.take().unwrap_or_else(|| unreachable!("it is only taken when it goes"))
    }
}

impl<T> Deref for Foreign<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.as_ref().unwrap_or_else(|| unreachable!("it is only taken when it goes"))
    }
}

impl<T: Clone> Clone for Foreign<T> {
    fn clone(&self) -> Self {
        Self { what: self.what, value: self.value.clone() }
    }
}

impl<T> fmt::Debug for Foreign<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }
}

impl<T> Drop for Foreign<T> {
    fn drop(&mut self) {
        if let Some(value) = self.value.take() {
            let_go(self.what, value);
        }
    }
}
