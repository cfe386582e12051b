//! Chat requests: a corpus of written conversations with the text that a reader would route, errors
//! that name the place, bounds, and JSON of every kind.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "tests"
)]

mod common;

use std::fs;
use std::path::Path;

use common::{ROOT, cpu, store};
use hubrouter::{ChatShape, Decision, ErrorKind, LeftOut, Request, Router};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Longest text that is routed.
const LONGEST_TEXT: usize = 1 << 20;

/// The conversations of `tests/chat`, by file and name.
fn corpus() -> Vec<(String, Value)> {
    let folder = Path::new(ROOT).join("tests/chat");
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "json"))
        .collect();
    files.sort();
    let cases = files.iter().flat_map(|path| {
        let cases: Vec<Value> = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        let file = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let named =
            move |case: Value| (format!("{file}: {}", case["name"].as_str().unwrap()), case);
        cases.into_iter().map(named)
    });
    cases.collect()
}

/// What was found of `case`, in the form of its expectation.
fn found(case: &Value) -> Value {
    let request = match Request::from_chat(case["request"].to_string()) {
        Ok(request) => request,
        Err(error) => return json!(error.to_string()),
    };
    let chat = json!(request.chat.as_ref().unwrap());
    let (needs, taken) = (&chat["needs"], &chat["taken"]);
    let set = needs.as_object().unwrap().iter();
    let mut flags: Vec<&String> = set
        .filter(|(_, value)| **value == json!(true))
        .map(|(flag, _)| flag)
        .collect();
    flags.sort();
    let mut found = json!({
        "text": request.prompt,
        "shape": chat["shape"],
        "message": taken["message"],
        "from": taken["from"],
        "flags": flags,
    });
    for (key, usual) in [
        ("response_format", json!("text")),
        ("max_output_tokens", Value::Null),
    ] {
        if needs[key] != usual {
            found[key] = needs[key].clone();
        }
    }
    found
}

#[test]
fn the_corpus_becomes_what_a_reader_would_route() {
    let corpus = corpus();
    assert!(corpus.len() >= 60, "found {} conversations", corpus.len());
    let mut misses = 0;
    for (name, case) in &corpus {
        let mut expected = case["expect"].clone();
        let flags = expected["flags"].as_array_mut().unwrap();
        flags.sort_by_key(Value::to_string);
        let found = found(case);
        if found != expected {
            misses += 1;
            println!("{name}\nexpected {expected}\nfound    {found}\n");
        }
    }
    println!("{} of {} are exact", corpus.len() - misses, corpus.len());
    assert!(
        misses * 20 <= corpus.len(),
        "expected at least 95 % exact, found {misses} misses of {}",
        corpus.len()
    );
}

#[test]
fn no_base64_is_kept_and_every_record_comes_back_from_json() {
    for (name, case) in corpus() {
        let request = Request::from_chat(case["request"].to_string()).unwrap();
        let text = serde_json::to_string(&request).unwrap();
        for data in ["iVBOR", "UklGR", "JVBER"] {
            assert!(!text.contains(data), "{name}: {text}");
        }
        assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), request);
    }
}

#[test]
fn what_was_left_out_is_counted() {
    let json = json!({"max_tokens": 9, "system": "Be brief.", "messages": [
        {"role": "user", "content": "Which bird?"},
        {"role": "assistant", "content": [{"type": "text", "text": "A wren."},
            {"type": "tool_use", "id": "1", "name": "look", "input": {}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "1", "content": [
                {"type": "text", "text": "brown"},
                {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}}]},
            {"type": "text", "text": "<system-reminder>Be kind.</system-reminder>Draw it."}]},
        {"role": "user", "content": "ok"}]});
    let chat = Request::from_chat(json.to_string()).unwrap().chat.unwrap();
    assert_eq!(chat.shape, ChatShape::AnthropicMessages);
    let left = json!(chat.taken.left_out);
    let expected = json!({
        "system": {"parts": 1, "bytes": 9},
        "assistant": {"parts": 1, "bytes": 7},
        "tool_call": {"parts": 1, "bytes": 0},
        "tool_result": {"parts": 1, "bytes": 5},
        "harness": {"parts": 1, "bytes": 44 - 1},
        "says_nothing": {"parts": 1, "bytes": 2},
        "earlier": {"parts": 1, "bytes": 11},
        "media": {"parts": 1, "bytes": 0},
    });
    assert_eq!(left, expected);
    assert_eq!(
        (
            chat.taken.message,
            chat.taken.bytes,
            chat.taken.role.as_str()
        ),
        (Some(2), "Draw it.".len(), "user")
    );
    // 4 messages and the system's at 4, one image at 1,000, the text and the call's name.
    let text = "Be brief.Which bird?A wren.lookbrownDraw it.ok".len()
        + "<system-reminder>Be kind.</system-reminder>".len();
    let tokens = 5 * 4 + 1000 + u64::try_from(text.div_ceil(4)).unwrap();
    assert_eq!(chat.needs.input_tokens, tokens);
}

/// A part of a tool's result without a kind.
const NESTED: &str = concat!(
    r#"{"messages": [{"role": "user", "content": [{"type": "tool_result", "#,
    r#""content": [{"type": 1}]}]}]}"#
);

#[test]
fn errors_name_the_place_what_was_expected_and_what_was_found() {
    for (json, kind, text) in [
        ("", ErrorKind::Format, "expected the JSON of a chat request"),
        ("{} {}", ErrorKind::Format, "trailing characters"),
        (
            "[1]",
            ErrorKind::InvalidRequest,
            "the request: expected an object with messages or input, found a list",
        ),
        (
            "{}",
            ErrorKind::InvalidRequest,
            "expected messages or input in it, found an object",
        ),
        (
            r#"{"messages": {}}"#,
            ErrorKind::InvalidRequest,
            "messages: expected a list of messages, found an object",
        ),
        (
            r#"{"input": 3}"#,
            ErrorKind::InvalidRequest,
            "input: expected a string or a list of items, found a number",
        ),
        (
            r#"{"input": ["x"]}"#,
            ErrorKind::InvalidRequest,
            "input[0]: expected an object with type or role, found a string",
        ),
        (
            r#"{"messages": [null]}"#,
            ErrorKind::InvalidRequest,
            "messages[0]: expected an object with role and content, found null",
        ),
        (
            r#"{"messages": [{"role": "user", "content": "x"}, {}]}"#,
            ErrorKind::InvalidRequest,
            "messages[1].role: expected a string, found null",
        ),
        (
            r#"{"messages": [{"role": "user", "content": {}}]}"#,
            ErrorKind::InvalidRequest,
            "messages[0].content: expected a string, a list of parts or null, found an object",
        ),
        (
            r#"{"messages": [{"role": "user", "content": ["a", 1]}]}"#,
            ErrorKind::InvalidRequest,
            "messages[0].content[1]: expected an object with type, or a string, found a number",
        ),
        (
            r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": []}]}]}"#,
            ErrorKind::InvalidRequest,
            "messages[0].content[0].text: expected a string, found a list",
        ),
        (
            NESTED,
            ErrorKind::InvalidRequest,
            "messages[0].content[0].content[0].type: expected a string, found a number",
        ),
        (
            r#"{"messages": [], "max_tokens": "many"}"#,
            ErrorKind::InvalidRequest,
            "max_tokens: expected a number, found a string",
        ),
        (
            r#"{"messages": [{"role": "assistant", "content": "x"}]}"#,
            ErrorKind::InvalidRequest,
            "expected a message of the user or the system with text, found 1 without",
        ),
    ] {
        let error = Request::from_chat(json).unwrap_err();
        assert_eq!(error.kind(), kind, "{json}: {error}");
        assert!(error.to_string().contains(text), "{json}: {error}");
    }
}

#[test]
fn a_named_shape_is_not_guessed() {
    let both = json!({"input": "one", "messages": [{"role": "user", "content": "two"}]});
    let text = both.to_string();
    for (shape, prompt) in [
        (ChatShape::OpenAiResponses, "one"),
        (ChatShape::OpenAiChat, "two"),
        (ChatShape::AnthropicMessages, "two"),
    ] {
        let request = Request::from_chat_as(&text, shape).unwrap();
        assert_eq!(request.prompt, prompt);
        assert_eq!(request.chat.unwrap().shape, shape);
    }
}

/// The request of one message.
fn says(text: &str) -> Request {
    let json = json!({"messages": [{"role": "user", "content": text}]});
    Request::from_chat(json.to_string()).unwrap()
}

#[test]
fn long_texts_and_large_bodies_are_bounded() {
    let long = format!("First. {} Last.", "é".repeat(LONGEST_TEXT));
    let request = says(&long);
    assert!(request.prompt.len() <= LONGEST_TEXT);
    assert!(request.prompt.starts_with("First.") && request.prompt.ends_with("Last."));
    let chat = request.chat.unwrap();
    assert_eq!(chat.taken.bytes, request.prompt.len());
    let cut = chat.taken.left_out[&LeftOut::TooLong];
    assert_eq!(cut.bytes, long.len() - request.prompt.len() + 1);

    let image = format!("data:image/png;base64,{}", "A".repeat(20 << 20));
    let json = json!({"messages": [{"role": "user", "content": [
        {"type": "text", "text": "What is it?"},
        {"type": "image_url", "image_url": {"url": image}}]}]});
    let request = Request::from_chat(json.to_string()).unwrap();
    assert!(serde_json::to_string(&request).unwrap().len() < 1000);
    assert!(request.chat.unwrap().needs.input_tokens < 2000);

    let error = Request::from_chat(vec![b' '; (64 << 20) + 1]).unwrap_err();
    assert!(
        error.to_string().contains("at most 67108864 bytes"),
        "{error}"
    );
}

#[test]
fn both_ends_of_a_long_ask_are_routed() {
    let router = Router::open(store(), cpu(1)).unwrap();
    let filler = "The parties agree to what follows and to nothing else. ".repeat(200);
    let first = "Translate this contract into Spanish.";
    let last = "Which bird is singing in this recording?";
    let route = |request: &Request| router.route(request).unwrap();
    let both = route(&says(&format!("{first} {filler} {last}")));
    let cut = route(&Request::new(format!("{first} {filler} {last}")));
    let without = route(&Request::new(format!("{first} {filler}")));
    assert_eq!(both.tokens, router.max_tokens());
    assert!(both.truncated && cut.truncated);
    let best = |decision: &Decision| decision.ranked[0].score.to_bits();
    assert_eq!(
        best(&cut),
        best(&without),
        "a plain prompt is cut on the right"
    );
    assert_ne!(best(&both), best(&cut), "the end counts");
    // What is between does not.
    let other = route(&says(&format!("{first} {filler}{filler} {last}")));
    assert_eq!(best(&other), best(&both));
    // A text that fits has the answer of the plain prompt.
    assert_eq!(best(&route(&says(last))), best(&route(&Request::new(last))));
}

#[test]
fn a_decision_has_the_record_of_a_chat_request_alone() {
    let router = Router::open(store(), cpu(1)).unwrap();
    let request = says("Which bird is singing?");
    let decision = router.route(&request).unwrap();
    assert_eq!(decision.chat, request.chat);
    let json = serde_json::to_string(&decision).unwrap();
    assert!(json.contains(r#""chat":{"shape":"openai_chat""#), "{json}");
    assert_eq!(serde_json::from_str::<Decision>(&json).unwrap(), decision);
    let plain = router
        .route(&Request::new("Which bird is singing?"))
        .unwrap();
    assert!(!serde_json::to_string(&plain).unwrap().contains("\"chat\""));
    assert!(
        !serde_json::to_string(&Request::new("x"))
            .unwrap()
            .contains("chat")
    );
}

/// Words that mean something to the reader of a request.
const WORDS: [&str; 44] = [
    "messages",
    "input",
    "instructions",
    "system",
    "role",
    "content",
    "type",
    "text",
    "user",
    "assistant",
    "tool",
    "developer",
    "input_text",
    "tool_result",
    "tool_use",
    "image_url",
    "image",
    "output",
    "tools",
    "functions",
    "tool_calls",
    "function_call",
    "function",
    "arguments",
    "max_tokens",
    "response_format",
    "modalities",
    "audio",
    "function_call_output",
    "computer_screenshot",
    "refusal",
    "thinking",
    "reasoning",
    "summary",
    "yes, go on",
    "<system-reminder>",
    "</system-reminder>",
    "<user_query>",
    "</user_query>",
    "<task>",
    "## My request for Codex:",
    "[read_file for 'x'] Result:",
    "好的，继续",
    "name",
];

fn word() -> impl Strategy<Value = String> {
    let known = prop::sample::select(WORDS.to_vec()).prop_map(str::to_owned);
    prop_oneof![
        6 => known.clone(),
        2 => prop::collection::vec(known, 2..6).prop_map(|words| words.concat()),
        1 => any::<String>(),
    ]
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word().prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 60, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((word(), inner), 0..6)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

/// What holds of every answer to `json`.
fn holds(json: &[u8]) -> Result<(), TestCaseError> {
    match Request::from_chat(json) {
        Ok(request) => {
            prop_assert!(!request.prompt.trim().is_empty());
            prop_assert!(request.prompt.len() <= json.len().min(LONGEST_TEXT));
            let chat = request.chat.unwrap();
            prop_assert_eq!(chat.taken.bytes, request.prompt.len());
            let left = chat.taken.left_out.values().map(|count| count.bytes);
            prop_assert!(left.sum::<usize>() <= json.len());
        }
        Err(error) => {
            let known = matches!(error.kind(), ErrorKind::Format | ErrorKind::InvalidRequest);
            prop_assert!(known, "{}", error);
            prop_assert!(error.to_string().contains("expected"), "{}", error);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn any_json_is_answered_or_refused(json in any_json()) {
        holds(json.to_string().as_bytes())?;
    }

    #[test]
    fn any_conversation_is_answered_or_refused(
        messages in prop::collection::vec((word(), any_json()), 0..6),
        other in (word(), any_json()),
        responses in any::<bool>(),
    ) {
        let roles = ["user", "assistant", "system", "tool"];
        let messages: Vec<Value> = messages
            .into_iter()
            .enumerate()
            .map(|(i, (role, content))| {
                let role = roles.get(i).map_or(role, |role| (*role).to_owned());
                json!({"role": role, "content": content})
            })
            .collect();
        let key = if responses { "input" } else { "messages" };
        holds(json!({key: messages, other.0: other.1}).to_string().as_bytes())?;
    }

    #[test]
    fn any_text_of_a_user_is_answered(words in prop::collection::vec(word(), 1..12)) {
        let text = words.join(" ");
        let json = json!({"messages": [{"role": "user", "content": text}]});
        holds(json.to_string().as_bytes())?;
    }

    #[test]
    fn a_broken_request_is_answered_or_refused(
        place in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let corpus = corpus();
        let (_, case) = place.get(&corpus);
        let mut json = case["request"].to_string().into_bytes();
        let at = place.index(json.len());
        json[at] = byte;
        holds(&json)?;
        json.truncate(at);
        holds(&json)?;
    }
}
