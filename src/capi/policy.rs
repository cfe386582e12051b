//! Policies and candidate sets, compiled for a router.

use std::ffi::c_char;
use std::mem::MaybeUninit;
use std::sync::Arc;

use serde_json::json;

use crate::capi::error::{call, free, hubrouter_error, needed, place};
use crate::capi::router::hubrouter_router;
use crate::capi::status::hubrouter_status;
use crate::capi::strings::{self, copy, hubrouter_str, items, parsed, text};
use crate::route::{Policy, PolicyHandle, Router};

/// Which models may answer, compiled for the router that made it. The caller frees it, before or
/// after the router. After another generation was installed the next request compiles it again.
#[derive(Debug)]
pub struct hubrouter_policy {
    pub(super) router: Arc<Router>,
    pub(super) handle: PolicyHandle,
}

/// Compiles a policy, given as JSON: `docs/policy.md` has its fields.
///
/// Fails with `HUBROUTER_FORMAT` or `HUBROUTER_INVALID_REQUEST` if it is no policy or names a model
/// that the hub does not have. That it admits no model is no failure here.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hubrouter_policy_compile(
    router: Option<&hubrouter_router>,
    json: *const c_char,
    json_len: usize,
    policy: Option<&mut MaybeUninit<Option<Box<hubrouter_policy>>>>,
    error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
) -> hubrouter_status {
    call("hubrouter_policy_compile", error, || {
        let out = place(policy, "policy")?;
        let router = &needed(router, "router")?.0;
        // SAFETY: the contract of the header.
        let json = unsafe { text(json, json_len, "policy") }?;
        let handle = router.compile(&parsed(json, "policy")?)?;
        let router = Arc::clone(router);
        *out = Some(Box::new(hubrouter_policy { router, handle }));
        Ok(())
    })
}

/// Compiles the policy that admits the models of these names alone.
///
/// Fails with `HUBROUTER_INVALID_REQUEST` if the hub lacks a name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hubrouter_policy_candidates(
    router: Option<&hubrouter_router>,
    names: *const hubrouter_str,
    count: usize,
    policy: Option<&mut MaybeUninit<Option<Box<hubrouter_policy>>>>,
    error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
) -> hubrouter_status {
    call("hubrouter_policy_candidates", error, || {
        let out = place(policy, "policy")?;
        let router = &needed(router, "router")?.0;
        // SAFETY: the contract of the header.
        let names = unsafe { items(names, count, "names") }?;
        let name = |(n, name): (usize, &hubrouter_str)| {
            // SAFETY: the contract of the header.
            unsafe { text(name.ptr, name.len, &format!("names[{n}]")) }
        };
        let names: Vec<&str> = names
            .iter()
            .enumerate()
            .map(name)
            .collect::<Result<_, _>>()?;
        let handle = router.compile(&Policy::default().candidates(names))?;
        let router = Arc::clone(router);
        *out = Some(Box::new(hubrouter_policy { router, handle }));
        Ok(())
    })
}

/// Writes how many models may answer a request, its needs aside; 0 if none may.
#[unsafe(no_mangle)]
pub extern "C" fn hubrouter_policy_eligible(
    policy: Option<&hubrouter_policy>,
    eligible: Option<&mut MaybeUninit<usize>>,
    error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
) -> hubrouter_status {
    call("hubrouter_policy_eligible", error, || {
        let eligible = needed(eligible, "eligible")?.write(0);
        *eligible = needed(policy, "policy")?.handle.eligible();
        Ok(())
    })
}

/// Copies a report as JSON into `buffer`: the policy, the generation that it was compiled for, how
/// many models are eligible, and what excluded the others. `length` as in
/// `hubrouter_decision_json`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hubrouter_policy_json(
    policy: Option<&hubrouter_policy>,
    buffer: *mut c_char,
    capacity: usize,
    length: Option<&mut MaybeUninit<usize>>,
    error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
) -> hubrouter_status {
    call("hubrouter_policy_json", error, || {
        let handle = &needed(policy, "policy")?.handle;
        let report = json!({
            "schema_version": 1,
            "policy": handle.policy(),
            "generation": handle.generation(),
            "eligible": handle.eligible(),
            "excluded": handle.excluded(),
        });
        // SAFETY: the contract of the header.
        unsafe { copy(&strings::json(&report)?, buffer, capacity, length) }
    })
}

/// Frees a policy. NULL is allowed.
#[unsafe(no_mangle)]
pub extern "C" fn hubrouter_policy_free(policy: Option<Box<hubrouter_policy>>) {
    free(policy);
}
