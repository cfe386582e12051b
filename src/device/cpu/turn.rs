//! A lock whose holders take turns in the order in which they came. With a plain mutex who has just
//! run takes it again, and on a busy machine somebody waits for as long as the others go on.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Waiters are spread over so many, so that few are woken for another's turn.
const BELLS: usize = 16;

#[derive(Default)]
pub(super) struct Turns {
    tickets: Mutex<Tickets>,
    bells: [Condvar; BELLS],
}

#[derive(Default)]
struct Tickets {
    /// The next number to be drawn.
    next: usize,
    /// Whose turn it is.
    now: usize,
}

/// Whoever has it has the turn.
pub(super) struct Turn<'t>(&'t Turns);

impl Turns {
    /// Waits for the caller's turn.
    pub(super) fn take(&self) -> Turn<'_> {
        let mut tickets = self.tickets();
        let own = tickets.next;
        tickets.next = own.wrapping_add(1);
        while tickets.now != own {
            let woken = self.bells[own % BELLS].wait(tickets);
            tickets = woken.unwrap_or_else(PoisonError::into_inner);
        }
        Turn(self)
    }

    fn tickets(&self) -> MutexGuard<'_, Tickets> {
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut tickets = self.0.tickets();
        tickets.now = tickets.now.wrapping_add(1);
        self.0.bells[tickets.now % BELLS].notify_all();
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn turns_come_in_the_order_of_the_comers() {
        let (turns, order) = (Turns::default(), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            let first = turns.take();
            for comer in 0..40 {
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
        let turns = Turns::default();
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
}
