//! Calls that come while another one computes are computed together, as one batch.
//!
//! The first of them leads: it waits until the batch before it is done, or until it has waited as
//! long as it may, and computes for all. A call that meets no other one never waits.
//!
//! On a CPU there is a lane for each thread, and one more. Where calls meet, a batch takes one lane and
//! computes on one thread, so that no core idles while the callers of another batch take their answers
//! and ask again: the batch in the last lane has that core then. A call that meets none takes all
//! lanes, and all threads.
#![expect(clippy::disallowed_types, reason = "how long a call waits for others")]

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Result, error};
use crate::route::front::{Asking, Routed};
use crate::route::{PolicyHandle, Request};

/// Prompts that are computed together at most, but for those of one call.
pub(super) const MOST: usize = 256;

/// A call that another one met so lately is likely to meet one, too.
const LATELY: Duration = Duration::from_millis(5);

/// How long a batch that could have a lane waits for callers of the batch before, which have just got
/// their answers: without it the first that is back computes alone.
const PATIENCE: Duration = Duration::from_micros(200);

/// Brings the calls of a router together.
pub(super) struct Gatherer {
    wait: Duration,
    /// Batches that can each have a thread, where calls meet; 1 where one computes at a time.
    threads: usize,
    state: Mutex<Gathered>,
    /// A group is full, or a batch is done.
    changed: Condvar,
}

#[derive(Default)]
struct Gathered {
    /// Lanes of the batches that are computed.
    computing: usize,
    /// Prompts whose answers are not there yet.
    prompts: usize,
    /// The most prompts that there were at once lately.
    peak: usize,
    /// When a call last came while another one was there.
    met: Option<Instant>,
    /// Groups that calls may still join.
    open: Vec<CallGroup>,
    /// The number of the next group.
    next: u64,
}

impl Gathered {
    /// The place of the group `number`.
    fn place(&self, number: u64) -> Option<usize> {
        self.open.iter().position(|group| group.number == number)
    }

    /// Prompts of a batch, so that there is as much for one thread as for another.
    fn share(&self, threads: usize) -> usize {
        self.peak.div_ceil(threads).min(MOST)
    }
}

struct CallGroup {
    number: u64,
    /// Of the handle that all of its calls route within, its place in memory; each call borrows it
    /// until it is answered.
    policy: Option<usize>,
    asks: Vec<OwnAsk>,
    /// The calls behind the first.
    seats: Vec<Arc<Seat>>,
}

/// A request of a call that another one may compute.
pub(super) struct OwnAsk {
    request: Request,
    kept: Option<Arc<str>>,
}

impl Asking for OwnAsk {
    fn request(&self) -> &Request {
        &self.request
    }

    fn kept(&self) -> Option<&str> {
        self.kept.as_deref()
    }
}

impl OwnAsk {
    fn new(asked: &impl Asking) -> Self {
        Self {
            request: asked.request().clone(),
            kept: asked.kept().map(Arc::from),
        }
    }
}

/// Where a call waits for its part of a batch.
struct Seat {
    part: Range<usize>,
    answer: Mutex<Option<Result<Routed>>>,
    bell: Condvar,
}

impl Seat {
    fn wait(&self) -> Result<Routed> {
        let mut answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match answer.take() {
                Some(answer) => return answer,
                None => {
                    let woken = self.bell.wait(answer);
                    answer = woken.unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    fn give(&self, routed: Result<Routed>) {
        let mut answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        *answer = Some(routed);
        self.bell.notify_one();
    }
}

impl Gatherer {
    /// `wait`: how long a call waits at most for the batch before it; `threads`: 1 where one batch
    /// computes at a time, else the batches that can each have a thread.
    pub(super) fn new(wait: Duration, threads: usize) -> Self {
        Self {
            wait,
            threads,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// The answers to `asked` by `compute`, which may be that of another call with the same
    /// `policy`. `compute(asks, on_one_thread)`: without helpers if that is true.
    pub(super) fn run<A: Asking>(
        &self,
        asked: &[A],
        policy: Option<&PolicyHandle>,
        compute: impl FnOnce(&[OwnAsk], bool) -> Result<Routed>,
    ) -> Result<Routed> {
        let asks: Vec<OwnAsk> = asked.iter().map(OwnAsk::new).collect();
        let policy = policy.map(|policy| std::ptr::from_ref(policy).addr());
        let mut state = self.state();
        if state.prompts > 0 {
            state.met = Some(Instant::now());
        }
        state.prompts += asks.len();
        state.peak = state.peak.max(state.prompts);
        let most = state.share(self.threads);
        let joins = |group: &&mut CallGroup| {
            group.policy == policy && group.asks.len() + asks.len() <= most
        };
        if let Some(group) = state.open.iter_mut().find(joins) {
            let begin = group.asks.len();
            group.asks.extend(asks);
            let seat = Arc::new(Seat {
                part: begin..group.asks.len(),
                answer: Mutex::default(),
                bell: Condvar::new(),
            });
            group.seats.push(Arc::clone(&seat));
            if group.asks.len() == most {
                self.changed.notify_all();
            }
            drop(state);
            return seat.wait();
        }
        let number = state.next;
        state.next += 1;
        state.open.push(CallGroup {
            number,
            policy,
            asks,
            seats: Vec::new(),
        });
        let own = asked.len();
        SharedBatch::close(self, state, number, own).compute(0..own, compute)
    }

    /// Batches that compute at once at most, but for those that have waited as long as they may.
    fn lanes(&self) -> usize {
        match self.threads {
            1 => 1,
            threads => threads + 1,
        }
    }

    fn state(&self) -> MutexGuard<'_, Gathered> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lanes that a batch takes, until it has been computed.
struct OwnLanes<'g> {
    gatherer: &'g Gatherer,
    count: usize,
    /// Those of the batch.
    prompts: usize,
}

impl Drop for OwnLanes<'_> {
    fn drop(&mut self) {
        let mut state = self.gatherer.state();
        state.computing -= self.count;
        state.prompts -= self.prompts;
        drop(state);
        self.gatherer.changed.notify_all();
    }
}

/// A group that is computed. However that ends, its calls hear of it.
struct SharedBatch<'g> {
    lanes: Option<OwnLanes<'g>>,
    asks: Vec<OwnAsk>,
    seats: Vec<Arc<Seat>>,
}

impl<'g> SharedBatch<'g> {
    /// Waits for a lane, and lets no more calls join group `number`, whose first call has `own` prompts.
    fn close(
        gatherer: &'g Gatherer,
        mut state: MutexGuard<'g, Gathered>,
        number: u64,
        own: usize,
    ) -> Self {
        let begun = Instant::now();
        let patience = match gatherer.threads {
            1 => Duration::ZERO,
            _ => PATIENCE.min(gatherer.wait),
        };
        let lanes = loop {
            let now = Instant::now();
            let lately = |met| now < met + LATELY;
            let meets = state.prompts > own || state.met.is_some_and(lately);
            let lanes = if meets { 1 } else { gatherer.lanes() };
            let count = state
                .place(number)
                .map_or(MOST, |at| state.open[at].asks.len());
            let free = state.computing + lanes <= gatherer.lanes();
            let complete = !meets || count >= state.share(gatherer.threads);
            let wait = if count >= MOST || free && complete {
                Duration::ZERO
            } else if free {
                patience
            } else {
                gatherer.wait
            };
            let left = (begun + wait).saturating_duration_since(now);
            if left.is_zero() {
                break lanes;
            }
            let woken = gatherer.changed.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        };
        state.peak = state.prompts.max(state.peak - state.peak.div_ceil(8));
        state.computing += lanes;
        let group = state.place(number).map(|at| state.open.remove(at));
        let (asks, seats) = group.map_or_else(Default::default, |group| (group.asks, group.seats));
        Self {
            lanes: Some(OwnLanes {
                gatherer,
                count: lanes,
                prompts: asks.len(),
            }),
            asks,
            seats,
        }
    }

    /// The answers in the place `own`; the other calls get theirs.
    fn compute(
        mut self,
        own: Range<usize>,
        compute: impl FnOnce(&[OwnAsk], bool) -> Result<Routed>,
    ) -> Result<Routed> {
        let lanes = self.lanes.take();
        let on_one_thread = (lanes.as_ref()).is_some_and(|own| own.count < own.gatherer.lanes());
        let routed = compute(&self.asks, on_one_thread);
        // The next batch does not wait until all have their answers.
        drop(lanes);
        let seats = std::mem::take(&mut self.seats);
        match routed {
            Ok(Routed { hub, answers }) => {
                let mut answers = answers.into_iter();
                let mut next = |part: &Range<usize>| Routed {
                    hub: Arc::clone(&hub),
                    answers: answers.by_ref().take(part.len()).collect(),
                };
                // In the order in which they joined, the leader first.
                let own = next(&own);
                for seat in seats {
                    seat.give(Ok(next(&seat.part)));
                }
                Ok(own)
            }
            Err(error) => {
                for seat in seats {
                    seat.give(Err(error.clone()));
                }
                Err(error)
            }
        }
    }
}

impl Drop for SharedBatch<'_> {
    fn drop(&mut self) {
        for seat in &self.seats {
            let error = error!(Panic, "the call that computed for others panicked: a bug");
            seat.give(Err(error));
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;
    use crate::error::ErrorKind;
    use crate::hub::Hub;

    /// Answers each request with an error of its prompt, so that every call knows its own.
    fn echo(asks: &[OwnAsk], _: bool) -> Result<Routed> {
        let answers = asks.iter().map(|ask| {
            let prompt = &ask.request.prompt;
            Err(error!(InvalidRequest, "{prompt}"))
        });
        Ok(Routed {
            hub: Arc::new(Hub::default()),
            answers: answers.collect(),
        })
    }

    fn prompts(routed: Routed) -> Vec<String> {
        let answers = routed.answers.into_iter();
        answers
            .map(|answer| answer.unwrap_err().to_string())
            .collect()
    }

    fn requests(name: &str, count: usize) -> Vec<Request> {
        let names = (0..count).map(|i| format!("{name} {i}"));
        names.map(|name| Request::new(&*name)).collect()
    }

    /// Runs `count` calls while a first one computes until all of them have come.
    fn behind_one(gatherer: &Gatherer, count: usize, call: impl Fn(usize) + Sync) {
        let (done, wait) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let (begun, began) = mpsc::channel();
            scope.spawn(move || {
                let compute = |asks: &[OwnAsk], one| {
                    begun.send(()).unwrap();
                    wait.recv().unwrap();
                    echo(asks, one)
                };
                gatherer.run(&requests("first", 1), None, compute).unwrap();
            });
            began.recv().unwrap();
            for number in 0..count {
                let call = &call;
                scope.spawn(move || call(number));
            }
            loop {
                let state = gatherer.state();
                let waiting = state.open.iter().map(|group| 1 + group.seats.len());
                if waiting.sum::<usize>() == count {
                    break;
                }
                drop(state);
                std::thread::yield_now();
            }
            done.send(()).unwrap();
        });
    }

    #[test]
    fn calls_that_come_while_one_computes_are_one_batch_and_get_their_own_answers() {
        let gatherer = Gatherer::new(Duration::from_secs(60), 1);
        let (batches, computed) = (AtomicUsize::new(0), AtomicUsize::new(0));
        behind_one(&gatherer, 8, |number| {
            let own = requests(&format!("caller {number}"), 1 + number % 3);
            let compute = |asks: &[OwnAsk], one| {
                batches.fetch_add(1, Ordering::Relaxed);
                computed.fetch_add(asks.len(), Ordering::Relaxed);
                echo(asks, one)
            };
            let got = prompts(gatherer.run(&own, None, compute).unwrap());
            let want: Vec<String> = own.into_iter().map(|request| request.prompt).collect();
            assert_eq!(got, want);
        });
        assert_eq!(batches.into_inner(), 1);
        assert_eq!(computed.into_inner(), 15);
        assert_eq!(gatherer.state().computing, 0);
    }

    #[test]
    fn nobody_waits_longer_than_it_may_or_while_nothing_computes() {
        let wait = Duration::from_millis(5);
        let hasty = Gatherer::new(wait, 1);
        let (done, second_is_done) = mpsc::channel();
        std::thread::scope(|scope| {
            let (begun, began) = mpsc::channel();
            let hasty = &hasty;
            scope.spawn(move || {
                let compute = |asks: &[OwnAsk], one| {
                    begun.send(()).unwrap();
                    second_is_done.recv().unwrap();
                    echo(asks, one)
                };
                hasty.run(&requests("first", 1), None, compute).unwrap();
            });
            began.recv().unwrap();
            let now = Instant::now();
            hasty.run(&requests("second", 1), None, echo).unwrap();
            assert!(now.elapsed() >= wait);
            done.send(()).unwrap();
        });
        for threads in [1, 2] {
            let patient = Gatherer::new(Duration::from_secs(600), threads);
            let compute = |asks: &[OwnAsk], on_one_thread: bool| {
                assert!(!on_one_thread);
                echo(asks, on_one_thread)
            };
            let got = patient.run(&requests("alone", 2), None, compute).unwrap();
            assert_eq!(prompts(got), ["alone 0", "alone 1"]);
        }
    }

    /// Three batches compute at once: one for each of three threads, and one more than two.
    #[test]
    fn calls_that_meet_compute_side_by_side_and_have_as_much_to_do() {
        for (threads, calls, size, most) in [(3, 11, 1, 4), (2, 3, 5, 8)] {
            let gatherer = Gatherer::new(Duration::from_secs(60), threads);
            // None goes on before all compute.
            let all = std::sync::Barrier::new(3);
            let sizes = Mutex::new(Vec::new());
            behind_one(&gatherer, calls, |number| {
                let own = requests(&format!("caller {number}"), size);
                let compute = |asks: &[OwnAsk], on_one_thread: bool| {
                    assert!(on_one_thread);
                    sizes.lock().unwrap().push(asks.len());
                    all.wait();
                    // Each has a lane, and none has only waited long enough.
                    assert!(gatherer.state().computing <= gatherer.lanes());
                    echo(asks, on_one_thread)
                };
                let got = prompts(gatherer.run(&own, None, compute).unwrap());
                let want: Vec<String> = own.into_iter().map(|request| request.prompt).collect();
                assert_eq!(got, want);
            });
            let sizes = sizes.into_inner().unwrap();
            let all: usize = sizes.iter().sum();
            assert_eq!((sizes.len(), all), (3, calls * size));
            // The first call has one more.
            assert!(sizes.iter().all(|size| *size <= most), "{sizes:?}");
            let state = gatherer.state();
            assert_eq!((state.computing, state.prompts), (0, 0));
        }
    }

    #[test]
    fn an_error_or_a_panic_of_the_one_that_computes_reaches_all() {
        for panics in [false, true] {
            let gatherer = Gatherer::new(Duration::from_secs(60), 1);
            let kinds = Mutex::new(Vec::new());
            behind_one(&gatherer, 3, |_| {
                let compute = |_: &[OwnAsk], _| {
                    assert!(!panics, "planted");
                    Err(error!(DeviceLost, "planted"))
                };
                let call = || gatherer.run(&requests("caller", 1), None, compute);
                let call = std::panic::AssertUnwindSafe(call);
                let kind = match std::panic::catch_unwind(call) {
                    Ok(routed) => routed.err().unwrap().kind(),
                    Err(_) => ErrorKind::Panic,
                };
                kinds.lock().unwrap().push(kind);
            });
            let want = if panics {
                ErrorKind::Panic
            } else {
                ErrorKind::DeviceLost
            };
            assert_eq!(kinds.into_inner().unwrap(), [want; 3]);
            assert_eq!(gatherer.state().computing, 0);
        }
    }
}
