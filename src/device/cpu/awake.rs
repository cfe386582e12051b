//! Threads of the pool that stay awake while a call lasts.

use std::sync::atomic::{AtomicBool, Ordering};

use super::cores::Cores;
use super::crowd::Crowd;

/// A thread that has looked so often in vain goes back to sleep: about a millisecond.
///
/// It must not look for as long as the call lasts. rayon lets a thread that waits inside of one of
/// the job's parts take up what [`awake`] gave it: the part would end only after the call, and the
/// call only after the part. A job that goes on alone for long needs no second core either.
const LOOKS: u32 = 1 << 14;

/// Looks after which the core is offered to somebody else.
const OFFER: u32 = 64;

/// Runs `job` on this thread of the pool while the others look for work without falling asleep: a
/// route is a hundred short parallel steps, and to wake a thread for each costs more than many of
/// them.
pub(super) fn awake<R>(cores: &Cores, crowd: &Crowd, job: impl FnOnce() -> R) -> R {
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
        }
    }
    let done = AtomicBool::new(false);
    let own = rayon::current_thread_index();
    if let Some(own) = own {
        cores.stay(own);
    }
    let mut call = crowd.call();
    let value = rayon::in_place_scope(|scope| {
        scope.spawn_broadcast(|_, context| {
            if Some(context.index()) != own {
                look_for_work(&done, || cores.settle(context.index()));
            }
        });
        // Also when the job panics.
        let _done = Done(&done);
        let value = job();
        call.computed();
        value
    });
    // The others have seen that it is done, each as soon as it had a core.
    call.over();
    value
}

/// Executes parts of jobs until `done`, or until there have been none for [`LOOKS`] looks.
fn look_for_work(done: &AtomicBool, settle: impl Fn()) {
    settle();
    let mut idle = 0;
    while idle < LOOKS && !done.load(Ordering::Acquire) {
        match rayon::yield_now() {
            Some(rayon::Yield::Executed) => idle = 0,
            _ => idle += 1,
        }
        // On a busy machine somebody else may need the core.
        if idle % OFFER == OFFER - 1 {
            settle();
            std::thread::yield_now();
        } else {
            std::hint::spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::device::cpu::Cpu;

    fn wait_for(flag: &AtomicBool) {
        while !flag.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_part_that_takes_up_the_looking_of_its_own_call_ends_before_the_call() {
        let cpu = Cpu::open(Some(2)).expect("a pool");
        let flags = [const { AtomicBool::new(false) }; 3];
        let [began, asked, ended] = &flags;
        let executed = AtomicUsize::new(0);
        let part = || {
            began.store(true, Ordering::Release);
            wait_for(asked);
            // What a thread does that waits for another part.
            while let Some(rayon::Yield::Executed) = rayon::yield_now() {
                executed.fetch_add(1, Ordering::Relaxed);
            }
            ended.store(true, Ordering::Release);
        };
        let call = || {
            wait_for(began);
            awake(&cpu.cores, &cpu.crowd, || {
                asked.store(true, Ordering::Release);
                wait_for(ended);
            });
        };
        cpu.join(call, part);
        assert!(executed.into_inner() > 0, "nothing to look for was given");
    }
}
