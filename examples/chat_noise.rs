//! Domain accuracy of the bundled router on CMRBench's eval rows: bare, wrapped in the noise of
//! agents and read by `Request::from_chat`, and with the whole text of the wrapped request as the
//! prompt: `cargo run --release --example chat_noise -- CMR`, where `CMR` is a checkout of the
//! benchmark or `HUBROUTER_CMRBENCH` names one.
#![allow(clippy::print_stdout, reason = "an example")]

use hubrouter::cmrbench::{BenchRow, Data, Hits, Percent, Prefix, Tables};
use hubrouter::{Options, Request, Result, Router};
use serde_json::{Value, json};

const SYSTEM: &str = "You are an interactive agent that helps people with software engineering. \
    Use the tools that you are given. Be brief, never guess the name of a file, and run the tests \
    before you say that something works. Follow the conventions of the project.";

const REMINDER: &str = "<system-reminder>\nThe files of the project may have changed since you \
    read them: src/importer.ts, src/queue/worker.ts. Take this into account. Do not mention \
    it.\n</system-reminder>";

const RESULT: &str = "src/importer.ts:88:   // the queue is drained before the worker stops\n\
    src/queue/worker.ts:12: export async function drain(queue: Queue) {\n\
    Tests: 3 failed, 41 passed";

const ENVIRONMENT: &str = "<environment_details>\n# Visible files\nsrc/importer.ts\n\
    # Current time\n10:14\n# Current mode\nACT\n</environment_details>";

fn main() -> Result<()> {
    let named = std::env::args().nth(1);
    let Some(checkout) = named.or_else(|| std::env::var("HUBROUTER_CMRBENCH").ok()) else {
        println!("usage: chat_noise CMR");
        return Ok(());
    };
    let data = Data::open(checkout, Prefix::Strip)?;
    let tables = Tables::new(&data, data.experiences.len());
    let router = Router::open("weights/cmrbench", Options::default().device("cpu"))?;
    let (mut exact, mut rows) = (0, 0);
    let mut ways: [Vec<Percent>; 3] = Default::default();
    for experience in &data.experiences {
        let eval = &experience.eval;
        let bare = eval
            .iter()
            .map(|row| Request::new(row.instruction.as_str()));
        let wrapped: Vec<Value> = eval.iter().enumerate().map(wrap).collect();
        let chats = wrapped
            .iter()
            .map(|chat| Request::from_chat(chat.to_string()));
        let chats = chats.collect::<Result<Vec<Request>>>()?;
        rows += eval.len();
        let same = chats.iter().zip(eval);
        exact += same
            .filter(|(chat, row)| chat.prompt == row.instruction.trim())
            .count();
        let whole = wrapped.iter().map(|chat| {
            let mut texts = Vec::new();
            collect(chat, &mut texts);
            Request::new(texts.join("\n"))
        });
        for (way, requests) in
            ways.iter_mut()
                .zip([bare.collect(), chats, whole.collect::<Vec<_>>()])
        {
            way.push(measure(&router, &tables, &requests, eval)?);
        }
    }
    for (name, way) in ["bare", "from_chat", "whole text"].iter().zip(&ways) {
        let mean = Percent::mean(way);
        println!(
            "{name:10}  model {:4.1}  family {:4.1}  domain {:4.1}",
            mean.model, mean.family, mean.domain
        );
    }
    println!("{exact} of {rows} asks were found as they are");
    Ok(())
}

fn measure(
    router: &Router,
    tables: &Tables,
    requests: &[Request],
    rows: &[BenchRow],
) -> Result<Percent> {
    let mut hits = Hits::default();
    for (requests, rows) in requests.chunks(32).zip(rows.chunks(32)) {
        for (decision, row) in router.route_batch(requests).into_iter().zip(rows) {
            if let Some(best) = decision?.ranked.first() {
                hits += tables.hits(&best.model, row);
            }
        }
    }
    Ok(hits.percent(rows.len()))
}

/// The row's prompt as the ask of an agent's user, in one of six ways.
fn wrap((place, row): (usize, &BenchRow)) -> Value {
    let ask = row.instruction.as_str();
    let user = |text: String| json!({"role": "user", "content": text});
    let text = |text: &str| json!({"type": "text", "text": text});
    let assistant = |text: &str| json!({"role": "assistant", "content": text});
    match place % 6 {
        // Claude Code: reminders around the ask, a tool's result behind it.
        0 => json!({
            "model": "claude", "max_tokens": 32000, "system": [text(SYSTEM)],
            "tools": [{"name": "Grep", "description": "Searches files.", "input_schema": {}}],
            "messages": [
                {"role": "user", "content": [text(REMINDER), text(ask)]},
                {"role": "assistant", "content": [text("I search for it."),
                    {"type": "tool_use", "id": "1", "name": "Grep", "input": {"path": "src"}}]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "1", "content": RESULT},
                    text(REMINDER)]},
            ],
        }),
        // Chat completions: earlier turns, a loop of tools.
        1 => json!({
            "messages": [
                {"role": "system", "content": SYSTEM},
                user("Why do three tests of the importer fail?".into()),
                assistant("The worker stops before the queue is drained."),
                user(ask.into()),
                {"role": "assistant", "content": null, "tool_calls": [{
                    "id": "1", "type": "function", "function": {"name": "grep", "arguments": "{\"pattern\": \"drain\"}"}}]},
                {"role": "tool", "tool_call_id": "1", "content": RESULT},
            ],
            "tools": [{"type": "function", "function": {"name": "grep", "parameters": {}}}],
        }),
        // Codex: responses with instructions and an environment.
        2 => json!({
            "instructions": SYSTEM,
            "input": [
                user("<environment_context>\n<cwd>/app</cwd>\n</environment_context>".into()),
                {"type": "message", "role": "user", "content": [
                    {"type": "input_text", "text": ask}]},
                {"type": "function_call", "call_id": "1", "name": "shell", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "1", "output": RESULT},
            ],
        }),
        // Cline: the task, the environment, results as the user's text.
        3 => json!({
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": [
                    text(&format!("<task>\n{ask}\n</task>")), text(ENVIRONMENT)]},
                assistant("<read_file><path>src/importer.ts</path></read_file>"),
                {"role": "user", "content": [
                    text("[read_file for 'src/importer.ts'] Result:"), text(RESULT),
                    text(ENVIRONMENT)]},
            ],
        }),
        // Cursor: a marked query among the state of an editor.
        4 => json!({
            "messages": [
                {"role": "system", "content": SYSTEM},
                user(format!("<user_info>\nShell: zsh\n</user_info>\nOpen: a.ts\n{RESULT}\n\
                    <user_query>\n{ask}\n</user_query>")),
            ],
            "tools": [{"type": "function", "function": {"name": "grep", "parameters": {}}}],
        }),
        // A conversation that goes on.
        _ => json!({
            "messages": [
                {"role": "system", "content": SYSTEM},
                user(format!("{REMINDER}\n{ask}")),
                assistant("This is my plan, in four steps. Shall I start?"),
                user(format!("Yes, go on.\n{REMINDER}")),
            ],
        }),
    }
}

/// The texts of a request in order.
fn collect(json: &Value, texts: &mut Vec<String>) {
    match json {
        Value::Object(entries) => {
            for (key, value) in entries {
                let keys = ["text", "content", "output", "instructions", "arguments"];
                match value {
                    Value::String(text) if keys.contains(&key.as_str()) => texts.push(text.clone()),
                    _ => collect(value, texts),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|json| collect(json, texts)),
        _ => (),
    }
}
