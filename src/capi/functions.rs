//! The table of functions, for hosts that open the library while they run.
#![expect(
    clippy::type_complexity,
    reason = "each field has the type of its function"
)]

use std::ffi::{CStr, c_char};
use std::mem::MaybeUninit;

use crate::capi::chat::*;
use crate::capi::decision::*;
use crate::capi::error::*;
use crate::capi::policy::*;
use crate::capi::router::*;
use crate::capi::status::*;
use crate::capi::strings::hubrouter_str;

/// The version of this interface that the table is of. One with a larger number keeps every field.
const VERSION: u32 = 1;

/// The functions of this interface, for hosts that open the library with `dlopen`: one symbol,
/// `hubrouter_api`, leads to all. Later versions add fields at the end, so a host reads what lies
/// within `size`.
#[repr(C)]
#[derive(Debug)]
pub struct hubrouter_functions {
    /// The size of this struct in the library.
    pub size: usize,
    /// The version of the interface in the library.
    pub version: u32,
    /// The functions by their names, from here on.
    pub hubrouter_version: extern "C" fn() -> *const c_char,
    pub hubrouter_status_name: extern "C" fn(status: i32) -> *const c_char,
    pub hubrouter_error_status: extern "C" fn(error: Option<&hubrouter_error>) -> hubrouter_status,
    pub hubrouter_error_message: extern "C" fn(error: Option<&hubrouter_error>) -> *const c_char,
    pub hubrouter_error_free: extern "C" fn(error: Option<Box<hubrouter_error>>),
    pub hubrouter_router_open: unsafe extern "C" fn(
        store: *const c_char,
        store_len: usize,
        options: *const c_char,
        options_len: usize,
        router: Option<&mut MaybeUninit<Option<Box<hubrouter_router>>>>,
        error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
    ) -> hubrouter_status,
    pub hubrouter_router_open_generation: unsafe extern "C" fn(
        store: *const c_char,
        store_len: usize,
        generation: *const c_char,
        generation_len: usize,
        options: *const c_char,
        options_len: usize,
        router: Option<&mut MaybeUninit<Option<Box<hubrouter_router>>>>,
        error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
    ) -> hubrouter_status,
    pub hubrouter_router_free: extern "C" fn(router: Option<Box<hubrouter_router>>),
    pub hubrouter_router_route: unsafe extern "C" fn(
        router: Option<&hubrouter_router>,
        prompt: *const c_char,
        prompt_len: usize,
        top: usize,
        policy: Option<&hubrouter_policy>,
        decision: Option<&mut MaybeUninit<Option<Box<hubrouter_decision>>>>,
        error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
    ) -> hubrouter_status,
    pub hubrouter_router_route_json: unsafe extern "C" fn(
        router: Option<&hubrouter_router>,
        request: *const c_char,
        request_len: usize,
        policy: Option<&hubrouter_policy>,
        decision: Option<&mut MaybeUninit<Option<Box<hubrouter_decision>>>>,
        error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
    ) -> hubrouter_status,
    pub hubrouter_router_route_chat: unsafe extern "C" fn(
        router: Option<&hubrouter_router>,
        body: *const c_char,
        body_len: usize,
        shape: i32,
        request: *const c_char,
        request_len: usize,
        policy: Option<&hubrouter_policy>,
        decision: Option<&mut MaybeUninit<Option<Box<hubrouter_decision>>>>,
        error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
    ) -> hubrouter_status,
    pub hubrouter_router_route_batch: unsafe extern "C" fn(
        router: Option<&hubrouter_router>,
        prompts: *const hubrouter_str,
        count: usize,
        top: usize,
        policy: Option<&hubrouter_policy>,
        decisions: *mut Option<Box<hubrouter_decision>>,
        errors: *mut Option<Box<hubrouter_error>>,
        error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
    ) -> hubrouter_status,
    pub hubrouter_router_json: unsafe extern "C" fn(
        router: Option<&hubrouter_router>,
        buffer: *mut c_char,
        capacity: usize,
        length: Option<&mut MaybeUninit<usize>>,
        error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
    ) -> hubrouter_status,
    pub hubrouter_router_hub: unsafe extern "C" fn(
        router: Option<&hubrouter_router>,
        buffer: *mut c_char,
        capacity: usize,
        length: Option<&mut MaybeUninit<usize>>,
        error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
    ) -> hubrouter_status,
    pub hubrouter_router_generation: unsafe extern "C" fn(
        router: Option<&hubrouter_router>,
        buffer: *mut c_char,
        capacity: usize,
        length: Option<&mut MaybeUninit<usize>>,
        error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
    ) -> hubrouter_status,
    pub hubrouter_router_warm_up: extern "C" fn(
        router: Option<&hubrouter_router>,
        error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
    ) -> hubrouter_status,
    pub hubrouter_router_refresh: extern "C" fn(
        router: Option<&hubrouter_router>,
        changed: Option<&mut MaybeUninit<i32>>,
        error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
    ) -> hubrouter_status,
    pub hubrouter_router_install: unsafe extern "C" fn(
        router: Option<&hubrouter_router>,
        generation: *const c_char,
        generation_len: usize,
        error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
    ) -> hubrouter_status,
    pub hubrouter_router_rollback: extern "C" fn(
        router: Option<&hubrouter_router>,
        error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
    ) -> hubrouter_status,
    pub hubrouter_policy_compile: unsafe extern "C" fn(
        router: Option<&hubrouter_router>,
        json: *const c_char,
        json_len: usize,
        policy: Option<&mut MaybeUninit<Option<Box<hubrouter_policy>>>>,
        error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
    ) -> hubrouter_status,
    pub hubrouter_policy_candidates: unsafe extern "C" fn(
        router: Option<&hubrouter_router>,
        names: *const hubrouter_str,
        count: usize,
        policy: Option<&mut MaybeUninit<Option<Box<hubrouter_policy>>>>,
        error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
    ) -> hubrouter_status,
    pub hubrouter_policy_eligible: extern "C" fn(
        policy: Option<&hubrouter_policy>,
        eligible: Option<&mut MaybeUninit<usize>>,
        error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
    ) -> hubrouter_status,
    pub hubrouter_policy_json: unsafe extern "C" fn(
        policy: Option<&hubrouter_policy>,
        buffer: *mut c_char,
        capacity: usize,
        length: Option<&mut MaybeUninit<usize>>,
        error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
    ) -> hubrouter_status,
    pub hubrouter_policy_free: extern "C" fn(policy: Option<Box<hubrouter_policy>>),
    pub hubrouter_decision_summary: unsafe extern "C" fn(
        decision: Option<&hubrouter_decision>,
        summary: *mut hubrouter_summary,
        error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
    ) -> hubrouter_status,
    pub hubrouter_decision_ranked: unsafe extern "C" fn(
        decision: Option<&hubrouter_decision>,
        index: usize,
        ranked: *mut hubrouter_ranked,
        error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
    ) -> hubrouter_status,
    pub hubrouter_decision_deployment: extern "C" fn(
        decision: Option<&hubrouter_decision>,
        index: usize,
        deployment: usize,
        name: Option<&mut MaybeUninit<hubrouter_str>>,
        error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
    ) -> hubrouter_status,
    pub hubrouter_decision_domain: unsafe extern "C" fn(
        decision: Option<&hubrouter_decision>,
        index: usize,
        domain: *mut hubrouter_domain,
        error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
    ) -> hubrouter_status,
    pub hubrouter_decision_json: unsafe extern "C" fn(
        decision: Option<&hubrouter_decision>,
        buffer: *mut c_char,
        capacity: usize,
        length: Option<&mut MaybeUninit<usize>>,
        error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
    ) -> hubrouter_status,
    pub hubrouter_decision_free: extern "C" fn(decision: Option<Box<hubrouter_decision>>),
    pub hubrouter_chat_model: unsafe extern "C" fn(
        body: *const c_char,
        body_len: usize,
        buffer: *mut c_char,
        capacity: usize,
        length: Option<&mut MaybeUninit<usize>>,
        error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
    ) -> hubrouter_status,
    pub hubrouter_chat_with_model: unsafe extern "C" fn(
        body: *const c_char,
        body_len: usize,
        model: *const c_char,
        model_len: usize,
        buffer: *mut c_char,
        capacity: usize,
        length: Option<&mut MaybeUninit<usize>>,
        error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
    ) -> hubrouter_status,
}

/// The one table.
static FUNCTIONS: hubrouter_functions = hubrouter_functions {
    size: size_of::<hubrouter_functions>(),
    version: VERSION,
    hubrouter_version,
    hubrouter_status_name,
    hubrouter_error_status,
    hubrouter_error_message,
    hubrouter_error_free,
    hubrouter_router_open,
    hubrouter_router_open_generation,
    hubrouter_router_free,
    hubrouter_router_route,
    hubrouter_router_route_json,
    hubrouter_router_route_chat,
    hubrouter_router_route_batch,
    hubrouter_router_json,
    hubrouter_router_hub,
    hubrouter_router_generation,
    hubrouter_router_warm_up,
    hubrouter_router_refresh,
    hubrouter_router_install,
    hubrouter_router_rollback,
    hubrouter_policy_compile,
    hubrouter_policy_candidates,
    hubrouter_policy_eligible,
    hubrouter_policy_json,
    hubrouter_policy_free,
    hubrouter_decision_summary,
    hubrouter_decision_ranked,
    hubrouter_decision_deployment,
    hubrouter_decision_domain,
    hubrouter_decision_json,
    hubrouter_decision_free,
    hubrouter_chat_model,
    hubrouter_chat_with_model,
};

/// The version of the library, as `"0.1.0"`. It ends with NUL and is never freed.
#[unsafe(no_mangle)]
pub extern "C" fn hubrouter_version() -> *const c_char {
    const TEXT: &CStr =
        match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
            Ok(text) => text,
            Err(_) => panic!("a version has no NUL"),
        };
    TEXT.as_ptr()
}

/// The table of functions, or NULL if the library does not have `version` of this interface: this
/// header describes version 1. The table is never freed.
#[unsafe(no_mangle)]
pub extern "C" fn hubrouter_api(version: u32) -> Option<&'static hubrouter_functions> {
    (1..=VERSION).contains(&version).then_some(&FUNCTIONS)
}
