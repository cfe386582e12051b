//! The tower layer: `auto` becomes a model, and nothing else of a request or a response changes.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod common;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Future, Ready, poll_fn, ready};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use common::{cpu, store, toy};
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use hubrouter::layer::{RouteLayer, RouteReason, RouteRecord, RoutedBody};
use hubrouter::{AsyncRouter, ChatShape, Options, Policy, Router, SessionKey};
use tower_layer::Layer;
use tower_service::Service;

/// A body of these frames; an error says why.
struct Frames {
    frames: VecDeque<Result<Frame<Bytes>, String>>,
    length: Option<u64>,
}

impl Frames {
    fn of(parts: &[&str]) -> Self {
        let frame = |part: &&str| Ok(Frame::data(Bytes::copy_from_slice(part.as_bytes())));
        Self {
            frames: parts.iter().map(frame).collect(),
            length: None,
        }
    }

    fn then(mut self, frame: Result<Frame<Bytes>, String>) -> Self {
        self.frames.push_back(frame);
        self
    }
}

impl Body for Frames {
    type Data = Bytes;
    type Error = String;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, String>>> {
        Poll::Ready(self.frames.pop_front())
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        self.length
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// What a service behind the layer got.
#[derive(Default)]
struct Seen {
    /// Pieces of the body; of trailers and errors a text.
    frames: Vec<String>,
    head: HeaderMap,
    hint: Option<SizeHint>,
    record: Option<RouteRecord>,
}

/// Keeps the last request, and answers with a response of two frames.
#[derive(Clone, Default)]
struct Upstream(Arc<Mutex<Seen>>);

impl Service<Request<RoutedBody<Frames>>> for Upstream {
    type Response = Response<Frames>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Frames>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<RoutedBody<Frames>>) -> Self::Future {
        let seen = Arc::clone(&self.0);
        Box::pin(async move {
            let (parts, mut body) = request.into_parts();
            let mut got = Seen {
                head: parts.headers,
                hint: Some(body.size_hint()),
                record: parts.extensions.get::<RouteRecord>().cloned(),
                frames: Vec::new(),
            };
            while let Some(frame) = poll_fn(|c| Pin::new(&mut body).poll_frame(c)).await {
                got.frames.push(match frame.map(Frame::into_data) {
                    Ok(Ok(data)) => String::from_utf8(data.to_vec()).unwrap(),
                    Ok(Err(frame)) => format!("{:?}", frame.into_trailers().unwrap()),
                    Err(error) => error,
                });
            }
            assert!(body.is_end_stream());
            *seen.lock().unwrap() = got;
            let frames = Frames::of(&["data: 1\n\n", "data: [DONE]\n\n"]);
            let mut response = Response::new(frames);
            response
                .headers_mut()
                .insert("x-upstream", "yes".parse().unwrap());
            Ok(response)
        })
    }
}

struct Setup {
    _toy: toy::Setup,
    router: AsyncRouter,
    upstream: Upstream,
}

fn setup(name: &str, options: impl FnOnce(Options) -> Options) -> Setup {
    let toy = toy::setup(name);
    let options = options(cpu(1).encoder(&toy.encoder));
    let router = Router::open(&toy.store, options).unwrap();
    Setup {
        _toy: toy,
        router: AsyncRouter::new(Arc::new(router)),
        upstream: Upstream::default(),
    }
}

impl Setup {
    fn layer(&self) -> RouteLayer {
        RouteLayer::new(self.router.clone())
    }

    fn policy(&self, json: &str) -> Arc<hubrouter::PolicyHandle> {
        let policy: Policy = serde_json::from_str(json).unwrap();
        Arc::new(self.router.router().compile(&policy).unwrap())
    }

    /// The response to a request, and what the upstream saw.
    fn send(&self, layer: &RouteLayer, request: Request<Frames>) -> (Response<Frames>, Seen) {
        let mut service = layer.layer(self.upstream.clone());
        let runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = { runtime }.worker_threads(1).enable_time().build().unwrap();
        let response = runtime.block_on(async {
            poll_fn(|c| Service::<Request<Frames>>::poll_ready(&mut service, c))
                .await
                .unwrap();
            service.call(request).await.unwrap()
        });
        (
            response,
            std::mem::take(&mut self.upstream.0.lock().unwrap()),
        )
    }

    fn post(&self, layer: &RouteLayer, path: &str, body: &str) -> (Response<Frames>, Seen) {
        let mut request = Request::new(Frames::of(&[body]));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = path.parse().unwrap();
        request
            .headers_mut()
            .insert(CONTENT_LENGTH, body.len().into());
        self.send(layer, request)
    }
}

const CHAT: &str = "/v1/chat/completions";

fn chat(model: &str, text: &str) -> String {
    format!(
        "{{\"stream\": true, \"model\" : \"{model}\",\n \"temperature\": 1.50e0, \
         \"messages\":[{{\"role\":\"user\",\"content\":\"{text}\"}}]}}"
    )
}

fn header<'r>(response: &'r Response<Frames>, name: &str) -> Option<&'r str> {
    response
        .headers()
        .get(name)
        .map(|value| value.to_str().unwrap())
}

#[test]
fn auto_becomes_the_router_s_model_and_no_other_byte_changes() {
    let setup = setup("tower-auto", |options| options);
    let body = chat("auto", "which bird sings?");
    let (response, seen) = setup.post(&setup.layer(), CHAT, &body);
    let want = setup.router.router();
    let want = want
        .route(&hubrouter::Request::from_chat(&body).unwrap())
        .unwrap();
    let model = &want.ranked[0].model;
    assert_eq!(
        seen.frames,
        [body.replace("\"auto\"", &format!("\"{model}\""))]
    );
    assert_eq!(seen.head[CONTENT_LENGTH], seen.frames[0].len().to_string());
    assert_eq!(
        seen.hint.unwrap().exact(),
        Some(seen.frames[0].len() as u64)
    );
    let record = seen.record.unwrap();
    assert_eq!(record.model.as_deref(), Some(&**model));
    assert_eq!(
        (record.reason, record.fallback),
        (RouteReason::Decided, false)
    );
    assert_eq!(record.requested, "auto");
    assert_eq!(record.decision.unwrap().ranked[..], want.ranked[..3]);
    assert!(response.extensions().get::<RouteRecord>().is_some());
    for (name, value) in [
        ("x-hubrouter-model", &**model),
        ("x-hubrouter-reason", "decided"),
        ("x-hubrouter-fallback", "false"),
        ("x-hubrouter-generation", want.revisions.generation.as_str()),
        ("x-hubrouter-domain", &*want.ranked[0].domain),
        ("x-upstream", "yes"),
    ] {
        assert_eq!(header(&response, name), Some(value), "{name}");
    }
    let frames = response.into_body().frames;
    let frames = frames
        .into_iter()
        .map(|frame| frame.unwrap().into_data().unwrap());
    assert_eq!(
        frames.collect::<Vec<_>>(),
        ["data: 1\n\n", "data: [DONE]\n\n"]
    );
}

#[test]
fn everything_else_passes_untouched() {
    let setup = setup("tower-untouched", |options| options);
    let auto = chat("auto", "which bird sings?");
    let named = chat("model-3", "which bird sings?");
    let twice = auto.replace("\"stream\": true", "\"model\": \"x\"");
    let cases: [(Method, &str, &str); 8] = [
        (Method::POST, CHAT, &named),
        (Method::POST, CHAT, &twice),
        (Method::POST, CHAT, "no json"),
        (Method::POST, CHAT, ""),
        (Method::POST, CHAT, r#"{"model": ["auto"]}"#),
        (Method::POST, "/v1/embeddings", &auto),
        (Method::POST, "/v1/chat/completions/", &auto),
        (Method::PUT, CHAT, &auto),
    ];
    for (method, path, body) in cases {
        let (first, second) = body.split_at(body.len() / 2);
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "7".parse().unwrap());
        let body = Frames::of(&[first, second]).then(Ok(Frame::trailers(trailers.clone())));
        let mut request = Request::new(body);
        *request.method_mut() = method.clone();
        *request.uri_mut() = path.parse().unwrap();
        request.headers_mut().insert("x-mine", "1".parse().unwrap());
        let head = request.headers().clone();
        let (response, seen) = setup.send(&setup.layer().fallback("model-1"), request);
        let whole: String = seen.frames[..seen.frames.len() - 1].concat();
        assert_eq!(whole, [first, second].concat(), "{method} {path}");
        assert_eq!(seen.frames.last().unwrap(), &format!("{trailers:?}"));
        assert_eq!(seen.head, head);
        assert!(seen.record.is_none());
        let names = response.headers().keys().map(http::HeaderName::as_str);
        assert_eq!(names.collect::<Vec<_>>(), ["x-upstream"]);
    }
}

#[test]
fn a_body_over_the_limit_passes_untouched() {
    let setup = setup("tower-limit", |options| options);
    let body = chat("auto", "which bird sings?");
    let halves = body.split_at(body.len() / 2);
    let layer = |limit| setup.layer().body_limit(limit);
    for length in [None, Some(body.len() as u64)] {
        let mut frames = Frames::of(&[halves.0, halves.1]);
        frames.length = length;
        let request = Request::post(CHAT).body(frames).unwrap();
        let (_, seen) = setup.send(&layer(body.len() - 1), request);
        assert_eq!(seen.frames, [halves.0, halves.1]);
        assert!(seen.record.is_none());
    }
    let (_, seen) = setup.post(&layer(body.len()), CHAT, &body);
    assert!(seen.record.is_some());
}

#[test]
fn a_body_that_breaks_off_breaks_off_behind_the_layer() {
    let setup = setup("tower-broken", |options| options);
    let body = Frames::of(&["{\"model\":\"auto\","]).then(Err("gone".to_owned()));
    let (_, seen) = setup.send(&setup.layer(), Request::post(CHAT).body(body).unwrap());
    assert_eq!(seen.frames, ["{\"model\":\"auto\",", "gone"]);
}

#[test]
fn each_api_has_its_policy_and_deployments_name_the_model() {
    let setup = setup("tower-apis", |options| options);
    let deployment = |name: &str, model: &str| {
        format!(r#"{{"candidates": [{{"name": "{name}", "model": "{model}"}}]}}"#)
    };
    let layer = setup
        .layer()
        .policy(setup.policy(&deployment("anyone", "model-0")))
        .policy_for(
            ChatShape::AnthropicMessages,
            setup.policy(&deployment("an \\\"A\\\" model", "model-2")),
        )
        .path("/proxy/chat", ChatShape::OpenAiChat);
    let messages = r#"{"model":"auto","messages":[{"role":"user","content":"Hello bird"}]}"#;
    let responses = r#"{"model":"auto","input":"Hello bird"}"#;
    for (path, body, name) in [
        (CHAT, messages, "anyone"),
        ("/proxy/chat", messages, "anyone"),
        ("/v1/responses", responses, "anyone"),
        ("/v1/messages", messages, "an \\\"A\\\" model"),
    ] {
        let (_, seen) = setup.post(&layer, path, body);
        assert_eq!(seen.frames, [body.replace("auto", name)], "{path}");
    }
}

#[test]
fn without_a_decision_the_fallback_answers_or_the_request_goes_on() {
    let setup = setup("tower-fallback", |options| options);
    let nothing = r#"{"where": "domain = nowhere"}"#;
    let withheld = r#"{"where": "domain = nowhere", "abstain": {}}"#;
    let late = r#"{"fallbacks": ["name = model-4"]}"#;
    let text = chat("auto", "which bird sings?");
    let silent = chat("auto", "");
    type Case<'c> = (
        &'c str,
        &'c str,
        Option<Duration>,
        RouteReason,
        Option<&'c str>,
    );
    let cases: [Case<'_>; 5] = [
        (nothing, &text, None, RouteReason::NoCandidate, None),
        (withheld, &text, None, RouteReason::NoCandidate, None),
        ("{}", &silent, None, RouteReason::InvalidRequest, None),
        (
            "{}",
            &text,
            Some(Duration::ZERO),
            RouteReason::Deadline,
            None,
        ),
        (
            late,
            &text,
            Some(Duration::ZERO),
            RouteReason::PolicyFallback,
            Some("model-4"),
        ),
    ];
    for (policy, body, deadline, reason, model) in cases {
        let mut layer = setup.layer().policy(setup.policy(policy));
        if let Some(deadline) = deadline {
            layer = layer.deadline(deadline);
        }
        let (open, seen) = setup.post(&layer, CHAT, body);
        let record = seen.record.unwrap();
        assert_eq!(
            (record.reason, record.model.as_deref()),
            (reason, model),
            "{policy}"
        );
        assert_eq!(seen.frames, [body.replace("auto", model.unwrap_or("auto"))]);
        assert_eq!(header(&open, "x-hubrouter-model"), model);
        assert_eq!(record.decision.is_none(), record.error.is_some());

        let (response, seen) = setup.post(&layer.fallback("model-5"), CHAT, body);
        let record = seen.record.unwrap();
        assert_eq!((record.reason, record.fallback), (reason, model.is_none()));
        assert_eq!(
            seen.frames,
            [body.replace("auto", model.unwrap_or("model-5"))]
        );
        assert_eq!(
            header(&response, "x-hubrouter-reason"),
            Some(reason.as_str())
        );
    }
}

#[test]
fn an_abstained_decision_is_not_acted_on() {
    let router = Router::open(store(), cpu(1)).unwrap();
    let setup = Setup {
        router: AsyncRouter::new(Arc::new(router)),
        ..setup("tower-abstain", |options| options)
    };
    let policy = setup.policy(r#"{"abstain": {"max_ood": 0.95}}"#);
    let layer = setup.layer().policy(policy).fallback("google/flan-t5-xxl");
    let strange = chat("auto", "jkl; asdf qwer uiop zxcv");
    let (response, seen) = setup.post(&layer, CHAT, &strange);
    assert_eq!(header(&response, "x-hubrouter-reason"), Some("abstained"));
    assert_eq!(
        header(&response, "x-hubrouter-model"),
        Some("google/flan-t5-xxl")
    );
    let record = seen.record.unwrap();
    assert!(record.fallback && !record.decision.unwrap().ranked.is_empty());
    let known = chat("auto", "Which bird is singing in this recording?");
    let (response, _) = setup.post(&layer, CHAT, &known);
    assert_eq!(header(&response, "x-hubrouter-reason"), Some("decided"));
    assert!(header(&response, "x-hubrouter-confidence").is_some());
}

#[test]
fn the_cache_and_conversations_are_the_router_s() {
    let setup = setup("tower-front", |options| options.cache_bytes(1 << 20));
    let layer = setup.layer().names(["auto", "best"]);
    let reasons = ["auto", "best"].map(|name| {
        let (response, _) = setup.post(&layer, CHAT, &chat(name, "which bird sings?"));
        header(&response, "x-hubrouter-reason").unwrap().to_owned()
    });
    assert_eq!(reasons, ["decided", "cached"]);

    let layer = layer.session(|parts| {
        let id = parts.headers.get("x-session")?.to_str().ok()?;
        Some(SessionKey::new("", id))
    });
    let reasons = [0, 1].map(|_| {
        let body = chat("auto", "which dog barks?");
        let request = Request::post(CHAT).header("x-session", "7");
        let request = request.body(Frames::of(&[&body])).unwrap();
        let (response, _) = setup.send(&layer, request);
        header(&response, "x-hubrouter-reason").unwrap().to_owned()
    });
    assert_eq!(reasons, ["decided", "session"]);
}

#[test]
fn a_long_body_in_many_frames_is_routed() {
    let setup = setup("tower-long", |options| options);
    let body = chat("auto", &"which bird sings? ".repeat(10_000));
    let frames: Vec<&str> = body
        .as_bytes()
        .chunks(1000)
        .map(|c| str::from_utf8(c).unwrap())
        .collect();
    let request = Request::post(CHAT).body(Frames::of(&frames)).unwrap();
    let (_, seen) = setup.send(&setup.layer(), request);
    let model = seen.record.unwrap().model.unwrap();
    assert_eq!(
        seen.frames,
        [body.replace("\"auto\"", &format!("\"{model}\""))]
    );
    // No length was stated, and none is added.
    assert!(!seen.head.contains_key(CONTENT_LENGTH));
}

#[test]
fn the_service_that_is_ready_gets_the_request() {
    /// Fails a call that was not preceded by `poll_ready` of the same clone.
    #[derive(Default)]
    struct Strict(bool);
    impl Clone for Strict {
        fn clone(&self) -> Self {
            Self(false)
        }
    }
    impl Service<Request<RoutedBody<Frames>>> for Strict {
        type Response = Response<()>;
        type Error = &'static str;
        type Future = Ready<Result<Response<()>, &'static str>>;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), &'static str>> {
            self.0 = true;
            Poll::Ready(Ok(()))
        }
        fn call(&mut self, _: Request<RoutedBody<Frames>>) -> Self::Future {
            ready(self.0.then(|| Response::new(())).ok_or("not ready"))
        }
    }
    let setup = setup("tower-ready", |options| options);
    let mut service = setup.layer().layer(Strict::default());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        for name in ["auto", "other"] {
            poll_fn(|c| Service::<Request<Frames>>::poll_ready(&mut service, c))
                .await
                .unwrap();
            let body = Frames::of(&[&chat(name, "which bird sings?")]);
            service
                .call(Request::post(CHAT).body(body).unwrap())
                .await
                .unwrap();
        }
    });
}
