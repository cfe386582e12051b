//! Answers that a policy does not want to be acted on.

use super::{PromptToRank, cut_of, decide, rank};
use crate::error::{Error, ErrorKind, Result, error};
use crate::route::front::Asking;
use crate::route::policy::CompiledPolicy;
use crate::route::{AbstainReason, Abstention, Decision, Request, Timing};
use crate::serve::Serving;
use crate::serve::index::Ranking;
use crate::text::tokenizer::Tokens;

/// Marks the `decisions` that `policy` withholds. The first fallback that some model meets answers
/// them; a fallback's own answer is final. Where nothing is eligible, the error becomes a decision
/// without a ranking.
pub(super) fn abstain<A: Asking>(
    serving: &Serving,
    policy: &CompiledPolicy,
    requests: &[A],
    k: usize,
    decisions: &mut [Result<Decision>],
) {
    let Some(limits) = policy.limits() else {
        return;
    };
    for (asked, answer) in requests.iter().zip(decisions) {
        let request = asked.request();
        match answer {
            Ok(decision) => {
                let by_fallback = decision.policy.as_ref();
                if by_fallback.is_some_and(|policy| policy.fallback.is_some()) {
                    continue;
                }
                let confidence = decision.confidence.as_ref();
                let Some(why) = confidence.and_then(|sure| limits.abstention(sure)) else {
                    continue;
                };
                decision.abstained = Some(why);
                // A model that a session looks for may stand behind.
                decision.ranked.truncate(request.top);
                if let Err(error) = fall_back(serving, policy, request, k, decision) {
                    *answer = Err(error);
                }
            }
            Err(error) if error.kind() == ErrorKind::NoCandidate => {
                *answer = nothing(serving, policy, request, error);
            }
            Err(_) => {}
        }
    }
}

/// Puts the answer of a fallback in place of a withheld one, if a fallback admits a model.
fn fall_back(
    serving: &Serving,
    policy: &CompiledPolicy,
    request: &Request,
    k: usize,
    withheld: &mut Decision,
) -> Result<()> {
    let needs = request.chat.as_ref().map(|chat| &chat.needs);
    let Ok(admitted) = policy.admit(needs, 1) else {
        return Ok(());
    };
    let ask = PromptToRank {
        tokens: tokens(serving, request)?,
        admitted: Some(admitted),
        kept: None,
    };
    let answer = rank(serving, Some(policy), std::slice::from_ref(&ask), k).pop();
    let answer = answer.unwrap_or_else(|| Err(error!(Device, "no answer")))?;
    let timing = Timing {
        encode: withheld.timing.encode + answer.encode,
        score: withheld.timing.score + answer.score,
        ..withheld.timing
    };
    let within = ask.admitted.as_ref().map(|admitted| (policy, admitted));
    let ranking = &answer.ranking;
    let decision = decide(serving, request, &ask, ranking, within, timing);
    *withheld = Decision {
        confidence: withheld.confidence,
        abstained: withheld.abstained.take(),
        ..decision
    };
    Ok(())
}

/// The decision that names no model, since `error` says that none is eligible.
fn nothing(
    serving: &Serving,
    policy: &CompiledPolicy,
    request: &Request,
    error: &Error,
) -> Result<Decision> {
    let ranking = Ranking::nothing(&serving.index);
    let ask = PromptToRank {
        tokens: tokens(serving, request)?,
        admitted: None,
        kept: None,
    };
    let timing = Timing {
        batch: 1,
        ..Timing::default()
    };
    let needs = request.chat.as_ref().map(|chat| &chat.needs);
    Ok(Decision {
        policy: Some(policy.refused(needs)),
        abstained: Some(Abstention {
            reason: AbstainReason::NothingEligible,
            detail: error.to_string(),
        }),
        ..decide(serving, request, &ask, &ranking, None, timing)
    })
}

fn tokens(serving: &Serving, request: &Request) -> Result<Tokens> {
    let prompt = [(request.prompt.as_str(), cut_of(request))];
    let tokens = serving.encoder.tokenize_cut(&prompt).pop();
    tokens.unwrap_or_else(|| Err(error!(Tokenizer, "no tokens")))
}
