//! The service that the layer makes.
#![expect(clippy::disallowed_types, reason = "times of a request")]

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response};
use http_body::Body;
use tower_service::Service;

use crate::error::{Result, caught};
use crate::layer::plan::LayerPlan;
use crate::layer::{RouteRecord, RoutedBody};
use crate::route::{ChatModel, ChatShape, Decision};

/// A body with more bytes is parsed on a blocking thread: a MiB takes milliseconds.
const LONG: usize = 64 << 10;

/// A service that routes the requests for another one: [`crate::layer::RouteLayer`] makes it.
#[derive(Clone)]
pub struct RouteService<S> {
    inner: S,
    plan: Arc<LayerPlan>,
}

impl<S> RouteService<S> {
    pub(super) fn new(inner: S, plan: Arc<LayerPlan>) -> Self {
        Self { inner, plan }
    }
}

impl<S, B, R> Service<Request<B>> for RouteService<S>
where
    S: Service<Request<RoutedBody<B>>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Send,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = std::result::Result<Response<R>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<std::result::Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let path = request.uri().path();
        let is_post = request.method() == Method::POST;
        let shape = is_post.then(|| self.plan.shape(path)).flatten();
        let Some(shape) = shape else {
            return Box::pin(self.inner.call(request.map(RoutedBody::untouched)));
        };
        // The one that is ready goes with the request.
        let ready = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, ready);
        let plan = Arc::clone(&self.plan);
        Box::pin(async move {
            let (mut parts, body) = request.into_parts();
            let (mut body, bytes) = RoutedBody::read(body, plan.body_limit).await;
            let record = match bytes {
                Some(bytes) => routed(&plan, shape, &mut parts, &mut body, bytes).await,
                None => None,
            };
            let Some(record) = record else {
                return inner.call(Request::from_parts(parts, body)).await;
            };
            parts.extensions.insert(record.clone());
            let mut response = inner.call(Request::from_parts(parts, body)).await?;
            record.describe(response.headers_mut());
            response.extensions_mut().insert(record);
            Ok(response)
        })
    }
}

/// Routes the request of `bytes` if it asks for that; `parts` and `body` have the model then.
async fn routed<B: Body<Data = Bytes> + Unpin>(
    plan: &LayerPlan,
    shape: ChatShape,
    parts: &mut Parts,
    body: &mut RoutedBody<B>,
    bytes: Bytes,
) -> Option<RouteRecord> {
    let began = Instant::now();
    let asked = match bytes.len() > LONG {
        false => read(&bytes, shape, &plan.names),
        true => {
            let (bytes, names) = (bytes.clone(), plan.names.clone());
            let parse = move || read(&bytes, shape, &names);
            let runtime = tokio::runtime::Handle::try_current().ok()?;
            runtime.spawn_blocking(parse).await.ok().flatten()
        }
    }?;
    let request = asked.request.map(|mut request| {
        request.top = plan.top;
        request.deadline = plan.deadline;
        request.session = plan.session.as_ref().and_then(|session| session(parts));
        request
    });
    let answer: Result<Decision> = match request {
        Err(error) => Err(error),
        Ok(request) => match plan.policy(shape) {
            Some(policy) => plan.router.route_within(request, policy).await,
            None => plan.router.route(request).await,
        },
    };
    let mut record = RouteRecord::new(asked.model.name.clone(), answer, plan.fallback.as_ref());
    if let Some(model) = &record.model {
        let changed = Bytes::from(asked.model.replaced_in(&bytes, model)?);
        if parts.headers.contains_key(CONTENT_LENGTH) {
            let length = HeaderValue::from(changed.len());
            parts.headers.insert(CONTENT_LENGTH, length);
        }
        body.replace(changed);
    }
    record.elapsed = began.elapsed();
    Some(record)
}

/// A request that asks for a routed model.
struct AskedModel {
    model: ChatModel,
    request: Result<crate::route::Request>,
}

fn read(bytes: &Bytes, shape: ChatShape, names: &[String]) -> Option<AskedModel> {
    let model = ChatModel::find(bytes)?;
    names.contains(&model.name).then(|| {
        let read = || crate::route::Request::from_chat_as(bytes, shape);
        AskedModel {
            model,
            request: caught("reading a chat request", read),
        }
    })
}

impl<S: fmt::Debug> fmt::Debug for RouteService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RouteService")
            .field("inner", &self.inner)
            .field("names", &self.plan.names)
            .finish_non_exhaustive()
    }
}
