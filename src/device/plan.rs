//! Plans: the tensors of one batch and, on a GPU, its recorded dispatches, kept and used again.
//!
//! A plan is made for a bucket of tokens and prompts *for capacity only*: kernels see the true
//! counts. A call borrows a free plan or makes one; the second call of a shape makes nothing.

use std::sync::{Mutex, MutexGuard, TryLockError};

use crate::device::{Device, gpu};
use crate::error::Result;

/// What a batch needs room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) tokens: usize,
    pub(crate) prompts: usize,
}

impl Sizes {
    /// Rounded up to powers of two, so that few plans serve all batches.
    fn bucket(self) -> Self {
        Self {
            tokens: self.tokens.next_power_of_two().max(16),
            prompts: self.prompts.next_power_of_two(),
        }
    }
}

pub(crate) struct Plan<T> {
    pub(crate) tensors: T,
    /// None on the CPU.
    tape: Option<gpu::Tape>,
}

impl<T> Plan<T> {
    /// `uploads`, `reads`: bytes that a pass of this plan sends and brings back at most.
    pub(crate) fn new(device: &Device, tensors: T, uploads: usize, reads: usize) -> Result<Self> {
        let tape = match device {
            Device::Cpu(_) => None,
            Device::Gpu(gpu) => Some(gpu::Tape::new(gpu, uploads, reads)?),
        };
        Ok(Self { tensors, tape })
    }

    pub(super) fn split(&mut self) -> (&mut T, &mut gpu::Tape) {
        match &mut self.tape {
            Some(tape) => (&mut self.tensors, tape),
            None => unreachable!("a plan runs on the device that it was made for"),
        }
    }
}

/// The plans of one use that no call has at the moment, the longest unused first.
pub(crate) struct Plans<T> {
    free: Mutex<Free<T>>,
}

/// A plan that one call has.
pub(crate) struct HeldPlan<T> {
    pub(crate) plan: Plan<T>,
    room: Sizes,
}

/// Plans with what they have room for.
type Free<T> = Vec<(Sizes, Plan<T>)>;

/// Free plans that are kept: as many calls at once find one. More make their own for the time.
const KEPT: usize = 16;

/// Tries at the lock, which is held for less than a microsecond.
const TRIES: usize = 1000;

impl<T> Plans<T> {
    pub(crate) fn new() -> Self {
        Self {
            free: Mutex::new(Vec::new()),
        }
    }

    /// Runs `body` on a plan with room for `sizes`; `make` builds one of the given bucket.
    pub(crate) fn with<R>(
        &self,
        sizes: Sizes,
        make: impl FnOnce(Sizes) -> Result<Plan<T>>,
        body: impl FnOnce(&mut Plan<T>) -> Result<R>,
    ) -> Result<R> {
        let mut held = self.hold(sizes, make)?;
        let value = body(&mut held.plan)?;
        self.give_back(held);
        Ok(value)
    }

    /// A plan with room for `sizes`; `make` builds one of the given bucket. Who drops it in place of
    /// giving it back, since it failed, drops buffers that may still be in use.
    pub(crate) fn hold(
        &self,
        sizes: Sizes,
        make: impl FnOnce(Sizes) -> Result<Plan<T>>,
    ) -> Result<HeldPlan<T>> {
        if let Some((room, plan)) = self.take(sizes) {
            return Ok(HeldPlan { plan, room });
        }
        let room = sizes.bucket();
        log::debug!("new plan: {} tokens, {} prompts", room.tokens, room.prompts);
        let plan = make(room)?;
        Ok(HeldPlan { plan, room })
    }

    /// Lets other calls have the plan.
    pub(crate) fn give_back(&self, held: HeldPlan<T>) {
        if let Some(mut free) = self.lock() {
            if free.len() == KEPT {
                free.remove(0);
            }
            free.push((held.room, held.plan));
        }
    }

    /// The smallest free plan with room for `sizes`.
    fn take(&self, sizes: Sizes) -> Option<(Sizes, Plan<T>)> {
        let mut free = self.lock()?;
        let fits = |room: &Sizes| room.tokens >= sizes.tokens && room.prompts >= sizes.prompts;
        let fitting = (0..free.len()).filter(|&i| fits(&free[i].0));
        let best = fitting.min_by_key(|&i| free[i].0.tokens * free[i].0.prompts)?;
        Some(free.remove(best))
    }

    /// The free plans; none where the lock is not to be had soon: a process may have been forked
    /// while another thread held it, and then nobody gives it back.
    fn lock(&self) -> Option<MutexGuard<'_, Free<T>>> {
        for _ in 0..TRIES {
            match self.free.try_lock() {
                Ok(free) => return Some(free),
                Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => std::thread::yield_now(),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::device::cpu::Cpu;
    use std::cell::Cell;
    use std::sync::Arc;

    #[test]
    fn plans_are_used_again_and_their_number_is_bounded() {
        let device = Device::Cpu(Arc::new(Cpu::open(Some(1)).unwrap()));
        let plans = Plans::<Sizes>::new();
        let made = Cell::new(0);
        let run = |tokens: usize, prompts: usize| {
            let sizes = Sizes { tokens, prompts };
            let make = |bucket: Sizes| {
                made.set(made.get() + 1);
                Plan::new(&device, bucket, 0, 0)
            };
            let check = |plan: &mut Plan<Sizes>| {
                assert!(plan.tensors.tokens >= tokens && plan.tensors.prompts >= prompts);
                Ok(())
            };
            plans.with(sizes, make, check).unwrap();
        };
        run(100, 3);
        run(128, 4);
        run(5, 1);
        assert_eq!(
            made.get(),
            1,
            "a plan serves every batch that it has room for"
        );
        run(129, 1);
        assert_eq!(made.get(), 2);
        for prompts in 0..40 {
            run(1 << 20, 1 << prompts);
        }
        assert_eq!(plans.lock().unwrap().len(), KEPT);
    }
}
