//! A bounded queue in front of the computing, in the order in which calls came.
//!
//! A call waits on its own thread or, in an asynchronous host, as a future. Whoever comes when all
//! places are taken is refused at once, so that the caller can send its request elsewhere.
#![expect(
    clippy::disallowed_types,
    reason = "deadlines, and how long a call waited"
)]

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::{Error, error};

/// What a queue has done and holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct QueueStats {
    /// Calls that compute.
    pub computing: u64,
    /// Calls that may compute at once.
    pub slots: u64,
    /// Calls that wait.
    pub waiting: u64,
    /// Calls that may wait.
    pub places: u64,
    /// Calls that were refused because all places were taken.
    pub refused: u64,
}

/// The queue of a router.
pub(super) struct Queue {
    slots: usize,
    /// `None`: any number.
    places: Option<usize>,
    line: Mutex<QueueLine>,
    refused: AtomicU64,
}

struct QueueLine {
    /// Slots that nobody has; 0 while somebody waits.
    free: usize,
    /// Who waits, the first to come first.
    waiting: VecDeque<Waiter>,
    next: u64,
}

/// A call that waits; it has its slot once it is no longer in the line.
struct Waiter {
    number: u64,
    bell: Bell,
}

/// How a waiter hears that its turn has come.
enum Bell {
    Thread(Arc<Condvar>),
    #[cfg(feature = "tokio")]
    Task(std::task::Waker),
}

/// The right to compute, until it is dropped.
pub(super) struct QueueSlot {
    queue: Arc<Queue>,
    /// How long the call waited for it.
    pub(super) waited: Duration,
}

/// Why a call may not compute.
#[derive(Debug)]
pub(super) enum Denied {
    /// All places are taken.
    Full(Error),
    /// Its deadline passed while it waited.
    Late,
}

impl Queue {
    pub(super) fn new(slots: usize, places: Option<usize>) -> Self {
        Self {
            slots,
            places,
            line: Mutex::new(QueueLine {
                free: slots,
                waiting: VecDeque::new(),
                next: 0,
            }),
            refused: AtomicU64::new(0),
        }
    }

    /// Whether calls from threads of the host have to queue.
    pub(super) fn is_bounded(&self) -> bool {
        self.places.is_some()
    }

    /// Waits for a slot, at most until `until`.
    pub(super) fn enter(self: &Arc<Self>, until: Option<Instant>) -> Result<QueueSlot, Denied> {
        let began = Instant::now();
        let mut line = self.line();
        if line.free > 0 {
            line.free -= 1;
            return Ok(self.slot(began));
        }
        let bell = Arc::new(Condvar::new());
        let number = self.queue(&mut line, Bell::Thread(Arc::clone(&bell)))?;
        while line.has(number) {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            line = match left {
                None => bell.wait(line).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => {
                    line.leave(number);
                    return Err(Denied::Late);
                }
                Some(left) => {
                    let woken = bell.wait_timeout(line, left);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        drop(line);
        Ok(self.slot(began))
    }

    fn queue(&self, line: &mut QueueLine, bell: Bell) -> Result<u64, Denied> {
        let waiting = line.waiting.len();
        if let Some(places) = self.places.filter(|places| waiting >= *places) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err(Denied::Full(error!(
                Overloaded,
                "the queue is full: expected at most {places} waiting calls, found {waiting}, and \
                 {} that compute; try again later, or give Options::queue more places",
                self.slots
            )));
        }
        let number = line.next;
        line.next += 1;
        line.waiting.push_back(Waiter { number, bell });
        Ok(number)
    }

    fn slot(self: &Arc<Self>, began: Instant) -> QueueSlot {
        QueueSlot {
            queue: Arc::clone(self),
            waited: began.elapsed(),
        }
    }

    /// Gives a slot to whoever waits longest.
    fn release(&self) {
        let mut line = self.line();
        match line.waiting.pop_front().map(|waiter| waiter.bell) {
            None => line.free += 1,
            Some(Bell::Thread(bell)) => bell.notify_one(),
            #[cfg(feature = "tokio")]
            Some(Bell::Task(waker)) => {
                drop(line);
                waker.wake();
            }
        }
    }

    fn line(&self) -> MutexGuard<'_, QueueLine> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn stats(&self) -> QueueStats {
        let line = self.line();
        QueueStats {
            computing: (self.slots - line.free) as u64,
            slots: self.slots as u64,
            waiting: line.waiting.len() as u64,
            places: self.places.map_or(u64::MAX, |places| places as u64),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }
}

impl QueueLine {
    fn has(&self, number: u64) -> bool {
        self.waiting.iter().any(|waiter| waiter.number == number)
    }

    fn leave(&mut self, number: u64) {
        self.waiting.retain(|waiter| waiter.number != number);
    }
}

impl Drop for QueueSlot {
    fn drop(&mut self) {
        self.queue.release();
    }
}

#[cfg(feature = "tokio")]
pub(super) use task::Entering;

#[cfg(feature = "tokio")]
mod task {
    use std::future::Future;
    use std::pin::Pin;
    use std::sync::Arc;
    use std::task::{Context, Poll};
    use std::time::Instant;

    use super::{Bell, Denied, Queue, QueueSlot};

    /// A call of an asynchronous host that wants a slot. Dropped, it leaves the line.
    pub(in crate::route) struct Entering {
        queue: Arc<Queue>,
        /// Its number in the line.
        number: Option<u64>,
        began: Instant,
    }

    impl Entering {
        pub(in crate::route) fn new(queue: &Arc<Queue>) -> Self {
            Self {
                queue: Arc::clone(queue),
                number: None,
                began: Instant::now(),
            }
        }
    }

    impl Future for Entering {
        type Output = Result<QueueSlot, Denied>;

        fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
            let queue = Arc::clone(&self.queue);
            let mut line = queue.line();
            let waker = context.waker().clone();
            let Some(number) = self.number else {
                if line.free > 0 {
                    line.free -= 1;
                    return Poll::Ready(Ok(queue.slot(self.began)));
                }
                return match queue.queue(&mut line, Bell::Task(waker)) {
                    Ok(number) => {
                        self.number = Some(number);
                        Poll::Pending
                    }
                    Err(denied) => Poll::Ready(Err(denied)),
                };
            };
            let waiting = line.waiting.iter_mut();
            match waiting.into_iter().find(|waiter| waiter.number == number) {
                Some(waiter) => {
                    waiter.bell = Bell::Task(waker);
                    Poll::Pending
                }
                None => {
                    self.number = None;
                    Poll::Ready(Ok(queue.slot(self.began)))
                }
            }
        }
    }

    impl Drop for Entering {
        fn drop(&mut self) {
            let Some(number) = self.number else {
                return;
            };
            let mut line = self.queue.line();
            if line.has(number) {
                line.leave(number);
            } else {
                // Its turn had come, and it never took it.
                drop(line);
                self.queue.release();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::error::ErrorKind;

    fn queue(slots: usize, places: usize) -> Arc<Queue> {
        Arc::new(Queue::new(slots, Some(places)))
    }

    /// Waits until `count` calls wait.
    fn until_waiting(queue: &Queue, count: u64) {
        while queue.stats().waiting != count {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_full_queue_refuses_with_numbers() {
        let queue = queue(2, 1);
        let slots = [queue.enter(None).unwrap(), queue.enter(None).unwrap()];
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| queue.enter(None).map(drop).is_ok());
            until_waiting(&queue, 1);
            let Err(Denied::Full(error)) = queue.enter(None) else {
                panic!("not refused");
            };
            assert_eq!(error.kind(), ErrorKind::Overloaded);
            let text = error.to_string();
            assert!(
                text.contains("at most 1 waiting calls, found 1, and 2 that compute"),
                "{text}"
            );
            drop(slots);
            assert!(waiting.join().unwrap());
        });
        let stats = queue.stats();
        assert_eq!((stats.computing, stats.waiting, stats.refused), (0, 0, 1));
        assert_eq!((stats.slots, stats.places), (2, 1));
    }

    #[test]
    fn calls_compute_in_the_order_in_which_they_came() {
        let (queue, order) = (queue(1, 64), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            let first = queue.enter(None).unwrap();
            for comer in 0..20 {
                let (queue, order) = (&queue, &order);
                scope.spawn(move || {
                    let _slot = queue.enter(None).unwrap();
                    order.lock().unwrap().push(comer);
                });
                until_waiting(queue, comer + 1);
            }
            drop(first);
        });
        let order = order.into_inner().unwrap();
        assert!(order.iter().copied().eq(0..20), "{order:?}");
    }

    #[test]
    fn who_is_late_leaves_the_line() {
        let queue = queue(1, 4);
        let slot = queue.enter(None).unwrap();
        let until = Instant::now() + Duration::from_millis(5);
        assert!(matches!(queue.enter(Some(until)), Err(Denied::Late)));
        assert!(Instant::now() >= until);
        assert_eq!(queue.stats().waiting, 0);
        drop(slot);
        assert_eq!(queue.stats().computing, 0);
        assert!(
            queue.enter(Some(until)).is_ok(),
            "nobody else wants the slot"
        );
    }

    #[cfg(feature = "tokio")]
    #[test]
    fn a_future_that_is_dropped_leaves_no_trace() {
        use std::future::Future;
        use std::pin::pin;
        use std::task::{Context, Poll, Waker};
        let queue = queue(1, 4);
        let mut context = Context::from_waker(Waker::noop());
        let slot = queue.enter(None).unwrap();
        {
            let mut waiting = pin!(Entering::new(&queue));
            assert!(waiting.as_mut().poll(&mut context).is_pending());
            assert!(waiting.as_mut().poll(&mut context).is_pending());
            assert_eq!(queue.stats().waiting, 1);
        }
        assert_eq!(queue.stats().waiting, 0);
        {
            // Its turn comes, and it is dropped before it is asked again.
            let mut waiting = pin!(Entering::new(&queue));
            assert!(waiting.as_mut().poll(&mut context).is_pending());
            drop(slot);
            assert_eq!(queue.stats().computing, 1);
        }
        assert_eq!(queue.stats().computing, 0);
        let mut entering = pin!(Entering::new(&queue));
        let Poll::Ready(Ok(slot)) = entering.as_mut().poll(&mut context) else {
            panic!("the slot is free");
        };
        drop(slot);
        assert_eq!(queue.stats().computing, 0);
    }
}
