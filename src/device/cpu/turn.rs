//! A lock whose holders take turns in the order in which they came. With a plain mutex who has just
//! run takes it again, and on a busy machine somebody else waits for as long as the others go on.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Waiters are spread over so many, so that few are woken for another's turn.
const BELLS: usize = 16;

pub(super) struct Turns {
    /// Holders at a time.
    places: u64,
    tickets: Mutex<Tickets>,
    bells: [Condvar; BELLS],
}

#[derive(Default)]
struct Tickets {
    /// The next number to be drawn.
    next: u64,
    /// Turns that are over: the tickets before this number and, from it on, as many as there are
    /// places have theirs. One that has not noticed yet may be overtaken by later ones.
    over: u64,
}

/// Whoever has it has the turn.
pub(super) struct Turn<'t>(&'t Turns);

impl Turns {
    pub(super) fn new(places: usize) -> Self {
        Self {
            places: places as u64,
            tickets: Mutex::default(),
            bells: Default::default(),
        }
    }

    /// Waits for the caller's turn.
    pub(super) fn take(&self) -> Turn<'_> {
        let mut tickets = self.tickets();
        let own = tickets.next;
        tickets.next += 1;
        while own >= tickets.over + self.places {
            let woken = self.bell(own).wait(tickets);
            tickets = woken.unwrap_or_else(PoisonError::into_inner);
        }
        Turn(self)
    }

    fn bell(&self, ticket: u64) -> &Condvar {
        &self.bells[usize::from(ticket.to_le_bytes()[0]) % BELLS]
    }

    fn tickets(&self) -> MutexGuard<'_, Tickets> {
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut tickets = self.0.tickets();
        tickets.over += 1;
        self.0.bell(tickets.over + self.0.places - 1).notify_all();
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn turns_come_in_the_order_of_the_comers() {
        let (turns, order) = (Turns::new(1), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            let first = turns.take();
            for comer in 0..40u64 {
                let (turns, order) = (&turns, &order);
                scope.spawn(move || {
                    let _turn = turns.take();
                    order.lock().unwrap().push(comer);
                });
                // The first has ticket 0.
                while turns.tickets().next < comer + 2 {
                    std::thread::yield_now();
                }
            }
            drop(first);
        });
        let order = order.into_inner().unwrap();
        assert!(order.iter().copied().eq(0..40), "{order:?}");
    }

    #[test]
    fn a_panic_gives_the_turn_back() {
        let turns = Turns::new(1);
        let panicked = std::thread::scope(|scope| {
            let holder = scope.spawn(|| {
                let _turn = turns.take();
                panic!("on purpose");
            });
            holder.join().is_err()
        });
        assert!(panicked);
        drop(turns.take());
    }

    #[test]
    fn as_many_hold_it_as_there_are_places() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let (turns, holders, most) = (Turns::new(3), AtomicUsize::new(0), AtomicUsize::new(0));
        // Three at once, on one thread.
        drop([turns.take(), turns.take(), turns.take()]);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let _turn = turns.take();
                        let now = holders.fetch_add(1, Ordering::SeqCst) + 1;
                        most.fetch_max(now, Ordering::SeqCst);
                        std::thread::yield_now();
                        holders.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert!((1..=3).contains(&most.into_inner()));
        assert_eq!(turns.tickets().over, 3 + 8 * 200);
    }

    #[test]
    fn a_turn_that_later_ones_have_overtaken_stays() {
        let turns = Turns::new(2);
        (turns.tickets().next, turns.tickets().over) = (5, 7);
        drop(turns.take());
        assert_eq!(turns.tickets().over, 8);
    }
}
