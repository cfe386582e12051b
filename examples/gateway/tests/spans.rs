//! Spans: their attributes are those of the table in `docs/gateways.md`, and they close when an
//! answer has ended.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::{Arc, Mutex};

use common::{BIRD, chat, root, two};
use serde_json::Value;
use tracing_subscriber::fmt::format::FmtSpan;

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_have_the_attributes_of_the_table() {
    let lines = Lines::default();
    let writer = lines.clone();
    tracing_subscriber::fmt()
        .with_writer(move || writer.clone())
        .with_span_events(FmtSpan::CLOSE)
        .json()
        .flatten_event(true)
        .init();
    let two = two("", "").await;
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let headers = [("traceparent", parent)];
    let body = chat("auto", BIRD);
    let answer = two
        .running
        .post_with("/v1/chat/completions", &body, &headers)
        .await;
    let mut closed = Vec::new();
    for _ in 0..100 {
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let all = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        closed = all.filter(|line| line["message"] == "close").collect();
        if closed.len() == 2 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let span = |name: &str| {
        let spans = closed.iter().map(|line| &line["span"]);
        { spans }.find(|span| span["name"] == name).unwrap().clone()
    };
    let (request, upstream) = (span("gateway.request"), span("gateway.upstream"));
    assert_eq!(request["trace_id"], &parent[3..35]);
    assert_eq!(request["parent_span_id"], &parent[36..52]);
    assert_eq!(upstream["trace_id"], request["trace_id"]);
    assert_eq!(upstream["parent_span_id"], request["span_id"]);
    let sent = two.a.last().headers["traceparent"]
        .to_str()
        .unwrap()
        .to_owned();
    assert_eq!(upstream["span_id"], &sent[36..52]);
    assert_eq!(request["hubrouter.model"], "birds");
    assert_eq!(request["hubrouter.requested"], "auto");
    assert_eq!(request["hubrouter.reason"], "decided");
    assert_eq!(upstream["gen_ai.request.model"], "birds");
    assert_eq!(upstream["gen_ai.provider.name"], "a");
    assert_eq!(
        upstream["http.response.status_code"],
        answer.status.as_u16()
    );

    let page = std::fs::read_to_string(root().join("docs/gateways.md")).unwrap();
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    let names = rows.flat_map(|line| line.split('`').skip(1).step_by(2));
    let described: BTreeSet<&str> = names.collect();
    let mut count = 0;
    for (name, value) in [&request, &upstream]
        .into_iter()
        .flat_map(|s| s.as_object().unwrap())
    {
        if name != "name" {
            assert!(
                described.contains(name.as_str()),
                "{name} is not in the table"
            );
            assert!(!value.is_null());
            count += 1;
        }
    }
    assert!(count > 20, "{count}");
}
