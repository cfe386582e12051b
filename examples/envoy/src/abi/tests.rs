//! The hooks against an Envoy of the test's own: the functions that the real one exports, and
//! streams whose misuse ends the test.
#![allow(clippy::print_stderr, clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::Path;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::hooks::*;
use super::*;

/// A stream of the fake Envoy.
#[derive(Default)]
struct Fake {
    headers: BTreeMap<String, String>,
    parts: [Vec<Vec<u8>>; 2],
    limit: u64,
    /// Times that the route was picked again, and that the request went on from `scheduled`.
    picked: usize,
    gone_on: usize,
    worker: Arc<Worker>,
}

/// What schedulers of a stream share: its worker's list of events.
#[derive(Default)]
struct Worker {
    events: Mutex<Vec<u64>>,
    /// The filter is destroyed, and the worker may be gone, too.
    gone: AtomicBool,
}

static SCHEDULERS: AtomicUsize = AtomicUsize::new(0);
static COUNTED: Mutex<BTreeMap<String, u64>> = Mutex::new(BTreeMap::new());
static METRICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn fake<'f>(raw: *mut c_void) -> &'f mut Fake {
    // SAFETY: the tests pass their own streams.
    unsafe { &mut *raw.cast() }
}

fn text(buffer: ModuleBuffer) -> String {
    // SAFETY: the module passes its own text.
    let bytes = unsafe { std::slice::from_raw_parts(buffer.ptr.cast(), buffer.length) };
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_log(_level: c_uint, message: ModuleBuffer) {
    eprintln!("{}", text(message));
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_log_enabled(_level: c_uint) -> bool {
    true
}

fn define(name: ModuleBuffer, id: *mut usize) -> c_uint {
    let mut metrics = METRICS.lock().unwrap();
    // SAFETY: the module passes a place for the id.
    unsafe { *id = metrics.len() };
    metrics.push(text(name));
    METRIC_OK
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_http_filter_config_define_counter(
    _config: *mut c_void,
    name: ModuleBuffer,
    _label_names: *mut ModuleBuffer,
    _label_names_length: usize,
    id: *mut usize,
) -> c_uint {
    define(name, id)
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_http_filter_config_define_histogram(
    _config: *mut c_void,
    name: ModuleBuffer,
    _label_names: *mut ModuleBuffer,
    _label_names_length: usize,
    id: *mut usize,
) -> c_uint {
    define(name, id)
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_http_filter_increment_counter(
    _filter: *mut c_void,
    id: usize,
    labels: *mut ModuleBuffer,
    labels_length: usize,
    value: u64,
) -> c_uint {
    let mut name = METRICS.lock().unwrap()[id].clone();
    for place in 0..labels_length {
        // SAFETY: the module passes as many labels as it says.
        name += &format!(" {}", text(unsafe { *labels.add(place) }));
    }
    *COUNTED.lock().unwrap().entry(name).or_default() += value;
    METRIC_OK
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_http_filter_record_histogram_value(
    _filter: *mut c_void,
    _id: usize,
    _labels: *mut ModuleBuffer,
    _labels_length: usize,
    _value: u64,
) -> c_uint {
    METRIC_OK
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_http_get_header(
    filter: *mut c_void,
    kind: c_uint,
    key: ModuleBuffer,
    value: *mut EnvoyBuffer,
    index: usize,
    _count: *mut usize,
) -> bool {
    assert_eq!((kind, index), (REQUEST_HEADER, 0));
    let Some(found) = fake(filter).headers.get(&text(key)) else {
        return false;
    };
    let (ptr, length) = (found.as_ptr().cast(), found.len());
    // SAFETY: the module passes a place for the value.
    unsafe { *value = EnvoyBuffer { ptr, length } };
    true
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_http_set_header(
    filter: *mut c_void,
    _kind: c_uint,
    key: ModuleBuffer,
    value: ModuleBuffer,
) -> bool {
    let (headers, key) = (&mut fake(filter).headers, text(key));
    match value.ptr.is_null() {
        true => headers.remove(&key),
        false => headers.insert(key, text(value)),
    };
    true
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_http_get_body_size(
    filter: *mut c_void,
    part: c_uint,
) -> usize {
    fake(filter).parts[part as usize].iter().map(Vec::len).sum()
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_http_get_body_chunks_size(
    filter: *mut c_void,
    part: c_uint,
) -> usize {
    fake(filter).parts[part as usize].len()
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_http_get_body_chunks(
    filter: *mut c_void,
    part: c_uint,
    chunks: *mut EnvoyBuffer,
) -> bool {
    for (place, chunk) in fake(filter).parts[part as usize].iter().enumerate() {
        let (ptr, length) = (chunk.as_ptr().cast(), chunk.len());
        // SAFETY: the module made room for all.
        unsafe { *chunks.add(place) = EnvoyBuffer { ptr, length } };
    }
    true
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_http_drain_body(
    filter: *mut c_void,
    part: c_uint,
    bytes: usize,
) -> bool {
    let part = &mut fake(filter).parts[part as usize];
    assert_eq!(bytes, part.iter().map(Vec::len).sum::<usize>());
    part.clear();
    true
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_http_append_body(
    filter: *mut c_void,
    part: c_uint,
    data: ModuleBuffer,
) -> bool {
    fake(filter).parts[part as usize].push(text(data).into_bytes());
    true
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_http_get_buffer_limit(filter: *mut c_void) -> u64 {
    fake(filter).limit
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_http_set_buffer_limit(filter: *mut c_void, to: u64) {
    fake(filter).limit = to;
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_http_clear_route_cache(filter: *mut c_void) {
    fake(filter).picked += 1;
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_http_filter_continue_decoding(filter: *mut c_void) {
    fake(filter).gone_on += 1;
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_http_filter_scheduler_new(
    filter: *mut c_void,
) -> *mut c_void {
    SCHEDULERS.fetch_add(1, Ordering::SeqCst);
    Arc::into_raw(Arc::clone(&fake(filter).worker))
        .cast_mut()
        .cast()
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_http_filter_scheduler_delete(scheduler: *mut c_void) {
    SCHEDULERS.fetch_sub(1, Ordering::SeqCst);
    // SAFETY: `scheduler_new` made it.
    drop(unsafe { Arc::<Worker>::from_raw(scheduler.cast()) });
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_http_filter_scheduler_commit(
    scheduler: *mut c_void,
    event: u64,
) {
    // SAFETY: `scheduler_new` made it, and it is not deleted.
    let worker = unsafe { &*scheduler.cast::<Worker>() };
    // A hook would catch a panic.
    if worker.gone.load(Ordering::SeqCst) {
        eprintln!("a scheduler was used after its filter was destroyed");
        std::process::abort();
    }
    worker.events.lock().unwrap().push(event);
}

/// One configuration at a time: schedulers and counts are counted for all.
static ALONE: Mutex<()> = Mutex::new(());

struct Module(*const c_void);

impl Module {
    fn new(more: &str) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let store = root.join("weights/cmrbench");
        let json = format!(r#"{{"store": {store:?}, "watch_ms": 0{more}}}"#);
        Self(config(&json))
    }

    fn stream(&self) -> TestStream {
        let mut raw = Box::new(Fake {
            limit: 1 << 20,
            ..Fake::default()
        });
        let headers = [
            (":method", "POST"),
            (":path", "/v1/chat/completions?a=b"),
            ("x-hubrouter-model", "forged"),
        ];
        for (name, value) in headers {
            raw.headers.insert(name.to_owned(), value.to_owned());
        }
        let raw = Box::into_raw(raw);
        // SAFETY: the configuration and the stream are there.
        let filter = unsafe { envoy_dynamic_module_on_http_filter_new(self.0, raw.cast()) };
        TestStream { raw, filter }
    }
}

fn config(json: &str) -> *const c_void {
    let json = EnvoyBuffer {
        ptr: json.as_ptr().cast(),
        length: json.len(),
    };
    // SAFETY: the text is there during the call.
    unsafe { envoy_dynamic_module_on_http_filter_config_new(null_mut(), json, json) }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: it is the configuration's only owner beside filters.
        unsafe { envoy_dynamic_module_on_http_filter_config_destroy(self.0) }
    }
}

/// A stream as the fake Envoy's worker has it.
struct TestStream {
    raw: *mut Fake,
    filter: *const c_void,
}

impl TestStream {
    fn fake(&self) -> &mut Fake {
        fake(self.raw.cast())
    }

    fn headers(&self, end: bool) -> c_uint {
        // SAFETY: stream and filter are there.
        unsafe {
            envoy_dynamic_module_on_http_filter_request_headers(self.raw.cast(), self.filter, end)
        }
    }

    /// A piece of the body, as Envoy gives it: held back if the filter holds.
    fn body(&self, piece: &[u8], end: bool) -> c_uint {
        self.fake().parts[0] = vec![piece.to_vec()];
        // SAFETY: stream and filter are there.
        let status = unsafe {
            envoy_dynamic_module_on_http_filter_request_body(self.raw.cast(), self.filter, end)
        };
        if status == 1 {
            let [received, buffered] = &mut self.fake().parts;
            buffered.append(received);
        }
        status
    }

    fn trailers(&self) -> c_uint {
        // SAFETY: stream and filter are there.
        unsafe {
            envoy_dynamic_module_on_http_filter_request_trailers(self.raw.cast(), self.filter)
        }
    }

    /// Headers and a body in one piece.
    fn send(&self, body: &str) -> c_uint {
        let length = body.len().to_string();
        self.fake()
            .headers
            .insert("content-length".to_owned(), length);
        match self.headers(false) {
            1 => self.body(body.as_bytes(), true),
            status => status,
        }
    }

    /// Waits for a thread's answer, and for the request to go on.
    fn wait(&self) {
        let since = Instant::now();
        while self.fake().worker.events.lock().unwrap().pop().is_none() {
            assert!(since.elapsed() < Duration::from_secs(60), "no answer");
            std::thread::sleep(Duration::from_millis(1));
        }
        // SAFETY: stream and filter are there.
        unsafe { envoy_dynamic_module_on_http_filter_scheduled(self.raw.cast(), self.filter, 0) }
        assert_eq!(self.fake().gone_on, 1);
    }

    fn whole(&self) -> String {
        let [received, buffered] = &self.fake().parts;
        let all: Vec<u8> = buffered.iter().chain(received).flatten().copied().collect();
        String::from_utf8(all).unwrap()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.fake().headers.get(name).map(String::as_str)
    }

    fn reason(&self) -> Option<&str> {
        self.header("x-hubrouter-reason")
    }
}

impl Drop for TestStream {
    fn drop(&mut self) {
        let worker = Arc::clone(&self.fake().worker);
        // SAFETY: nothing uses the filter or the stream any more.
        unsafe {
            envoy_dynamic_module_on_http_filter_destroy(self.filter);
            worker.gone.store(true, Ordering::SeqCst);
            drop(Box::from_raw(self.raw));
        }
    }
}

const BIRD: &str = "DBD-research-group/AudioProtoPNet-20-BirdSet-XCL";

fn chat(model: &str, text: &str) -> String {
    format!(r#"{{ "model" : "{model}","messages":[{{"role":"user","content":"{text}"}}]}}"#)
}

fn bird(model: &str) -> String {
    chat(model, "Which bird is singing in this recording?")
}

#[test]
fn a_miss_waits_for_a_thread_and_a_hit_does_not() {
    let _alone = ALONE.lock();
    let module = Module::new("");
    let first = module.stream();
    assert_eq!(first.send(&bird("auto")), 1);
    assert_eq!(first.fake().limit, (4 << 20) + 2 * (1 << 20));
    first.wait();
    assert_eq!(first.whole(), bird(BIRD));
    assert_eq!(first.header("x-hubrouter-model"), Some(BIRD));
    assert_eq!(
        first.header("content-length"),
        Some(&*bird(BIRD).len().to_string())
    );
    assert_eq!(first.reason(), Some("decided"));
    assert_eq!(
        first.header("x-hubrouter-generation"),
        Some("g0002-1b3e31064dcb")
    );
    assert!(
        first
            .header("x-hubrouter-domain")
            .unwrap()
            .starts_with("Audio")
    );
    assert_eq!(first.fake().picked, 2);

    let second = module.stream();
    assert_eq!(second.send(&bird("auto")), 0);
    assert_eq!(second.whole(), bird(BIRD));
    assert_eq!(second.reason(), Some("cached"));
    assert_eq!(COUNTED.lock().unwrap()["cache_hits"], 1);
    drop((first, second, module));
    assert_eq!(SCHEDULERS.load(Ordering::SeqCst), 0);
}

#[test]
fn bodies_come_in_pieces_of_any_size_and_with_trailers() {
    let _alone = ALONE.lock();
    let module = Module::new("");
    let body = chat("auto", "Écris une lettre 𝄞 à ma mère.");
    for (size, trailers) in [(1, false), (7, true), (1, true)] {
        let stream = module.stream();
        assert_eq!(stream.headers(false), 1);
        let pieces: Vec<&[u8]> = body.as_bytes().chunks(size).collect();
        let mut status = 1;
        for (place, piece) in pieces.iter().enumerate() {
            status = stream.body(piece, !trailers && place + 1 == pieces.len());
        }
        if trailers {
            assert_eq!(status, 1);
            status = stream.trailers();
        }
        if status == 1 {
            stream.wait();
        }
        let model = stream.header("x-hubrouter-model").unwrap();
        assert_eq!(stream.whole(), chat(model, "Écris une lettre 𝄞 à ma mère."));
        assert_eq!(stream.header("content-length"), None);
    }
}

#[test]
fn what_is_not_to_be_routed_goes_on_as_it_came() {
    let _alone = ALONE.lock();
    let module = Module::new(r#", "max_body_bytes": 200"#);
    for body in [
        &*bird("gpt2"),
        "no JSON",
        "",
        "{\"model\":\"auto\"",
        "[\"auto\"]",
    ] {
        let stream = module.stream();
        assert_eq!(stream.send(body), 0);
        assert_eq!(stream.whole(), body);
        assert_eq!(
            (stream.reason(), stream.header("x-hubrouter-model")),
            (None, None)
        );
    }
    let get = module.stream();
    get.fake()
        .headers
        .insert(":method".to_owned(), "GET".to_owned());
    assert_eq!(get.headers(false), 0);
    let elsewhere = module.stream();
    elsewhere
        .fake()
        .headers
        .insert(":path".to_owned(), "/v1/embeddings".to_owned());
    assert_eq!(elsewhere.headers(false), 0);
    assert_eq!(module.stream().headers(true), 0);

    let long = module.stream();
    assert_eq!(long.send(&chat("auto", &"a".repeat(200))), 0);
    assert_eq!(long.reason(), Some("too_large"));
    let growing = module.stream();
    assert_eq!(growing.headers(false), 1);
    assert_eq!(growing.body(&[b' '; 150], false), 1);
    assert_eq!(growing.body(&[b' '; 51], false), 0);
    assert_eq!(growing.reason(), Some("too_large"));
    assert_eq!((growing.body(b"x", false), growing.trailers()), (0, 0));
}

#[test]
fn without_a_decision_the_fallback_answers_or_nothing_changes() {
    let _alone = ALONE.lock();
    let silent = r#"{"model":"auto","messages":[]}"#;
    let plain = Module::new("");
    let stream = plain.stream();
    assert_eq!(stream.send(silent), 0);
    assert_eq!(
        (stream.reason(), &*stream.whole()),
        (Some("invalid_request"), silent)
    );
    let module = Module::new(r#", "fallback_model": "large", "policy": {"deny": ["*"]}"#);
    let stream = module.stream();
    assert_eq!(stream.send(silent), 0);
    assert_eq!(stream.whole(), silent.replace("auto", "large"));
    assert_eq!(stream.header("x-hubrouter-fallback"), Some("true"));
    let stream = module.stream();
    assert_eq!(stream.send(&bird("auto")), 1);
    stream.wait();
    assert_eq!(stream.reason(), Some("no_candidate"));
    assert_eq!(stream.whole(), bird("large"));
    assert_eq!(COUNTED.lock().unwrap()["errors no_candidate"], 1);

    let full = Module::new(r#", "queue": 0, "fallback_model": "large""#);
    let stream = full.stream();
    assert_eq!(stream.send(&bird("auto")), 0);
    assert_eq!(
        (stream.reason(), stream.whole()),
        (Some("overloaded"), bird("large"))
    );
}

#[test]
fn a_policy_names_deployments() {
    let _alone = ALONE.lock();
    let policy = r#", "models": ["auto", "any"], "policy": {"candidates":
        [{"name": "birds", "model": "DBD-research-group/AudioProtoPNet-20-BirdSet-XCL"}, "gpt2"]}"#;
    let module = Module::new(policy);
    let stream = module.stream();
    assert_eq!(stream.send(&bird("any")), 1);
    stream.wait();
    assert_eq!(stream.whole(), bird("birds"));
}

#[test]
fn long_bodies_are_parsed_by_threads() {
    let _alone = ALONE.lock();
    let module = Module::new("");
    let text = "Translate this letter. ".repeat(4000);
    for reason in ["decided", "cached"] {
        let stream = module.stream();
        assert_eq!(stream.send(&chat("auto", &text)), 1);
        stream.wait();
        assert_eq!(stream.reason(), Some(reason));
    }
    let broken = chat("auto", &text).replace("\"messages\":[", "\"messages\":3, \"b\":[");
    let stream = module.stream();
    assert_eq!(stream.send(&broken), 1);
    stream.wait();
    assert_eq!(
        (stream.reason(), stream.whole()),
        (Some("invalid_request"), broken)
    );
}

#[test]
fn streams_are_destroyed_while_threads_compute() {
    let _alone = ALONE.lock();
    let module = Module::new(r#", "threads": 3, "options": {"cache_bytes": 0}"#);
    for round in 0..40_u64 {
        let streams: Vec<TestStream> = (0..6).map(|_| module.stream()).collect();
        for stream in &streams {
            assert_eq!(stream.send(&bird("auto")), 1);
        }
        std::thread::sleep(Duration::from_micros(700 * round));
        // The fake ends the process if a scheduler is used after this.
        drop(streams);
    }
    let stream = module.stream();
    assert_eq!(stream.send(&bird("auto")), 1);
    stream.wait();
    // Some wait while the module is taken down.
    let left: Vec<TestStream> = (0..6).map(|_| module.stream()).collect();
    for stream in &left {
        assert_eq!(stream.send(&bird("auto")), 1);
    }
    drop(module);
    drop((stream, left));
    assert_eq!(SCHEDULERS.load(Ordering::SeqCst), 0);
}

#[test]
fn a_configuration_that_is_not_valid_is_refused() {
    let _alone = ALONE.lock();
    assert!(config("{}").is_null());
    assert!(config(r#"{"store": "/nowhere"}"#).is_null());
}

#[test]
fn a_panic_stays_inside() {
    assert_eq!(guarded(CONTINUE, || panic!("for the test")), CONTINUE);
    assert_eq!(guarded(CONTINUE, || std::panic::panic_any(3)), CONTINUE);
    assert_eq!(guarded(CONTINUE, || 1), 1);
}
