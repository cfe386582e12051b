//! What elastic weight consolidation holds on to, before an update and after it.

use super::prepare::{Task, Update};
use super::steps::{Draw, features, input};
use super::{Learner, Status, Watch};
use crate::error::Result;
use crate::learn::candidates::Candidates;
use crate::learn::engine::Engine;
use crate::learn::ewc::{self, Consolidated, FISHER, Held};
use crate::learn::settings::{EwcScope, Regulariser};

impl Learner {
    /// What EWC holds on to, which `engine` does from now on; nothing with anchors.
    pub(super) fn consolidated(
        &self,
        engine: &mut Engine,
        update: &Update,
    ) -> Result<Consolidated> {
        let (contents, experience) = (&update.contents, update.task.experience);
        if self.settings.regulariser == Regulariser::Anchors {
            return Ok(Consolidated::default());
        }
        let consolidated = match contents.parts.get(FISHER) {
            Some(bytes) => Consolidated::read(bytes, engine.layout(), contents.hub.len())
                .map_err(|e| e.at(format!("{}: {FISHER}", self.parent)))?,
            None if experience > 1 => {
                log::warn!(
                    "{}: no {FISHER}: it was not learned with regulariser = ewc, and nothing holds \
                     it in this update",
                    self.parent
                );
                Consolidated::default()
            }
            None => Consolidated::default(),
        };
        let w = engine.layout().w.offset;
        let router = self.settings.ewc_scope == EwcScope::Router;
        let held = consolidated.held.iter().map(|held| match router {
            true => held.behind(w),
            false => held.clone(),
        });
        engine.consolidate(&held.collect::<Vec<_>>())?;
        Ok(consolidated)
    }

    /// What was learned, with its Fisher weights over all rows, in their order (carve.md section 7).
    pub(super) fn fisher(
        &self,
        engine: &mut Engine,
        task: &Task,
        candidates: &mut Candidates,
        theta: &[f32],
        watch: Watch<'_>,
    ) -> Result<Held> {
        let rows = &task.rows;
        let router = self.settings.ewc_scope == EwcScope::Router;
        // W and E see the encoder's output alone.
        let (first, pooled) = if router {
            let pooled = features(engine, rows, watch)?;
            (engine.layout().w.offset, pooled)
        } else {
            (0, Vec::new())
        };
        let places: Vec<usize> = (0..rows.len()).collect();
        let batches: Vec<&[usize]> = places.chunks(ewc::BATCH).collect();
        let draw = Draw {
            // No step's: the sets are fresh.
            step: task.schedule.steps,
            softness: self.settings.softness(),
            replayed: 1.0,
            teacher: None,
        };
        let fisher = engine.fisher(first, batches.len(), |i| {
            watch(&Status::of("fisher", i + 1, batches.len()));
            let items = self.items(task, candidates, draw, &[batches[i].to_vec()], |row| {
                input(&rows[row], router.then(|| &pooled[row][..]))
            });
            items.into_iter().flatten().collect()
        })?;
        Ok(Held {
            first,
            theta: theta[first..].to_vec(),
            fisher,
        })
    }
}
