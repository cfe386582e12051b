//! Which cores the threads of one call are on, so that none stays on another's.
//!
//! Linux puts a thread that wakes where it was, and looks for an idle core only if the machine was
//! not busy in the last tens of milliseconds. Two threads that wait for each other awake may so
//! share a core while another idles, for many calls: each then takes longer than with one thread.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Of a thread that has not been seen.
const NOWHERE: usize = usize::MAX;

/// The cores of the threads of a call.
pub(super) struct Cores {
    of: Vec<AtomicUsize>,
}

impl Cores {
    pub(super) fn new(threads: usize) -> Self {
        let of = (0..threads).map(|_| AtomicUsize::new(NOWHERE)).collect();
        Self { of }
    }

    /// Notes where the thread `own`, which calls it, is.
    pub(super) fn stay(&self, own: usize) {
        self.of[own].store(current(), Ordering::Relaxed);
    }

    /// As [`Cores::stay`], after it has left a core that another thread has, if this process may use
    /// one that none has.
    pub(super) fn settle(&self, own: usize) {
        let core = current();
        let others = || {
            let others = self.of.iter().enumerate().filter(|(n, _)| *n != own);
            others.map(|(_, core)| core.load(Ordering::Relaxed))
        };
        if core != NOWHERE && others().any(|other| other == core) {
            leave(others());
        }
        self.stay(own);
    }
}

#[cfg(target_os = "linux")]
fn current() -> usize {
    rustix::thread::sched_getcpu()
}

/// Moves this thread to a core that is not among `taken`: it forbids itself those for a moment.
#[cfg(target_os = "linux")]
fn leave(taken: impl Iterator<Item = usize>) {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let Ok(allowed) = sched_getaffinity(None) else {
        return;
    };
    let mut free = allowed;
    for core in taken.filter(|core| *core < CpuSet::MAX_CPU) {
        free.unset(core);
    }
    // Without leave to do so all stays as it is.
    if free.count() > 0 && sched_setaffinity(None, &free).is_ok() {
        let _ = sched_setaffinity(None, &allowed);
    }
}

#[cfg(not(target_os = "linux"))]
fn current() -> usize {
    NOWHERE
}

#[cfg(not(target_os = "linux"))]
fn leave(_: impl Iterator<Item = usize>) {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use rustix::thread::sched_getaffinity;

    #[test]
    fn a_thread_leaves_a_core_that_another_has_and_keeps_its_leave_to_return() {
        let before = sched_getaffinity(None).expect("Linux");
        let cores = Cores::new(3);
        cores.settle(0);
        let first = cores.of[0].load(Ordering::Relaxed);
        // This thread again, as another of the same pool.
        cores.settle(1);
        let second = cores.of[1].load(Ordering::Relaxed);
        assert_eq!(first == second, before.count() < 2);
        assert!(before.is_set(second));
        // Where all cores have a thread it stays.
        let all = Cores::new(before.count() as usize + 1);
        let every = (0..rustix::thread::CpuSet::MAX_CPU).filter(|core| before.is_set(*core));
        for (of, core) in all.of[1..].iter().zip(every) {
            of.store(core, Ordering::Relaxed);
        }
        all.settle(0);
        assert_eq!(sched_getaffinity(None).expect("Linux"), before);
    }
}
