//! Elastic weight consolidation around an update: the parent's snapshots before it, a new one after
//! it.

use super::steps::{Draw, features, items};
use super::update::Update;
use super::{Status, Watch};
use crate::error::Result;
use crate::learn::engine::Engine;
use crate::learn::method::candidates::Candidates;
use crate::learn::method::ewc::{self, Ewc, FISHER, FisherSnapshot};
use crate::learn::settings::{EwcScope, Regulariser};

impl Update<'_> {
    /// Makes `engine` pull to the parent's snapshots, and returns them; with anchors there are
    /// none.
    pub(super) fn consolidate(&self, engine: &mut Engine) -> Result<Ewc> {
        let (contents, settings) = (&self.parent, &self.config.settings);
        if settings.regulariser == Regulariser::Anchors {
            return Ok(Ewc::default());
        }
        let ewc = match contents.parts.get(FISHER) {
            Some(bytes) => Ewc::read(bytes, engine.layout(), contents.hub.len())
                .map_err(|e| e.at(format!("{}: {FISHER}", self.config.parent)))?,
            None => {
                if self.task.experience > 1 {
                    log::warn!(
                        "{}: no {FISHER}: it was learned without regulariser = ewc; EWC protects \
                         no parameter in this update",
                        self.config.parent
                    );
                }
                Ewc::default()
            }
        };
        let w = engine.layout().w.offset;
        let router = settings.ewc_scope == EwcScope::Router;
        let snapshots = ewc.snapshots.iter().map(|snapshot| match router {
            true => snapshot.from(w),
            false => snapshot.clone(),
        });
        engine.consolidate(&snapshots.collect::<Vec<_>>())?;
        Ok(ewc)
    }

    /// The parameters `theta` with their Fisher weights over all rows, in the rows' order (carve.md
    /// section 7).
    pub(super) fn snapshot(
        &self,
        engine: &mut Engine,
        candidates: &mut Candidates,
        theta: &[f32],
        watch: Watch<'_>,
    ) -> Result<FisherSnapshot> {
        let (task, settings) = (&self.task, &self.config.settings);
        let rows = &task.rows;
        // W and E see only the encoder's output.
        let (first, pooled) = match settings.ewc_scope {
            EwcScope::Router => (engine.layout().w.offset, features(engine, rows, watch)?),
            EwcScope::All => (0, Vec::new()),
        };
        let places: Vec<usize> = (0..rows.len()).collect();
        let batches: Vec<&[usize]> = places.chunks(ewc::BATCH).collect();
        let draw = Draw {
            // Not a step's number: the candidate sets are new ones.
            step: task.schedule.steps,
            softness: settings.softness(),
            replayed: 1.0,
            teacher: None,
        };
        let fisher = engine.fisher(first, batches.len(), |i| {
            watch(&Status::of("fisher", i + 1, batches.len()));
            let window = [batches[i].to_vec()];
            let items = items(settings, task, candidates, draw, &window, &pooled);
            items.into_iter().flatten().collect()
        })?;
        Ok(FisherSnapshot {
            first,
            theta: theta[first..].to_vec(),
            fisher,
        })
    }
}
