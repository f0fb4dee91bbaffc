//! Code of users: how it is called, and how what they gave is let go of. A panic in it concerns what
//! was asked of it, and ends no thread of the host.

use std::any::Any;
use std::fmt;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};

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
