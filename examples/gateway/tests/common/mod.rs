//! Mock upstreams, a gateway in front of them, and a client; all on real sockets of this machine.
#![allow(dead_code, reason = "each test crate uses its part")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use http_body_util::{BodyExt, Full};
use hubrouter_gateway::server::{self, Listeners};
use hubrouter_gateway::{Config, Gateway};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;

pub const BIRD: &str = "Which bird is singing in this recording?";
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The tree of hubrouter.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// What an upstream got.
#[derive(Clone, Debug)]
pub struct Got {
    pub target: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

#[derive(Default)]
pub struct Mock {
    name: String,
    pub got: Mutex<Vec<Got>>,
    /// A stream's second piece waits for it.
    pub gate: Notify,
    pub address: Option<SocketAddr>,
}

impl Mock {
    pub async fn start(name: &str) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mock = Arc::new(Self {
            name: name.to_owned(),
            address: listener.local_addr().ok(),
            ..Self::default()
        });
        let routes = Router::new().fallback(answer).with_state(Arc::clone(&mock));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        mock
    }

    pub fn last(&self) -> Got {
        self.got.lock().unwrap().last().unwrap().clone()
    }

    pub fn count(&self) -> usize {
        self.got.lock().unwrap().len()
    }
}

/// The first piece of a stream, and the second.
pub const PIECES: [&str; 2] = ["data: {\"one\": 1}\n\n", "data: [DONE]\n\n"];

async fn answer(State(mock): State<Arc<Mock>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
    mock.got.lock().unwrap().push(Got {
        target: parts.uri.path_and_query().unwrap().to_string(),
        headers: parts.headers,
        body,
    });
    let model = asked["model"].as_str().unwrap_or_default().to_owned();
    let name = [
        ("x-upstream", mock.name.clone()),
        ("x-hubrouter-domain", "theirs".to_owned()),
    ];
    match model.as_str() {
        "slow" => tokio::time::sleep(PATIENCE).await,
        "teapot" => return (StatusCode::IM_A_TEAPOT, name, "short and stout").into_response(),
        "broken" => return (StatusCode::BAD_GATEWAY, name, "no").into_response(),
        _ => {}
    }
    if asked["stream"] == true {
        let pieces = tokio_stream(Arc::clone(&mock));
        let kind = [("content-type", "text/event-stream")];
        return (name, kind, pieces).into_response();
    }
    // With spaces that no serializer writes.
    (
        name,
        format!(
            "{{ \"upstream\": \"{}\",  \"model\": \"{model}\" }}",
            mock.name
        ),
    )
        .into_response()
}

fn tokio_stream(mock: Arc<Mock>) -> Body {
    struct Stream(Arc<Mock>, usize, Option<JoinHandle<()>>);
    impl http_body::Body for Stream {
        type Data = Bytes;
        type Error = std::convert::Infallible;
        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            context: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
            if self.1 == 1 {
                let mock = Arc::clone(&self.0);
                let gate = self
                    .2
                    .get_or_insert_with(|| tokio::spawn(async move { mock.gate.notified().await }));
                let gate = std::pin::Pin::new(gate);
                std::task::ready!(std::future::Future::poll(gate, context)).unwrap();
            }
            let piece = PIECES.get(self.1);
            self.1 += 1;
            std::task::Poll::Ready(
                piece.map(|piece| Ok(http_body::Frame::data(Bytes::from_static(piece.as_bytes())))),
            )
        }
    }
    Body::new(Stream(mock, 0, None))
}

/// A gateway that serves, and its addresses.
pub struct Running {
    pub gateway: Arc<Gateway>,
    pub clients: SocketAddr,
    pub admin: SocketAddr,
    pub folder: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    pub served: Option<JoinHandle<()>>,
}

/// The upstream `a` speaks both of OpenAI's APIs, `b` Anthropic's.
pub struct Two {
    pub a: Arc<Mock>,
    pub b: Arc<Mock>,
    pub running: Running,
}

pub fn upstreams(a: &Mock, b: &Mock) -> String {
    format!(
        r#"
[[upstreams]]
name = "a"
url = "http://{}/"
apis = ["openai_chat", "openai_responses"]
models = [
  {{ name = "birds", model = "DBD-research-group/AudioProtoPNet-20-BirdSet-XCL" }},
  "google/flan-t5-xxl",
  {{ name = "slow", model = "gpt2" }},
  {{ name = "teapot", model = "openai/whisper-small" }},
  {{ name = "broken", model = "openai/whisper-base" }},
]
[[upstreams]]
name = "b"
url = "http://{}/prefix"
apis = ["anthropic_messages"]
models = [
  {{ name = "claude-birds", model = "nvidia/audio-flamingo-3-hf" }},
  "google/flan-t5-xxl",
]
"#,
        a.address.unwrap(),
        b.address.unwrap()
    )
}

/// `head` and `tables`: what stands in the configuration before and behind the upstreams.
pub async fn two(head: &str, tables: &str) -> Two {
    let (a, b) = (Mock::start("a").await, Mock::start("b").await);
    let running = start(head, &(upstreams(&a, &b) + tables)).await;
    Two { a, b, running }
}

pub async fn start(head: &str, rest: &str) -> Running {
    let folder = tempfile::tempdir().unwrap();
    let store = root().join("weights/cmrbench");
    let head = match head.contains("store =") {
        true => head.to_owned(),
        false => format!("store = {store:?}\n{head}"),
    };
    let file = folder.path().join("gateway.toml");
    std::fs::write(&file, format!("{head}\n{rest}")).unwrap();
    let gateway = Gateway::open(Config::read(&file).unwrap()).await.unwrap();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let listeners = Listeners::bind(any, any).await.unwrap();
    let clients = listeners.clients.local_addr().unwrap();
    let admin = listeners.admin.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let until = async {
        let _ = stopped.await;
    };
    let served = tokio::spawn(server::serve(Arc::clone(&gateway), listeners, until));
    Running {
        gateway,
        clients,
        admin,
        folder,
        stop: Some(stop),
        served: Some(served),
    }
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

impl Running {
    pub fn stop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
    }

    pub async fn post(&self, path: &str, body: &str) -> Answer {
        self.post_with(path, body, &[]).await
    }

    pub async fn post_with(&self, path: &str, body: &str, headers: &[(&str, &str)]) -> Answer {
        send(self.clients, Method::POST, path, headers, body).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        send(self.clients, Method::GET, path, &[], "").await
    }
}

pub fn request(
    address: SocketAddr,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> http::Request<Full<Bytes>> {
    let mut request = http::Request::builder()
        .method(method)
        .uri(format!("http://{address}{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request
        .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))
        .unwrap()
}

pub fn client() -> Client<HttpConnector, Full<Bytes>> {
    Client::builder(TokioExecutor::new()).build_http()
}

pub async fn send(
    address: SocketAddr,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Answer {
    let sent = client().request(request(address, method, path, headers, body));
    let response = tokio::time::timeout(PATIENCE, sent).await.unwrap().unwrap();
    let (parts, body) = response.into_parts();
    Answer {
        status: parts.status,
        headers: parts.headers,
        body: body.collect().await.unwrap().to_bytes(),
    }
}

pub fn chat(model: &str, text: &str) -> String {
    format!(
        "{{\"model\" : \"{model}\", \"temperature\": 1.50,\n \
         \"messages\": [{{\"role\": \"user\", \"content\": \"{text}\"}}]}}"
    )
}
