//! `hubrouter route --shadow`: decisions are recorded, and nobody acts on them.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::output;
use crate::error::{Error, Result};
use crate::feedback::{Feedback, FeedbackLog, FeedbackOptions, KeepPrompt};
use crate::{Decision, Hub, Request, Router};

/// Where decisions are recorded.
#[derive(Args)]
pub(super) struct ShadowArgs {
    /// Record the decisions in this log, a folder, in place of showing them; --json and --output
    /// show them, too
    #[arg(long, value_name = "LOG")]
    shadow: Option<PathBuf>,
    /// The model that was really used for the prompts; "used" of a line of JSON comes first
    #[arg(long, value_name = "MODEL", requires = "shadow")]
    used: Option<String>,
    /// Kept of a prompt in the log: text, hash, vector or nothing [default: hash]
    #[arg(long, value_name = "PART", requires = "shadow")]
    keep: Option<KeepPrompt>,
}

/// The log of a run, and what it recorded.
pub(super) struct ShadowWriter {
    log: FeedbackLog,
    used: Option<String>,
    hub: Arc<Hub>,
    recorded: usize,
    /// Of the decisions with a used model.
    judged: usize,
    agreed: usize,
}

impl ShadowArgs {
    pub(super) fn wanted(&self) -> bool {
        self.shadow.is_some()
    }

    pub(super) fn open(&self, router: &Router) -> Result<Option<ShadowWriter>> {
        let Some(folder) = &self.shadow else {
            return Ok(None);
        };
        let keep = self.keep.unwrap_or_default();
        let options = FeedbackOptions::default().keep(keep).shadow(true);
        let log = FeedbackLog::open(folder, options)?;
        let log = match keep {
            KeepPrompt::Vector => log.encoder(router.encoder()),
            _ => log,
        };
        Ok(Some(ShadowWriter {
            log,
            used: self.used.clone(),
            hub: router.hub(),
            recorded: 0,
            judged: 0,
            agreed: 0,
        }))
    }
}

impl ShadowWriter {
    /// Records the answer to `request`.
    pub(super) fn record(
        &mut self,
        request: &Request,
        mut feedback: Feedback,
        answer: std::result::Result<&Decision, &Error>,
    ) -> Result<()> {
        feedback.used = feedback.used.or_else(|| self.used.clone());
        match answer {
            Ok(decision) => {
                self.log.observe(request, decision, &feedback)?;
                if let Some(used) = &feedback.used {
                    let best = decision.ranked.first();
                    self.judged += 1;
                    let id = self.hub.find(used);
                    self.agreed += usize::from(best.is_some_and(|best| {
                        Some(best.id) == id || best.deployments.iter().any(|d| **d == **used)
                    }));
                }
            }
            Err(error) => self.log.observe_failure(request, error, &feedback)?,
        }
        self.recorded += 1;
        Ok(())
    }

    /// `recorded 3 decisions in LOG; 1 of 2 is the model that was used`
    pub(super) fn summary(&self) -> String {
        let agreed = match self.judged {
            0 => String::new(),
            judged => format!(
                "; the best model is the used one in {} of {judged}",
                self.agreed
            ),
        };
        format!(
            "recorded {} in {}{agreed}",
            output::counted(self.recorded, "decision"),
            self.log.folder().display()
        )
    }
}
