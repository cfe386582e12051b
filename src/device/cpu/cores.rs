//! Which cores the threads of one call are on, so that none stays on another's.
//!
//! Linux puts a thread that wakes where it was, and looks for an idle core only if the machine was
//! not busy in the last tens of milliseconds. Two threads that wait for each other awake may so
//! share a core while another idles, for many calls: each then takes longer than with one thread.
//! A helper that wakes on its caller's core stops the caller, and to move it takes 60 us of both, so
//! it is kept from that core before.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Of a thread that has not been seen.
const NOWHERE: usize = usize::MAX;

/// The cores of the threads of a call: the caller, and its helpers from 1.
pub(super) struct Cores {
    of: Vec<AtomicUsize>,
    helpers: Vec<system::Handle>,
}

impl Cores {
    pub(super) fn new(threads: usize) -> Self {
        let of = (0..threads).map(|_| AtomicUsize::new(NOWHERE)).collect();
        Self {
            of,
            helpers: (1..threads).map(|_| system::Handle::default()).collect(),
        }
    }

    /// To be called by the helper `own` before all else. A new thread is often on the core of the one
    /// that made it.
    pub(super) fn join(&self, own: usize) {
        self.helpers[own - 1].take();
        self.of[own].store(system::current(), Ordering::Relaxed);
    }

    /// To be called by the caller before it wakes helpers: those that were on its core will wake on
    /// others, if this process may use some.
    pub(super) fn begin(&self) {
        let core = system::current();
        self.of[0].store(core, Ordering::Relaxed);
        for (helper, of) in self.helpers.iter().zip(&self.of[1..]) {
            if core != NOWHERE && of.load(Ordering::Relaxed) == core {
                helper.keep_from(core);
            }
        }
    }

    /// Notes where the helper `own`, which calls it, is, after it has left a core that another
    /// thread has, if this process may use one that none has.
    pub(super) fn settle(&self, own: usize) {
        let core = system::current();
        let others = || {
            let others = self.of.iter().enumerate().filter(|(n, _)| *n != own);
            others.map(|(_, core)| core.load(Ordering::Relaxed))
        };
        if core != NOWHERE && others().any(|other| other == core) {
            system::leave(others());
        }
        self.of[own].store(system::current(), Ordering::Relaxed);
    }
}

#[cfg(target_os = "linux")]
mod system {
    use std::sync::OnceLock;

    use rustix::thread::{CpuSet, Pid, gettid, sched_getaffinity, sched_getcpu, sched_setaffinity};

    /// A thread, once it has begun.
    #[derive(Default)]
    pub(super) struct Handle(OnceLock<Pid>);

    impl Handle {
        pub(super) fn take(&self) {
            let _ = self.0.set(gettid());
        }

        /// Lets it have all cores that this thread may have, but for `core`.
        pub(super) fn keep_from(&self, core: usize) {
            let Some(mut others) = self.0.get().and(sched_getaffinity(None).ok()) else {
                return;
            };
            if core < CpuSet::MAX_CPU {
                others.unset(core);
            }
            // Without leave to do so all stays as it is.
            if others.count() > 0 {
                let _ = sched_setaffinity(self.0.get().copied(), &others);
            }
        }
    }

    pub(super) fn current() -> usize {
        sched_getcpu()
    }

    /// Moves this thread to a core that is not among `taken`: it forbids itself those for a moment.
    pub(super) fn leave(taken: impl Iterator<Item = usize>) {
        let Ok(allowed) = sched_getaffinity(None) else {
            return;
        };
        let mut free = allowed;
        for core in taken.filter(|core| *core < CpuSet::MAX_CPU) {
            free.unset(core);
        }
        if free.count() > 0 && sched_setaffinity(None, &free).is_ok() {
            let _ = sched_setaffinity(None, &allowed);
        }
    }
}

/// Other systems look for idle cores themselves.
#[cfg(not(target_os = "linux"))]
mod system {
    #[derive(Default)]
    pub(super) struct Handle;

    impl Handle {
        pub(super) fn take(&self) {}

        pub(super) fn keep_from(&self, _: usize) {}
    }

    pub(super) fn current() -> usize {
        super::NOWHERE
    }

    pub(super) fn leave(_: impl Iterator<Item = usize>) {}
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use std::sync::mpsc::channel;

    use super::*;
    use rustix::thread::{CpuSet, sched_getaffinity};

    #[test]
    fn a_helper_leaves_a_core_that_another_has_and_keeps_its_leave_to_return() {
        let before = sched_getaffinity(None).unwrap();
        let cores = Cores::new(3);
        cores.settle(1);
        let first = cores.of[1].load(Ordering::Relaxed);
        // This thread again, as another helper.
        cores.settle(2);
        let second = cores.of[2].load(Ordering::Relaxed);
        assert_eq!(first == second, before.count() < 2);
        assert!(before.is_set(second));
        // Where all cores have a thread it stays.
        let all = Cores::new(before.count() as usize + 1);
        let every = (0..CpuSet::MAX_CPU).filter(|core| before.is_set(*core));
        for (of, core) in all.of[1..].iter().zip(every) {
            of.store(core, Ordering::Relaxed);
        }
        all.settle(0);
        assert_eq!(sched_getaffinity(None).unwrap(), before);
    }

    #[test]
    fn a_helper_that_was_on_the_callers_core_is_kept_from_it() {
        let allowed = sched_getaffinity(None).unwrap();
        let cores = Cores::new(2);
        std::thread::scope(|scope| {
            let ((here, joined), (ask, asked)) = (channel(), channel::<()>());
            let helper = scope.spawn(move || {
                cores.join(1);
                here.send(cores).unwrap();
                asked.recv().unwrap();
                sched_getaffinity(None).unwrap()
            });
            let cores = joined.recv().unwrap();
            // It has been seen nowhere yet.
            cores.begin();
            let core = loop {
                let core = system::current();
                cores.of[1].store(core, Ordering::Relaxed);
                cores.begin();
                if cores.of[0].load(Ordering::Relaxed) == core {
                    break core;
                }
            };
            ask.send(()).unwrap();
            let mask = helper.join().unwrap();
            let mut want = allowed;
            want.unset(core);
            assert!(mask == if want.count() > 0 { want } else { allowed });
        });
        assert_eq!(sched_getaffinity(None).unwrap(), allowed);
    }
}
