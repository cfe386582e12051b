//! One thread for reload and rollback.
//!
//! glibc keeps memory that was freed for each thread apart. Generations that are opened on ever
//! other threads of the runtime would leave their size with each of them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel};
use std::thread;

use tokio::sync::oneshot;

use crate::Failure;

type Job = Box<dyn FnOnce() + Send>;

/// Runs changes one after the other, on a thread of their own.
pub struct Changes(Sender<Job>);

impl Changes {
    /// Starts the thread. It ends when this value is dropped.
    #[expect(clippy::disallowed_methods, reason = "the one thread for changes")]
    pub fn start() -> Result<Self, Failure> {
        let (sender, jobs) = channel::<Job>();
        let work = move || {
            for job in jobs {
                // A panic is the end of its job alone: nobody is answered.
                drop(catch_unwind(AssertUnwindSafe(job)));
            }
        };
        let started = thread::Builder::new().name("changes".into()).spawn(work);
        started.map_err(|error| Failure(format!("starting a thread: {error}")))?;
        Ok(Self(sender))
    }

    /// What `job` returns. `None`: it has panicked.
    pub async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        // Nobody may wait any more.
        let job = move || drop(answer.send(job()));
        self.0.send(Box::new(job)).ok()?;
        answered.await.ok()
    }
}
