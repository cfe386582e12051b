//! What is behind a decision of a router.

use std::sync::Arc;

use super::{Router, cut_of};
use crate::error::{Result, caught, error};
use crate::generation::Manifest;
use crate::hub::{Hub, ModelId};
use crate::memory::Parts;
use crate::num::{square, to_u32};
use crate::route::{
    Decision, Excluded, Explanation, Introduced, NearDomain, NearModel, PolicyHandle, Ranked,
    Request, RunnerUp,
};
use crate::serve::index::PromptPlace;
use crate::serve::landmarks::Landmarks;
use crate::serve::{Narrowing, Serving};
use crate::store::Store;
use crate::weights::View;

/// Models and domains that are named as near.
const NEAR: usize = 5;

impl Router {
    /// The decision for a request, and what is behind it: the runner-up, the models and domains
    /// whose prompts are nearest, what was excluded, the update that brought the best model. The
    /// prompt is encoded twice.
    ///
    /// Errors: as [`Router::route`]; a device that fails is not replaced.
    pub fn explain(&self, request: &Request) -> Result<Explanation> {
        self.explained(request, None)
    }

    /// As [`Router::explain`], among the models that `policy` lets answer.
    ///
    /// Errors: as [`Router::route_within`]; a device that fails is not replaced.
    pub fn explain_within(&self, request: &Request, policy: &PolicyHandle) -> Result<Explanation> {
        self.explained(request, Some(policy))
    }

    fn explained(&self, request: &Request, policy: Option<&PolicyHandle>) -> Result<Explanation> {
        let serving = self.serving.load_full();
        caught("explaining", || {
            serving.encoder.check_process()?;
            let two = request.clone().top(request.top.max(2));
            let decisions = self.route_on(&serving, &[two], policy)?.answers.pop();
            let decision = decisions.unwrap_or_else(|| Err(error!(Device, "no answer")))?;
            explanation(&self.store, &serving, request, decision)
        })
    }
}

fn explanation(
    store: &Store,
    serving: &Serving,
    request: &Request,
    mut decision: Decision,
) -> Result<Explanation> {
    let prompt = [(request.prompt.as_str(), cut_of(request))];
    let tokens = serving.encoder.tokenize_cut(&prompt).into_iter();
    let tokens = tokens.collect::<Result<Vec<_>>>()?;
    let ranked = serving.rank_all(&tokens, 1, Narrowing::default()).pop();
    let place = ranked.transpose()?.and_then(|ranked| ranked.ranking.place);
    let (near_models, near_domains) = match &place {
        Some(place) => (near_models(serving, place), near_domains(serving, place)),
        None => Default::default(),
    };
    let runner_up = match decision.ranked.as_slice() {
        [first, second, ..] => Some(runner_up(first, second)),
        _ => None,
    };
    decision.ranked.truncate(request.top);
    let excluded = match &decision.policy {
        Some(policy) => policy.excluded.clone(),
        None => retired(&serving.hub),
    };
    let best = decision.ranked.first().map(|ranked| ranked.id);
    let best = best.filter(|id| (id.0 as usize) < serving.hub.len());
    let introduced = best.map(|id| introduced(store, serving, id)).transpose()?;
    Ok(Explanation {
        runner_up,
        near_models,
        near_domains,
        excluded,
        introduced,
        strengths: serving.index.recall().map(|recall| recall.strengths),
        decision,
    })
}

fn runner_up(first: &Ranked, second: &Ranked) -> RunnerUp {
    let parts = first.parts.zip(second.parts).map(|(a, b)| Parts {
        learned: a.learned - b.learned,
        memory: a.memory - b.memory,
        words: a.words - b.words,
    });
    RunnerUp {
        model: Arc::clone(&second.model),
        domain: Arc::clone(&second.domain),
        gap: first.score - second.score,
        parts,
    }
}

/// The models that are not retired by the distance of their keys.
fn near_models(serving: &Serving, place: &PromptPlace) -> Vec<NearModel> {
    let Some(recall) = serving.index.recall() else {
        return Vec::new();
    };
    let keys = View::of_half(&recall.keys, recall.rank).to_f32();
    let models = serving.hub.iter().zip(keys.chunks_exact(recall.rank));
    let active = models.filter(|((_, model), _)| !model.retired);
    let mut near: Vec<(f32, ModelId)> = active
        .map(|((id, _), key)| (square(key, &place.y), id))
        .collect();
    near.sort_by(|a, b| a.0.total_cmp(&b.0));
    let near = near.into_iter().take(NEAR);
    near.filter_map(|(square, id)| {
        let model = serving.hub.get(id)?;
        Some(NearModel {
            id,
            model: Arc::clone(&model.name),
            domain: Arc::clone(&model.domain),
            distance: square.sqrt(),
            prompts: recall.prompts[id.0 as usize],
        })
    })
    .collect()
}

/// The domains by the distance of their centroids.
fn near_domains(serving: &Serving, place: &PromptPlace) -> Vec<NearDomain> {
    let Some(recall) = serving.index.recall() else {
        return Vec::new();
    };
    let own;
    let landmarks = match &serving.confidences {
        Some(confidences) => &confidences.landmarks,
        None => {
            own = Landmarks::new(&serving.index);
            &own
        }
    };
    let names = serving.index.domains();
    let mut prompts = vec![0u32; names.len()];
    for (domain, count) in recall.of.iter().zip(&recall.prompts) {
        let sum = &mut prompts[*domain as usize];
        *sum = sum.saturating_add(*count);
    }
    let each = names.iter().zip(landmarks.squares(place)).zip(prompts);
    let mut near: Vec<NearDomain> = each
        .map(|((domain, square), prompts)| NearDomain {
            domain: Arc::clone(domain),
            distance: square.sqrt(),
            prompts,
        })
        .collect();
    near.sort_by(|a, b| a.distance.total_cmp(&b.distance));
    near.truncate(NEAR);
    near
}

fn retired(hub: &Hub) -> Vec<Excluded> {
    let models = hub.len() - hub.active();
    let excluded = Excluded {
        by: "retired".into(),
        models,
        unknown: 0,
        alone: models,
    };
    (models > 0).then_some(excluded).into_iter().collect()
}

/// The first generation in the line of descent whose hub has the model `id`: a hub only grows.
fn introduced(store: &Store, serving: &Serving, id: ModelId) -> Result<Introduced> {
    let mut generation = serving.id.clone();
    let mut manifest = Manifest::read(&store.folder(&generation))?;
    let certain = loop {
        let Some(parent) = manifest.parent.clone() else {
            break true;
        };
        match Manifest::read(&store.folder(&parent)) {
            Ok(before) if to_u32(before.models) > id.0 => {
                (generation, manifest) = (parent, before);
            }
            Ok(_) => break true,
            Err(_) => break false,
        }
    };
    let before = manifest.parent.as_ref();
    let before = before.and_then(|parent| Manifest::read(&store.folder(parent)).ok());
    let number = |manifest: &Manifest| manifest.learned.as_ref().map(|learned| learned.experience);
    let update = number(&manifest);
    // A change of the hub keeps its parent's record of learning.
    let own = update.filter(|_| before.as_ref().and_then(number) != update);
    Ok(Introduced {
        generation,
        update: own,
        made_by: manifest.made_by,
        certain,
    })
}
