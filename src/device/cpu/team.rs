//! The thread that makes a call, and helpers that share its loops.
//!
//! The caller computes itself: to hand a route to another thread, and to sleep until that one has the
//! answer, took a tenth of a millisecond of one (benches/README.md). Helpers look for parts of loops
//! for as long as the call lasts, since it is a hundred short ones, and sleep between calls that do not
//! follow each other closely.
//!
//! A loop is a number of parts, which whoever is free takes one by one. A part may have loops of its
//! own. Who waits for the last parts of a loop takes up those of others meanwhile, so that no core
//! idles beside work; what it waits for is always being computed, so the wait ends.
#![expect(
    clippy::disallowed_types,
    reason = "how late threads come; no bit depends on it"
)]

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::{Duration, Instant};

// tests/loom runs this file's threads in every order.
#[cfg(loom)]
use loom::{
    hint::spin_loop,
    sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence},
    sync::{Mutex, MutexGuard},
    thread::{self, Thread},
};
#[cfg(not(loom))]
use std::{
    hint::spin_loop,
    sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence},
    sync::{Mutex, MutexGuard},
    thread::{self, Thread},
};

use super::cores::Cores;
use super::crowd::is_late;
use crate::error::{Result, error};

/// Loops that can be open at once, of parts inside of parts; one more is computed by who has it.
const LOOPS: usize = if cfg!(loom) { 2 } else { 8 };

/// A helper that has looked so often in vain sleeps until there is a loop: about a millisecond. A call
/// that goes on alone for long needs no second core.
const LOOKS: u32 = if cfg!(loom) { 1 } else { 1 << 14 };

/// Where one call has followed another within this time, helpers stay awake for as long behind it: to
/// be woken takes each 50 us or more.
const SOON: Duration = Duration::from_micros(if cfg!(loom) { 0 } else { 500 });

/// Looks after which the core is offered to somebody else.
const OFFER: u32 = 64;

/// Bits of the number of parts in [`LoopPlace::open`].
const PARTS: u32 = 32;

pub(super) struct Team {
    shared: Arc<Shared>,
    /// Whether helpers stay awake while a call lasts.
    awake: bool,
    last: Mutex<LastCall>,
}

/// What the helpers know.
struct Shared {
    loops: [LoopPlace; LOOPS],
    helpers: Vec<Helper>,
    /// Helpers that have begun.
    ready: AtomicUsize,
    cores: Cores,
    /// The number of calls that began and ended: odd while one lasts.
    call: AtomicU64,
    /// When the last call ended: nanoseconds since `start`.
    ended: AtomicU64,
    start: Instant,
    /// Whether another call is likely to follow within [`SOON`].
    another: AtomicBool,
    quits: AtomicBool,
}

/// A place for a loop. Its size is that of two cache lines, which are fetched together.
#[derive(Default)]
#[repr(align(128))]
struct LoopPlace {
    /// Whether a loop has this place.
    taken: AtomicBool,
    /// Parts that somebody has taken, above [`PARTS`] bits of how many there are.
    open: AtomicU64,
    /// Parts that are done.
    done: AtomicUsize,
    /// What to do. Valid while not all parts are done.
    body: AtomicPtr<Body<'static>>,
    /// Of a part that panicked.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// What is done with each part's number.
struct Body<'b>(&'b (dyn Fn(usize) + Sync));

/// A thread beside the caller's.
#[derive(Default)]
struct Helper {
    thread: OnceLock<Thread>,
    asleep: AtomicBool,
    /// The value of [`Shared::call`] whose end the thread has seen, and how long after it.
    seen: AtomicU64,
    late: AtomicU64,
}

/// For [`Team::punctuality`].
#[derive(Default)]
struct LastCall {
    /// The value of [`Shared::call`] at its end; 0: there is nothing to say about it.
    number: u64,
    took: Duration,
    /// The end of the first of the calls since then whose end somebody has not seen.
    unseen_since: Option<Instant>,
    /// Whether a helper did not come in time.
    missed: bool,
}

thread_local! {
    /// The address of the team that this thread computes for; 0: none.
    static TEAM: Cell<usize> = const { Cell::new(0) };
}

/// Whether this thread computes for a team.
pub(super) fn is_in_a_team() -> bool {
    TEAM.with(Cell::get) != 0
}

impl Team {
    /// With `helpers` threads, which stay awake while a call lasts if `awake`.
    pub(super) fn new(helpers: usize, awake: bool) -> Result<Self> {
        let shared = Arc::new(Shared {
            loops: Default::default(),
            helpers: (0..helpers).map(|_| Helper::default()).collect(),
            ready: AtomicUsize::new(0),
            cores: Cores::new(helpers + 1),
            call: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            start: Instant::now(),
            another: AtomicBool::new(false),
            quits: AtomicBool::new(false),
        });
        let team = Self {
            shared: Arc::clone(&shared),
            awake,
            last: Mutex::default(),
        };
        for (number, helper) in shared.helpers.iter().enumerate() {
            let of_thread = Arc::clone(&shared);
            let name = format!("hubrouter-cpu-{}", number + 1);
            #[cfg_attr(
                not(loom),
                expect(clippy::disallowed_methods, reason = "makes the helpers")
            )]
            let thread = thread::Builder::new()
                .name(name)
                .spawn(move || of_thread.help(number))
                .map_err(|e| error!(Device, "cpu: cannot start {helpers} threads more: {e}"))?;
            let _ = helper.thread.set(thread.thread().clone());
        }
        // A new thread may be on this one's core, where it would not run before this one sleeps.
        while shared.ready.load(Ordering::Acquire) < helpers {
            thread::yield_now();
        }
        Ok(team)
    }

    /// Whether this thread computes for this team.
    pub(super) fn is_here(&self) -> bool {
        TEAM.with(Cell::get) == self.shared.address()
    }

    /// Runs `job` on this thread, which is in no team, with the helpers for its loops; one call at a
    /// time.
    pub(super) fn call<R>(&self, job: impl FnOnce() -> R) -> R {
        let _call = Call::begin(self);
        job()
    }

    /// How long the last call took, and how late behind its end the last helper saw that: other work
    /// keeps it from its core where that is long. `None` if that cannot be said, or has been said
    /// already. To be called where the next call begins.
    pub(super) fn punctuality(&self) -> Option<(Duration, Duration)> {
        let mut last = self.last();
        if last.missed {
            *last = LastCall::default();
            return Some((Duration::ZERO, Duration::MAX));
        }
        if last.number == 0 {
            return None;
        }
        let (mut late, mut all_saw) = (Duration::ZERO, true);
        for helper in &self.shared.helpers {
            if helper.seen.load(Ordering::Acquire) >= last.number {
                late = late.max(Duration::from_nanos(helper.late.load(Ordering::Relaxed)));
            } else {
                all_saw = false;
            }
        }
        if !all_saw {
            // At least so late.
            let since = last.unseen_since.unwrap_or_else(|| self.shared.end());
            last.unseen_since = Some(since);
            late = late.max(since.elapsed());
            if !is_late(last.took, late) {
                return None;
            }
        }
        (last.number, last.unseen_since) = (0, None);
        Some((last.took, late))
    }

    /// To be called where a helper did not come in time.
    pub(super) fn miss(&self) {
        self.last().missed = true;
    }

    /// `body` with each number below `parts`, side by side. A panic of one comes to the caller when
    /// all have ended.
    pub(super) fn each(&self, parts: usize, body: &(dyn Fn(usize) + Sync)) {
        let place = match u32::try_from(parts) {
            Ok(2..) if self.is_here() => self.shared.loops.iter().find(|place| place.take()),
            _ => None,
        };
        let Some(place) = place else {
            return (0..parts).for_each(body);
        };
        let body = Body(body);
        place
            .body
            .store((&raw const body).cast_mut().cast(), Ordering::Relaxed);
        place.done.store(0, Ordering::Relaxed);
        // Publishes the two.
        place.open.store(parts as u64, Ordering::Release);
        self.shared.wake(parts - 1);
        while place.compute_one() {}
        let mut looks = 0;
        while place.done.load(Ordering::Acquire) < parts {
            if self.shared.compute_one() {
                looks = 0;
            } else {
                wait_a_little(&mut looks);
            }
        }
        let panic = place.panic().take();
        place.taken.store(false, Ordering::Release);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// `body` with each of `items` and its number, side by side.
    pub(super) fn each_of<I: Send>(&self, items: &mut [I], body: impl Fn(usize, &mut I) + Sync) {
        let (all, count) = (Items(items.as_mut_ptr()), items.len());
        self.each(count, &|number| {
            #[expect(unsafe_code, reason = "each part has an item of its own")]
            // SAFETY: `each` gives every number below `count` once, so no two references are to one
            // item, and it returns when all are dropped; `items` is borrowed until then.
            let item = unsafe { all.item(number) };
            body(number, item);
        });
    }

    fn last(&self) -> MutexGuard<'_, LastCall> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Team {
    /// The helpers go, when they have seen it.
    fn drop(&mut self) {
        self.shared.quits.store(true, Ordering::Relaxed);
        self.shared.wake(usize::MAX);
    }
}

/// The items of a loop.
struct Items<I>(*mut I);

#[expect(unsafe_code, reason = "each part has an item of its own")]
// SAFETY: threads take references to different items from it, and an item may go to another thread.
unsafe impl<I: Send> Sync for Items<I> {}

impl<I> Items<I> {
    /// SAFETY: there is an item `number`, nobody else has a reference to it, and it lives for `'i`.
    #[expect(unsafe_code, reason = "each part has an item of its own")]
    unsafe fn item<'i>(&self, number: usize) -> &'i mut I {
        // SAFETY: the caller's.
        unsafe { &mut *self.0.add(number) }
    }
}

/// While it lives its team computes a call, which this thread makes.
struct Call<'t> {
    team: &'t Team,
    began: Instant,
}

impl<'t> Call<'t> {
    fn begin(team: &'t Team) -> Self {
        let shared = &team.shared;
        TEAM.with(|team| team.set(shared.address()));
        let call = Self {
            team,
            began: Instant::now(),
        };
        if team.awake {
            let another = call.began.saturating_duration_since(shared.end()) < SOON;
            shared.another.store(another, Ordering::Relaxed);
            shared.cores.begin();
            shared.call.fetch_add(1, Ordering::Release);
            shared.wake(usize::MAX);
        }
        call
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let shared = &self.team.shared;
        TEAM.with(|team| team.set(0));
        if self.team.awake {
            let end = Instant::now();
            let nanoseconds = (end - shared.start).as_nanos();
            let nanoseconds = u64::try_from(nanoseconds).unwrap_or(u64::MAX);
            shared.ended.store(nanoseconds, Ordering::Relaxed);
            let number = shared.call.fetch_add(1, Ordering::Release) + 1;
            let mut last = self.team.last();
            (last.number, last.took) = (number, end - self.began);
        }
    }
}

impl Shared {
    fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// When the last call ended.
    fn end(&self) -> Instant {
        self.start + Duration::from_nanos(self.ended.load(Ordering::Relaxed))
    }

    /// Wakes at most `count` helpers that sleep.
    fn wake(&self, count: usize) {
        fence(Ordering::SeqCst);
        let asleep = |helper: &&Helper| helper.asleep.load(Ordering::Relaxed);
        for helper in self.helpers.iter().filter(asleep).take(count) {
            helper.asleep.store(false, Ordering::Release);
            if let Some(thread) = helper.thread.get() {
                thread.unpark();
            }
        }
    }

    /// Computes a part of any loop, if there is one.
    fn compute_one(&self) -> bool {
        self.loops.iter().any(LoopPlace::compute_one)
    }

    /// What the helper `number` does.
    fn help(&self, number: usize) {
        TEAM.with(|team| team.set(self.address()));
        self.cores.join(number + 1);
        self.ready.fetch_add(1, Ordering::Release);
        let own = &self.helpers[number];
        while !self.quits.load(Ordering::Relaxed) {
            let left = self.look_for_work(own, || self.cores.settle(number + 1));
            own.asleep.store(true, Ordering::Relaxed);
            // Either who wants this thread looks behind the fence in `wake` and sees that it sleeps, or
            // what is wanted is seen here.
            fence(Ordering::SeqCst);
            let call = self.call.load(Ordering::Relaxed);
            if call % 2 == 1 && call != left
                || self.quits.load(Ordering::Relaxed)
                || self.loops.iter().any(LoopPlace::is_open)
            {
                own.asleep.store(false, Ordering::Relaxed);
            }
            while own.asleep.load(Ordering::Acquire) {
                thread::park();
            }
        }
    }

    /// Computes parts of loops until no call lasts, and none is likely to begin, or until there have
    /// been none for [`LOOKS`] looks; the number of the call that goes on then.
    fn look_for_work(&self, own: &Helper, settle: impl Fn()) -> u64 {
        let (mut looks, mut settled) = (0, 0);
        loop {
            let call = self.call.load(Ordering::Acquire);
            if call % 2 == 1 && settled != call {
                (looks, settled) = (0, call);
                settle();
            }
            if self.compute_one() {
                looks = 0;
                continue;
            }
            if call.is_multiple_of(2) {
                let since = self.end().elapsed();
                own.sees(call, u64::try_from(since.as_nanos()).unwrap_or(u64::MAX));
                if since >= SOON || !self.another.load(Ordering::Relaxed) {
                    return 0;
                }
                wait_a_little(&mut looks);
                continue;
            }
            if looks >= LOOKS {
                // It will not be late, since it is not waited for.
                own.sees(call + 1, 0);
                return call;
            }
            wait_a_little(&mut looks);
            if looks.is_multiple_of(OFFER) {
                settle();
            }
        }
    }
}

impl Helper {
    fn sees(&self, call: u64, late: u64) {
        if self.seen.load(Ordering::Relaxed) < call {
            self.late.store(late, Ordering::Relaxed);
            self.seen.store(call, Ordering::Release);
        }
    }
}

/// On a busy machine somebody else may need the core.
fn wait_a_little(looks: &mut u32) {
    *looks = looks.wrapping_add(1);
    if looks.is_multiple_of(OFFER) {
        thread::yield_now();
    } else {
        spin_loop();
    }
}

impl LoopPlace {
    /// Takes the place, if no loop has it.
    fn take(&self) -> bool {
        !self.taken.load(Ordering::Relaxed) && !self.taken.swap(true, Ordering::Acquire)
    }

    /// Whether there is a part that nobody has taken.
    fn is_open(&self) -> bool {
        let open = self.open.load(Ordering::Relaxed);
        open & ((1 << PARTS) - 1) > open >> PARTS
    }

    /// Computes a part that nobody has taken, if there is one.
    fn compute_one(&self) -> bool {
        let mut open = self.open.load(Ordering::Relaxed);
        let number = loop {
            let (taken, parts) = (open >> PARTS, open & ((1 << PARTS) - 1));
            if taken == parts {
                return false;
            }
            let one_less = open + (1 << PARTS);
            let order = (Ordering::Acquire, Ordering::Relaxed);
            match self
                .open
                .compare_exchange_weak(open, one_less, order.0, order.1)
            {
                Ok(_) => break taken,
                Err(now) => open = now,
            }
        };
        #[expect(clippy::cast_possible_truncation, reason = "below the number of parts")]
        let number = number as usize;
        let compute = || {
            #[expect(unsafe_code, reason = "a loop's body is its caller's")]
            // SAFETY: this thread has just taken a part of the loop that has this place, which is
            // not done before `done` says so below. Until then `Team::each` neither returns, so its
            // `Body` lives, nor gives the place away, so the pointer is that loop's: it was stored
            // before `open`, whose change by others keeps the order (a release sequence).
            let body = unsafe { &*self.body.load(Ordering::Relaxed) };
            (body.0)(number);
        };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(compute)) {
            self.panic().get_or_insert(panic);
        }
        self.done.fetch_add(1, Ordering::Release);
        true
    }

    fn panic(&self) -> MutexGuard<'_, Option<Box<dyn Any + Send>>> {
        self.panic.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use std::thread::yield_now;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
        let began = Instant::now();
        while !done() {
            assert!(began.elapsed() < 60_000 * MS, "{what}");
            yield_now();
        }
    }

    fn all_sleep(team: &Team) {
        let helpers = &team.shared.helpers;
        let asleep = || helpers.iter().all(|h| h.asleep.load(Ordering::SeqCst));
        wait_for("helpers that do not go to sleep", asleep);
    }

    /// Loops with loops inside, of any number of parts, by any number of helpers.
    #[test]
    fn every_part_is_computed_once() {
        for (helpers, awake) in [(0, true), (1, true), (2, true), (3, false), (7, true)] {
            let team = Team::new(helpers, awake).unwrap();
            for round in 0..40 {
                team.call(|| {
                    for parts in [0, 1, 2, 3, 20] {
                        let mut counts = vec![[0usize; 9]; parts];
                        team.each_of(&mut counts, |number, counts| {
                            team.each_of(counts, |inner, count| {
                                // Deeper than there are places for.
                                fn deeper(team: &Team, count: &mut usize, depth: usize) {
                                    team.each_of(&mut [(), ()], |_, ()| ());
                                    match depth {
                                        0 => *count += 1,
                                        _ => deeper(team, count, depth - 1),
                                    }
                                }
                                deeper(&team, count, 3);
                                *count += number + inner;
                            });
                        });
                        for (number, counts) in counts.iter().enumerate() {
                            for (inner, count) in counts.iter().enumerate() {
                                assert_eq!(*count, 1 + number + inner, "round {round}");
                            }
                        }
                    }
                });
            }
        }
    }

    #[test]
    fn loops_inside_of_loops_run_side_by_side() {
        let team = Team::new(2, true).unwrap();
        // Three parts that wait for each other: one of them is inside of another loop's.
        let here = AtomicUsize::new(0);
        let meet = |wanted: usize| {
            here.fetch_add(1, Ordering::SeqCst);
            wait_for("a part that nobody takes", || {
                here.load(Ordering::SeqCst) >= wanted
            });
        };
        team.call(|| {
            team.each(2, &|number| match number {
                0 => meet(3),
                _ => team.each(2, &|_| meet(3)),
            });
        });
        assert_eq!(here.into_inner(), 3);
    }

    #[test]
    fn a_panic_of_any_part_comes_to_the_caller_behind_all_parts() {
        let team = Team::new(2, true).unwrap();
        for bad in 0..6 {
            let done = AtomicUsize::new(0);
            let call = || {
                team.call(|| {
                    team.each(6, &|number| {
                        assert!(number != bad, "on purpose");
                        done.fetch_add(1, Ordering::Relaxed);
                    });
                });
            };
            assert!(catch_unwind(AssertUnwindSafe(call)).is_err());
            assert_eq!(done.into_inner(), 5);
            assert!(!is_in_a_team());
            // The next one is as always.
            let sum = AtomicUsize::new(0);
            let add = |n| {
                sum.fetch_add(n, Ordering::Relaxed);
            };
            team.call(|| team.each(100, &add));
            assert_eq!(sum.into_inner(), 4950);
        }
    }

    #[test]
    fn helpers_sleep_between_calls_and_in_a_call_without_loops() {
        let team = Team::new(3, true).unwrap();
        all_sleep(&team);
        for _ in 0..3 {
            team.call(|| {
                all_sleep(&team);
                // A loop wakes them.
                let here = AtomicUsize::new(0);
                team.each(4, &|_| {
                    here.fetch_add(1, Ordering::SeqCst);
                    wait_for("a helper", || here.load(Ordering::SeqCst) == 4);
                });
            });
            all_sleep(&team);
        }
    }

    #[test]
    fn another_call_is_expected_where_one_has_come_soon() {
        let team = Team::new(1, true).unwrap();
        let expected = || team.shared.another.load(Ordering::Relaxed);
        wait_for("a call that follows another soon", || {
            team.call(|| ());
            expected()
        });
        all_sleep(&team);
        std::thread::sleep(2 * SOON);
        team.call(|| ());
        assert!(!expected());
        all_sleep(&team);
    }

    /// A helper that goes to sleep while a call begins is woken all the same.
    #[test]
    fn no_call_and_no_loop_is_slept_through() {
        for awake in [true, false] {
            let team = Team::new(1, awake).unwrap();
            for round in 0..3000u32 {
                team.call(|| {
                    let here = AtomicUsize::new(0);
                    team.each(2, &|_| {
                        here.fetch_add(1, Ordering::SeqCst);
                        wait_for("the helper", || here.load(Ordering::SeqCst) == 2);
                    });
                });
                (0..round % 97).for_each(|_| std::hint::spin_loop());
            }
        }
    }

    #[test]
    fn only_a_member_in_a_call_shares_its_loops() {
        let (team, other) = (Team::new(1, true).unwrap(), Team::new(1, true).unwrap());
        let own = std::thread::current().id();
        let alone = || assert_eq!(std::thread::current().id(), own);
        team.each(50, &|_| alone());
        team.call(|| other.each(50, &|_| alone()));
        assert!(!team.is_here());
        team.call(|| assert!(team.is_here() && !other.is_here()));
    }

    #[test]
    fn a_helper_that_sees_the_end_late_is_noticed_once() {
        let team = Team::new(1, true).unwrap();
        assert_eq!(team.punctuality(), None);
        let [helper] = &team.shared.helpers[..] else {
            unreachable!("one helper");
        };
        team.call(|| ());
        all_sleep(&team);
        assert!(team.punctuality().is_some());
        assert_eq!(team.punctuality(), None);
        // As if it had not come yet.
        team.call(|| ());
        all_sleep(&team);
        helper.seen.store(0, Ordering::SeqCst);
        let end = Instant::now();
        let late = loop {
            if let Some((_, late)) = team.punctuality() {
                break late;
            }
            assert!(end.elapsed() < 60_000 * MS, "never late");
        };
        assert!(is_late(Duration::ZERO, late));
        assert_eq!(team.punctuality(), None);
        // As if it had been waited for in vain.
        team.call(|| team.miss());
        all_sleep(&team);
        assert_eq!(team.punctuality(), Some((Duration::ZERO, Duration::MAX)));
        assert_eq!(team.punctuality(), None);
        // As if it had come by now.
        team.call(|| ());
        all_sleep(&team);
        helper.late.store(5_000_000, Ordering::SeqCst);
        assert_eq!(team.punctuality().map(|(_, late)| late), Some(5 * MS));
    }
}
