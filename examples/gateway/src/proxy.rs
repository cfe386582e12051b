//! A request goes to the upstream that has its model, and the answer comes back as it is.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, RETRY_AFTER, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hubrouter::ChatShape;
use hubrouter::feedback::Feedback;
use hubrouter::layer::{RouteReason, RouteRecord};
use serde::Deserialize;
use tower_http::timeout::{TimeoutBody, TimeoutError};
use tracing::{Instrument, Span, field::Empty};

use crate::config::api_name;
use crate::gateway::{Gateway, Upstream};
use crate::metrics::{RequestLabels, UpstreamErrorLabels, UpstreamLabels};
use crate::reply;
use crate::trace::TraceContext;

/// The gateway and the API of a path.
#[derive(Clone)]
pub struct Surface {
    pub gateway: Arc<Gateway>,
    pub api: ChatShape,
}

/// Measures and traces a request, from its head to the end of its answer.
pub async fn observed(
    State(Surface { gateway, api }): State<Surface>,
    mut request: Request,
    next: Next,
) -> Response {
    let began = Instant::now();
    let context = TraceContext::of(request.headers());
    let span = tracing::info_span!(
        "gateway.request",
        otel.kind = "server",
        trace_id = %context.trace_id,
        span_id = %context.span_id,
        parent_span_id = context.parent_id.as_deref().unwrap_or_default(),
        http.request.method = %request.method(),
        http.route = request.uri().path(),
        http.response.status_code = Empty,
        hubrouter.api = api_name(api),
        hubrouter.requested = Empty,
        hubrouter.model = Empty,
        hubrouter.reason = Empty,
        hubrouter.fallback = Empty,
        hubrouter.generation = Empty,
        hubrouter.domain = Empty,
        hubrouter.probability = Empty,
        hubrouter.confidence = Empty,
        hubrouter.eligible = Empty,
        hubrouter.route_us = Empty,
    );
    request.extensions_mut().insert(context);
    gateway.metrics.open_requests.inc();
    let open = OpenRequest {
        gateway: Arc::clone(&gateway),
        span: span.clone(),
    };
    let response = next.run(request).instrument(span.clone()).await;
    let code = response.status().as_u16();
    let labels = RequestLabels {
        api: api_name(api),
        code,
    };
    gateway.metrics.requests.get_or_create(&labels).inc();
    gateway
        .metrics
        .request_duration
        .observe(began.elapsed().as_secs_f64());
    match response.extensions().get::<RouteRecord>() {
        None => {
            span.record("http.response.status_code", code);
        }
        Some(record) => {
            gateway.metrics.decided(api_name(api), record);
            describe(&span, code, record);
        }
    }
    response.map(|body| Body::new(ObservedBody { body, _open: open }))
}

/// All at once: each single call writes the span's fields anew.
fn describe(span: &Span, code: u16, record: &RouteRecord) {
    let decision = record.decision.as_deref();
    let first = decision.and_then(|decision| decision.ranked.first());
    let confidence = decision.and_then(|decision| decision.confidence);
    let policy = decision.and_then(|decision| decision.policy.as_ref());
    tracing::record_all!(
        span,
        http.response.status_code = code,
        hubrouter.requested = record.requested.as_str(),
        hubrouter.model = record.model.as_deref(),
        hubrouter.reason = record.reason.as_str(),
        hubrouter.fallback = record.fallback,
        hubrouter.generation = decision.map(|decision| decision.revisions.generation.as_str()),
        hubrouter.domain = first.map(|first| &*first.domain),
        hubrouter.probability = first.map(|first| f64::from(first.probability)),
        hubrouter.confidence = confidence.map(|confidence| f64::from(confidence.domain)),
        hubrouter.eligible = policy.map(|policy| policy.eligible),
        hubrouter.route_us = u64::try_from(record.elapsed.as_micros()).unwrap_or(u64::MAX),
    );
}

/// A request whose answer has not ended.
struct OpenRequest {
    gateway: Arc<Gateway>,
    #[expect(dead_code, reason = "the span closes with it")]
    span: Span,
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.gateway.metrics.open_requests.dec();
    }
}

/// The answer's body, frame by frame as it came.
struct ObservedBody {
    body: Body,
    _open: OpenRequest,
}

impl http_body::Body for ObservedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Sends a request, routed or not, to the upstream of its model.
pub async fn forward(
    State(Surface { gateway, api }): State<Surface>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let body = match Limited::new(body, gateway.body_limit()).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return unread(api, &*error),
    };
    let record = parts.extensions.get::<RouteRecord>();
    let model = match record.and_then(|record| record.model.as_deref()) {
        Some(model) => model.to_owned(),
        None => match named(&body) {
            Ok(model) => model,
            Err(why) => {
                return reply::error(api, StatusCode::BAD_REQUEST, "invalid_request_error", &why);
            }
        },
    };
    let place = gateway
        .apis
        .get(&api)
        .and_then(|plan| plan.models.get(&model));
    let Some(upstream) = place.and_then(|place| gateway.upstreams.get(*place)) else {
        return match record {
            Some(record) => unrouted(api, record),
            None => {
                let why = format!("no upstream of this API has the model {model:?}");
                reply::error(api, StatusCode::NOT_FOUND, "model_not_found", &why)
            }
        };
    };
    called(&gateway, api, upstream, &model, parts, body).await
}

async fn called(
    gateway: &Arc<Gateway>,
    api: ChatShape,
    upstream: &Upstream,
    model: &str,
    mut parts: Parts,
    body: Bytes,
) -> Response {
    let began = Instant::now();
    let record = parts.extensions.remove::<RouteRecord>();
    let fails = |kind, status, why: &str| {
        let labels = UpstreamErrorLabels {
            upstream: upstream.name.clone(),
            kind,
        };
        gateway.metrics.upstream_errors.get_or_create(&labels).inc();
        tracing::warn!(upstream = upstream.name.as_str(), kind, "{why}");
        let why = format!("{}: {why}", upstream.name);
        reply::error(api, status, "upstream_error", &why)
    };
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let uri: Uri = match format!("{}{path}", upstream.base).parse() {
        Ok(uri) => uri,
        Err(_) => return fails("connect", StatusCode::BAD_GATEWAY, "its address is none"),
    };
    end_to_end(&mut parts.headers);
    for name in [HOST, EXPECT, CONTENT_LENGTH] {
        parts.headers.remove(name);
    }
    if upstream.key.is_some() || gateway.client_key.is_some() {
        // The client's key is the gateway's, and no upstream's.
        parts.headers.remove(AUTHORIZATION);
        parts.headers.remove("x-api-key");
    }
    match &upstream.key {
        Some((_, key)) if api == ChatShape::AnthropicMessages => {
            parts.headers.insert("x-api-key", key.clone());
        }
        Some((bearer, _)) => {
            parts.headers.insert(AUTHORIZATION, bearer.clone());
        }
        None => {}
    }
    let context = parts.extensions.remove::<TraceContext>();
    let span_id = context
        .as_ref()
        .map(|context| context.child(&mut parts.headers));
    let span = tracing::info_span!(
        "gateway.upstream",
        otel.kind = "client",
        trace_id = context.as_ref().map(|context| context.trace_id.as_str()),
        span_id = span_id.as_deref(),
        parent_span_id = context.as_ref().map(|context| context.span_id.as_str()),
        gen_ai.operation.name = "chat",
        gen_ai.provider.name = upstream.name.as_str(),
        gen_ai.request.model = model,
        server.address = upstream.base.as_str(),
        http.response.status_code = Empty,
    );
    let mut request = http::Request::new(Full::new(body.clone()));
    *request.method_mut() = parts.method;
    *request.uri_mut() = uri;
    *request.headers_mut() = parts.headers;
    let limits = &gateway.config.limits;
    let patience = Duration::from_secs(limits.answer_seconds);
    let call = gateway.client.request(request).instrument(span.clone());
    let answered = tokio::time::timeout(patience, call).await;
    let response = match answered {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => {
            let why = chain(&error);
            return fails("connect", StatusCode::BAD_GATEWAY, &why);
        }
        Err(_) => {
            return fails(
                "timeout",
                StatusCode::GATEWAY_TIMEOUT,
                "did not answer in time",
            );
        }
    };
    let took = began.elapsed();
    let status = response.status();
    span.record("http.response.status_code", status.as_u16());
    let labels = UpstreamLabels {
        upstream: upstream.name.clone(),
    };
    gateway
        .metrics
        .upstream_duration
        .get_or_create(&labels)
        .observe(took.as_secs_f64());
    if status.is_server_error() {
        let labels = UpstreamErrorLabels {
            upstream: upstream.name.clone(),
            kind: "server_error",
        };
        gateway.metrics.upstream_errors.get_or_create(&labels).inc();
    }
    if let Some(record) = record {
        note(gateway, api, body, record, status, took);
    }
    let (mut head, answer) = response.into_parts();
    end_to_end(&mut head.headers);
    let silence = Duration::from_secs(limits.silence_seconds);
    Response::from_parts(head, Body::new(TimeoutBody::new(silence, answer)))
}

/// Takes out what is about one connection and not about the message.
fn end_to_end(headers: &mut HeaderMap) {
    let listed = headers.get_all(CONNECTION).iter();
    let listed = listed.filter_map(|value| value.to_str().ok());
    let listed = listed.flat_map(|value| value.split(','));
    let listed: Vec<HeaderName> = listed.filter_map(|name| name.trim().parse().ok()).collect();
    let known = [
        CONNECTION,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
        HeaderName::from_static("proxy-authorization"),
        HeaderName::from_static("proxy-authenticate"),
    ];
    for name in known.into_iter().chain(listed) {
        headers.remove(name);
    }
}

/// The model in a body that was not routed.
fn named(body: &[u8]) -> Result<String, String> {
    #[derive(Deserialize)]
    struct Outermost {
        model: String,
    }
    let read: Result<Outermost, _> = serde_json::from_slice(body);
    match read {
        Ok(read) => Ok(read.model),
        Err(error) => Err(format!("expected a JSON object with a model: {error}")),
    }
}

/// Why the body of a request could not be read.
fn unread(api: ChatShape, error: &(dyn Error + 'static)) -> Response {
    let causes = causes(error);
    let (status, why) = if error.is::<LengthLimitError>() {
        (
            StatusCode::PAYLOAD_TOO_LARGE,
            "the body is over the gateway's limit",
        )
    } else if causes.iter().any(|cause| cause.is::<TimeoutError>()) {
        (StatusCode::REQUEST_TIMEOUT, "the body did not come in time")
    } else {
        (StatusCode::BAD_REQUEST, "the body broke off")
    };
    reply::error(api, status, "invalid_request_error", why)
}

/// That a request for a routed model has none, and there is no fallback.
fn unrouted(api: ChatShape, record: &RouteRecord) -> Response {
    let abstained = record
        .decision
        .as_ref()
        .and_then(|decision| decision.abstained.as_ref());
    let detail = match (&record.error, abstained) {
        (Some(error), _) => error.to_string(),
        (None, Some(abstained)) => abstained.detail.clone(),
        (None, None) => "no model may answer".to_owned(),
    };
    let why = format!("{} was not routed: {detail}", record.requested);
    let reason = record.reason.as_str();
    if record.reason == RouteReason::InvalidRequest {
        return reply::error(api, StatusCode::BAD_REQUEST, reason, &why);
    }
    let mut response = reply::error(api, StatusCode::SERVICE_UNAVAILABLE, reason, &why);
    response
        .headers_mut()
        .insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// Writes a line of feedback, if there is a log. What an answer is worth is not known here.
fn note(
    gateway: &Arc<Gateway>,
    api: ChatShape,
    body: Bytes,
    record: RouteRecord,
    status: StatusCode,
    took: Duration,
) {
    let (Some(log), Some(decision), Some(model)) =
        (gateway.feedback.clone(), record.decision, record.model)
    else {
        return;
    };
    let gateway = Arc::clone(gateway);
    tokio::task::spawn_blocking(move || {
        let mut went = Feedback::used(&*model).latency_ms(took.as_secs_f64() * 1e3);
        if !status.is_success() {
            went = went.error(status.to_string());
        }
        let request = hubrouter::Request::from_chat_as(&body, api);
        let written = request.and_then(|request| log.observe(&request, &decision, &went));
        if let Err(error) = written {
            gateway.metrics.feedback_lost.inc();
            tracing::warn!("a line of feedback is lost: {error}");
        }
    });
}

/// An error and its causes.
fn causes<'e>(error: &'e (dyn Error + 'static)) -> Vec<&'e (dyn Error + 'static)> {
    let mut all = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        all.push(error);
        next = error.source();
    }
    all
}

fn chain(error: &(dyn Error + 'static)) -> String {
    let texts: Vec<String> = causes(error).iter().map(ToString::to_string).collect();
    texts.join(": ")
}

/// An API that no upstream speaks.
pub async fn unserved(State(Surface { api, .. }): State<Surface>) -> Response {
    let why = "no upstream of this gateway speaks this API";
    reply::error(api, StatusCode::NOT_FOUND, "not_found", why).into_response()
}
