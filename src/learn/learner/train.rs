//! Training: the engine, the steps, and what they leave.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Watch;
use super::saved::Left;
use super::steps::StepsEnd;
use super::teacher::Teacher;
use super::update::{Task, Update, UpdateConfig};
use crate::error::Result;
use crate::learn::engine::Engine;
use crate::learn::method::candidates::Candidates;
use crate::learn::method::ewc::{Ewc, FISHER};
use crate::learn::method::layout::ParameterLayout;
use crate::learn::report::LossTerms;
use crate::learn::settings::Regulariser;
use crate::model::lora::Factors;

/// Everything that a step works with.
pub(super) struct TrainingRun<'u> {
    pub(super) config: &'u UpdateConfig,
    pub(super) task: &'u Task,
    pub(super) engine: Engine,
    pub(super) candidates: Candidates,
    pub(super) teacher: Teacher,
}

/// How [`Update::train`] ended.
pub(super) enum TrainingEnd {
    /// The update trains nothing.
    NotNeeded,
    /// By the callback, before this step.
    Stopped { step: usize, steps: usize },
    /// After the last step, with the state that is left of it.
    Done(Box<TrainingResult>, Left),
}

/// An update after its last step.
pub(super) struct TrainingResult {
    pub(super) engine: Engine,
    pub(super) candidates: Candidates,
    /// The snapshots that EWC pulled to.
    pub(super) ewc: Ewc,
    cost: TrainingCost,
}

/// The steps of this call in numbers.
#[derive(Clone, Copy)]
pub(super) struct TrainingCost {
    /// Time of the steps.
    pub(super) learning: Duration,
    pub(super) steps: usize,
    pub(super) examples: usize,
    pub(super) terms: LossTerms,
}

impl TrainingResult {
    pub(super) fn cost(&self) -> TrainingCost {
        self.cost
    }
}

/// The trained parameters on the host, with the Fisher weights to keep.
pub(super) struct LearnedWeights {
    /// LoRA factors, W and E, in the order of the layout: [N].
    pub(super) theta: Vec<f32>,
    pub(super) layout: ParameterLayout,
    /// The bytes of `fisher.safetensors`.
    pub(super) fisher: Option<Vec<u8>>,
}

impl LearnedWeights {
    /// The encoder's factors, if it has adapters.
    pub(super) fn factors(&self) -> Option<Factors> {
        let adapter = &self.layout.adapter;
        (adapter.len > 0).then(|| Factors {
            adapter: adapter.clone(),
            values: self.theta[..adapter.len].to_vec(),
        })
    }
}

impl Update<'_> {
    /// Makes the steps, all of them or those before the callback or the budget ends them.
    ///
    /// Errors: a loss is not finite; the device failed.
    pub(super) fn train(
        &mut self,
        budget: Option<Duration>,
        watch: Watch<'_>,
    ) -> Result<TrainingEnd> {
        if !self.trains {
            return Ok(TrainingEnd::NotNeeded);
        }
        let mut engine = self.engine()?;
        let ewc = self.consolidate(&mut engine)?;
        let (state, steps) = (self.state.take(), self.task.schedule.steps);
        let teacher = match &state {
            Some(state) if state.step >= steps => Teacher::default(),
            _ => self.teacher(&mut engine, watch)?,
        };
        let domains = Arc::clone(&self.task.domains);
        let number = self.task.experience.into();
        let mut run = TrainingRun {
            config: self.config,
            task: &self.task,
            engine,
            candidates: Candidates::new(domains, self.config.settings.clone(), number),
            teacher,
        };
        let started = Instant::now();
        let done = match run.steps(state, budget, watch)? {
            StepsEnd::Done(done) => *done,
            StepsEnd::Stopped(step) => return Ok(TrainingEnd::Stopped { step, steps }),
        };
        let result = TrainingResult {
            engine: run.engine,
            candidates: run.candidates,
            ewc,
            cost: TrainingCost {
                learning: started.elapsed(),
                steps: done.steps,
                examples: done.examples,
                terms: done.terms,
            },
        };
        Ok(TrainingEnd::Done(Box::new(result), done.left))
    }

    /// The parameters after the last step, with Fisher weights where EWC needs them.
    pub(super) fn weights(
        &self,
        trained: TrainingResult,
        watch: Watch<'_>,
    ) -> Result<LearnedWeights> {
        let TrainingResult {
            mut engine,
            mut candidates,
            ewc,
            ..
        } = trained;
        let theta = engine.parameters()?;
        let (layout, settings) = (engine.layout().clone(), &self.config.settings);
        let fisher = match settings.regulariser {
            Regulariser::Anchors => self.parent.parts.get(FISHER).cloned(),
            Regulariser::Ewc => {
                let new = self.snapshot(&mut engine, &mut candidates, &theta, watch)?;
                Some(ewc.with(new, settings).write(&layout, settings)?)
            }
        };
        Ok(LearnedWeights {
            theta,
            layout,
            fisher,
        })
    }
}
