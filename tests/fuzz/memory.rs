//! Counts the memory that an input takes: an allocator that knows what each thread holds.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Single allocations above this fail while an input runs, and end the process, as they would on a
/// machine that has not so much.
const LARGEST_BYTES: usize = 1 << 30;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
    /// The input that runs, to be written when it ends the process.
    static INPUT: Cell<Option<(*const u8, usize)>> = const { Cell::new(None) };
}

/// The allocator of the system, with an account per thread.
pub struct Counting;

/// Runs an input and returns how many bytes it held at most, beyond those held before.
pub fn peak_of<T>(input: &[u8], run: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get();
    PEAK.set(before);
    INPUT.set(Some((input.as_ptr(), input.len())));
    let result = run();
    INPUT.set(None);
    (result, usize::try_from(PEAK.get() - before).unwrap_or(0))
}

fn account(change: isize) {
    let held = HELD.get() + change;
    HELD.set(held);
    if held > PEAK.get() {
        PEAK.set(held);
    }
}

/// Writes the input of this thread, if it asks for more than any may.
fn refuses(bytes: usize) -> bool {
    if bytes <= LARGEST_BYTES {
        return false;
    }
    // Taken: what follows allocates, too.
    let Some((start, length)) = INPUT.take() else { return false };
    // SAFETY: the input outlives `peak_of`, which takes the pointer back before it returns.
    let input = unsafe { std::slice::from_raw_parts(start, length) };
    let file = concat!(env!("CARGO_TARGET_TMPDIR"), "/fuzz-allocates");
    let kept = std::fs::write(file, input);
    eprintln!("an input asks for {bytes} bytes at once; it stands in {file}: {kept:?}");
    true
}

// SAFETY: everything is the system's; the counters are cells of the thread without destructors.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if refuses(layout.size()) {
            return std::ptr::null_mut();
        }
        account(layout.size() as isize);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        account(-(layout.size() as isize));
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if refuses(layout.size()) {
            return std::ptr::null_mut();
        }
        account(layout.size() as isize);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if refuses(size) {
            return std::ptr::null_mut();
        }
        // Both are held while it is copied.
        account(size as isize);
        account(-(layout.size() as isize));
        unsafe { System.realloc(at, layout, size) }
    }
}
