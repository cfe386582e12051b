//! Where the threads that share a job wait for each other, awake: to wake a thread costs more than
//! a step of such a job.
#![expect(clippy::disallowed_types, reason = "how long a thread waits")]

use std::time::{Duration, Instant};

// tests/loom runs this file's threads in every order.
#[cfg(loom)]
use loom::{
    hint::spin_loop,
    sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    thread::yield_now,
};
#[cfg(not(loom))]
use std::{
    hint::spin_loop,
    sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    thread::yield_now,
};

/// Looks at the others before the time is taken, and the core is offered to somebody else.
const LOOKS: u32 = 256;

/// A part that comes later than this, and than [`PATIENCE`] times as long as a step took the one that
/// waits, does not run: the machine is busy, and its core is with somebody else for milliseconds.
const LATE: Duration = Duration::from_micros(300);

const PATIENCE: u32 = 3;

/// For parts of a job that run side by side, each on a thread of its own.
pub(crate) struct Barrier {
    /// Rounds that each part has come to.
    rounds: Vec<Rounds>,
    places: AtomicUsize,
    given_up: AtomicBool,
}

/// By one part, read by all others: alone in its two cache lines, which are fetched together.
#[derive(Default)]
#[repr(align(128))]
struct Rounds(AtomicU32);

/// A part's place at a barrier. The others give up if it panics.
pub(crate) struct Attendance<'b> {
    barrier: &'b Barrier,
    place: usize,
    round: u32,
    began: Instant,
}

impl Barrier {
    pub(super) fn new(parts: usize) -> Self {
        Self {
            rounds: (0..parts).map(|_| Rounds::default()).collect(),
            places: AtomicUsize::new(0),
            given_up: AtomicBool::new(false),
        }
    }

    /// To be called once by each part.
    pub(super) fn attend(&self) -> Attendance<'_> {
        let place = self.places.fetch_add(1, Ordering::Relaxed);
        assert!(place < self.rounds.len(), "a part too many at a barrier");
        Attendance {
            barrier: self,
            place,
            round: 0,
            began: Instant::now(),
        }
    }

    /// Whether a part was late or has panicked.
    pub(super) fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }
}

impl Attendance<'_> {
    /// Returns when all parts have called it as often; what they did before can be seen then.
    /// False: a part is late, and the job is given up.
    #[must_use]
    pub(crate) fn wait(&mut self) -> bool {
        let rounds = &self.barrier.rounds;
        self.round += 1;
        rounds[self.place].0.store(self.round, Ordering::Release);
        let others = rounds.iter().enumerate().filter(|(n, _)| *n != self.place);
        others
            .map(|(_, other)| &other.0)
            .all(|other| self.wait_for(other))
            && !self.barrier.is_given_up()
    }

    /// False: the job is given up.
    fn wait_for(&self, other: &AtomicU32) -> bool {
        let mut looks = 0u32;
        let mut longest = None;
        while other.load(Ordering::Acquire) < self.round {
            looks = looks.wrapping_add(1);
            if !looks.is_multiple_of(LOOKS) {
                spin_loop();
                continue;
            }
            let until_now = self.began.elapsed();
            // A step took so long until now, about; then this one is waited for.
            let longest = longest
                .get_or_insert_with(|| until_now + LATE.max(PATIENCE * until_now / self.round));
            if self.barrier.is_given_up() || until_now > *longest {
                self.barrier.given_up.store(true, Ordering::Relaxed);
                return false;
            }
            yield_now();
        }
        true
    }
}

impl Drop for Attendance<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.barrier.given_up.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::device::cpu::Cpu;

    #[test]
    fn every_part_sees_what_all_have_made_or_all_give_up() {
        const PARTS: usize = 3;
        let cpu = Cpu::open(Some(PARTS)).expect("a pool");
        let made = [const { AtomicUsize::new(0) }; PARTS];
        let mut parts: Vec<usize> = (0..PARTS).collect();
        let done = cpu.run(|| {
            cpu.abreast(&mut parts, |part, attendance| {
                for round in 1..500 {
                    made[*part].store(round, Ordering::Relaxed);
                    if !attendance.wait() {
                        return;
                    }
                    for made in &made {
                        assert_eq!(made.load(Ordering::Relaxed), round);
                    }
                    if !attendance.wait() {
                        return;
                    }
                }
            })
        });
        // On a busy machine a part may come late.
        assert!(!done || made.iter().all(|made| made.load(Ordering::Relaxed) == 499));
    }

    #[test]
    fn a_part_that_is_late_is_not_waited_for() {
        let cpu = Cpu::open(Some(2)).expect("a pool");
        let seen = AtomicUsize::new(0);
        let job = || {
            cpu.abreast(&mut [0, 1], |part, attendance| {
                if *part == 1 {
                    // Until the other one has given up.
                    while !attendance.barrier.is_given_up() {
                        std::thread::yield_now();
                    }
                }
                assert!(!attendance.wait());
                seen.fetch_add(1, Ordering::Relaxed);
            })
        };
        assert!(!cpu.run(job));
        assert_eq!(seen.into_inner(), 2);
    }

    #[test]
    fn a_part_that_panics_keeps_nobody_waiting() {
        let cpu = Cpu::open(Some(2)).expect("a pool");
        let job = || {
            cpu.abreast(&mut [0, 1], |part, attendance| {
                assert_eq!(*part, 0, "on purpose");
                while attendance.wait() {}
            })
        };
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| cpu.run(job)));
        assert!(outcome.is_err());
    }

    #[test]
    #[should_panic(expected = "2 parts for 1 thread(s)")]
    fn more_parts_than_threads_are_a_bug() {
        let cpu = Cpu::open(Some(1)).expect("a CPU");
        cpu.abreast(&mut [0, 1], |_, _| ());
    }
}
