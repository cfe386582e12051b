//! What a warm route allocates: pieces of its answer and a few lists, nothing as large as a matrix.
#![allow(clippy::unwrap_used, missing_docs, unsafe_code, reason = "tests")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{bundle, cpu, store};
use hubrouter::{Encoder, ErrorKind, Precision, Request, Router};

/// The system's allocator, which counts.
struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);
static LARGEST: AtomicUsize = AtomicUsize::new(0);

fn count(bytes: usize) {
    COUNT.fetch_add(1, Ordering::Relaxed);
    BYTES.fetch_add(bytes, Ordering::Relaxed);
    LARGEST.fetch_max(bytes, Ordering::Relaxed);
}

// SAFETY: every call is the system allocator's, with the caller's own arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(place, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The counters are the process's: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Calls of which [`allocated`] takes the median.
const CALLS: usize = 9;

/// Allocations, their bytes and the largest of a warm call of `f`: the median of each over several
/// calls, since a thread that had no part in the first ones makes its own buffers in a later one.
fn allocated(mut f: impl FnMut()) -> [usize; 3] {
    let counters = [&COUNT, &BYTES, &LARGEST];
    let mut found = counters.map(|_| Vec::with_capacity(CALLS));
    for _ in 0..CALLS {
        for counter in counters {
            counter.store(0, Ordering::Relaxed);
        }
        f();
        let counts = counters.map(|counter| counter.load(Ordering::Relaxed));
        for (found, count) in found.iter_mut().zip(counts) {
            found.push(count);
        }
    }
    found.map(|mut counts| {
        counts.sort_unstable();
        counts[CALLS / 2]
    })
}

/// A prompt of about this many words, each a token.
fn prompt(words: usize) -> String {
    let words = ["find", "a", "model", "that", "reads", "scanned", "letters"]
        .iter()
        .cycle()
        .take(words);
    words.copied().collect::<Vec<_>>().join(" ")
}

/// The forward pass in low precision allocates nothing as large as its rows: 72 in all are found, in
/// 33 kB, most of them the answer's.
#[test]
fn a_warm_route_in_low_precision_allocates_no_more_than_its_answer() {
    let _alone = ALONE.lock().unwrap();
    for precision in [Precision::Int8, Precision::Bf16] {
        let options = cpu(1).precision(precision);
        let router = match Router::open(store(), options) {
            Ok(router) => router,
            Err(error) => {
                // This CPU has no kernel for it.
                assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
                continue;
            }
        };
        for words in [20, 100] {
            let text = prompt(words);
            let request = Request::new(text.as_str());
            let [count, bytes, _] = allocated(|| assert!(router.route(&request).is_ok()));
            assert!(
                count <= 80 && bytes < 128 << 10,
                "{precision}: {count}, {bytes} bytes"
            );
        }
    }
}

/// Of 97 allocations of a warm `embed` on one thread most are a product's list of row slices, 16
/// bytes a row, and the keys and values of a head; a route's other 48 are the answer. More threads
/// have more lists and the pool's jobs. A list may grow once more for a longer prompt.
#[test]
fn a_warm_call_allocates_lists_and_its_answer_but_no_matrix() {
    /// Less than [T, H] of the longest prompt here, the smallest matrix of its forward pass.
    const LARGE: usize = 64 << 10;
    let _alone = ALONE.lock().unwrap();
    for (threads, most) in [(1, [104, 156]), (2, [165, 225])] {
        let encoder = Encoder::open(bundle(), &cpu(threads)).unwrap();
        let router = Router::open(store(), cpu(threads)).unwrap();
        let calls = [20, 100].map(|words| {
            let text = prompt(words);
            let request = Request::new(text.as_str());
            let embed = allocated(|| assert!(encoder.embed(&[text.as_str()])[0].is_ok()));
            let route = allocated(|| assert!(router.route(&request).is_ok()));
            [embed, route]
        });
        for found in calls {
            for ([count, bytes, largest], most) in found.into_iter().zip(most) {
                assert!(count <= most, "{threads} threads: {count}, not {most}");
                assert!(
                    bytes < 512 << 10 && largest < LARGE,
                    "{threads} threads: {bytes} bytes, {largest} at once"
                );
            }
        }
    }
}
