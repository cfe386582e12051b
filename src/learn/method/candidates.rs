//! Which models an example is scored against: candidate sets and mined hard negatives (carve.md
//! section 4).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::error::{Result, bail};
use crate::learn::method::domains::DomainGroups;
use crate::learn::method::draws::{Draws, Stream};
use crate::learn::settings::{MiningScore, Settings};
use crate::num::to_u32;

/// Examples of one mining event, at most.
pub(crate) const MINED_EXAMPLES: usize = 128;

/// Mined negatives, best first, by domain of the example and gold.
pub(crate) type Hard = BTreeMap<String, BTreeMap<u32, Vec<u32>>>;

/// Candidate sets of one experience.
pub(crate) struct Candidates {
    domains: Arc<DomainGroups>,
    settings: Settings,
    experience: u64,
    /// By domain of an example.
    related: HashMap<String, Related>,
}

/// The models around a domain.
struct Related {
    /// The semantic pool, ascending.
    pool: Vec<u32>,
    /// Mined negatives of a gold, best first.
    hard: HashMap<u32, Vec<u32>>,
}

/// Models to draw from; ids ascend.
#[derive(Clone, Copy)]
enum Pool<'p> {
    These(&'p [u32]),
    /// All ids below `models` except `these`.
    Others {
        models: u32,
        these: &'p [u32],
    },
}

impl Candidates {
    pub(crate) fn new(domains: Arc<DomainGroups>, settings: Settings, experience: u64) -> Self {
        Self {
            domains,
            settings,
            experience,
            related: HashMap::new(),
        }
    }

    /// The candidates of an example of normalised domain `domain`, its gold first.
    ///
    /// The draws depend on `step` and `row`. The cost does not depend on the registry's size,
    /// except for the first example of a domain.
    pub(crate) fn set(&mut self, domain: &str, gold: u32, step: u64, row: u64) -> Vec<u32> {
        self.relate(domain);
        let (settings, domains) = (&self.settings, &self.domains);
        let related = &self.related[domain];
        let parts = [self.experience, step, row];
        let draws = &mut Draws::new(settings.seed, Stream::Candidates, &parts);
        let models = domains.len();
        let others = |these| Pool::Others { models, these };

        let mut set = vec![gold];
        if let Some(hard) = related.hard.get(&gold) {
            set.extend(hard.iter().take(settings.candidates_hard));
        }
        let before = set.len();
        Pool::These(&related.pool).extend(&mut set, settings.candidates_semantic, draws);
        let missing = settings.candidates_semantic - (set.len() - before);
        let far = others(domains.models(domain));
        far.extend(&mut set, settings.candidates_far + missing, draws);
        let fill = settings.candidates_k.saturating_sub(set.len());
        others(&[]).extend(&mut set, fill, draws);
        set.truncate(settings.candidates_k);

        // Only now: names decide on what was drawn, not on what could be.
        let mut usable = domains.usable().len();
        if !domains.is_usable(gold) {
            usable += 1;
        }
        set.retain(|id| *id == gold || domains.is_usable(*id));
        let padding = settings.candidates_k.min(usable).saturating_sub(set.len());
        Pool::These(domains.usable()).extend(&mut set, padding, draws);
        debug_assert!(set[0] == gold && set.iter().all(|id| *id < models));
        set
    }

    /// The models to mine for hard negatives of (`domain`, `gold`); `None` if they are too few.
    pub(crate) fn mining_pool(
        &mut self,
        domain: &str,
        gold: u32,
        step: u64,
        row: u64,
    ) -> Option<Vec<u32>> {
        self.relate(domain);
        let pool = Pool::These(&self.related[domain].pool);
        let parts = [self.experience, step, row];
        let draws = &mut Draws::new(self.settings.seed, Stream::Mining, &parts);
        let mut found = vec![gold];
        pool.extend(&mut found, self.settings.mining_pool, draws);
        found.remove(0);
        (found.len() >= 2).then_some(found)
    }

    /// Keeps the best of a mining pool for (`domain`, `gold`) in place of earlier ones.
    ///
    /// `scores`: of each model of `pool`, cosines or dot products as the settings say.
    pub(crate) fn remember(&mut self, domain: &str, gold: u32, pool: &[u32], scores: &[f32]) {
        let best = ranked(
            pool,
            scores,
            self.settings.mining_kept,
            self.settings.mining_score,
        );
        self.relate(domain);
        if let Some(related) = self.related.get_mut(domain) {
            related.hard.insert(gold, best);
        }
    }

    /// All mined negatives.
    pub(crate) fn hard(&self) -> Hard {
        let related = self.related.iter();
        let mined = related.filter(|(_, related)| !related.hard.is_empty());
        let sorted = |hard: &HashMap<u32, Vec<u32>>| hard.clone().into_iter().collect();
        mined
            .map(|(domain, related)| (domain.clone(), sorted(&related.hard)))
            .collect()
    }

    /// Replaces the mined negatives by those of another run.
    ///
    /// Errors: a list has an id twice, or one that is no other model.
    pub(crate) fn restore(&mut self, hard: Hard) -> Result<()> {
        for (domain, mined) in hard {
            self.relate(&domain);
            if let Some(related) = self.related.get_mut(&domain) {
                for (gold, ids) in mined {
                    let models = self.domains.len();
                    let mut seen = HashSet::from([gold]);
                    if !ids.iter().all(|id| seen.insert(*id) && *id < models) {
                        bail!(
                            Mismatch,
                            "hard negatives of model {gold}: expected other models of {models}, \
                             each once, found {ids:?}"
                        );
                    }
                    related.hard.insert(gold, ids);
                }
            }
        }
        Ok(())
    }

    /// Creates the entry of `domain`.
    fn relate(&mut self, domain: &str) {
        if self.related.contains_key(domain) {
            return;
        }
        let domains = &self.domains;
        let most = self.settings.candidates_max_domains;
        let (own, mut others): (Vec<&str>, Vec<&str>) = domains
            .related(domain)
            .into_iter()
            .partition(|name| *name == domain);
        if own.len() + others.len() > most {
            // Draws of sets have three parts, the last below u64::MAX.
            let mut parts = vec![self.experience, u64::MAX, u64::MAX];
            parts.extend(domain.bytes().map(u64::from));
            let mut draws = Draws::new(self.settings.seed, Stream::Candidates, &parts);
            let drawn = draws.sample(others.len(), most - own.len());
            others = drawn.into_iter().map(|at| others[at]).collect();
        }
        let mut pool: Vec<u32> = own
            .into_iter()
            .chain(others)
            .flat_map(|name| domains.models(name))
            .copied()
            .collect();
        pool.sort_unstable();
        let hard = HashMap::new();
        self.related
            .insert(domain.to_owned(), Related { pool, hard });
    }
}

/// The `kept` best of `pool`, best first, of equals the lower id.
fn ranked(pool: &[u32], scores: &[f32], kept: usize, score: MiningScore) -> Vec<u32> {
    assert_eq!(pool.len(), scores.len(), "mining: a score for each model");
    if score == MiningScore::Dot && pool.len() <= kept {
        // As the reference does it: what is all kept is not ranked.
        let mut all = pool.to_vec();
        all.sort_unstable();
        return all;
    }
    // -0 is no lower than 0.
    let mut all: Vec<(u32, f32)> = pool
        .iter()
        .copied()
        .zip(scores.iter().map(|s| s + 0.0))
        .collect();
    all.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    all.into_iter().map(|(id, _)| id).take(kept).collect()
}

impl Pool<'_> {
    fn len(self) -> usize {
        match self {
            Self::These(ids) => ids.len(),
            Self::Others { models, these } => models as usize - these.len(),
        }
    }

    fn get(self, position: usize) -> u32 {
        match self {
            Self::These(ids) => ids[position],
            Self::Others { these, .. } => {
                to_u32(skip(these.len(), position, |i| these[i] as usize))
            }
        }
    }

    fn position(self, id: u32) -> Option<usize> {
        match self {
            Self::These(ids) => ids.binary_search(&id).ok(),
            // As many ids are left out below it as `these` has.
            Self::Others { these, .. } => match these.binary_search(&id) {
                Ok(_) => None,
                Err(below) => Some(id as usize - below),
            },
        }
    }

    /// Adds `count` models of the pool that are not in `set`: drawn if there are more, else all in
    /// order.
    fn extend(self, set: &mut Vec<u32>, count: usize, draws: &mut Draws) {
        let mut taken: Vec<usize> = set.iter().filter_map(|id| self.position(*id)).collect();
        taken.sort_unstable();
        let rest = self.len() - taken.len();
        let nth = |n: usize| self.get(skip(taken.len(), n, |i| taken[i]));
        if rest > count {
            set.extend(draws.sample(rest, count).into_iter().map(nth));
        } else {
            set.extend((0..rest).map(nth));
        }
    }
}

/// The `n`-th natural number that is not among the `count` ascending ones that `gap` names.
fn skip(count: usize, n: usize, gap: impl Fn(usize) -> usize) -> usize {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low.midpoint(high);
        // Numbers below this gap that are no gaps.
        if gap(middle) - middle <= n {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    n + low
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::hub::{Hub, Model};
    use crate::learn::method::domains::hub_of;

    const IMAGE: &str = "computer vision image classification";
    const TABULAR: &str = "tabular tabular regression";

    fn of(hub: &Hub, settings: Settings) -> Candidates {
        Candidates::new(Arc::new(DomainGroups::new(hub)), settings, 1)
    }

    fn repeated(parts: &[(&'static str, usize)]) -> Hub {
        hub_of(parts.iter().flat_map(|(domain, n)| [*domain].repeat(*n)))
    }

    fn registry() -> Hub {
        repeated(&[
            (IMAGE, 30),
            ("computer vision object detection", 12),
            ("audio audio classification", 25),
            ("natural language processing translation", 40),
            (TABULAR, 3),
        ])
    }

    /// (hard, semantic, far, fill, total) of a set, told apart by the order of the parts; far
    /// models come before fill, and the counts of section 4.1 say where they end.
    fn check(candidates: &mut Candidates, domain: &str, gold: u32, want: [usize; 5]) {
        let [hard, semantic, far, fill, total] = want;
        let domains = Arc::clone(&candidates.domains);
        candidates.relate(domain);
        for row in 0..20 {
            let set = candidates.set(domain, gold, 0, row);
            let related = |id: &u32| candidates.related[domain].pool.contains(id);
            assert_eq!((set.len(), set[0]), (total, gold));
            let mut unique = set.clone();
            unique.sort_unstable();
            unique.dedup();
            assert_eq!(unique.len(), total);
            assert_eq!(1 + hard + semantic + far + fill, total);
            let stored = candidates.related[domain].hard.get(&gold);
            let stored = stored.map_or(&[][..], |ids| &ids[..hard]);
            assert_eq!(&set[1..1 + hard], stored);
            let after = &set[1 + hard + semantic..];
            assert!(set[1 + hard..][..semantic].iter().all(related));
            let own = |id: &u32| domains.models(domain).contains(id);
            assert!(!after[..far].iter().any(own));
        }
    }

    /// carve.md V6
    #[test]
    fn counts_of_candidates_match_hand_values_v6() {
        let hub = registry();
        let mut candidates = of(&hub, Settings::base());
        check(&mut candidates, IMAGE, 5, [0, 38, 10, 15, 64]);
        let pool: Vec<u32> = candidates.mining_pool(IMAGE, 5, 0, 0).unwrap();
        let mut sorted = pool.clone();
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq((0..42).filter(|id| *id != 5)));
        candidates.remember(IMAGE, 5, &pool, &[0.5; 41]);
        check(&mut candidates, IMAGE, 5, [15, 26, 22, 0, 64]);
        check(&mut candidates, TABULAR, 108, [0, 2, 46, 15, 64]);
        candidates.remember(TABULAR, 108, &[109, 107], &[0.5, 0.5]);
        assert_eq!(candidates.set(TABULAR, 108, 0, 0)[..3], [108, 107, 109]);
        check(&mut candidates, TABULAR, 108, [2, 0, 48, 13, 64]);

        let mut candidates = of(&repeated(&[("a", 20)]), Settings::base());
        check(&mut candidates, "a", 3, [0, 19, 0, 0, 20]);
        assert_eq!(
            candidates.set("a", 3, 0, 0)[1..4],
            [0, 1, 2],
            "all in order"
        );
        let mut candidates = of(&repeated(&[("a", 10), ("b", 200)]), Settings::base());
        check(&mut candidates, "a", 3, [0, 9, 39, 15, 64]);
    }

    #[test]
    fn draws_depend_on_step_and_row_alone() {
        let hub = registry();
        let mut candidates = of(&hub, Settings::base());
        let first = candidates.set(IMAGE, 5, 7, 1);
        assert_ne!(first, candidates.set(IMAGE, 5, 7, 2));
        assert_ne!(first, candidates.set(IMAGE, 5, 8, 1));
        candidates.set(TABULAR, 108, 0, 0);
        assert_eq!(first, candidates.set(IMAGE, 5, 7, 1));
    }

    /// The virtual lists give what explicit ones give.
    #[test]
    fn pools_behave_like_lists() {
        let (models, these) = (20, [0, 3, 4, 9, 19]);
        let others: Vec<u32> = (0..models).filter(|id| !these.contains(id)).collect();
        let pool = Pool::Others {
            models,
            these: &these,
        };
        assert_eq!(pool.len(), others.len());
        for (position, id) in others.iter().enumerate() {
            assert_eq!(
                (pool.get(position), pool.position(*id)),
                (*id, Some(position))
            );
        }
        for set in [vec![], vec![5], vec![19, 1, 2], vec![18, 3, 11, 10, 0]] {
            for count in [0, 1, 5, 12, 14, 15, 20] {
                let rest: Vec<u32> = others
                    .iter()
                    .copied()
                    .filter(|id| !set.contains(id))
                    .collect();
                let mut want = set.clone();
                if rest.len() > count {
                    let drawn = Draws::new(1, Stream::Init, &[]).sample(rest.len(), count);
                    want.extend(drawn.into_iter().map(|at| rest[at]));
                } else {
                    want.extend(&rest);
                }
                let mut found = set.clone();
                pool.extend(&mut found, count, &mut Draws::new(1, Stream::Init, &[]));
                assert_eq!(found, want);
                let mut found = set.clone();
                let list = Pool::These(&others);
                list.extend(&mut found, count, &mut Draws::new(1, Stream::Init, &[]));
                assert_eq!(found, want);
            }
        }
    }

    #[test]
    fn bad_names_are_replaced() {
        let models = (0..100).map(|id| match id % 2 {
            0 => Model::new(&format!("m{id}"), "a"),
            _ => Model::new(&format!("huggingface.co/m{id}"), "a"),
        });
        let hub = Hub::default().with(models).unwrap();
        let mut candidates = of(&hub, Settings::base());
        let set = candidates.set("a", 6, 0, 0);
        assert_eq!((set[0], set.len()), (6, 50), "as many as are usable");
        assert!(set.iter().all(|id| id % 2 == 0));
        // The gold is exempt.
        let set = candidates.set("a", 7, 0, 0);
        assert_eq!((set[0], set.len()), (7, 51));
        assert!(set[1..].iter().all(|id| id % 2 == 0));
        let mut settings = Settings::base();
        settings.candidates_k = 16;
        settings.candidates_hard = 4;
        settings.candidates_semantic = 8;
        settings.candidates_far = 3;
        assert_eq!(of(&hub, settings).set("a", 7, 0, 0).len(), 16);
    }

    #[test]
    fn a_pool_has_few_domains() {
        let names: Vec<String> = (0..20).map(|i| format!("audio {i}")).collect();
        let hub = hub_of(names.iter().map(String::as_str));
        let mut candidates = of(&hub, Settings::base());
        let mut pool = |domain: &str| {
            candidates.relate(domain);
            candidates.related[domain].pool.clone()
        };
        let own = pool("audio 4");
        assert!(own.len() == 8 && own.contains(&4) && own.is_sorted());
        assert_ne!(own, pool("audio 5"));
        assert_eq!(pool("audio new").len(), 8);
        let pool = candidates.mining_pool("audio 4", 4, 3, 9).unwrap();
        assert!(pool.len() == 7 && pool.iter().all(|id| own.contains(id)));
    }

    #[test]
    fn mining_pools_are_bounded() {
        let hub = repeated(&[("audio a", 3000), ("graph", 2), ("tabular", 1)]);
        let mut candidates = of(&hub, Settings::base());
        let pool = candidates.mining_pool("audio a", 7, 0, 0).unwrap();
        assert!(pool.len() == 2048 && !pool.contains(&7));
        assert!(candidates.mining_pool("graph", 3000, 0, 0).is_none());
        assert_eq!(candidates.mining_pool("graph", 0, 0, 0).unwrap().len(), 2);
        assert!(candidates.mining_pool("tabular", 3002, 0, 0).is_none());
    }

    /// carve.md V7
    #[test]
    fn mining_ranks_as_by_hand_v7() {
        let ids = [0, 1, 2, 3];
        let cosine = [0.408_248_3, 1.0, 0.816_496_6, 0.866_025_4];
        assert_eq!(ranked(&ids, &cosine, 2, MiningScore::Cosine), [1, 3]);
        let dot = [10.0, 6.0, 4.0, 3.0];
        assert_eq!(ranked(&ids, &dot, 2, MiningScore::Dot), [0, 1]);
        let reversed = [3, 2, 1, 0];
        assert_eq!(ranked(&reversed, &cosine, 4, MiningScore::Dot), ids);
        assert_eq!(
            ranked(&reversed, &cosine, 4, MiningScore::Cosine),
            [2, 0, 1, 3]
        );
        let ties = [0.0, -0.0, 1.0, 0.0];
        assert_eq!(
            ranked(&reversed, &ties, 4, MiningScore::Cosine),
            [1, 0, 2, 3],
            "-0 ties with 0"
        );
    }
}
