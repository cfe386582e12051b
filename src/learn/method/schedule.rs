//! Phases and learning rates as functions of the step (carve.md sections 8 and 10).

use crate::learn::method::targets::Softness;
use crate::learn::settings::{AnchorPhase, RouterRate, Settings};
use crate::num::to_f32;

/// A part of an experience's steps in which one rule holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// All steps of the first experience.
    First,
    /// All steps of a later experience without a phase 1.
    Whole,
    /// The encoder is frozen; penalties act on old parameters.
    Phase1,
    /// The adapters are trained.
    Phase2,
}

impl Phase {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::First | Self::Whole => "learning",
            Self::Phase1 => "phase 1",
            Self::Phase2 => "phase 2",
        }
    }
}

/// Learning rates of one step; `None`: not trained.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rates {
    pub(crate) lora: Option<f64>,
    pub(crate) w: f64,
    pub(crate) e: f64,
}

/// The steps of one experience.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    settings: Settings,
    /// Optimiser steps T.
    pub(crate) steps: usize,
    /// Steps of phase 1, P: the step at which phase 2 begins.
    pub(crate) phase1: usize,
    first: bool,
}

impl Schedule {
    /// `experience`: from 1; `micro_batches`: of an epoch.
    pub(crate) fn new(settings: &Settings, experience: u64, micro_batches: usize) -> Self {
        let first = experience <= 1;
        let whole_windows = (micro_batches / settings.accumulate).saturating_mul(settings.epochs);
        let split = if first { 0.0 } else { settings.phase_split };
        Self {
            settings: settings.clone(),
            steps: micro_batches
                .div_ceil(settings.accumulate)
                .saturating_mul(settings.epochs),
            phase1: floor(split * whole_windows as f64),
            first,
        }
    }

    /// A later experience too short for a phase 1 is one phase, so that its anchors act.
    pub(crate) fn phase(&self, step: usize) -> Phase {
        if self.first {
            Phase::First
        } else if self.phase1 == 0 {
            Phase::Whole
        } else if step < self.phase1 {
            Phase::Phase1
        } else {
            Phase::Phase2
        }
    }

    /// The rates of 0-based step `step`.
    pub(crate) fn rates(&self, step: usize) -> Rates {
        let settings = &self.settings;
        let frozen = self.phase(step) == Phase::Phase1;
        let (w, e) = if frozen {
            (settings.lr_phase1_w, settings.lr_phase1_e)
        } else {
            (settings.lr_w, settings.lr_e)
        };
        let factor = linear(step, self.steps, settings.warm_up);
        let router = match settings.lr_router {
            RouterRate::Linear => factor,
            RouterRate::Constant => 1.0,
        };
        Rates {
            lora: (settings.lora_train && !frozen).then_some(settings.lr_lora * factor),
            w: w * router,
            e: e * router,
        }
    }

    /// AdamW's counter of W and E at `step`, from 1.
    pub(crate) fn router_count(&self, step: usize) -> usize {
        step + 1
    }

    /// AdamW's counter of the adapters at a `step` at which they are trained, from 1: it starts
    /// with their training.
    pub(crate) fn lora_count(&self, step: usize) -> usize {
        step + 1 - self.phase1.min(step)
    }

    /// True if anchors, or EWC in their place, act at `step`.
    pub(crate) fn anchored(&self, step: usize) -> bool {
        match (self.phase(step), self.settings.anchor_phase) {
            (Phase::First, _) => false,
            (Phase::Whole, _) | (_, AnchorPhase::Both) => true,
            (phase, AnchorPhase::Phase1) => phase == Phase::Phase1,
            (phase, AnchorPhase::Phase2) => phase == Phase::Phase2,
        }
    }

    /// Softness of the targets at `step`.
    pub(crate) fn softness(&self, step: usize) -> Softness {
        match self.phase(step) {
            Phase::Phase1 => Softness::Hard,
            _ => self.settings.softness(),
        }
    }

    /// The weight of a replayed row at `step`.
    pub(crate) fn replay_weight(&self, step: usize) -> f32 {
        match self.phase(step) {
            Phase::Phase1 => to_f32(self.settings.replay_weight),
            _ => 1.0,
        }
    }

    /// True if hard negatives are mined after a micro-batch of `step`.
    pub(crate) fn mines(&self, step: usize) -> bool {
        step > 0 && step.is_multiple_of(self.settings.mining_every)
    }
}

impl Settings {
    /// Softness of the targets outside of phase 1.
    pub(crate) fn softness(&self) -> Softness {
        if self.soft_eps == 0.0 {
            return Softness::Hard;
        }
        Softness::Soft {
            eps: to_f32(self.soft_eps),
            k: self.soft_k,
            leftover: self.soft_leftover,
        }
    }
}

/// Up over `warm_up` steps, then down to 0 at step `steps`.
fn linear(step: usize, steps: usize, warm_up: usize) -> f64 {
    if step < warm_up {
        step as f64 / warm_up as f64
    } else {
        steps.saturating_sub(step) as f64 / steps.saturating_sub(warm_up).max(1) as f64
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a share of a count")]
fn floor(share: f64) -> usize {
    share.floor() as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::settings::Leftover;

    fn schedule(settings: &Settings, micro_batches: usize) -> Schedule {
        Schedule::new(settings, 2, micro_batches)
    }

    /// carve.md V18
    #[test]
    fn steps_and_phases_match_hand_values_v18() {
        for (micro_batches, accumulate, steps, phase1) in [
            (489, 8, 310, 122),
            (287, 8, 180, 70),
            (554, 8, 350, 138),
            (582, 8, 365, 144),
            (37, 1, 185, 74),
            (85, 1, 425, 170),
        ] {
            let mut settings = Settings::base();
            settings.accumulate = accumulate;
            let found = schedule(&settings, micro_batches);
            assert_eq!((found.steps, found.phase1), (steps, phase1));
            let first = Schedule::new(&settings, 1, micro_batches);
            assert_eq!((first.steps, first.phase1), (steps, 0));
        }
    }

    /// carve.md V23
    #[test]
    fn rates_match_hand_values_v23() {
        let paper = schedule(&Settings::paper(), 489);
        let edge = Settings {
            accumulate: 8,
            ..Settings::base()
        };
        let edge = schedule(&edge, 489);
        for (step, want) in [
            (0, 0.0),
            (1, 1e-4),
            (10, 1e-3),
            (122, 6.266_666_7e-4),
            (309, 3.333_333_3e-6),
        ] {
            let found = edge.rates(step);
            assert!((found.w - want).abs() < 1e-10);
            assert!((found.e - 5.0 * want).abs() < 1e-9);
            let lora = (step >= 122).then_some(found.w);
            assert_eq!(found.lora, lora);
        }
        let (before, after) = (paper.rates(121), paper.rates(122));
        assert_eq!((before.lora, before.w, before.e), (None, 1e-4, 5e-5));
        assert_eq!((after.w, after.e), (3e-4, 5e-5));
        assert!(
            after
                .lora
                .is_some_and(|rate| (rate - 3.133_333_3e-4).abs() < 1e-10)
        );
        // Fewer steps than the warm-up has.
        let short = schedule(&Settings::base(), 1);
        assert_eq!((short.steps, short.rates(4).w), (5, 4e-4));
        assert_eq!(linear(10, 10, 10), 0.0);
        assert_eq!(linear(0, 10, 0), 1.0);
    }

    #[test]
    fn what_holds_in_a_phase() {
        let edge = Settings::base();
        let soft = Softness::Soft {
            eps: 0.02,
            k: 10,
            leftover: Leftover::Drop,
        };
        let first = Schedule::new(&edge, 1, 37);
        let later = schedule(&edge, 37);
        let whole = schedule(
            &Settings {
                phase_split: 0.0,
                ..edge.clone()
            },
            37,
        );
        for (schedule, step, phase, anchored, softness, weight) in [
            (&first, 0, Phase::First, false, soft, 1.0),
            (&later, 73, Phase::Phase1, true, Softness::Hard, 5.0),
            (&later, 74, Phase::Phase2, false, soft, 1.0),
            (&whole, 0, Phase::Whole, true, soft, 1.0),
        ] {
            assert_eq!(schedule.phase(step), phase);
            assert_eq!(schedule.anchored(step), anchored);
            assert_eq!(schedule.softness(step), softness);
            assert_eq!(schedule.replay_weight(step), weight);
            assert_eq!(schedule.rates(step).lora.is_none(), phase == Phase::Phase1);
        }
        let counts = [
            later.lora_count(74),
            later.lora_count(75),
            later.router_count(74),
        ];
        assert_eq!(counts, [1, 2, 75]);
        assert_eq!(first.lora_count(3), 4);
        assert_eq!(
            [0, 1, 100, 200].map(|step| later.mines(step)),
            [false, false, true, true]
        );
    }

    #[test]
    fn phases_of_anchors() {
        for (when, want) in [
            (AnchorPhase::Phase1, [false, true, false, true]),
            (AnchorPhase::Phase2, [false, false, true, true]),
            (AnchorPhase::Both, [false, true, true, true]),
        ] {
            let settings = Settings {
                anchor_phase: when,
                ..Settings::base()
            };
            let whole = Settings {
                phase_split: 0.0,
                ..settings.clone()
            };
            let later = schedule(&settings, 37);
            let found = [
                Schedule::new(&settings, 1, 37).anchored(0),
                later.anchored(0),
                later.anchored(74),
                schedule(&whole, 37).anchored(0),
            ];
            assert_eq!(found, want);
        }
        // No adapters at all, and then hard targets throughout.
        let settings = Settings {
            lora_train: false,
            soft_eps: 0.0,
            ..Settings::base()
        };
        let frozen = schedule(&settings, 37);
        assert_eq!(frozen.rates(100).lora, None);
        assert_eq!(frozen.softness(100), Softness::Hard);
    }
}
