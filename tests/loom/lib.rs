//! Loom runs a model once for every order in which its threads can come, with every value that the
//! memory order of its atomics allows, up to a number of switches between threads. It fails a model
//! that panics, that reads what another thread still writes, or whose threads all wait.
#![cfg(test)]
#![allow(dead_code, reason = "not all of a file is modelled")]

/// That of loom does not know `const`.
macro_rules! thread_local {
    ($(#[$meta:meta])* static $name:ident: $type:ty = const $value:block;) => {
        loom::thread_local! { $(#[$meta])* static $name: $type = $value; }
    };
}

#[path = "../../src/device/cpu/barrier.rs"]
mod barrier;
#[path = "../../src/device/cpu/team.rs"]
mod team;

/// A model has no cores, no other work beside it, and no errors to tell apart.
mod cores {
    pub(super) struct Cores;

    impl Cores {
        pub(super) fn new(_: usize) -> Self {
            Self
        }
        pub(super) fn begin(&self) {}
        pub(super) fn join(&self, _: usize) {}
        pub(super) fn settle(&self, _: usize) {}
    }
}

mod crowd {
    pub(super) fn is_late(_: std::time::Duration, _: std::time::Duration) -> bool {
        false
    }
}

mod error {
    pub(super) type Result<T> = std::result::Result<T, String>;

    macro_rules! error {
        ($kind:ident, $($text:tt)+) => { format!($($text)+) };
    }
    pub(super) use error;
}

use std::panic::{AssertUnwindSafe, catch_unwind};

use loom::cell::UnsafeCell;
use loom::model::Builder;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};

use barrier::Barrier;
use team::Team;

/// Runs `model`; `HUBROUTER_LOOM_SWITCHES` asks for more switches between threads.
fn check(model: impl Fn() + Send + Sync + 'static) {
    #[expect(clippy::disallowed_methods, reason = "a variable of these tests")]
    let asked = std::env::var("HUBROUTER_LOOM_SWITCHES").ok();
    let mut builder = Builder::new();
    builder.preemption_bound = Some(asked.map_or(2, |n| n.parse().expect("a number")));
    builder.max_branches = 10_000;
    builder.check(model);
}

/// A number that loom lets one thread alone change.
struct Number(UnsafeCell<usize>);

#[expect(
    unsafe_code,
    reason = "what is modelled; loom finds two threads at one number"
)]
impl Number {
    fn new() -> Self {
        Self(UnsafeCell::new(0))
    }

    fn add(&self, more: usize) {
        // SAFETY: loom fails the model where somebody else has it.
        self.0.with_mut(|number| unsafe { *number += more });
    }

    fn get(&self) -> usize {
        // SAFETY: loom fails the model where somebody changes it.
        self.0.with(|number| unsafe { *number })
    }
}

// SAFETY: as above.
#[expect(
    unsafe_code,
    reason = "what is modelled; loom finds two threads at one number"
)]
unsafe impl Sync for Number {}

fn team(helpers: usize, awake: bool) -> Team {
    Team::new(helpers, awake).unwrap_or_else(|error| panic!("{error}"))
}

/// A call of a loop of two parts: who takes which is computed once, and seen by the caller.
fn call(team: &Team) {
    team.call(|| {
        let mut numbers = [Number::new(), Number::new()];
        team.each_of(&mut numbers, |n, number| number.add(n + 1));
        assert_eq!(numbers.each_ref().map(Number::get), [1, 2]);
    });
}

/// Models with a helper that stays awake while a call lasts, and with one that sleeps between loops.
fn check_with_a_team(model: fn(&Team)) {
    for awake in [true, false] {
        check(move || model(&team(1, awake)));
    }
}

#[test]
fn calls_one_after_the_other() {
    check_with_a_team(|team| {
        call(team);
        call(team);
    });
}

#[test]
fn loops_inside_of_loops() {
    check_with_a_team(|team| {
        team.call(|| {
            let mut numbers = [(); 2].map(|()| [(); 2].map(|()| Number::new()));
            team.each_of(&mut numbers, |outer, numbers| {
                team.each_of(numbers, |inner, number| number.add(outer + 2 * inner));
            });
            for (outer, numbers) in numbers.iter().enumerate() {
                assert_eq!(numbers.each_ref().map(Number::get), [outer, outer + 2]);
            }
        });
    });
}

/// Two parts that wait for each other: a helper that sleeps through the loop would end the model.
#[test]
fn no_loop_is_slept_through() {
    check_with_a_team(|team| {
        team.call(|| {
            let here = AtomicUsize::new(0);
            team.each(2, &|_| {
                here.fetch_add(1, Ordering::Relaxed);
                while here.load(Ordering::Relaxed) < 2 {
                    loom::thread::yield_now();
                }
            });
        });
    });
}

#[test]
fn a_panic_comes_behind_the_other_part() {
    std::panic::set_hook(Box::new(|_| ()));
    check(|| {
        let (team, number) = (team(1, true), Number::new());
        let bad = |part: usize| {
            assert!(part == 1, "on purpose");
            number.add(1);
        };
        let outcome = catch_unwind(AssertUnwindSafe(|| team.call(|| team.each(2, &bad))));
        assert!(outcome.is_err());
        assert_eq!(number.get(), 1);
        call(&team);
    });
}

/// What each part writes before a round is seen by the other one behind it.
#[test]
fn a_barrier_keeps_rounds_apart() {
    check(|| {
        let shared = Arc::new((Barrier::new(2), [Number::new(), Number::new()]));
        let part = |own: usize, shared: &(Barrier, [Number; 2])| {
            let (barrier, numbers) = shared;
            let mut attendance = barrier.attend();
            for round in 1..3 {
                numbers[own].add(1);
                assert!(attendance.wait());
                assert_eq!(numbers[1 - own].get(), round);
                assert!(attendance.wait());
            }
        };
        let other = Arc::clone(&shared);
        let other = loom::thread::spawn(move || part(1, &other));
        part(0, &shared);
        assert!(other.join().is_ok());
    });
}
