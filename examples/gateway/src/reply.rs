//! Errors in the form of each API.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use hubrouter::ChatShape;
use serde_json::{Value, json};

use crate::gateway::APIS;

/// The API of a path; OpenAI's form for all others.
pub fn api_of(path: &str) -> ChatShape {
    let known = APIS.iter().find(|(_, known)| *known == path);
    known.map_or(ChatShape::OpenAiChat, |(api, _)| *api)
}

/// An error of the gateway itself; those of upstreams pass through.
pub fn error(api: ChatShape, status: StatusCode, code: &str, message: &str) -> Response {
    let body = match api {
        ChatShape::AnthropicMessages => {
            json!({"type": "error", "error": {"type": code, "message": message}})
        }
        _ => {
            let kind = if status.is_client_error() {
                "invalid_request_error"
            } else {
                "server_error"
            };
            json!({"error": {"message": message, "type": kind, "param": null, "code": code}})
        }
    };
    let mut response = with_status(status, &body);
    response
        .headers_mut()
        .insert("x-hubrouter-error", HeaderValue::from_static("gateway"));
    response
}

pub fn json(value: &Value) -> Response {
    with_status(StatusCode::OK, value)
}

fn with_status(status: StatusCode, value: &Value) -> Response {
    let json = HeaderValue::from_static("application/json");
    (
        status,
        [(CONTENT_TYPE, json)],
        Body::from(value.to_string()),
    )
        .into_response()
}
