//! Reload and rollback, on an address of their own.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::middleware::from_fn;
use axum::response::Response;
use axum::routing::{get, post};
use http::StatusCode;
use hubrouter::ChatShape;
use serde_json::{Value, json};

use crate::gateway::Gateway;
use crate::metrics::ReloadLabels;
use crate::{api, guard, reply};

/// The routes of the administrator.
pub fn routes(gateway: &Arc<Gateway>) -> Router {
    Router::new()
        .route("/admin/reload", post(reload))
        .route("/admin/rollback", post(rollback))
        .route("/admin/generation", get(generation))
        .route("/metrics", get(api::metrics_text))
        .with_state(Arc::clone(gateway))
        .merge(api::health(gateway))
        .layer(from_fn(guard::from_here))
}

/// Serves the store's current generation.
async fn reload(State(gateway): State<Arc<Gateway>>) -> Response {
    change(gateway, "reload", |gateway| gateway.router.refresh()).await
}

/// Makes the parent of the served generation current, and serves it.
async fn rollback(State(gateway): State<Arc<Gateway>>) -> Response {
    change(gateway, "rollback", |gateway| {
        gateway.router.rollback().map(|_| true)
    })
    .await
}

async fn generation(State(gateway): State<Arc<Gateway>>) -> Response {
    reply::json(&state(&gateway))
}

async fn change(
    gateway: Arc<Gateway>,
    what: &'static str,
    job: impl FnOnce(&Gateway) -> hubrouter::Result<bool> + Send + 'static,
) -> Response {
    let given = Arc::clone(&gateway);
    let changed = gateway.changes.run(move || {
        let before = given.router.generation();
        let changed = job(&given)?;
        let after = given.router.generation();
        tracing::info!(what, %before, %after, changed, "generation");
        Ok::<_, hubrouter::Error>((before, changed))
    });
    let done = match changed.await {
        Some(done) => done.map_err(|error| error.to_string()),
        None => Err("it has panicked".to_owned()),
    };
    let result = match &done {
        Ok((_, true)) => "changed",
        Ok((_, false)) => "unchanged",
        Err(_) => "error",
    };
    gateway
        .metrics
        .changes
        .get_or_create(&ReloadLabels { what, result })
        .inc();
    match done {
        Ok((before, changed)) => {
            let mut value = state(&gateway);
            value["before"] = json!(before);
            value["changed"] = json!(changed);
            reply::json(&value)
        }
        Err(why) => {
            tracing::error!("{what}: {why}");
            reply::error(
                ChatShape::OpenAiChat,
                StatusCode::CONFLICT,
                "not_changed",
                &why,
            )
        }
    }
}

fn state(gateway: &Gateway) -> Value {
    let watch = gateway.watch.as_ref();
    json!({
        "generation": gateway.router.generation(),
        "models": gateway.router.hub().active(),
        "watch": watch.map(|watch| json!({
            "reloads": watch.reloads(),
            "errors": watch.errors(),
            "last_error": watch.last_error().map(|error| error.to_string()),
        })),
    })
}
