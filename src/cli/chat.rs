//! The client of a language model. It opens a socket only when an endpoint is named.
#![expect(clippy::disallowed_types, reason = "a socket of the command")]

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::Value;

use super::web::{Server, said, start};
use crate::error::{Result, bail, error};

/// Path of chat requests on an OpenAI-compatible server.
const PATH: &str = "/v1/chat/completions";

/// Parts of a request that are left out once a server has refused them.
const OPTIONAL: [&str; 3] = ["chat_template_kwargs", "seed", "max_tokens"];

/// Most bytes of an answer that are read.
const MOST_BYTES: u64 = 4 << 20;

/// Longest pause that a server can demand.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// An OpenAI-compatible chat endpoint.
pub(super) struct Endpoint {
    url: String,
    key: Option<String>,
    agent: ureq::Agent,
    /// Tries of a request, the first included.
    tries: usize,
    /// Pause before the second try; it doubles with each further try.
    pause: Duration,
    /// The parts of [`OPTIONAL`] that the server has refused.
    refused: Mutex<BTreeSet<&'static str>>,
}

/// A try that failed and may be repeated.
enum Failed {
    /// For this reason; after this pause if the server named one.
    For(String, Option<Duration>),
    /// The server refused this part; the request may work without it.
    Part(&'static str),
}

impl Endpoint {
    /// The endpoint of the server at `url`, which may end with `/v1` or the whole path. Each answer
    /// may take `timeout`. `key` is sent as a bearer token.
    ///
    /// Errors: `url` is no URL, or contains a user name.
    pub(super) fn new(url: &str, key: Option<String>, timeout: Duration) -> Result<Self> {
        let root = url.trim().trim_end_matches('/');
        let root = root.strip_suffix("/chat/completions").unwrap_or(root);
        let root = root.strip_suffix("/v1").unwrap_or(root);
        let server = Server::of(url.trim(), "--llm-endpoint", "--llm-key-env")?;
        Ok(Self {
            url: format!("{root}{PATH}"),
            key,
            agent: server.agent(timeout),
            tries: 5,
            pause: Duration::from_secs(1),
            refused: Mutex::default(),
        })
    }

    /// The URL that is asked.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// The answer to the chat request `body`: the text of the first choice.
    ///
    /// A request is repeated with growing pauses after HTTP 408, 429 and 5xx and after a failed
    /// connection.
    ///
    /// Errors: all tries failed; the server refused; its response is no answer.
    pub(super) fn ask(&self, body: &Value) -> Result<String> {
        let mut pause = self.pause;
        let mut tried = 0;
        loop {
            let failed = match self.once(&self.accepted(body))? {
                Ok(answer) => return Ok(answer),
                Err(failed) => failed,
            };
            match failed {
                Failed::Part(part) => {
                    log::warn!("{}: refuses {part}; asked without it", self.url);
                    self.refused().insert(part);
                }
                Failed::For(reason, wanted) => {
                    tried += 1;
                    if tried == self.tries {
                        bail!(
                            Io,
                            "{}: expected an answer, found {reason}, {tried} times; check that the \
                             server is up and repeat the command, which goes on from here",
                            self.url
                        );
                    }
                    log::info!("{}: {reason}; tried again", self.url);
                    std::thread::sleep(wanted.unwrap_or(pause).min(LONGEST_PAUSE));
                    pause *= 2;
                }
            }
        }
    }

    fn refused(&self) -> std::sync::MutexGuard<'_, BTreeSet<&'static str>> {
        // A set of words is valid even if a thread panicked with the lock.
        self.refused.lock().unwrap_or_else(|held| held.into_inner())
    }

    /// `body` without the parts that the server has refused.
    fn accepted(&self, body: &Value) -> Value {
        let mut body = body.clone();
        if let Some(parts) = body.as_object_mut() {
            for part in self.refused().iter() {
                parts.remove(*part);
            }
        }
        body
    }

    fn once(&self, body: &Value) -> Result<Result<String, Failed>> {
        let mut request = self
            .agent
            .post(&self.url)
            .header("content-type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let answered = request.send(body.to_string()).and_then(|response| {
            let status = response.status().as_u16();
            let header = |name: &str| {
                let value = response.headers().get(name)?.to_str().ok()?;
                Some(value.to_owned())
            };
            let (after, place) = (header("retry-after"), header("location"));
            let mut body = response.into_body();
            let text = body.with_config().limit(MOST_BYTES).lossy_utf8(true);
            Ok((status, after, place, text.read_to_string()?))
        });
        let (status, after, place, text) = match answered {
            Ok(answered) => answered,
            Err(error) => return self.broken(error),
        };
        match status {
            200..=299 => self.content(&text).map(Ok),
            408 | 429 | 500..=599 => {
                let after = after.and_then(|text| text.trim().parse().ok());
                let reason = format!("HTTP {status}{}", said(&text));
                Ok(Err(Failed::For(reason, after.map(Duration::from_secs))))
            }
            _ => {
                let there = |part: &&str| body.get(*part).is_some() && text.contains(*part);
                let part = OPTIONAL.into_iter().find(|part| there(part));
                if let Some(part) = part.filter(|_| matches!(status, 400 | 422)) {
                    return Ok(Err(Failed::Part(part)));
                }
                let advice = match (status, place) {
                    (401 | 403, _) if self.key.is_none() => {
                        "; name the variable with the key: --llm-key-env".to_owned()
                    }
                    (401 | 403, _) => "; check that the key is valid for it".to_owned(),
                    (404, _) => "; check the URL and --llm-model".to_owned(),
                    (300..=399, Some(place)) => {
                        format!("; it redirects to {place}: name that URL if you trust it")
                    }
                    _ => String::new(),
                };
                bail!(
                    Refused,
                    "{}: expected an answer, found HTTP {status}{}{advice}",
                    self.url,
                    said(&text)
                )
            }
        }
    }

    /// Decides whether a request without a response is repeated.
    fn broken(&self, error: ureq::Error) -> Result<Result<String, Failed>> {
        use ureq::Error::{ConnectionFailed, HostNotFound, Io, Protocol, Timeout};
        let reason = error.to_string();
        match error {
            ConnectionFailed | HostNotFound | Io(_) | Protocol(_) | Timeout(_) => {
                Ok(Err(Failed::For(reason, None)))
            }
            _ => bail!(Io, "{}: cannot ask: {reason}", self.url),
        }
    }

    /// The text of the first choice; empty where there is none.
    fn content(&self, text: &str) -> Result<String> {
        let wrong = |found: &str| {
            error!(
                Format,
                "{}: expected JSON with choices[0].message.content, found {found}: is it an \
                 OpenAI-compatible chat endpoint?",
                self.url
            )
        };
        let value: Value =
            serde_json::from_str(text).map_err(|_| wrong(&format!("{:?}", start(text))))?;
        match value.pointer("/choices/0/message") {
            Some(message) => match message.get("content") {
                Some(Value::String(content)) => Ok(content.clone()),
                Some(Value::Null) | None => Ok(String::new()),
                Some(other) => Err(wrong(&format!("content {}", start(&other.to_string())))),
            },
            None => Err(wrong(start(text))),
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::error::ErrorKind;
    use serde_json::json;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::thread::JoinHandle;

    /// A request as a server sees it.
    struct SeenRequest {
        head: String,
        body: Value,
    }

    fn read(stream: &mut TcpStream) -> SeenRequest {
        let mut reader = BufReader::new(stream);
        let (mut head, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
            head += &line;
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let body = serde_json::from_slice(&body).unwrap();
        SeenRequest { head, body }
    }

    fn reply(status: &str, body: &str) -> String {
        format!(
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        )
    }

    fn good(content: &str) -> String {
        let body = json!({"choices": [{"message": {"role": "assistant", "content": content}}]});
        reply("200 OK", &body.to_string())
    }

    /// Gives `replies` one after the other, each on a connection of its own; an empty one is none,
    /// and the connection is closed.
    fn serve(replies: Vec<String>) -> (String, JoinHandle<Vec<SeenRequest>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let thread = std::thread::spawn(move || {
            let answer = |reply: String| {
                let (mut stream, _) = listener.accept().unwrap();
                let seen = read(&mut stream);
                stream.write_all(reply.as_bytes()).unwrap();
                seen
            };
            replies.into_iter().map(answer).collect()
        });
        (url, thread)
    }

    fn quick(url: &str, key: Option<&str>) -> Endpoint {
        let key = key.map(str::to_owned);
        let mut endpoint = Endpoint::new(url, key, Duration::from_secs(20)).unwrap();
        endpoint.pause = Duration::from_millis(1);
        endpoint
    }

    #[test]
    fn the_body_is_sent_as_it_is_and_the_first_choice_comes_back() {
        let (url, server) = serve(vec![good(" Audio\n")]);
        let body = json!({"messages": [{"role": "user", "content": "é \"x\""}], "seed": 3});
        let answer = quick(&format!("{url}/v1/"), Some("secret")).ask(&body);
        assert_eq!(answer.unwrap(), " Audio\n");
        let seen = server.join().unwrap().remove(0);
        assert_eq!(seen.body, body);
        let head = seen.head.to_lowercase();
        for part in [
            "post /v1/chat/completions http/1.1",
            "content-type: application/json",
            "authorization: bearer secret",
        ] {
            assert!(head.contains(part), "{head}");
        }
    }

    /// A closed connection, too many requests and a server's error pass; a pause that is asked for
    /// is made.
    #[test]
    fn what_may_pass_is_tried_again() {
        let busy =
            "HTTP/1.1 429 Busy\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        let down = reply("503 Down", "");
        let (url, server) = serve(vec![String::new(), busy.to_owned(), down, good("Audio")]);
        let clock = std::time::Instant::now();
        assert_eq!(quick(&url, None).ask(&json!({})).unwrap(), "Audio");
        assert_eq!(server.join().unwrap().len(), 4);
        assert!(clock.elapsed() >= Duration::from_secs(1));

        let (url, server) = serve(vec![
            reply(
                "500 Oops",
                r#"{"error": {"message": "no memory"}}"#
            );
            5
        ]);
        let error = quick(&url, None).ask(&json!({})).unwrap_err();
        assert_eq!(server.join().unwrap().len(), 5);
        assert_eq!(error.kind(), ErrorKind::Io);
        let says = "found HTTP 500 (no memory), 5 times; check that the server is up";
        assert!(error.to_string().contains(says), "{error}");

        // Nobody listens there any more.
        let error = quick(&url, None).ask(&json!({})).unwrap_err().to_string();
        assert!(
            error.contains("/v1/chat/completions: expected an answer, found")
                && error.contains("5 times"),
            "{error}"
        );
    }

    #[test]
    fn a_server_that_says_nothing_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let mut endpoint = Endpoint::new(&url, None, Duration::from_millis(200)).unwrap();
        (endpoint.pause, endpoint.tries) = (Duration::from_millis(1), 2);
        let error = endpoint.ask(&json!({})).unwrap_err().to_string();
        assert!(
            error.contains("timeout") && error.contains("2 times"),
            "{error}"
        );
    }

    #[test]
    fn refusals_say_what_to_do() {
        let moved = "HTTP/1.1 308 Moved\r\nlocation: https://elsewhere/\r\ncontent-length: \
         0\r\nconnection: close\r\n\r\n";
        for (reply, key, kind, says) in [
            (
                reply("401 Unauthorized", r#"{"error": {"message": "no key"}}"#),
                None,
                ErrorKind::Refused,
                "found HTTP 401 (no key); name the variable with the key: --llm-key-env",
            ),
            (
                reply("401 Unauthorized", ""),
                Some("k"),
                ErrorKind::Refused,
                "found HTTP 401; check that the key is valid",
            ),
            (
                reply("404 Not Found", r#"{"detail": "Not Found"}"#),
                None,
                ErrorKind::Refused,
                "HTTP 404 (Not Found); check the URL and --llm-model",
            ),
            (
                moved.to_owned(),
                None,
                ErrorKind::Refused,
                "HTTP 308; it redirects to https://elsewhere/",
            ),
            (
                reply("400 Bad Request", "temperature is too hot"),
                None,
                ErrorKind::Refused,
                "HTTP 400 (temperature is too hot)",
            ),
            (
                reply("200 OK", "<html>"),
                None,
                ErrorKind::Format,
                "expected JSON with choices[0].message.content, found \"<html>\"",
            ),
            (
                reply("200 OK", r#"{"choices": []}"#),
                None,
                ErrorKind::Format,
                "choices[0].message.content, found {\"choices\": []}",
            ),
            (
                reply("200 OK", r#"{"choices": [{"message": {"content": 7}}]}"#),
                None,
                ErrorKind::Format,
                "found content 7",
            ),
        ] {
            let (url, server) = serve(vec![reply]);
            let error = quick(&url, key)
                .ask(&json!({"temperature": 0.6}))
                .unwrap_err();
            assert_eq!(server.join().unwrap().len(), 1, "asked once");
            assert_eq!(error.kind(), kind);
            assert!(error.to_string().contains(says), "{error}");
        }
        // A model that says nothing misses; that is no error.
        let (url, server) = serve(vec![reply(
            "200 OK",
            r#"{"choices": [{"message": {"content": null}}]}"#,
        )]);
        assert_eq!(quick(&url, None).ask(&json!({})).unwrap(), "");
        server.join().unwrap();
    }

    #[test]
    fn what_a_server_does_not_know_is_left_out_from_then_on() {
        let no = |part: &str| reply("400 Bad Request", &format!("unknown argument: {part}"));
        let replies = vec![no("chat_template_kwargs"), no("seed"), good("a"), good("b")];
        let (url, server) = serve(replies);
        let endpoint = quick(&url, None);
        let body = json!({"top_p": 0.95, "seed": 1, "chat_template_kwargs": {}});
        assert_eq!(endpoint.ask(&body).unwrap(), "a");
        assert_eq!(endpoint.ask(&body).unwrap(), "b");
        let seen = server.join().unwrap();
        let keys = |seen: &SeenRequest| seen.body.as_object().unwrap().len();
        assert_eq!(seen.iter().map(keys).collect::<Vec<_>>(), [3, 2, 1, 1]);
    }

    #[test]
    fn urls() {
        let url = |text: &str| {
            let endpoint = Endpoint::new(text, None, Duration::from_secs(1));
            endpoint.map(|endpoint| endpoint.url().to_owned())
        };
        for root in ["", "/", "/v1", "/v1/", "/v1/chat/completions"] {
            let full = "https://host:1/v1/chat/completions";
            assert_eq!(url(&format!("https://host:1{root}")).unwrap(), full);
        }
        assert_eq!(url("http://a/b").unwrap(), "http://a/b/v1/chat/completions");
        for bad in ["", "localhost:8080", "ftp://x", "http://", "https:///v1"] {
            let error = url(bad).unwrap_err().to_string();
            assert!(
                error.contains("expected a URL such as http://localhost:8080, found"),
                "{error}"
            );
        }
        let error = url("https://me:secret@host").unwrap_err().to_string();
        assert!(
            error.contains("--llm-key-env") && !error.contains("secret"),
            "{error}"
        );
    }
}
