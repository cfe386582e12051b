//! The model that the body of a chat request names.

use std::ffi::c_char;
use std::mem::MaybeUninit;

use crate::capi::error::{call, hubrouter_error};
use crate::capi::status::hubrouter_status;
use crate::capi::strings::{copy, items, text, utf8};
use crate::error::{Result, error};
use crate::route::ChatModel;

/// Copies the model that the body of a chat request names to `buffer`. Only the key `model` of the
/// outermost object counts; the rest is not looked at but for its form as JSON.
///
/// Fails with `HUBROUTER_INVALID_REQUEST` if the body is no JSON object, or has no model, several,
/// or one that is no text.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hubrouter_chat_model(
    body: *const c_char,
    body_len: usize,
    buffer: *mut c_char,
    capacity: usize,
    length: Option<&mut MaybeUninit<usize>>,
    error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
) -> hubrouter_status {
    call("hubrouter_chat_model", error, || {
        // SAFETY: the contract of the header.
        let body = unsafe { items(body.cast::<u8>(), body_len, "body") }?;
        let found = found(body)?;
        // SAFETY: the contract of the header.
        unsafe { copy(&found.name, buffer, capacity, length) }
    })
}

/// Copies the body of a chat request to `buffer`, with `model` in place of the model that it names.
/// No other byte changes. A capacity of `body_len + 6 * model_len + 2` is always enough.
///
/// Fails as `hubrouter_chat_model` does, and if the body is not UTF-8.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hubrouter_chat_with_model(
    body: *const c_char,
    body_len: usize,
    model: *const c_char,
    model_len: usize,
    buffer: *mut c_char,
    capacity: usize,
    length: Option<&mut MaybeUninit<usize>>,
    error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
) -> hubrouter_status {
    call("hubrouter_chat_with_model", error, || {
        // SAFETY: the contract of the header.
        let body = unsafe { items(body.cast::<u8>(), body_len, "body") }?;
        // SAFETY: the contract of the header.
        let model = unsafe { text(model, model_len, "model") }?;
        let changed = found(body)?.replaced_in(body, model).ok_or_else(none)?;
        // SAFETY: the contract of the header.
        unsafe { copy(utf8(&changed, "body")?, buffer, capacity, length) }
    })
}

fn found(body: &[u8]) -> Result<ChatModel> {
    ChatModel::find(body).ok_or_else(none)
}

fn none() -> crate::error::Error {
    error!(
        InvalidRequest,
        "body: expected a JSON object with one key \"model\", whose value is text"
    )
}
