//! Whether other work keeps the threads of calls from their cores.
//!
//! Threads that share a job of a millisecond wait for each other all the time. Where one of them has
//! to wait for a core, which takes milliseconds, the caller alone is several times faster.
#![expect(clippy::disallowed_types, reason = "how long threads take to come")]

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Threads that come later than this, and than a quarter of the job, are held up.
const LATE: Duration = Duration::from_micros(200);

/// How long the caller computes alone; twice as long each time that it is still so.
const FIRST: Duration = Duration::from_millis(20);

const LONGEST: Duration = Duration::from_secs(1);

/// What the calls of a pool have found.
#[derive(Default)]
pub(super) struct Crowd {
    /// Until when the caller computes alone, and how long that is.
    alone: Mutex<Option<(Instant, Duration)>>,
}

/// Whether the threads of a call that `took` so long, of which one saw its end so `late`, were held up.
pub(super) fn is_late(took: Duration, late: Duration) -> bool {
    late > LATE.max(took / 4)
}

impl Crowd {
    /// Whether the caller should compute alone.
    pub(super) fn is_there(&self) -> bool {
        self.alone()
            .is_some_and(|(until, _)| Instant::now() < until)
    }

    fn alone(&self) -> MutexGuard<'_, Option<(Instant, Duration)>> {
        self.alone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After a call that `took` so long, of which one thread saw its end so `late`.
    pub(super) fn note(&self, took: Duration, late: Duration) {
        let mut alone = self.alone();
        *alone = is_late(took, late).then(|| {
            let long = alone.map_or(FIRST, |(_, long)| (2 * long).min(LONGEST));
            (Instant::now() + long, long)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caller_is_alone_while_threads_are_held_up_and_for_longer_each_time() {
        let (crowd, ms) = (Crowd::default(), Duration::from_millis);
        let long = |crowd: &Crowd| crowd.alone().map(|(_, long)| long);
        crowd.note(ms(1), Duration::from_micros(100));
        assert!(!crowd.is_there());
        // Three milliseconds are late behind one, and not behind a hundred.
        crowd.note(ms(100), ms(3));
        assert!(!crowd.is_there());
        crowd.note(ms(1), ms(3));
        assert!(crowd.is_there());
        assert_eq!(long(&crowd), Some(FIRST));
        crowd.note(ms(1), ms(3));
        assert_eq!(long(&crowd), Some(2 * FIRST));
        (0..20).for_each(|_| crowd.note(ms(1), ms(3)));
        assert_eq!(long(&crowd), Some(LONGEST));
        crowd.note(ms(1), Duration::ZERO);
        assert!(!crowd.is_there());
        crowd.note(ms(1), ms(3));
        assert_eq!(long(&crowd), Some(FIRST));
    }

    #[test]
    fn calls_of_a_pool_whose_threads_are_held_up_run_alone_and_side_by_side() {
        let cpu = crate::device::cpu::Cpu::open(Some(2)).expect("a pool");
        let threads = || cpu.run(|| cpu.reachable());
        assert_eq!(threads(), 2);
        cpu.crowd.note(Duration::ZERO, LONGEST);
        assert_eq!(threads(), 1);
        // Two at once, each with a call inside; a third would wait.
        let both = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    cpu.run(|| {
                        both.wait();
                        assert_eq!(threads(), 1);
                        both.wait();
                    });
                });
            }
        });
        cpu.forget_crowd();
        assert_eq!(threads(), 2);
    }
}
