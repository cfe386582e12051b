//! How well parent and child serve, whether the child may be published, and the report.

use std::sync::Arc;

use super::remember::KeptPrompts;
use super::train::TrainingCost;
use super::update::Update;
use super::{Status, Watch};
use crate::encoder::seen::Seen;
use crate::error::Result;
use crate::generation::Contents;
use crate::learn::accuracy::{Accuracy, Measurement};
use crate::learn::data::rows::PromptRow;
use crate::learn::report::{self, FIRST, LossTerms, Measured, Report, UNKNOWN};
use crate::memory::Memory;
use crate::serve::{Serving, ask};
use crate::text::tokenizer::Tokens;

impl Update<'_> {
    /// Measures the parent on earlier held-out prompts.
    pub(super) fn measure_parent(&mut self, watch: Watch<'_>) -> Result<()> {
        if self.old.is_empty() {
            return Ok(());
        }
        let parent = self.serving(&self.parent)?;
        if self.memory.is_none() {
            self.before = measure(&parent, &self.old, "measuring before", watch)?;
            return Ok(());
        }
        let old: Vec<&PromptRow> = self.old.iter().collect();
        let seen = self.look_at(&old, parent.network(), true, watch)?;
        self.before = measure_seen(&parent, &self.old, &seen)?;
        for (row, seen) in self.old.iter_mut().zip(seen) {
            row.seen = Some(seen);
        }
        Ok(())
    }

    /// Measures the child and decides about it. `cost`: of the steps, if there were any.
    ///
    /// Errors: the child cannot be served.
    pub(super) fn judge(
        &self,
        child: &Contents,
        kept: &KeptPrompts,
        cost: Option<TrainingCost>,
        watch: Watch<'_>,
    ) -> Result<Report> {
        let (after, gained) = self.measure_child(child, kept, watch)?;
        let mut report = self.report(kept, [&self.before, &after, &gained]);
        let learning = cost.map_or(kept.encoded, |cost| cost.learning);
        let examples = cost.map_or(report.examples, |cost| cost.examples);
        report.examples_per_second = examples as f64 / learning.as_secs_f64().max(1e-9);
        if let Some(cost) = cost {
            let (parent, width) = (&self.parent, child.manifest.width);
            report.steps = cost.steps;
            report.losses = cost.terms;
            report.projection_drift =
                report::projection_drift(&parent.projection, &child.projection);
            report.row_drift_degrees =
                report::row_drift(&parent.embeddings, &child.embeddings, width);
        }
        report.seconds = self.began.elapsed().as_secs_f64();
        Ok(report)
    }

    /// Accuracy of the child on earlier and on new held-out prompts, as it would serve.
    fn measure_child(
        &self,
        child: &Contents,
        kept: &KeptPrompts,
        watch: Watch<'_>,
    ) -> Result<(Measurement, Measurement)> {
        if self.trains && self.old.is_empty() && self.new.is_empty() {
            // It has to answer at least once before it can be published.
            ask(&self.config.parent, child, &self.encoder)?;
            return Ok(Default::default());
        }
        let serving = self.serving(child)?;
        if self.memory.is_some() {
            let after = measure_seen(&serving, &self.old, &kept.seen.old)?;
            let gained = measure_seen(&serving, &self.new, &kept.seen.new)?;
            return Ok((after, gained));
        }
        let after = measure(&serving, &self.old, "measuring after", watch)?;
        let gained = measure(&serving, &self.new, "measuring after", watch)?;
        Ok((after, gained))
    }

    /// A generation as it would serve.
    fn serving(&self, contents: &Contents) -> Result<Serving> {
        let (id, encoder) = (self.config.parent.clone(), Arc::clone(&self.encoder));
        Serving::new(id, contents, encoder, None)
    }

    /// The report without the steps. `measured`: the parent on earlier held-out prompts, the child
    /// on the same, and the child on new ones.
    fn report(&self, kept: &KeptPrompts, measured: [&Measurement; 3]) -> Report {
        let [before, after, gained] = measured;
        let lost = before.lost(after);
        let forgetting = lost.map(|lost| lost.points);
        let taught = self.parent.manifest.learned.is_some();
        let (known, fresh) = (self.parent.hub.len(), self.learned.len());
        Report {
            schema_version: 2,
            generation: None,
            kept_beside: None,
            parent: self.config.parent.clone(),
            trained: self.trains,
            models_added: self.new_models.len(),
            models_introduced: self.introduced.clone(),
            remarks: self.oddities.clone(),
            examples: fresh,
            replayed: self.task.rows.len() - fresh,
            remembered: self.memory.as_ref().map(Memory::prompts),
            steps: 0,
            seconds: 0.0,
            examples_per_second: 0.0,
            losses: LossTerms::default(),
            accuracy: Measured {
                old_before: before.total(),
                old_after: after.total(),
                new_after: gained.total(),
            },
            forgetting,
            forgetting_interval: lost.map(|lost| lost.interval),
            forgetting_unknown: lost.is_none().then(|| match taught {
                true => UNKNOWN.to_owned(),
                false => FIRST.to_owned(),
            }),
            forgetting_by_domain: before.lost_by_domain(after),
            taken_by_new_models: after.share_from(known),
            refused: self.refuses(forgetting, taught),
            replay: kept.replay,
            held_out: self.held_out.entries.len(),
            withheld: (!kept.withheld.is_nothing()).then_some(kept.withheld),
            projection_drift: 0.0,
            row_drift_degrees: (0.0, 0.0),
            peak_memory_bytes: report::peak_memory(),
            device: self.encoder.device_name().to_owned(),
        }
    }

    /// The gate. `taught`: earlier updates learned something that can be forgotten.
    fn refuses(&self, forgetting: Option<Accuracy>, taught: bool) -> bool {
        match forgetting {
            Some(lost) => self
                .config
                .max_forgetting
                .is_some_and(|most| lost.domain > most),
            None => taught && !self.config.allow_unmeasured,
        }
    }
}

/// Accuracy of `serving` on rows that have tokens.
fn measure(
    serving: &Serving,
    rows: &[PromptRow],
    stage: &'static str,
    watch: Watch<'_>,
) -> Result<Measurement> {
    let (rows, prompts): (Vec<&PromptRow>, Vec<&Tokens>) = rows
        .iter()
        .filter_map(|row| Some((row, row.tokens()?)))
        .unzip();
    let best = serving.best(&prompts, &mut |done| {
        watch(&Status::of(stage, done, rows.len()));
    })?;
    Ok(Measurement::new(&serving.hub, &rows, &best))
}

/// Accuracy of `serving` on rows that its network has seen.
fn measure_seen(serving: &Serving, rows: &[PromptRow], seen: &[Seen]) -> Result<Measurement> {
    let seen: Vec<&Seen> = seen.iter().collect();
    let rows: Vec<&PromptRow> = rows.iter().collect();
    let best = serving.best_of(&seen)?;
    Ok(Measurement::new(&serving.hub, &rows, &best))
}
