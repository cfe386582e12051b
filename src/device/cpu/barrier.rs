//! Where the threads that share a job wait for each other, awake: to wake a thread costs more than
//! a step of such a job.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Looks at the others before the core is offered to somebody else.
const LOOKS: u32 = 1024;

/// For parts of a job that run side by side, each on a thread of its own.
pub(crate) struct Barrier {
    parts: usize,
    /// Parts that wait in this round.
    arrived: AtomicUsize,
    rounds: AtomicUsize,
    failed: AtomicBool,
}

/// Sets the other parts free if this one panics.
pub(super) struct Attendance<'b>(&'b Barrier);

impl Barrier {
    pub(crate) fn new(parts: usize) -> Self {
        Self {
            parts,
            arrived: AtomicUsize::new(0),
            rounds: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
        }
    }

    /// Returns when all parts have called it as often. What they did before can be seen then.
    ///
    /// # Panics
    ///
    /// If another part has.
    pub(crate) fn wait(&self) {
        if self.parts < 2 {
            return;
        }
        let round = self.rounds.load(Ordering::Relaxed);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.parts {
            self.arrived.store(0, Ordering::Relaxed);
            self.rounds.store(round.wrapping_add(1), Ordering::Release);
            return;
        }
        let mut looks = 0u32;
        while self.rounds.load(Ordering::Acquire) == round {
            assert!(
                !self.failed.load(Ordering::Relaxed),
                "another part of the job failed"
            );
            looks = looks.wrapping_add(1);
            if looks.is_multiple_of(LOOKS) {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
    }

    pub(super) fn attend(&self) -> Attendance<'_> {
        Attendance(self)
    }
}

impl Drop for Attendance<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.failed.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::Cpu;

    #[test]
    fn every_part_sees_what_all_have_made() {
        const PARTS: usize = 3;
        let cpu = Cpu::open(Some(PARTS)).expect("a pool");
        let barrier = Barrier::new(PARTS);
        let made = [const { AtomicUsize::new(0) }; PARTS];
        let mut parts: Vec<usize> = (0..PARTS).collect();
        cpu.run(|| {
            cpu.abreast(&mut parts, &barrier, |part| {
                for round in 1..500 {
                    made[*part].store(round, Ordering::Relaxed);
                    barrier.wait();
                    for made in &made {
                        assert_eq!(made.load(Ordering::Relaxed), round);
                    }
                    barrier.wait();
                }
            });
        });
        assert!(made.iter().all(|made| made.load(Ordering::Relaxed) == 499));
    }

    #[test]
    fn a_part_that_panics_keeps_nobody_waiting() {
        let cpu = Cpu::open(Some(2)).expect("a pool");
        let barrier = Barrier::new(2);
        let job = || {
            cpu.abreast(&mut [0, 1], &barrier, |part| {
                barrier.wait();
                assert_eq!(*part, 0, "on purpose");
                barrier.wait();
            });
        };
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| cpu.run(job)));
        assert!(outcome.is_err());
    }

    #[test]
    #[should_panic(expected = "2 parts for 1 thread(s)")]
    fn more_parts_than_threads_are_a_bug() {
        let cpu = Cpu::open(Some(1)).expect("a CPU");
        cpu.abreast(&mut [0, 1], &Barrier::new(2), |_| ());
    }
}
