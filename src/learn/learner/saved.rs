//! What an update leaves behind while it learns, so that little is lost when the process is.

use std::time::{Duration, Instant};

use super::Learner;
use super::prepare::Task;
use crate::error::{Error, ErrorKind, Result};
use crate::learn::candidates::Candidates;
use crate::learn::engine::Engine;
use crate::learn::state::State;

/// From one writing to the next.
pub(super) const PAUSE: Duration = Duration::from_secs(60);

/// Writing takes at most one part in so many of the time: the state of a large hub is large.
const SHARE: u32 = 100;

/// Writes the state of one update now and then.
pub(super) struct Saved<'l> {
    learner: &'l Learner,
    update: &'l str,
    /// The step at which this call began.
    first: usize,
    /// When the last writing ended, and how long it is until the next.
    last: Instant,
    pause: Duration,
    failed: bool,
}

impl Learner {
    /// Of an update that begins now, with step `first`.
    pub(super) fn saved<'l>(&'l self, task: &'l Task, first: usize) -> Saved<'l> {
        Saved {
            learner: self,
            update: &task.update,
            first,
            last: Instant::now(),
            pause: self.pause,
            failed: false,
        }
    }

    /// Writes where an update is; a dry run does not.
    pub(super) fn save(&self, state: &State, update: &str) -> Result<()> {
        if self.dry_run {
            return Ok(());
        }
        let began = Instant::now();
        state.write(&self.out, &self.parent, &self.settings, update)?;
        let step = state.step;
        log::debug!(
            "wrote the state before step {step} in {:?}",
            began.elapsed()
        );
        Ok(())
    }

    /// `error`, of what came behind the last step, with what becomes of that.
    pub(super) fn unpublished(&mut self, error: Error) -> Error {
        if error.kind() == ErrorKind::Numeric {
            // To measure it again would not help.
            return self.blame(error);
        }
        if let Left::Unwritten(state, update) = &self.left {
            // What took the room may be gone by now.
            match self.save(state, update) {
                Ok(()) => self.left = Left::Written,
                Err(e) => log::warn!("{e}; what was learned since the last state is lost"),
            }
        }
        match self.left {
            Left::Written => error.but(
                "what was learned is kept: the same update, called again, goes on behind its last \
                 step, to measure and to publish",
            ),
            _ => error,
        }
    }
}

/// What is left of an update whose last step was made.
pub(super) enum Left {
    /// Nothing: no step was made, or it is a dry run.
    Nothing,
    /// Its state is in the store.
    Written,
    /// Its state could not be written; with SHA-256 of the update.
    Unwritten(State, String),
}

impl Saved<'_> {
    /// Writes the state before `step` when it is time. What cannot be written is said once, and
    /// learning goes on.
    ///
    /// Errors: the device failed.
    pub(super) fn now_and_then(
        &mut self,
        engine: &mut Engine,
        candidates: &Candidates,
        step: usize,
    ) -> Result<()> {
        let nothing = self.learner.dry_run || step == self.first;
        if nothing || self.last.elapsed() < self.pause {
            return Ok(());
        }
        let began = Instant::now();
        let state = State::of(engine, candidates, step)?;
        self.write(&state);
        self.last = Instant::now();
        self.pause = self.learner.pause.max(SHARE * (self.last - began));
        Ok(())
    }

    /// Writes the state behind the last step.
    pub(super) fn at_the_end(&mut self, state: State) -> Left {
        match self.write(&state) {
            true => Left::Written,
            false => Left::Unwritten(state, self.update.to_owned()),
        }
    }

    fn write(&mut self, state: &State) -> bool {
        let written = self.learner.save(state, self.update);
        if let Err(error) = &written
            && !std::mem::replace(&mut self.failed, true)
        {
            log::warn!("{error}; learning goes on, and what it learns is lost if this process is");
        }
        written.is_ok()
    }
}
