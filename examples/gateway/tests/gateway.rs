//! The gateway between a client and mock upstreams.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;
use std::time::Duration;

use common::{BIRD, Mock, PIECES, chat, client, request, root, send, start, two, upstreams};
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use hubrouter_gateway::{Config, Gateway};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const CHAT: &str = "/v1/chat/completions";

#[tokio::test(flavor = "multi_thread")]
async fn auto_goes_to_the_upstream_of_the_api_that_has_the_model() {
    let two = two("", "").await;
    let responses = format!(r#"{{"input": "{BIRD}",   "model": "auto"}}"#);
    let cases = [
        (CHAT, chat("auto", BIRD), "birds", &two.a, ""),
        ("/v1/responses", responses, "birds", &two.a, ""),
        (
            "/v1/messages?beta=true",
            chat("auto", BIRD),
            "claude-birds",
            &two.b,
            "/prefix",
        ),
    ];
    for (path, body, model, upstream, prefix) in cases {
        let answer = two.running.post_with(path, &body, &[("x-mine", "1")]).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        let got = upstream.last();
        assert_eq!(got.body, body.replace("\"auto\"", &format!("\"{model}\"")));
        assert_eq!(got.target, format!("{prefix}{path}"));
        assert_eq!(got.headers["x-mine"], "1");
        assert_eq!(got.headers["content-length"], got.body.len().to_string());
        assert_eq!(answer.header("x-hubrouter-model"), Some(model));
        assert!(["decided", "cached"].contains(&answer.header("x-hubrouter-reason").unwrap()));
        let generation = two.running.gateway.router.generation();
        assert_eq!(
            answer.header("x-hubrouter-generation"),
            Some(generation.as_str())
        );
        // The gateway's own header takes the place of an upstream's.
        assert_ne!(answer.header("x-hubrouter-domain"), Some("theirs"));
        let name = answer.header("x-upstream").unwrap();
        let want = format!("{{ \"upstream\": \"{name}\",  \"model\": \"{model}\" }}");
        assert_eq!(answer.text(), want);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_other_model_passes_through() {
    let two = two("", "").await;
    let body = chat("google/flan-t5-xxl", BIRD);
    for (path, upstream) in [(CHAT, &two.a), ("/v1/messages", &two.b)] {
        let headers = [
            ("authorization", "Bearer mine"),
            ("connection", "x-hop"),
            ("x-hop", "1"),
        ];
        let answer = two.running.post_with(path, &body, &headers).await;
        assert_eq!(answer.status, StatusCode::OK);
        let got = upstream.last();
        assert_eq!(got.body, body);
        assert_eq!(got.headers["authorization"], "Bearer mine");
        assert!(!got.headers.contains_key("x-hop"));
        assert_eq!(answer.header("x-hubrouter-model"), None);
        assert_eq!(answer.header("x-hubrouter-domain"), Some("theirs"));
    }
    let teapot = two.running.post(CHAT, &chat("teapot", "tea")).await;
    assert_eq!(teapot.status, StatusCode::IM_A_TEAPOT);
    assert_eq!(teapot.text(), "short and stout");

    let (a, b) = (two.a.count(), two.b.count());
    let unknown = two.running.post(CHAT, &chat("claude-birds", BIRD)).await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    assert_eq!(unknown.json()["error"]["code"], "model_not_found");
    let unknown = two.running.post("/v1/messages", &chat("birds", BIRD)).await;
    assert_eq!(unknown.json()["type"], "error");
    assert_eq!(unknown.json()["error"]["type"], "model_not_found");
    for bad in ["", "no json", "[]", "{}", r#"{"model": 1}"#] {
        let answer = two.running.post(CHAT, bad).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{bad}");
        assert_eq!(answer.header("x-hubrouter-error"), Some("gateway"));
    }
    assert_eq!((two.a.count(), two.b.count()), (a, b));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_arrives_piece_by_piece() {
    let mut two = two("", "").await;
    let body = chat("auto", BIRD).replace("1.50", "1.50, \"stream\": true");
    let sent = request(two.running.clients, Method::POST, CHAT, &[], &body);
    let mut response = client().request(sent).await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    assert_eq!(response.headers()["x-hubrouter-model"], "birds");
    let first = response
        .frame()
        .await
        .unwrap()
        .unwrap()
        .into_data()
        .unwrap();
    assert_eq!(first, PIECES[0]);
    // The upstream has not sent the second yet. The gateway is told to stop meanwhile.
    let address = two.running.clients;
    two.running.stop();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(
        TcpStream::connect(address).await.is_err(),
        "no new connection is taken"
    );
    assert!(!two.running.served.as_ref().unwrap().is_finished());
    two.a.gate.notify_one();
    let rest = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(rest, PIECES[1]);
    let served = two.running.served.take().unwrap();
    tokio::time::timeout(Duration::from_secs(10), served)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_outlives_the_patience_of_the_end_is_left() {
    let mut two = two("", "[limits]\ndrain_seconds = 1\n").await;
    let body = chat("slow", BIRD);
    let sent = request(two.running.clients, Method::POST, CHAT, &[], &body);
    let waiting = tokio::spawn(client().request(sent));
    while two.a.count() == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    two.running.stop();
    let served = two.running.served.take().unwrap();
    tokio::time::timeout(Duration::from_secs(10), served)
        .await
        .unwrap()
        .unwrap();
    waiting.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_keys_of_clients_and_of_upstreams_stay_apart() {
    let (a, b) = (Mock::start("a").await, Mock::start("b").await);
    // Any variable serves; cargo sets this one.
    let upstreams =
        upstreams(&a, &b).replace("models = [", "key_env = \"CARGO_PKG_NAME\"\nmodels = [");
    let head = "client_key_env = \"CARGO_PKG_VERSION\"";
    let running = start(head, &upstreams).await;
    let key = env!("CARGO_PKG_VERSION");
    let bearer = format!("Bearer {key}");
    for headers in [[("authorization", bearer.as_str())], [("x-api-key", key)]] {
        let body = chat("auto", BIRD);
        assert_eq!(
            running.post_with(CHAT, &body, &headers).await.status,
            StatusCode::OK
        );
        let got = a.last().headers;
        assert_eq!(got["authorization"], "Bearer hubrouter-gateway");
        assert!(!got.contains_key("x-api-key"));
        let messages = running.post_with("/v1/messages", &body, &headers).await;
        assert_eq!(messages.status, StatusCode::OK);
        let got = b.last().headers;
        assert_eq!(got["x-api-key"], "hubrouter-gateway");
        assert!(!got.contains_key("authorization"));
    }
    let wrong: [&[(&str, &str)]; 4] = [
        &[],
        &[("authorization", "Bearer wrong")],
        &[("authorization", key)],
        &[("x-api-key", "")],
    ];
    for headers in wrong {
        for (method, path) in [
            (Method::POST, CHAT),
            (Method::POST, "/v1/route"),
            (Method::GET, "/v1/models"),
            (Method::GET, "/metrics"),
        ] {
            let answer = send(running.clients, method, path, headers, "{}").await;
            assert_eq!(
                answer.status,
                StatusCode::UNAUTHORIZED,
                "{path} {headers:?}"
            );
        }
    }
    for path in ["/", "/healthz", "/readyz", "/playground/style.css"] {
        assert_eq!(running.get(path).await.status, StatusCode::OK, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_decision_the_gateway_says_why_or_its_fallback_answers() {
    let folder = tempfile::tempdir().unwrap();
    let policy = folder.path().join("policy.toml");
    std::fs::write(&policy, "where = \"price <= 1\"\nabstain = {}\n").unwrap();
    let head = format!("policy = {policy:?}");
    let strict = two(&head, "").await;
    let answer = strict.running.post(CHAT, &chat("auto", BIRD)).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.json()["error"]["code"], "no_candidate");
    assert_eq!(answer.header("retry-after"), Some("1"));
    let silent = strict.running.post(CHAT, &chat("auto", "")).await;
    assert_eq!(silent.status, StatusCode::BAD_REQUEST);
    assert_eq!(silent.json()["error"]["code"], "invalid_request");
    assert_eq!(strict.a.count(), 0);

    let fallback = "[routing]\nfallback = [\"claude-birds\", \"google/flan-t5-xxl\"]";
    let open = two(&head, fallback).await;
    for (path, model, text) in [
        (CHAT, "google/flan-t5-xxl", BIRD),
        (CHAT, "google/flan-t5-xxl", ""),
        ("/v1/messages", "claude-birds", BIRD),
    ] {
        let answer = open.running.post(path, &chat("auto", text)).await;
        assert_eq!(answer.header("x-hubrouter-model"), Some(model));
        assert_eq!(answer.header("x-hubrouter-fallback"), Some("true"));
        assert_eq!(answer.json()["model"], model);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lists_of_models_and_a_dry_run() {
    let two = two("", "").await;
    let list = two.running.get("/v1/models").await.json();
    let models = list["data"].as_array().unwrap();
    let find = |id: &str| models.iter().find(|model| model["id"] == id).unwrap();
    assert_eq!(models[0]["id"], "auto");
    assert_eq!(find("birds")["owned_by"], "a");
    assert_eq!(find("birds")["domain"], "Audio Audio Classification");
    assert_eq!(find("claude-birds")["apis"], json!(["anthropic_messages"]));

    let asks: [(Value, &str, &str); 3] = [
        (json!({"prompt": BIRD, "top": 2}), "birds", "a"),
        (
            json!({"prompt": BIRD, "api": "anthropic_messages"}),
            "claude-birds",
            "b",
        ),
        (
            serde_json::from_str(&chat("auto", BIRD)).unwrap(),
            "birds",
            "a",
        ),
    ];
    for (ask, model, upstream) in asks {
        let answer = two.running.post("/v1/route", &ask.to_string()).await.json();
        assert_eq!(answer["would_send"]["model"], model, "{ask}");
        assert_eq!(answer["would_send"]["upstream"], upstream);
        assert_eq!(answer["ranked"][0]["deployments"][0], model);
        assert!(answer["ranked"][0]["parts"]["learned"].is_number());
        assert!(
            answer["near_models"]
                .as_array()
                .is_some_and(|near| !near.is_empty())
        );
        assert!(answer["excluded"].is_array());
    }
    let bad = two.running.post("/v1/route", r#"{"prompt": ""}"#).await;
    assert_eq!(bad.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(bad.json()["error"]["code"], "invalid_request");
    let bad = two.running.post("/v1/route", "no").await;
    assert_eq!(bad.status, StatusCode::BAD_REQUEST);
    assert_eq!(two.a.count() + two.b.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_what_happened() {
    let two = two("", "").await;
    for model in ["auto", "auto", "birds", "broken"] {
        two.running.post(CHAT, &chat(model, BIRD)).await;
    }
    two.running.post("/v1/messages", &chat("auto", "")).await;
    let text = two.running.get("/metrics").await;
    assert_eq!(
        text.header("content-type").unwrap(),
        "text/plain; version=0.0.4; charset=utf-8"
    );
    let generation = two.running.gateway.router.generation();
    for line in [
        r#"hubrouter_decisions_total{api="openai_chat",reason="decided",fallback="false"} 1"#,
        r#"hubrouter_decisions_total{api="openai_chat",reason="cached",fallback="false"} 1"#,
        r#"hubrouter_decisions_total{api="anthropic_messages",reason="invalid_request",fallback="false"} 1"#,
        r#"hubrouter_decisions_total{api="openai_responses",reason="failed",fallback="true"} 0"#,
        r#"hubrouter_routed_requests_total{model="birds"} 2"#,
        r#"hubrouter_gateway_requests_total{api="openai_chat",code="200"} 3"#,
        r#"hubrouter_gateway_requests_total{api="openai_chat",code="502"} 1"#,
        r#"hubrouter_gateway_requests_total{api="anthropic_messages",code="400"} 1"#,
        r#"hubrouter_upstream_errors_total{upstream="a",kind="server_error"} 1"#,
        r#"hubrouter_upstream_duration_seconds_count{upstream="a"} 4"#,
        r#"hubrouter_route_duration_seconds_count{cached="true"} 1"#,
        "hubrouter_cache_hits_total 1",
        "hubrouter_gateway_open_requests 0",
        &format!("hubrouter_generation_info{{generation=\"{generation}\","),
    ] {
        assert!(text.text().contains(line), "{line} in:\n{}", text.text());
    }
    assert!(!text.text().contains("# UNIT") && !text.text().contains("# EOF"));
    let accept = [("accept", "application/openmetrics-text; version=1.0.0")];
    let open = send(two.running.admin, Method::GET, "/metrics", &accept, "").await;
    assert!(open.text().ends_with("# EOF\n"));
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// A store with the bundled generation and its parent; both have the same hub.
fn store(folder: &Path) {
    let ids = std::fs::read_to_string(root().join("weights/cmrbench/current")).unwrap();
    let bundled = root().join("weights/cmrbench").join(ids.trim());
    copy(&bundled, &folder.join(ids.trim()));
    for entry in std::fs::read_dir(root().join("tests/fixtures/zero-shot")).unwrap() {
        let entry = entry.unwrap();
        if entry.path().is_dir() {
            copy(&entry.path(), &folder.join(entry.file_name()));
        }
    }
    std::fs::write(folder.join("current"), ids).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_administrator_rolls_back_and_reloads() {
    let folder = tempfile::tempdir().unwrap();
    store(folder.path());
    let encoder = root().join("weights/all-MiniLM-L6-v2");
    let head = format!("store = {:?}\nencoder = {encoder:?}", folder.path());
    let two = two(&head, "[routing]\nwatch_seconds = 0.0\n").await;
    let admin =
        async |method: Method, path: &str| send(two.running.admin, method, path, &[], "").await;
    let generation = async || {
        let answer = two.running.post(CHAT, &chat("auto", BIRD)).await;
        assert_eq!(answer.status, StatusCode::OK);
        answer.header("x-hubrouter-generation").unwrap().to_owned()
    };
    let first = generation().await;
    let same = admin(Method::POST, "/admin/reload").await.json();
    assert_eq!(
        (&same["changed"], &same["before"]),
        (&json!(false), &json!(first))
    );

    let back = admin(Method::POST, "/admin/rollback").await.json();
    let parent = generation().await;
    assert_ne!(parent, first);
    assert_eq!(back["generation"], parent);
    assert_eq!(back["before"], first);
    let current = std::fs::read_to_string(folder.path().join("current")).unwrap();
    assert_eq!(current.trim(), parent);

    let none = admin(Method::POST, "/admin/rollback").await;
    assert_eq!(none.status, StatusCode::CONFLICT);
    assert_eq!(generation().await, parent);

    std::fs::write(folder.path().join("current"), format!("{first}\n")).unwrap();
    let again = admin(Method::POST, "/admin/reload").await.json();
    assert_eq!(again["changed"], true);
    assert_eq!(generation().await, first);
    assert_eq!(
        admin(Method::GET, "/admin/generation").await.json()["generation"],
        first
    );

    for path in ["/admin/reload", "/admin/rollback", "/admin/generation"] {
        assert_eq!(
            two.running.post(path, "").await.status,
            StatusCode::NOT_FOUND
        );
    }
    let text = two.running.get("/metrics").await;
    for line in [
        r#"hubrouter_generation_changes_total{what="reload",result="changed"} 1"#,
        r#"hubrouter_generation_changes_total{what="reload",result="unchanged"} 1"#,
        r#"hubrouter_generation_changes_total{what="rollback",result="changed"} 1"#,
        r#"hubrouter_generation_changes_total{what="rollback",result="error"} 1"#,
    ] {
        assert!(text.text().contains(line), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_goes_on_to_the_upstream() {
    let two = two("", "").await;
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
    let headers = [("traceparent", parent), ("tracestate", "vendor=1")];
    two.running
        .post_with(CHAT, &chat("auto", BIRD), &headers)
        .await;
    let got = two.a.last().headers;
    let sent = got["traceparent"].to_str().unwrap();
    assert_eq!((&sent[..36], &sent[52..]), (&parent[..36], "-00"));
    assert_ne!(&sent[36..52], &parent[36..52]);
    assert_eq!(got["tracestate"], "vendor=1");
    two.running.post(CHAT, &chat("birds", BIRD)).await;
    let got = two.a.last().headers;
    let begun = got["traceparent"].to_str().unwrap();
    assert_eq!(begun.len(), parent.len());
    assert_ne!(&begun[..36], &parent[..36]);
}

/// The bytes that come back for `text` on a connection of its own, until it is closed.
async fn raw(address: std::net::SocketAddr, text: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A reset after the answer is as good as an end.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_heads_connections_and_times_have_bounds() {
    let limits = "[limits]\nbody_mib = 1\nheaders = 20\nheader_kib = 8\nconnections = 3\n\
                  header_seconds = 1\nbody_seconds = 1\nanswer_seconds = 1\n";
    let two = two("", limits).await;
    let address = two.running.clients;
    let large = chat("auto", &"bird ".repeat(300_000));
    for path in [CHAT, "/v1/route"] {
        let answer = two.running.post(path, &large).await;
        assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE, "{path}");
    }
    assert_eq!(two.a.count(), 0);

    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n";
    let many = format!("{head}{}\r\n", "a: b\r\n".repeat(30));
    assert!(raw(address, &many).await.starts_with("HTTP/1.1 431"));
    let long = format!("{head}a: {}\r\n\r\n", "b".repeat(20_000));
    assert!(raw(address, &long).await.starts_with("HTTP/1.1 431"));
    let never = tokio::time::timeout(Duration::from_secs(10), raw(address, head)).await;
    assert!(never.is_ok(), "a head that does not end is not waited for");
    let body = format!("{head}connection: close\r\ncontent-length: 100\r\n\r\n{{");
    let answer = tokio::time::timeout(Duration::from_secs(10), raw(address, &body)).await;
    assert!(answer.unwrap().starts_with("HTTP/1.1 408"));

    let slow = two.running.post(CHAT, &chat("slow", BIRD)).await;
    assert_eq!(slow.status, StatusCode::GATEWAY_TIMEOUT);
    assert!(slow.text().contains("did not answer in time"));

    // Three connections are open, and a fourth waits for one of them to end.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let open = [(); 3].map(|()| TcpStream::connect(address));
    let mut kept = Vec::new();
    for stream in open {
        kept.push(stream.await.unwrap());
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let fourth = raw(
        address,
        "GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    );
    let mut fourth = Box::pin(fourth);
    let early = tokio::time::timeout(Duration::from_millis(300), &mut fourth).await;
    assert!(early.is_err());
    drop(kept);
    let late = tokio::time::timeout(Duration::from_secs(10), fourth)
        .await
        .unwrap();
    assert!(late.starts_with("HTTP/1.1 200"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_is_not_there_is_a_502() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let upstream = format!(
        "[[upstreams]]\nname = \"gone\"\nurl = \"http://{address}\"\n\
         apis = [\"openai_chat\"]\nmodels = [\"gpt2\"]\n"
    );
    let running = start("", &upstream).await;
    let answer = running.post(CHAT, &chat("auto", BIRD)).await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    assert_eq!(answer.json()["error"]["code"], "upstream_error");
    assert_eq!(answer.header("x-hubrouter-model"), Some("gpt2"));
    let unserved = running.post("/v1/messages", &chat("auto", BIRD)).await;
    assert_eq!(unserved.status, StatusCode::NOT_FOUND);
    assert_eq!(unserved.json()["type"], "error");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_other_sites_are_refused() {
    let two = two("", "").await;
    let own = format!("http://{}", two.running.clients);
    for (origin, status) in [
        ("http://evil.example", StatusCode::FORBIDDEN),
        ("null", StatusCode::FORBIDDEN),
        (&own, StatusCode::OK),
    ] {
        let headers = [("origin", origin)];
        let answer = two
            .running
            .post_with(CHAT, &chat("birds", BIRD), &headers)
            .await;
        assert_eq!(answer.status, status, "{origin}");
    }
    let evil = [("origin", "http://evil.example")];
    let answer = send(two.running.admin, Method::POST, "/admin/reload", &evil, "").await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
}

#[tokio::test(flavor = "multi_thread")]
async fn conversations_keep_their_models_and_tenants_are_apart() {
    let two = two("", "[routing]\ncache_mib = 0\n").await;
    let reason = async |key: &str, text: &str| {
        let headers = [("x-session-id", "7"), ("authorization", key)];
        let answer = two
            .running
            .post_with(CHAT, &chat("auto", text), &headers)
            .await;
        answer.header("x-hubrouter-reason").unwrap().to_owned()
    };
    assert_eq!(reason("Bearer one", BIRD).await, "decided");
    assert_eq!(reason("Bearer one", BIRD).await, "session");
    assert_eq!(reason("Bearer two", BIRD).await, "decided");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_of_feedback_gets_a_line_for_each_routed_request() {
    let two = two("feedback = \"log\"", "").await;
    two.running.post(CHAT, &chat("auto", BIRD)).await;
    two.running.post(CHAT, &chat("birds", BIRD)).await;
    let log = two
        .running
        .folder
        .path()
        .join("log/feedback-00000001.jsonl");
    let mut lines = String::new();
    for _ in 0..200 {
        lines = std::fs::read_to_string(&log).unwrap_or_default();
        if lines.ends_with('\n') {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let line: Value = serde_json::from_str(lines.trim()).unwrap();
    assert_eq!(line["used"], "birds");
    assert!(line["prompt_sha256"].is_string() && line["latency_ms"].is_number());
    assert!(!lines.contains("singing"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_configuration_is_said() {
    let (a, b) = (Mock::start("a").await, Mock::start("b").await);
    let upstreams = upstreams(&a, &b);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gateway.toml");
    let store = root().join("weights/cmrbench");
    std::fs::write(folder.path().join("c.toml"), "candidates = [\"gpt2\"]").unwrap();
    let cases = [
        ("", "[routing]\nname = 1", "unknown field"),
        (
            "",
            "[routing]\nnames = [\"birds\"]",
            "birds is a model of an upstream",
        ),
        (
            "",
            "[routing]\nfallback = [\"nothing\"]",
            "no upstream has nothing",
        ),
        (
            "",
            "[limits]\nconnections = 0",
            "limits.connections: expected more than 0",
        ),
        (
            "",
            "[routing]\nwatch_seconds = -1.0",
            "expected seconds, found -1",
        ),
        (
            "",
            "[[upstreams]]\nname = \"c\"\nurl = \"http://x\"\napis = [\"openai_chat\"]\n\
              models = [\"birds\"]",
            "birds of openai_chat is both a's and c's",
        ),
        (
            "",
            "[[upstreams]]\nname = \"c\"\nurl = \"ftp://x\"\napis = []\nmodels = []",
            "expected http://host",
        ),
        (
            "",
            "[[upstreams]]\nname = \"c\"\nurl = \"http://x\"\napis = [\"openai_chat\"]\n\
              models = [\"gpt22\"]",
            "gpt2",
        ),
        (
            "",
            "[[upstreams]]\nname = \"c\"\nurl = \"http://x\"\napis = []\nmodels = []\n\
              key_env = \"NO_SUCH_VARIABLE\"",
            "NO_SUCH_VARIABLE has no key",
        ),
        (
            "client_key_env = \"NO_SUCH_VARIABLE\"",
            "",
            "NO_SUCH_VARIABLE has no key",
        ),
        ("policy = \"c.toml\"", "", "policy: expected no candidates"),
        ("policy = \"nowhere.toml\"", "", "nowhere.toml"),
    ];
    for (head, tables, want) in cases {
        let text = format!("store = {store:?}\n{head}\n{upstreams}\n{tables}\n");
        std::fs::write(&file, text).unwrap();
        let failure = match Config::read(&file) {
            Err(failure) => failure,
            Ok(config) => match Gateway::open(config).await {
                Err(failure) => failure,
                Ok(_) => panic!("{head} {tables} was accepted"),
            },
        };
        assert!(failure.to_string().contains(want), "{failure}");
    }
}
