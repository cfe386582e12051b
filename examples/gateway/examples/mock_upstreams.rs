//! Upstreams that answer without a model: `mock_upstreams NAME=ADDRESS ..`, one for each argument.
//!
//! An answer names the upstream, the model that it was asked for and the request's `user`. With
//! `stream` it comes as three events.

use std::net::SocketAddr;
use std::process::ExitCode;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;

#[derive(Deserialize)]
struct Asked {
    model: String,
    #[serde(default)]
    stream: bool,
    #[serde(default)]
    user: String,
}

async fn answer(State(name): State<String>, body: Bytes) -> Response {
    let asked: Asked = match serde_json::from_slice(&body) {
        Ok(asked) => asked,
        Err(error) => return (http::StatusCode::BAD_REQUEST, error.to_string()).into_response(),
    };
    let text = format!("{} of {name} would answer here.", asked.model);
    if asked.stream {
        let event = |value: serde_json::Value| format!("data: {value}\n\n");
        let piece =
            |text: &str| event(json!({"choices": [{"index": 0, "delta": {"content": text}}]}));
        let events = [
            piece(&asked.model),
            piece(&text),
            "data: [DONE]\n\n".to_owned(),
        ];
        return ([("content-type", "text/event-stream")], events.concat()).into_response();
    }
    let message = json!({"role": "assistant", "content": text});
    let answer = json!({
        "model": asked.model, "user": asked.user, "upstream": name,
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
    });
    ([("content-type", "application/json")], answer.to_string()).into_response()
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut served = tokio::task::JoinSet::new();
    for argument in std::env::args().skip(1) {
        let parsed = argument.split_once('=').and_then(|(name, address)| {
            Some((name.to_owned(), address.parse::<SocketAddr>().ok()?))
        });
        let Some((name, address)) = parsed else {
            return failed(&format!("expected NAME=ADDRESS, found {argument}"));
        };
        let listener = match TcpListener::bind(address).await {
            Ok(listener) => listener,
            Err(error) => return failed(&format!("{address}: {error}")),
        };
        let routes = Router::new().fallback(answer).with_state(name);
        served.spawn(async move { axum::serve(listener, routes).await });
    }
    served.join_all().await;
    ExitCode::SUCCESS
}

#[expect(clippy::print_stderr, reason = "why the program ends")]
fn failed(why: &str) -> ExitCode {
    eprintln!("{why}");
    ExitCode::FAILURE
}
