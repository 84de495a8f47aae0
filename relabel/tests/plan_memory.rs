//! How many bytes of memory the plan of a run takes for each row: the heap is counted while it is
//! made.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Fixture, pairs_without_images};
use relabel::score::plan::{BYTES_PER_ROW, Plan, PlanOptions};
use runkit::signals::StopFlag;
use schemas::pairs::discover;

/// Bytes that are allocated now, and the most there were.
static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

struct Counting;

#[expect(unsafe_code, reason = "an allocator that counts")]
// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Rows just beyond a size of the captions' hash table, where it is half empty.
const ROWS: [usize; 2] = [240_000, 480_000];

#[test]
fn a_row_takes_the_bytes_that_are_stated() {
    let stop = StopFlag::never();
    let peaks = ROWS.map(|rows| {
        let fixture = Fixture::empty();
        for file in 0..rows / 60_000 {
            let pairs = pairs_without_images(60_000 * file, 60_000);
            fixture.put(&format!("pairs/{file}.parquet"), &pairs);
        }
        let inputs = discover(&[fixture.path("pairs")], &[]).unwrap().files;
        let before = NOW.load(Ordering::Relaxed);
        MOST.store(before, Ordering::Relaxed);
        let plan = Plan::make(&inputs, PlanOptions::default(), &fixture.path("."), &stop).unwrap();
        let most = MOST.load(Ordering::Relaxed) - before;
        assert_eq!(plan.pairs(), rows as u64);
        most as f64
    });
    let bytes = (peaks[1] - peaks[0]) / (ROWS[1] - ROWS[0]) as f64;
    println!("{bytes:.0} bytes a row, {BYTES_PER_ROW} stated; peaks {peaks:.0?}");
    let stated = BYTES_PER_ROW as f64;
    assert!(bytes < stated, "{bytes:.0} bytes a row, {BYTES_PER_ROW} stated");
    assert!(2.0 * bytes > stated, "twice the {bytes:.0} bytes a row would pass: state less");
}
