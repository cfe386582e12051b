//! What the gateway answers itself, and its routes.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, StatusCode};
use hubrouter::{ChatShape, Explanation, Request};
use serde::Deserialize;
use serde_json::{Value, json};
use tower_http::timeout::RequestBodyTimeoutLayer;

use crate::config::api_name;
use crate::gateway::{APIS, Gateway};
use crate::proxy::{self, Surface};
use crate::{guard, pages, reply};

/// The routes that clients see.
pub fn routes(gateway: &Arc<Gateway>) -> Router {
    let mut served = Router::new();
    for (api, path) in APIS {
        let surface = Surface {
            gateway: Arc::clone(gateway),
            api,
        };
        let observe = from_fn_with_state(surface.clone(), proxy::observed);
        let route = match gateway.apis.get(&api) {
            Some(plan) => {
                let layer = gateway.layer(api, plan);
                post(proxy::forward)
                    .with_state(surface)
                    .layer(layer)
                    .layer(observe)
            }
            None => post(proxy::unserved).with_state(surface).layer(observe),
        };
        served = served.route(path, route);
    }
    let patience = Duration::from_secs(gateway.config.limits.body_seconds);
    let with_key = from_fn_with_state(Arc::clone(gateway), guard::with_key);
    served
        .route("/v1/models", get(models).with_state(Arc::clone(gateway)))
        .route("/v1/route", post(dry_run).with_state(Arc::clone(gateway)))
        .route(
            "/metrics",
            get(metrics_text).with_state(Arc::clone(gateway)),
        )
        .layer(axum::extract::DefaultBodyLimit::max(gateway.body_limit()))
        .layer(RequestBodyTimeoutLayer::new(patience))
        .layer(with_key)
        .merge(pages::routes())
        .merge(health(gateway))
        .fallback(nothing_here)
        .layer(from_fn(guard::from_here))
}

/// Whether the process lives, and whether it wants requests.
pub fn health(gateway: &Arc<Gateway>) -> Router {
    let ready = async |State(gateway): State<Arc<Gateway>>| match gateway.is_ready() {
        true => (StatusCode::OK, "ready\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
    };
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready).with_state(Arc::clone(gateway)))
}

async fn nothing_here() -> Response {
    let why = "expected one of the paths of README.md";
    reply::error(
        ChatShape::OpenAiChat,
        StatusCode::NOT_FOUND,
        "not_found",
        why,
    )
}

/// The names that are routed, then the models of the upstreams that are in the hub, in a form that
/// clients of OpenAI and of Anthropic read.
async fn models(State(gateway): State<Arc<Gateway>>) -> Response {
    let hub = gateway.router.hub();
    let mut all: Vec<Value> = Vec::new();
    let routed = APIS
        .iter()
        .filter(|(api, _)| gateway.apis.contains_key(api));
    let routed: Vec<&str> = routed.map(|(api, _)| api_name(*api)).collect();
    for name in &gateway.config.routing.names {
        all.push(json!({
            "id": name, "object": "model", "type": "model", "display_name": name,
            "created": 0, "owned_by": "hubrouter", "apis": routed,
        }));
    }
    for upstream in &gateway.upstreams {
        let apis: Vec<&str> = upstream.apis.iter().map(|api| api_name(*api)).collect();
        for deployment in &upstream.models {
            let name = deployment.model.as_ref().unwrap_or(&deployment.name);
            let known = hub.find(name).and_then(|id| hub.get(id));
            let born = known
                .and_then(|model| model.created_at)
                .map_or(0, |ms| ms / 1000);
            all.push(json!({
                "id": deployment.name, "object": "model", "type": "model",
                "display_name": deployment.name, "created": born, "owned_by": upstream.name,
                "apis": apis,
                "hub_model": known.map(|model| &*model.name),
                "domain": known.map(|model| &*model.domain),
                "retired": known.is_some_and(|model| model.retired),
            }));
        }
    }
    let id = |model: Option<&Value>| model.map(|model| model["id"].clone());
    reply::json(&json!({
        "object": "list", "has_more": false,
        "first_id": id(all.first()), "last_id": id(all.last()), "data": all,
    }))
}

/// What a dry run asks, beside a chat request itself.
#[derive(Deserialize)]
struct DryRun {
    prompt: Option<String>,
    top: Option<usize>,
    api: Option<ChatShape>,
}

/// Decides for a prompt or for the body of a chat request, says why, and sends nothing.
async fn dry_run(State(gateway): State<Arc<Gateway>>, body: Bytes) -> Response {
    let invalid = |why: &str| {
        let api = ChatShape::OpenAiChat;
        reply::error(api, StatusCode::BAD_REQUEST, "invalid_request_error", why)
    };
    let asked: DryRun = match serde_json::from_slice(&body) {
        Ok(asked) => asked,
        Err(error) => return invalid(&format!("expected a JSON object: {error}")),
    };
    let request = match (asked.prompt, asked.api) {
        (Some(prompt), _) => Ok(Request::new(prompt)),
        (None, Some(api)) => Request::from_chat_as(&body, api),
        (None, None) => Request::from_chat(&body),
    };
    let request = match request {
        Ok(request) => request.top(asked.top.unwrap_or(10).min(100)),
        Err(error) => return invalid(&error.to_string()),
    };
    let shape = request.chat.as_ref().map(|chat| chat.shape);
    let api = asked.api.or(shape).or_else(|| {
        let served = APIS.iter().map(|(api, _)| *api);
        { served }.find(|api| gateway.apis.contains_key(api))
    });
    let api = api.unwrap_or(ChatShape::OpenAiChat);
    let Some(plan) = gateway.apis.get(&api) else {
        return invalid(&format!("no upstream speaks {}", api_name(api)));
    };
    let Ok(_turn) = gateway.explaining.acquire().await else {
        return invalid("the gateway is ending");
    };
    gateway.metrics.explanations.inc();
    let (router, policy) = (Arc::clone(&gateway.router), Arc::clone(&plan.policy));
    let explained =
        tokio::task::spawn_blocking(move || router.explain_within(&request, &policy)).await;
    match explained {
        Ok(Ok(explanation)) => explained_reply(&gateway, api, &explanation),
        Ok(Err(error)) => {
            let message = json!({
                "error": {"message": error.to_string(), "type": "routing_error",
                          "code": error.kind(), "param": null},
                "excluded": plan.policy.excluded(),
                "fallback": plan.fallback,
            });
            let mut response = reply::json(&message);
            *response.status_mut() = StatusCode::UNPROCESSABLE_ENTITY;
            response
        }
        Err(error) => invalid(&error.to_string()),
    }
}

/// The explanation, and where the request would have gone.
fn explained_reply(gateway: &Gateway, api: ChatShape, explanation: &Explanation) -> Response {
    let plan = gateway.apis.get(&api);
    let decision = &explanation.decision;
    let by_policy = decision
        .policy
        .as_ref()
        .is_some_and(|policy| policy.fallback.is_some());
    let acted = decision.abstained.is_none() || by_policy;
    let first = decision.ranked.first().filter(|_| acted);
    let first = first
        .and_then(|first| first.deployments.first())
        .map(|name| name.to_string());
    let fallback = plan.and_then(|plan| plan.fallback.clone());
    let by_fallback = first.is_none() && fallback.is_some();
    let model = first.or(fallback);
    let place = model.as_ref().and_then(|model| plan?.models.get(model));
    let upstream = place.and_then(|place| gateway.upstreams.get(*place));
    let would = json!({
        "api": api_name(api),
        "model": model,
        "upstream": upstream.map(|upstream| upstream.name.as_str()),
        "fallback": by_fallback,
    });
    match serde_json::to_value(explanation) {
        Ok(mut value) => {
            value["would_send"] = would;
            reply::json(&value)
        }
        Err(error) => {
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            reply::error(api, status, "server_error", &error.to_string())
        }
    }
}

/// `/metrics`.
pub async fn metrics_text(State(gateway): State<Arc<Gateway>>, headers: HeaderMap) -> Response {
    let accepted = headers.get(ACCEPT).and_then(|value| value.to_str().ok());
    let open = accepted.is_some_and(|accepted| accepted.contains("application/openmetrics-text"));
    let kind = HeaderValue::from_static(match open {
        true => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        false => "text/plain; version=0.0.4; charset=utf-8",
    });
    match gateway.metrics.text(open) {
        Ok(text) => ([(CONTENT_TYPE, kind)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
