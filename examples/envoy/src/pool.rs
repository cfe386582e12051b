//! Threads of the module that compute what the cache does not have, and bring the answer back to
//! the stream that waits for it.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hubrouter::{Decision, PolicyHandle, Request, Router};

use crate::abi::Scheduler;

/// What a stream waits for. `None`: the thread that had it is gone.
pub(crate) type Answer = Option<hubrouter::Result<Decision>>;

/// Where a stream waits.
///
/// The stream may be destroyed at any time, by its worker. The worker closes the slot first, and
/// whoever answers holds the lock meanwhile, so that no thread uses the scheduler of a stream that
/// is gone.
pub(crate) struct Slot(Mutex<SlotState>);

struct SlotState {
    scheduler: Option<Scheduler>,
    answer: Option<Answer>,
}

impl Slot {
    pub(crate) fn new(scheduler: Scheduler) -> Arc<Self> {
        Arc::new(Self(Mutex::new(SlotState {
            scheduler: Some(scheduler),
            answer: None,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, SlotState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves the answer and wakes the stream, if it is still there.
    fn give(&self, answer: Answer) {
        let mut state = self.lock();
        if let Some(scheduler) = state.scheduler.take() {
            state.answer = Some(answer);
            scheduler.wake();
        }
    }

    /// The answer, once.
    pub(crate) fn take(&self) -> Option<Answer> {
        self.lock().answer.take()
    }

    /// Nobody waits any more.
    pub(crate) fn close(&self) {
        self.lock().scheduler = None;
    }

    fn is_open(&self) -> bool {
        self.lock().scheduler.is_some()
    }
}

/// What is to be routed.
pub(crate) enum Ask {
    Request(Box<Request>),
    /// A body that is too long to be parsed on a worker.
    Body(Arc<Vec<u8>>),
}

/// A stream's question. It is answered, whatever happens to the thread that has it.
struct Job {
    ask: Ask,
    came: Instant,
    slot: Arc<Slot>,
    answer: Answer,
}

impl Drop for Job {
    fn drop(&mut self) {
        self.slot.give(self.answer.take());
    }
}

/// What the threads share.
struct Work {
    router: Arc<Router>,
    policy: Option<Arc<PolicyHandle>>,
    deadline: Option<Duration>,
    line: Mutex<Line>,
    bell: Condvar,
}

struct Line {
    jobs: VecDeque<Job>,
    most: usize,
    over: bool,
}

/// The threads. They end when it is dropped.
pub(crate) struct Pool {
    work: Arc<Work>,
    threads: Vec<JoinHandle<()>>,
}

impl Work {
    fn lock(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Option<Job> {
        let mut line = self.lock();
        while line.jobs.is_empty() && !line.over {
            line = self.bell.wait(line).unwrap_or_else(PoisonError::into_inner);
        }
        match line.over {
            true => None,
            false => line.jobs.pop_front(),
        }
    }

    fn run(&self) {
        while let Some(mut job) = self.next() {
            // The client of a closed slot has gone.
            if job.slot.is_open() {
                let answer = || self.answer(&job.ask, job.came);
                let answer = std::panic::catch_unwind(std::panic::AssertUnwindSafe(answer));
                // A panic of the library is an error; this would be one of the module.
                job.answer = answer.ok();
            }
        }
    }

    fn answer(&self, ask: &Ask, came: Instant) -> hubrouter::Result<Decision> {
        let mut request = match ask {
            Ask::Request(request) => Request::clone(request),
            Ask::Body(body) => crate::filter::request(body)?,
        };
        request.deadline = self
            .deadline
            .map(|deadline| deadline.saturating_sub(came.elapsed()));
        match &self.policy {
            Some(policy) => self.router.route_within(&request, policy),
            None => self.router.route(&request),
        }
    }
}

impl Pool {
    /// `most`: jobs that wait.
    ///
    /// Errors: a thread cannot be started.
    pub(crate) fn start(
        router: &Arc<Router>,
        policy: Option<&Arc<PolicyHandle>>,
        deadline: Option<Duration>,
        threads: usize,
        most: usize,
    ) -> Result<Self, String> {
        let work = Arc::new(Work {
            router: Arc::clone(router),
            policy: policy.cloned(),
            deadline,
            line: Mutex::new(Line {
                jobs: VecDeque::new(),
                most,
                over: false,
            }),
            bell: Condvar::new(),
        });
        let mut pool = Self {
            work,
            threads: Vec::new(),
        };
        for _ in 0..threads {
            let work = Arc::clone(&pool.work);
            let thread = std::thread::Builder::new().name("hubrouter".to_owned());
            let thread = thread.spawn(move || work.run());
            pool.threads
                .push(thread.map_err(|e| format!("cannot start a thread: {e}"))?);
        }
        Ok(pool)
    }

    /// Puts a question in line. False, and the slot is closed, if as many wait as may.
    pub(crate) fn ask(&self, ask: Ask, came: Instant, slot: &Arc<Slot>) -> bool {
        let mut line = self.work.lock();
        if line.jobs.len() >= line.most {
            slot.close();
            return false;
        }
        line.jobs.push_back(Job {
            ask,
            came,
            slot: Arc::clone(slot),
            answer: None,
        });
        drop(line);
        self.work.bell.notify_one();
        true
    }
}

impl Drop for Pool {
    /// Waits for what is being computed. What waits is answered with nothing.
    fn drop(&mut self) {
        let mut line = self.work.lock();
        line.over = true;
        let left = std::mem::take(&mut line.jobs);
        drop(line);
        drop(left);
        self.work.bell.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}
