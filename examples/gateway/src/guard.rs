//! Who may ask: the client's key, and no page of another site.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::header::{AUTHORIZATION, HOST, ORIGIN};
use http::{HeaderMap, StatusCode};

use crate::gateway::Gateway;
use crate::reply;

/// The key that a client sent.
pub fn client_key(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get(AUTHORIZATION).map(|value| value.as_bytes());
    let bearer = bearer.and_then(|value| {
        let (scheme, key) = value.split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then_some(key)
    });
    bearer.or_else(|| headers.get("x-api-key").map(|value| value.as_bytes()))
}

/// Refuses requests without the key, if there is one. `/`, `/healthz` and `/readyz` need none.
pub async fn with_key(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
    next: Next,
) -> Response {
    if let Some(wanted) = &gateway.client_key {
        let given = client_key(request.headers());
        if !given.is_some_and(|given| is_equal(given, wanted.as_bytes())) {
            return reply::error(
                reply::api_of(request.uri().path()),
                StatusCode::UNAUTHORIZED,
                "invalid_api_key",
                "expected the key of this gateway",
            );
        }
    }
    next.run(request).await
}

/// Refuses what a page of another site sends: it might reach an address that only this machine
/// should.
pub async fn from_here(request: Request, next: Next) -> Response {
    let headers = request.headers();
    let own = match (headers.get(ORIGIN), headers.get(HOST)) {
        (None, _) => true,
        (Some(origin), Some(host)) => {
            let origin = origin.to_str().unwrap_or_default();
            let origin = origin.split_once("://").map_or("", |(_, host)| host);
            origin.as_bytes() == host.as_bytes()
        }
        (Some(_), None) => false,
    };
    if own {
        return next.run(request).await;
    }
    reply::error(
        reply::api_of(request.uri().path()),
        StatusCode::FORBIDDEN,
        "foreign_origin",
        "expected a request of the gateway's own page or of a program",
    )
}

/// Takes as long for any text of the same length.
fn is_equal(a: &[u8], b: &[u8]) -> bool {
    let differ = a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b));
    a.len() == b.len() && std::hint::black_box(differ) == 0
}
