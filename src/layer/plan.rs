//! What a layer does, and for which requests.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use tower_layer::Layer;

use crate::layer::RouteService;
use crate::route::{AsyncRouter, ChatShape, PolicyHandle, SessionKey};

/// Most bytes of a body that is read, by default: 16 MiB.
const BODY_LIMIT: usize = 16 << 20;

/// Ranked models of a decision by default.
const TOP: usize = 3;

const PATHS: [(&str, ChatShape); 3] = [
    ("/v1/chat/completions", ChatShape::OpenAiChat),
    ("/v1/responses", ChatShape::OpenAiResponses),
    ("/v1/messages", ChatShape::AnthropicMessages),
];

type SessionOf = dyn Fn(&Parts) -> Option<SessionKey> + Send + Sync;

/// A layer that routes chat requests; the [module](crate::layer) says how. Cheap to clone.
#[derive(Clone)]
pub struct RouteLayer {
    plan: Arc<LayerPlan>,
}

#[derive(Clone)]
pub(super) struct LayerPlan {
    pub(super) router: AsyncRouter,
    pub(super) names: Vec<String>,
    paths: Vec<(String, ChatShape)>,
    policy: Option<Arc<PolicyHandle>>,
    policies: Vec<(ChatShape, Arc<PolicyHandle>)>,
    pub(super) fallback: Option<Arc<str>>,
    pub(super) deadline: Option<Duration>,
    pub(super) top: usize,
    pub(super) body_limit: usize,
    pub(super) session: Option<Arc<SessionOf>>,
}

impl LayerPlan {
    pub(super) fn shape(&self, path: &str) -> Option<ChatShape> {
        let known = self.paths.iter().find(|(known, _)| known == path)?;
        Some(known.1)
    }

    pub(super) fn policy(&self, shape: ChatShape) -> Option<&Arc<PolicyHandle>> {
        let own = self.policies.iter().find(|(of, _)| *of == shape);
        own.map(|(_, policy)| policy).or(self.policy.as_ref())
    }
}

impl RouteLayer {
    /// Routes `auto` in POSTs to `/v1/chat/completions`, `/v1/responses` and `/v1/messages` among
    /// all models of the hub.
    pub fn new(router: AsyncRouter) -> Self {
        let paths = PATHS
            .iter()
            .map(|(path, shape)| ((*path).to_owned(), *shape));
        Self {
            plan: Arc::new(LayerPlan {
                router,
                names: vec!["auto".to_owned()],
                paths: paths.collect(),
                policy: None,
                policies: Vec::new(),
                fallback: None,
                deadline: None,
                top: TOP,
                body_limit: BODY_LIMIT,
                session: None,
            }),
        }
    }

    fn with(mut self, change: impl FnOnce(&mut LayerPlan)) -> Self {
        change(Arc::make_mut(&mut self.plan));
        self
    }

    /// The names that are routed, in place of `auto`; compared exactly.
    pub fn names<N: Into<String>>(self, names: impl IntoIterator<Item = N>) -> Self {
        self.with(|plan| plan.names = names.into_iter().map(Into::into).collect())
    }

    /// One more path, compared exactly, with its API.
    pub fn path(self, path: impl Into<String>, shape: ChatShape) -> Self {
        self.with(|plan| plan.paths.push((path.into(), shape)))
    }

    /// Which models may answer. With candidates the model is replaced by the name of a deployment.
    pub fn policy(self, policy: Arc<PolicyHandle>) -> Self {
        self.with(|plan| plan.policy = Some(policy))
    }

    /// Which models may answer requests of the API `shape`, in place of [`RouteLayer::policy`].
    pub fn policy_for(self, shape: ChatShape, policy: Arc<PolicyHandle>) -> Self {
        self.with(|plan| plan.policies.push((shape, policy)))
    }

    /// The model of requests for which there is no decision to act on: the router abstained, failed
    /// or was late, and the policy has no fallback. Without it they go on with the name that was
    /// asked for.
    pub fn fallback(self, model: impl Into<Arc<str>>) -> Self {
        self.with(|plan| plan.fallback = Some(model.into()))
    }

    /// As [`crate::Request::deadline`], counted from when the body was read.
    pub fn deadline(self, deadline: Duration) -> Self {
        self.with(|plan| plan.deadline = Some(deadline))
    }

    /// Ranked models of the decision in the record; 3 by default.
    pub fn top(self, top: usize) -> Self {
        self.with(|plan| plan.top = top)
    }

    /// Most bytes of a body that is read; 16 MiB by default. A longer one goes on as it came, and
    /// is not routed.
    pub fn body_limit(self, bytes: usize) -> Self {
        self.with(|plan| plan.body_limit = bytes)
    }

    /// The conversation that a request belongs to, by its head. Keys should not let one client into
    /// another's conversation: make a tenant of what a client authenticates itself with.
    pub fn session(
        self,
        session: impl Fn(&Parts) -> Option<SessionKey> + Send + Sync + 'static,
    ) -> Self {
        self.with(|plan| plan.session = Some(Arc::new(session)))
    }
}

impl<S> Layer<S> for RouteLayer {
    type Service = RouteService<S>;

    fn layer(&self, inner: S) -> RouteService<S> {
        RouteService::new(inner, Arc::clone(&self.plan))
    }
}

impl fmt::Debug for RouteLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plan = &self.plan;
        f.debug_struct("RouteLayer")
            .field("router", &plan.router)
            .field("names", &plan.names)
            .field("paths", &plan.paths)
            .field("fallback", &plan.fallback)
            .field("deadline", &plan.deadline)
            .finish_non_exhaustive()
    }
}
