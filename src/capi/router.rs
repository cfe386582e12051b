//! Routers: opening, routing, swapping the generation.

use std::ffi::c_char;
use std::mem::MaybeUninit;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::capi::decision::hubrouter_decision;
use crate::capi::error::{
    Called, FailedCall, call, error_of, free, hubrouter_error, needed, place,
};
use crate::capi::policy::hubrouter_policy;
use crate::capi::status::hubrouter_status;
use crate::capi::strings::{self, copy, hubrouter_str, items, parsed, places, read, text, utf8};
use crate::encoder::for_each_good;
use crate::error::Result;
use crate::generation::GenerationId;
use crate::options::Options;
use crate::route::{ChatShape, Decision, PolicyHandle, Request, Router};

/// An open store, ready to answer. The caller frees it; decisions and policies outlive it.
#[derive(Debug)]
pub struct hubrouter_router(pub(super) Arc<Router>);

/// The API whose JSON a chat request is.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum hubrouter_chat {
    /// Whichever the request looks like.
    HUBROUTER_CHAT_ANY = 0,
    /// OpenAI chat completions.
    HUBROUTER_CHAT_OPENAI = 1,
    /// OpenAI responses.
    HUBROUTER_CHAT_OPENAI_RESPONSES = 2,
    /// Anthropic messages.
    HUBROUTER_CHAT_ANTHROPIC = 3,
}

use hubrouter_chat::*;

/// Opens the current generation of the store in the folder `store`. If that is damaged, an earlier
/// one opens instead, and every decision says so in `degraded`.
///
/// `options`: JSON with any of `schema_version` (1), `device`, `threads`, `fallback`, `encoder`,
/// `look_in`, `max_tokens`, `precision`, `cpu`, `cache_bytes`, `queue`, `sessions`, `gather_us`,
/// `cache_folder`. With a length of 0 all are the defaults. A server that routes prompt by prompt takes
/// `{"device": "cpu", "threads": 1}`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hubrouter_router_open(
    store: *const c_char,
    store_len: usize,
    options: *const c_char,
    options_len: usize,
    router: Option<&mut MaybeUninit<Option<Box<hubrouter_router>>>>,
    error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
) -> hubrouter_status {
    call("hubrouter_router_open", error, || {
        let out = place(router, "router")?;
        // SAFETY: the contract of the header.
        let store = unsafe { text(store, store_len, "store") }?;
        // SAFETY: the contract of the header.
        let options = options_of(unsafe { text(options, options_len, "options") }?)?;
        let router = Router::open(store, options)?;
        *out = Some(Box::new(hubrouter_router(Arc::new(router))));
        Ok(())
    })
}

/// As `hubrouter_router_open`, for the generation of the id `generation`, whichever is current.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hubrouter_router_open_generation(
    store: *const c_char,
    store_len: usize,
    generation: *const c_char,
    generation_len: usize,
    options: *const c_char,
    options_len: usize,
    router: Option<&mut MaybeUninit<Option<Box<hubrouter_router>>>>,
    error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
) -> hubrouter_status {
    call("hubrouter_router_open_generation", error, || {
        let out = place(router, "router")?;
        // SAFETY: the contract of the header.
        let store = unsafe { text(store, store_len, "store") }?;
        // SAFETY: the contract of the header.
        let generation = unsafe { text(generation, generation_len, "generation") }?;
        let generation: GenerationId = generation.parse()?;
        // SAFETY: the contract of the header.
        let options = options_of(unsafe { text(options, options_len, "options") }?)?;
        let router = Router::open_generation(Path::new(store), &generation, options)?;
        *out = Some(Box::new(hubrouter_router(Arc::new(router))));
        Ok(())
    })
}

fn options_of(json: &str) -> Result<Options> {
    match json.is_empty() {
        true => Ok(Options::default()),
        false => parsed(json, "options"),
    }
}

/// Frees a router. NULL is allowed. Its decisions and policies stay as they are; a policy keeps the
/// router's memory until it is freed, too.
#[unsafe(no_mangle)]
pub extern "C" fn hubrouter_router_free(router: Option<Box<hubrouter_router>>) {
    free(router);
}

/// Ranks the best `top` models for a prompt, among those that `policy` admits if it is not NULL.
///
/// Fails with `HUBROUTER_INVALID_REQUEST` if the prompt has no text, with `HUBROUTER_NO_CANDIDATE`
/// if no model may answer, and with `HUBROUTER_INVALID_ARGUMENT` if another router has compiled the
/// policy.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hubrouter_router_route(
    router: Option<&hubrouter_router>,
    prompt: *const c_char,
    prompt_len: usize,
    top: usize,
    policy: Option<&hubrouter_policy>,
    decision: Option<&mut MaybeUninit<Option<Box<hubrouter_decision>>>>,
    error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
) -> hubrouter_status {
    call("hubrouter_router_route", error, || {
        routed(router, policy, decision, || {
            // SAFETY: the contract of the header.
            let prompt = unsafe { text(prompt, prompt_len, "prompt") }?;
            Ok(Request::new(prompt).top(top))
        })
    })
}

/// As `hubrouter_router_route`, for a request in JSON: `prompt`, and any of `prompt_id`, `top` (10
/// if it is missing), `session` (`tenant` and `id`), `deadline_us`, and `chat`, the record of a
/// chat request.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hubrouter_router_route_json(
    router: Option<&hubrouter_router>,
    request: *const c_char,
    request_len: usize,
    policy: Option<&hubrouter_policy>,
    decision: Option<&mut MaybeUninit<Option<Box<hubrouter_decision>>>>,
    error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
) -> hubrouter_status {
    call("hubrouter_router_route_json", error, || {
        routed(router, policy, decision, || {
            // SAFETY: the contract of the header.
            let json = unsafe { text(request, request_len, "request") }?;
            Ok(parsed(json, "request")?)
        })
    })
}

/// As `hubrouter_router_route`, for the body of a chat request as a client sends it. What is routed
/// is the newest ask of a person; `docs/chat.md` has the rules. `shape`: the API, one of
/// `hubrouter_chat`. `request`: JSON with the other fields of a request, as for
/// `hubrouter_router_route_json`; with a length of 0 they have their defaults.
///
/// Fails with `HUBROUTER_FORMAT` if it is no JSON, and with `HUBROUTER_INVALID_REQUEST` if it is no
/// chat request or has no text.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hubrouter_router_route_chat(
    router: Option<&hubrouter_router>,
    body: *const c_char,
    body_len: usize,
    shape: i32,
    request: *const c_char,
    request_len: usize,
    policy: Option<&hubrouter_policy>,
    decision: Option<&mut MaybeUninit<Option<Box<hubrouter_decision>>>>,
    error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
) -> hubrouter_status {
    call("hubrouter_router_route_chat", error, || {
        routed(router, policy, decision, || {
            // SAFETY: the contract of the header.
            let body = unsafe { items(body.cast::<u8>(), body_len, "body") }?;
            // SAFETY: the contract of the header.
            let fields = unsafe { text(request, request_len, "request") }?;
            let chat = match shape_of(shape)? {
                Some(shape) => Request::from_chat_as(body, shape)?,
                None => Request::from_chat(body)?,
            };
            if fields.is_empty() {
                return Ok(chat);
            }
            let mut fields: Map<String, Value> = parsed(fields, "request")?;
            fields.insert("prompt".into(), chat.prompt.into());
            let request: Request = read(fields.into(), "request")?;
            Ok(Request {
                chat: chat.chat,
                ..request
            })
        })
    })
}

fn shape_of(shape: i32) -> Called<Option<ChatShape>> {
    let shapes = [
        (HUBROUTER_CHAT_ANY, None),
        (HUBROUTER_CHAT_OPENAI, Some(ChatShape::OpenAiChat)),
        (
            HUBROUTER_CHAT_OPENAI_RESPONSES,
            Some(ChatShape::OpenAiResponses),
        ),
        (HUBROUTER_CHAT_ANTHROPIC, Some(ChatShape::AnthropicMessages)),
    ];
    let known = shapes.iter().find(|(number, _)| *number as i32 == shape);
    let unknown = || FailedCall::argument(format!("shape: expected 0 to 3, found {shape}"));
    Ok(known.ok_or_else(unknown)?.1)
}

/// The policy's handle, if there is one and `router` has compiled it.
fn admitting<'a>(
    router: &Arc<Router>,
    policy: Option<&'a hubrouter_policy>,
) -> Called<Option<&'a PolicyHandle>> {
    if policy.is_some_and(|policy| !Arc::ptr_eq(&policy.router, router)) {
        let message = "policy: expected one that this router has compiled, found another router's";
        return Err(FailedCall::argument(message));
    }
    Ok(policy.map(|policy| &policy.handle))
}

/// Puts the answer to `request` into the caller's `decision`.
fn routed(
    router: Option<&hubrouter_router>,
    policy: Option<&hubrouter_policy>,
    decision: Option<&mut MaybeUninit<Option<Box<hubrouter_decision>>>>,
    request: impl FnOnce() -> Called<Request>,
) -> Called {
    let out = place(decision, "decision")?;
    let router = &needed(router, "router")?.0;
    let policy = admitting(router, policy)?;
    let request = request()?;
    let answer = match policy {
        Some(policy) => router.route_within(&request, policy),
        None => router.route(&request),
    };
    *out = Some(Box::new(hubrouter_decision(answer?)));
    Ok(())
}

/// Routes `count` prompts together: sooner than one after the other, with the same answers.
///
/// `decisions` and `errors` are arrays of `count` pointers; `errors` may be NULL. Each prompt gets
/// a decision or an error, and the other pointer is NULL. The call returns the status of the first
/// prompt that has no decision, and `error` has that prompt's error, too. If an argument is
/// invalid, there are no decisions and no `errors`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hubrouter_router_route_batch(
    router: Option<&hubrouter_router>,
    prompts: *const hubrouter_str,
    count: usize,
    top: usize,
    policy: Option<&hubrouter_policy>,
    decisions: *mut Option<Box<hubrouter_decision>>,
    errors: *mut Option<Box<hubrouter_error>>,
    error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
) -> hubrouter_status {
    call("hubrouter_router_route_batch", error, || {
        // SAFETY: the contract of the header.
        let decisions = unsafe { places(decisions, count, "decisions") }?;
        decisions.fill_with(|| MaybeUninit::new(None));
        let mut errors = match errors.is_null() {
            true => None,
            // SAFETY: the contract of the header.
            false => Some(unsafe { places(errors, count, "errors") }?),
        };
        if let Some(errors) = &mut errors {
            errors.fill_with(|| MaybeUninit::new(None));
        }
        let router = &needed(router, "router")?.0;
        let policy = admitting(router, policy)?;
        // SAFETY: the contract of the header.
        let prompts = unsafe { items(prompts, count, "prompts") }?;
        let request = |(n, prompt): (usize, &hubrouter_str)| -> Called<Result<Request>> {
            let name = format!("prompts[{n}]");
            // SAFETY: the contract of the header.
            let bytes = unsafe { items(prompt.ptr.cast::<u8>(), prompt.len, &name) }?;
            Ok(utf8(bytes, &name).map(|prompt| Request::new(prompt).top(top)))
        };
        let requests = prompts.iter().enumerate().map(request);
        let requests: Vec<Result<Request>> = requests.collect::<Called<_>>()?;
        let answers: Vec<Result<Decision>> = for_each_good(requests, |good| match policy {
            Some(policy) => router.route_batch_within(&good, policy),
            None => router.route_batch(&good),
        });
        let mut first = None;
        for (n, answer) in answers.into_iter().enumerate() {
            match answer {
                Ok(decision) => {
                    decisions[n].write(Some(Box::new(hubrouter_decision(decision))));
                }
                Err(why) => {
                    if let Some(errors) = &mut errors {
                        errors[n].write(Some(error_of(why.clone())));
                    }
                    first.get_or_insert(why);
                }
            }
        }
        match first {
            Some(why) => Err(why.into()),
            None => Ok(()),
        }
    })
}

/// Copies what the router is at this moment as JSON into `buffer`: generation, store, models,
/// device and numbers with the reasons for them, threads, limit on tokens, counts. `length` as in
/// `hubrouter_decision_json`. The text may be longer in the next call, after another thread has
/// installed a generation.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hubrouter_router_json(
    router: Option<&hubrouter_router>,
    buffer: *mut c_char,
    capacity: usize,
    length: Option<&mut MaybeUninit<usize>>,
    error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
) -> hubrouter_status {
    call("hubrouter_router_json", error, || {
        let router = &needed(router, "router")?.0;
        let report = json!({
            "schema_version": 1,
            "version": env!("CARGO_PKG_VERSION"),
            "store": router.store().root().display().to_string(),
            "generation": router.generation(),
            "models": router.hub().active(),
            "device": router.device_name(),
            "device_reason": router.device_reason(),
            "precision": router.precision(),
            "precision_reason": router.precision_reason(),
            "threads": router.threads(),
            "max_tokens": router.max_tokens(),
            "stats": router.stats(),
        });
        // SAFETY: the contract of the header.
        unsafe { copy(&strings::json(&report)?, buffer, capacity, length) }
    })
}

/// Copies the hub that is served as JSON into `buffer`, in the form of `hub.json`: each model with
/// name, domain, family, attributes, aliases. `length` as in `hubrouter_router_json`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hubrouter_router_hub(
    router: Option<&hubrouter_router>,
    buffer: *mut c_char,
    capacity: usize,
    length: Option<&mut MaybeUninit<usize>>,
    error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
) -> hubrouter_status {
    call("hubrouter_router_hub", error, || {
        let hub = needed(router, "router")?.0.hub();
        // SAFETY: the contract of the header.
        unsafe { copy(&strings::json(&*hub)?, buffer, capacity, length) }
    })
}

/// Copies the id of the generation that is served into `buffer`. `length` as in
/// `hubrouter_router_json`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hubrouter_router_generation(
    router: Option<&hubrouter_router>,
    buffer: *mut c_char,
    capacity: usize,
    length: Option<&mut MaybeUninit<usize>>,
    error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
) -> hubrouter_status {
    call("hubrouter_router_generation", error, || {
        let generation = needed(router, "router")?.0.generation();
        // SAFETY: the contract of the header.
        unsafe { copy(generation.as_str(), buffer, capacity, length) }
    })
}

/// Routes prompts of all lengths, so that the first request of a client is as fast as the others.
#[unsafe(no_mangle)]
pub extern "C" fn hubrouter_router_warm_up(
    router: Option<&hubrouter_router>,
    error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
) -> hubrouter_status {
    call("hubrouter_router_warm_up", error, || {
        needed(router, "router")?.0.warm_up()?;
        Ok(())
    })
}

/// Serves the store's current generation, if it is not served already: after another process has
/// learned or rolled back. `changed`, which may be NULL, becomes 1 if something changed, else 0.
/// Calls under way finish on the old one; on a failure the old one stays.
#[unsafe(no_mangle)]
pub extern "C" fn hubrouter_router_refresh(
    router: Option<&hubrouter_router>,
    changed: Option<&mut MaybeUninit<i32>>,
    error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
) -> hubrouter_status {
    call("hubrouter_router_refresh", error, || {
        let mut unknown = MaybeUninit::uninit();
        let changed = changed.unwrap_or(&mut unknown).write(0);
        *changed = needed(router, "router")?.0.refresh()?.into();
        Ok(())
    })
}

/// Serves the generation of the id `generation` from now on. On a failure the old one stays.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hubrouter_router_install(
    router: Option<&hubrouter_router>,
    generation: *const c_char,
    generation_len: usize,
    error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
) -> hubrouter_status {
    call("hubrouter_router_install", error, || {
        let router = &needed(router, "router")?.0;
        // SAFETY: the contract of the header.
        let generation = unsafe { text(generation, generation_len, "generation") }?;
        router.install(&generation.parse()?)?;
        Ok(())
    })
}

/// Makes the parent of the served generation current in the store and serves it. Fails with
/// `HUBROUTER_REFUSED` if it has none; store and router stay as they are then.
#[unsafe(no_mangle)]
pub extern "C" fn hubrouter_router_rollback(
    router: Option<&hubrouter_router>,
    error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
) -> hubrouter_status {
    call("hubrouter_router_rollback", error, || {
        needed(router, "router")?.0.rollback()?;
        Ok(())
    })
}
