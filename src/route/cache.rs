//! Decisions that were made before, by everything that they depend on.
//!
//! The key has the serial of the serving and of the compiled policy that decide, so that an answer
//! of another generation is never found, whatever is installed meanwhile. Texts are compared whole:
//! equal hashes alone are no hit.

use std::hash::{Hash, Hasher};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quick_cache::sync::Cache;
use quick_cache::{DefaultHashBuilder, Equivalent, Lifecycle, Weighter};
use serde::{Deserialize, Serialize};

use crate::route::{ChatNeeds, Decision, DomainScore, Ranked, Request, Timing};

/// Bytes of an entry in the cache's own tables, with a ghost for it.
const OVERHEAD: usize = 256;

/// Bytes of a usual entry: ten models, some dozens of domains.
const USUAL: u64 = 4096;

/// What a cache has done and holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CacheStats {
    /// Requests that were answered from it.
    pub hits: u64,
    /// Requests that were not.
    pub misses: u64,
    /// Decisions that made room for others, were replaced by equal ones that another call computed
    /// at the same time, or were too large to be kept.
    pub evictions: u64,
    /// Decisions that it holds.
    pub entries: u64,
    /// Their bytes: texts, lists, and the JSON of the rest.
    pub bytes: u64,
    /// Most bytes: [`crate::Options::cache_bytes`], rounded up to whole parts.
    pub capacity: u64,
}

/// Who answers a request: serials of the serving, and of the compiled policy or 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Answerer {
    pub(super) serving: u64,
    pub(super) policy: u64,
    /// Whether the policy looks at the needs of a chat request.
    pub(super) by_needs: bool,
}

/// The cache of a router.
pub(super) struct DecisionCache {
    kept: Cache<CacheKey, Arc<CachedDecision>, EntryBytes, DefaultHashBuilder, CountedEvictions>,
    hits: AtomicU64,
    misses: AtomicU64,
    evictions: Arc<AtomicU64>,
}

struct CacheKey {
    answerer: Answerer,
    top: usize,
    /// A chat request's text is cut in the middle, others on the right.
    chat: bool,
    needs: Option<ChatNeeds>,
    prompt: Box<str>,
}

/// A [`CacheKey`] whose texts are the request's.
#[derive(PartialEq, Hash)]
struct CacheQuery<'r> {
    answerer: Answerer,
    top: usize,
    chat: bool,
    needs: Option<&'r ChatNeeds>,
    prompt: &'r str,
}

/// A decision without what belongs to the request alone.
struct CachedDecision {
    decision: Decision,
    /// Of the whole entry.
    bytes: u64,
}

#[derive(Clone)]
struct EntryBytes;

#[derive(Clone)]
struct CountedEvictions(Arc<AtomicU64>);

/// Bytes that were written to it.
struct WrittenBytes(u64);

impl<'r> CacheQuery<'r> {
    fn new(answerer: Answerer, request: &'r Request) -> Self {
        // Every field is named: one that changes the answer belongs into the key.
        let Request {
            prompt,
            prompt_id: _,
            top,
            chat,
            deadline: _,
            session: _,
        } = request;
        let needs = chat.as_ref().map(|chat| &chat.needs);
        Self {
            answerer,
            top: *top,
            chat: chat.is_some(),
            needs: needs.filter(|_| answerer.by_needs),
            prompt,
        }
    }
}

impl CacheKey {
    fn query(&self) -> CacheQuery<'_> {
        CacheQuery {
            answerer: self.answerer,
            top: self.top,
            chat: self.chat,
            needs: self.needs.as_ref(),
            prompt: &self.prompt,
        }
    }
}

impl PartialEq for CacheKey {
    fn eq(&self, other: &Self) -> bool {
        self.query() == other.query()
    }
}

impl Eq for CacheKey {}

impl Hash for CacheKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.query().hash(state);
    }
}

impl Equivalent<CacheKey> for CacheQuery<'_> {
    fn equivalent(&self, key: &CacheKey) -> bool {
        *self == key.query()
    }
}

impl Weighter<CacheKey, Arc<CachedDecision>> for EntryBytes {
    fn weight(&self, _: &CacheKey, value: &Arc<CachedDecision>) -> u64 {
        value.bytes
    }
}

impl Lifecycle<CacheKey, Arc<CachedDecision>> for CountedEvictions {
    /// What was evicted is dropped with it, when no lock is held any more.
    type RequestState = Vec<(CacheKey, Arc<CachedDecision>)>;

    fn on_evict(&self, state: &mut Self::RequestState, key: CacheKey, value: Arc<CachedDecision>) {
        self.0.fetch_add(1, Ordering::Relaxed);
        state.push((key, value));
    }
}

impl Write for WrittenBytes {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl DecisionCache {
    /// A cache of `bytes`; `None` if that is 0.
    pub(super) fn new(bytes: usize) -> Option<Self> {
        if bytes == 0 {
            return None;
        }
        let evictions = Arc::new(AtomicU64::new(0));
        let bytes = bytes as u64;
        let usual = usize::try_from(bytes.div_ceil(USUAL)).unwrap_or(usize::MAX);
        let counted = CountedEvictions(Arc::clone(&evictions));
        let hasher = DefaultHashBuilder::default();
        Some(Self {
            kept: Cache::with(usual, bytes, EntryBytes, hasher, counted),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            evictions,
        })
    }

    /// The decision of `answerer` on an equal request, with this request's own fields; its times
    /// are to be set.
    pub(super) fn get(&self, answerer: Answerer, request: &Request) -> Option<Decision> {
        let Some(found) = self.kept.get(&CacheQuery::new(answerer, request)) else {
            self.misses.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        self.hits.fetch_add(1, Ordering::Relaxed);
        let mut decision = found.decision.clone();
        decision.prompt_id.clone_from(&request.prompt_id);
        decision.chat.clone_from(&request.chat);
        Some(decision)
    }

    /// True if there is a decision; neither a hit nor a miss.
    pub(super) fn has(&self, answerer: Answerer, request: &Request) -> bool {
        let query = CacheQuery::new(answerer, request);
        self.kept.peek(&query).is_some()
    }

    /// Keeps the decision of `answerer` on `request`.
    pub(super) fn insert(&self, answerer: Answerer, request: &Request, decision: &Decision) {
        let query = CacheQuery::new(answerer, request);
        let mut decision = Decision {
            prompt_id: String::new(),
            chat: None,
            cached: true,
            timing: Timing::default(),
            ..decision.clone()
        };
        decision.ranked.shrink_to_fit();
        decision.domains.shrink_to_fit();
        let mut written = WrittenBytes(0);
        let (ranked, domains) = (
            std::mem::take(&mut decision.ranked),
            std::mem::take(&mut decision.domains),
        );
        // What cannot be measured is not kept.
        if serde_json::to_writer(&mut written, &decision).is_err() {
            return;
        }
        (decision.ranked, decision.domains) = (ranked, domains);
        let bytes = written.0 + (lists(&decision) + OVERHEAD + query.prompt.len()) as u64;
        let key = CacheKey {
            answerer,
            top: query.top,
            chat: query.chat,
            needs: query.needs.cloned(),
            prompt: query.prompt.into(),
        };
        let value = Arc::new(CachedDecision { decision, bytes });
        self.kept.insert(key, value);
    }

    /// Forgets all decisions: another generation is served, which asks for none of them.
    pub(super) fn clear(&self) {
        self.kept.clear();
    }

    pub(super) fn stats(&self) -> CacheStats {
        CacheStats {
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            evictions: self.evictions.load(Ordering::Relaxed),
            entries: self.kept.len() as u64,
            bytes: self.kept.weight(),
            capacity: self.kept.capacity(),
        }
    }
}

/// Bytes of a decision, its two long lists included. Names are the hub's.
fn lists(decision: &Decision) -> usize {
    let owned = |ranked: &Ranked| {
        let deployments = ranked.deployments.len() * size_of::<Arc<str>>();
        size_of::<Ranked>() + deployments
    };
    let ranked: usize = decision.ranked.iter().map(owned).sum();
    let domains = decision.domains.len() * size_of::<DomainScore>();
    size_of::<CachedDecision>() + size_of::<CacheKey>() + ranked + domains
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn by(serving: u64) -> Answerer {
        Answerer {
            serving,
            policy: 0,
            by_needs: false,
        }
    }

    fn decision() -> Decision {
        let json = r#"{"schema_version":1,"prompt_id":"one","ranked":[{"id":7,"model":"m",
            "score":1.5,"cosine":0.5,"probability":0.25,"domain":"d","family":null}],
            "domains":[{"domain":"d","score":1.5,"probability":1.0}],"margin":0.5,"tokens":3,
            "truncated":false,"degraded":null,"device":"cpu","generation":"g0001-0123456789ab",
            "encoder":"e","tokenizer":"t","timings_us":{"tokenize":1.0,"encode":2.0,"score":3.0,
            "total":6.0,"batch":1}}"#;
        serde_json::from_str(json).unwrap()
    }

    fn chat(json: &str) -> Request {
        Request::from_chat(json).unwrap()
    }

    #[test]
    fn a_hit_is_the_answer_with_the_fields_of_the_new_request() {
        let cache = DecisionCache::new(1 << 20).unwrap();
        let first = chat(r#"{"messages":[{"role":"user","content":"Who sings?"}]}"#);
        cache.insert(by(1), &first, &decision());
        let second = chat(
            r#"{"max_tokens":9,"messages":[{"role":"system","content":"Be kind."},
            {"role":"user","content":"Who sings?"}]}"#,
        );
        let hit = cache.get(by(1), &second.clone().prompt_id("two")).unwrap();
        assert_eq!((hit.cached, &*hit.prompt_id), (true, "two"));
        assert_eq!((&hit.chat, hit.timing), (&second.chat, Timing::default()));
        let plain = decision();
        assert_eq!((hit.ranked, hit.domains), (plain.ranked, plain.domains));
        let stats = cache.stats();
        assert_eq!((stats.hits, stats.misses, stats.entries), (1, 0, 1));
    }

    #[test]
    fn whatever_changes_the_answer_is_part_of_the_key() {
        let cache = DecisionCache::new(1 << 20).unwrap();
        let with_needs = Answerer {
            by_needs: true,
            policy: 5,
            ..by(1)
        };
        let asked = chat(r#"{"messages":[{"role":"user","content":"Who sings?"}]}"#);
        let plain = Request::new("Who sings?");
        cache.insert(by(1), &plain, &decision());
        cache.insert(with_needs, &asked, &decision());
        let more = chat(r#"{"max_tokens":9,"messages":[{"role":"user","content":"Who sings?"}]}"#);
        let other_policy = Answerer {
            policy: 6,
            ..with_needs
        };
        for (answerer, request, hit) in [
            (by(1), plain.clone(), true),
            (by(1), plain.clone().prompt_id("x").session("t", "s"), true),
            (by(2), plain.clone(), false),
            (by(1), plain.clone().top(3), false),
            (by(1), Request::new("Who sings"), false),
            (by(1), asked.clone(), false),
            (with_needs, asked.clone(), true),
            (with_needs, more, false),
            (other_policy, asked, false),
        ] {
            assert_eq!(cache.get(answerer, &request).is_some(), hit, "{request:?}");
        }
        cache.clear();
        assert!(cache.get(by(1), &plain).is_none());
    }

    #[test]
    fn a_million_prompts_stay_within_the_bound() {
        const MANY: u64 = 1_000_000;
        let cache = DecisionCache::new(1 << 20).unwrap();
        let decision = decision();
        for i in 0..MANY {
            cache.insert(by(1), &Request::new(format!("prompt {i}")), &decision);
            if i % 10_000 == 0 {
                let stats = cache.stats();
                assert!(stats.bytes <= stats.capacity, "{stats:?}");
            }
        }
        let stats = cache.stats();
        assert!(stats.capacity < (1 << 20) + 64 && stats.bytes <= stats.capacity);
        assert!(stats.entries > 500, "{stats:?}");
        assert_eq!(stats.entries + stats.evictions, MANY);
        // One that no part has room for is not kept, and takes nothing away.
        let huge = Request::new("x".repeat(2 << 20));
        cache.insert(by(1), &huge, &decision);
        assert!(cache.get(by(1), &huge).is_none());
        assert_eq!(cache.stats().entries, stats.entries);
    }

    #[test]
    fn an_entry_counts_for_more_than_its_memory() {
        let cache = DecisionCache::new(1 << 20).unwrap();
        let mut decision = decision();
        let (ranked, domain) = (decision.ranked[0].clone(), decision.domains[0].clone());
        decision.ranked = vec![ranked; 50];
        decision.ranked[0].deployments = vec!["a".into(); 50];
        decision.domains = vec![domain; 50];
        let request = Request::new("p");
        cache.insert(by(1), &request, &decision);
        let lists = size_of_val(&*decision.ranked) + size_of_val(&*decision.domains);
        let names = size_of_val(&*decision.ranked[0].deployments);
        let memory = lists + names + size_of::<CacheKey>() + size_of::<CachedDecision>();
        assert!(cache.stats().bytes > memory as u64, "{memory}");
    }
}
