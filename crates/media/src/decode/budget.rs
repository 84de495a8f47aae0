//! How many pixels all threads together decode at once.
//!
//! A small file can ask for 100 megapixels. Without a bound on their sum, every thread may decode
//! such a file at the same time, and memory grows with the number of processors. Here an image
//! waits for a permit before its pixels are allocated, and returns it when it is dropped.

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Most pixels that the images of one process hold at once while they are decoded and preprocessed.
/// A pixel then takes at most some 16 bytes (16-bit RGBA before and after it is unpacked), so this
/// is 2 GB, whatever the number of threads. An image larger than the rest of the budget waits.
pub const MOST_PIXELS_AT_ONCE: u64 = 128_000_000;

static BUDGET: Budget = Budget::new(MOST_PIXELS_AT_ONCE);

/// Pixels of the images that this process is decoding or has decoded and not dropped yet.
#[must_use]
pub fn pixels_at_once() -> u64 {
    *BUDGET.taken.lock().unwrap_or_else(PoisonError::into_inner)
}

thread_local! {
    /// How many permits that this thread took are still held, by any thread.
    static HELD: RefCell<Arc<AtomicUsize>> = RefCell::default();
}

/// Waits until the budget has room for an image of so many pixels.
pub(super) fn permit(pixels: u64) -> Permit {
    Permit::new(&BUDGET, pixels)
}

/// A number of pixels, and how many of them are taken.
#[derive(Debug)]
struct Budget {
    limit: u64,
    taken: Mutex<u64>,
    returned: Condvar,
}

impl Budget {
    const fn new(limit: u64) -> Self {
        Self { limit, taken: Mutex::new(0), returned: Condvar::new() }
    }
}

/// An image's pixels of the budget, returned on drop.
#[derive(Debug)]
pub(super) struct Permit {
    budget: &'static Budget,
    pixels: u64,
    /// The count of the thread that took it.
    held: Arc<AtomicUsize>,
}

impl Permit {
    fn new(budget: &'static Budget, pixels: u64) -> Self {
        let held = HELD.with_borrow(Arc::clone);
        let mut taken = budget.taken.lock().unwrap_or_else(PoisonError::into_inner);
        // Two threads that each hold an image and wait for a second one would wait for ever, so a
        // thread that holds one does not wait. An image larger than the budget goes alone.
        while held.load(Ordering::Relaxed) == 0 && *taken > 0 && *taken + pixels > budget.limit {
            taken = budget.returned.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        *taken += pixels;
        held.fetch_add(1, Ordering::Relaxed);
        drop(taken);
        Self { budget, pixels, held }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut taken = self.budget.taken.lock().unwrap_or_else(PoisonError::into_inner);
        *taken -= self.pixels;
        self.held.fetch_sub(1, Ordering::Relaxed);
        drop(taken);
        self.budget.returned.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;
    use std::time::Duration;

    use super::*;

    #[test]
    fn threads_together_stay_below_the_bound() {
        static SMALL: Budget = Budget::new(100);
        static MOST: AtomicU64 = AtomicU64::new(0);
        static TIMES: AtomicU64 = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for thread in 0..16_u64 {
                scope.spawn(move || {
                    for time in 0..20 {
                        let permit = Permit::new(&SMALL, 20 + (thread + time) % 60);
                        let taken = *SMALL.taken.lock().unwrap();
                        MOST.fetch_max(taken, Ordering::Relaxed);
                        TIMES.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(Duration::from_micros(50));
                        drop(permit);
                    }
                });
            }
        });
        assert_eq!(TIMES.load(Ordering::Relaxed), 16 * 20);
        let most = MOST.load(Ordering::Relaxed);
        assert!((20..=100).contains(&most), "{most} pixels at once, at most 100 are allowed");
        assert_eq!(*SMALL.taken.lock().unwrap(), 0);
    }

    #[test]
    fn a_thread_that_holds_an_image_does_not_wait_and_a_huge_image_goes_alone() {
        static SMALL: Budget = Budget::new(100);
        let first = Permit::new(&SMALL, 90);
        let second = Permit::new(&SMALL, 90);
        assert_eq!(*SMALL.taken.lock().unwrap(), 180);
        // Another thread may return a permit.
        std::thread::scope(|scope| {
            scope.spawn(move || drop((first, second)));
        });
        let huge = std::thread::spawn(|| drop(Permit::new(&SMALL, 1000)));
        huge.join().unwrap();
        assert_eq!(*SMALL.taken.lock().unwrap(), 0);
    }
}
