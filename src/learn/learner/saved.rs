//! The state that an update writes while it learns, so that little is lost if the process is.

use std::time::{Duration, Instant};

use super::Learner;
use super::state::State;
use super::update::{Task, UpdateConfig};
use crate::error::{Error, ErrorKind, Result};
use crate::learn::engine::Engine;
use crate::learn::method::candidates::Candidates;

/// Time between two writes, by default.
pub(super) const PAUSE: Duration = Duration::from_secs(60);

/// Writing takes at most one part in so many of the time: the state of a large hub is large.
const SHARE: u32 = 100;

/// Writes the state of one update now and then.
pub(super) struct Saved<'u> {
    config: &'u UpdateConfig,
    task: &'u Task,
    /// The step at which this call began.
    first: usize,
    /// When the last write ended, and how long to wait for the next.
    last: Instant,
    pause: Duration,
    failed: bool,
}

/// The state that is left of an update after its last step.
pub(super) enum Left {
    /// Nothing: no step was made, or it is a dry run.
    Nothing,
    /// It is in the store.
    Written,
    /// It could not be written; with SHA-256 of the update.
    Unwritten(State, String),
}

impl UpdateConfig {
    /// Writes the state of an update; a dry run does not.
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
}

impl Learner {
    /// `error`, of what came after the last step, with what becomes of the steps.
    pub(super) fn unpublished(&mut self, error: Error) -> Error {
        if error.kind() == ErrorKind::Numeric {
            // Measuring again would not help.
            return self.config.settings.blame(error);
        }
        if let Left::Unwritten(state, update) = &self.left {
            // A full disk may have space again.
            match self.config.save(state, update) {
                Ok(()) => self.left = Left::Written,
                Err(e) => log::warn!("{e}; everything since the last state is lost"),
            }
        }
        match self.left {
            Left::Written => error.but(
                "what was learned is kept: the same update, called again, resumes after its last \
                 step, measures and publishes",
            ),
            _ => error,
        }
    }
}

impl<'u> Saved<'u> {
    /// Of an update that begins now, with step `first`.
    pub(super) fn new(config: &'u UpdateConfig, task: &'u Task, first: usize) -> Self {
        Self {
            config,
            task,
            first,
            last: Instant::now(),
            pause: config.pause,
            failed: false,
        }
    }

    /// Writes the state before `step` when it is time. A failure to write is logged once, and
    /// learning continues.
    ///
    /// Errors: the device failed.
    pub(super) fn now_and_then(
        &mut self,
        engine: &mut Engine,
        candidates: &Candidates,
        step: usize,
    ) -> Result<()> {
        let nothing = self.config.dry_run || step == self.first;
        if nothing || self.last.elapsed() < self.pause {
            return Ok(());
        }
        let began = Instant::now();
        let state = State::of(engine, candidates, step)?;
        self.write(&state);
        self.last = Instant::now();
        self.pause = self.config.pause.max(SHARE * (self.last - began));
        Ok(())
    }

    /// Writes the state after the last step.
    pub(super) fn at_the_end(&mut self, state: State) -> Left {
        match self.write(&state) {
            true => Left::Written,
            false => Left::Unwritten(state, self.task.update.clone()),
        }
    }

    fn write(&mut self, state: &State) -> bool {
        let written = self.config.save(state, &self.task.update);
        if let Err(error) = &written
            && !std::mem::replace(&mut self.failed, true)
        {
            log::warn!("{error}; learning continues, and is lost if this process is");
        }
        written.is_ok()
    }
}
