//! All that requests share.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body_util::Full;
use hubrouter::feedback::{FeedbackLog, FeedbackOptions};
use hubrouter::layer::RouteLayer;
use hubrouter::{
    AsyncRouter, ChatShape, Deployment, Options, Policy, PolicyHandle, Router, SessionKey,
    StoreWatch,
};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::Semaphore;

use crate::changes::Changes;
use crate::config::{self, Config};
use crate::metrics::Metrics;
use crate::{Failure, guard};

/// The APIs, with their paths.
pub const APIS: [(ChatShape, &str); 3] = [
    (ChatShape::OpenAiChat, "/v1/chat/completions"),
    (ChatShape::OpenAiResponses, "/v1/responses"),
    (ChatShape::AnthropicMessages, "/v1/messages"),
];

/// A server with models.
#[derive(Debug)]
pub struct Upstream {
    pub name: String,
    /// Without a slash at its end.
    pub base: String,
    /// Its key, as `Authorization` and as `x-api-key`.
    pub key: Option<(HeaderValue, HeaderValue)>,
    pub apis: Vec<ChatShape>,
    pub models: Vec<Deployment>,
}

/// The gateway, ready to serve.
pub struct Gateway {
    pub config: Config,
    pub router: Arc<Router>,
    /// The policy of each API that an upstream speaks, and its fallback.
    pub apis: HashMap<ChatShape, ApiPlan>,
    pub upstreams: Vec<Upstream>,
    pub client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    pub client_key: Option<HeaderValue>,
    pub metrics: Metrics,
    pub feedback: Option<Arc<FeedbackLog>>,
    pub watch: Option<Arc<StoreWatch>>,
    /// Explanations that may be computed at once: they do not queue with requests.
    pub explaining: Semaphore,
    /// Reload and rollback take turns there.
    pub changes: Changes,
    ready: AtomicBool,
}

pub struct ApiPlan {
    pub policy: Arc<PolicyHandle>,
    pub fallback: Option<String>,
    /// Model -> place in the upstreams.
    pub models: HashMap<String, usize>,
}

impl Gateway {
    /// Opens the store, compiles the policies and warms up.
    pub async fn open(config: Config) -> Result<Arc<Self>, Failure> {
        let opening = tokio::task::spawn_blocking(move || Self::opened(config));
        let opened = opening.await;
        opened
            .map_err(|error| Failure(format!("opening: {error}")))?
            .map(Arc::new)
    }

    fn opened(config: Config) -> Result<Self, Failure> {
        let routing = &config.routing;
        let policy = config.policy.as_ref().map(Policy::read).transpose()?;
        let policy = policy.unwrap_or_default();
        let mut options = Options::default()
            .device("cpu")
            .threads(routing.threads)
            .cache_bytes(routing.cache_mib << 20)
            .queue(routing.queue);
        if let Some(encoder) = &config.encoder {
            options = options.encoder(encoder);
        }
        // A policy may name its cache and its sessions.
        options = options.for_policy(&policy);
        let router = Arc::new(Router::open(&config.store, options)?);
        let upstreams: Result<Vec<Upstream>, Failure> =
            config.upstreams.iter().map(Upstream::new).collect();
        let upstreams = upstreams?;
        if policy.candidates.is_some() {
            return Err(Failure(
                "policy: expected no candidates (the models of the upstreams are), found some"
                    .to_owned(),
            ));
        }
        let mut apis = HashMap::new();
        for (api, _) in APIS {
            if let Some(plan) = ApiPlan::new(api, &router, &policy, &upstreams, routing)? {
                apis.insert(api, plan);
            }
        }
        let feedback = config.feedback.as_ref().map(|folder| {
            let log = FeedbackLog::open(folder, FeedbackOptions::default())?;
            Ok::<_, Failure>(Arc::new(log))
        });
        let interval = Duration::try_from_secs_f64(routing.watch_seconds).unwrap_or_default();
        let watch = (!interval.is_zero()).then(|| router.watch(interval).map(Arc::new));
        let watch = watch.transpose()?;
        let client_key = config.client_key_env.as_deref();
        let client_key = client_key.map(|name| config::key(name, "")).transpose()?;
        router.warm_up()?;
        let metrics = Metrics::new(Arc::clone(&router), watch.clone(), &upstreams);
        Ok(Self {
            client: client(&config.limits),
            client_key,
            apis,
            upstreams,
            metrics,
            feedback: feedback.transpose()?,
            watch,
            explaining: Semaphore::new(1),
            changes: Changes::start()?,
            ready: AtomicBool::new(true),
            router,
            config,
        })
    }

    /// The layer that routes requests of `api`.
    pub fn layer(&self, api: ChatShape, plan: &ApiPlan) -> RouteLayer {
        let header = self.config.routing.session_header.clone();
        let tenants = RandomState::new();
        let mut layer = RouteLayer::new(AsyncRouter::new(Arc::clone(&self.router)))
            .names(self.config.routing.names.iter().cloned())
            .policy_for(api, Arc::clone(&plan.policy))
            .body_limit(self.body_limit())
            .session(move |parts| session(&parts.headers, &header, &tenants));
        if let Some(fallback) = &plan.fallback {
            layer = layer.fallback(fallback.as_str());
        }
        if let Some(deadline) = self.config.routing.deadline_ms {
            layer = layer.deadline(Duration::from_millis(deadline));
        }
        layer
    }

    pub fn body_limit(&self) -> usize {
        self.config.limits.body_mib << 20
    }

    /// Whether new requests are welcome.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// From now on new requests should go elsewhere.
    pub fn drain(&self) {
        self.ready.store(false, Ordering::Relaxed);
    }
}

impl ApiPlan {
    fn new(
        api: ChatShape,
        router: &Router,
        policy: &Policy,
        upstreams: &[Upstream],
        routing: &config::Routing,
    ) -> Result<Option<Self>, Failure> {
        let speaking = upstreams.iter().enumerate();
        let speaking = speaking.filter(|(_, upstream)| upstream.apis.contains(&api));
        let mut models = HashMap::new();
        let mut candidates = Vec::new();
        for (place, upstream) in speaking {
            for model in &upstream.models {
                models.insert(model.name.clone(), place);
                candidates.push(model.clone());
            }
        }
        if candidates.is_empty() {
            return Ok(None);
        }
        let mut policy = policy.clone();
        policy.candidates = Some(candidates);
        let fallback = routing.fallback.iter();
        let fallback = { fallback }.find(|name| models.contains_key(*name));
        Ok(Some(Self {
            policy: Arc::new(router.compile(&policy)?),
            fallback: fallback.cloned(),
            models,
        }))
    }
}

impl Upstream {
    fn new(config: &config::UpstreamConfig) -> Result<Self, Failure> {
        let key = config.key_env.as_deref().map(|name| {
            let bearer = config::key(name, "Bearer ")?;
            Ok::<_, Failure>((bearer, config::key(name, "")?))
        });
        Ok(Self {
            name: config.name.clone(),
            base: config::base(&config.url)?,
            key: key.transpose()?,
            apis: config.apis.clone(),
            models: config.models.clone(),
        })
    }
}

/// The conversation of a request. The same id of clients with different keys is not the same one.
fn session(headers: &HeaderMap, header: &str, tenants: &RandomState) -> Option<SessionKey> {
    let id = headers.get(header)?.to_str().ok()?;
    let tenant = tenants.hash_one(guard::client_key(headers));
    Some(SessionKey::new(format!("{tenant:016x}"), id))
}

fn client(limits: &config::Limits) -> Client<HttpsConnector<HttpConnector>, Full<Bytes>> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(Duration::from_secs(limits.connect_seconds)));
    let tls = hyper_rustls::HttpsConnectorBuilder::new().with_webpki_roots();
    let connector = tls.https_or_http().enable_http1().wrap_connector(tcp);
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(30))
        .build(connector)
}
