//! The functions that Envoy calls. It refuses a module that lacks one of them.
//!
//! No panic leaves a hook, and where one happens the request goes on.

use std::ffi::{c_char, c_uint, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::*;
use crate::filter::{Filter, Next, Shared};

/// `..._request_headers_status_Continue`, and of bodies and trailers.
pub(super) const CONTINUE: c_uint = 0;
/// `..._request_headers_status_StopIteration`, `..._request_body_status_StopIterationAndBuffer` and
/// `..._request_trailers_status_StopIteration`.
const HOLD: c_uint = 1;

fn status(next: Next) -> c_uint {
    match next {
        Next::GoOn => CONTINUE,
        Next::Hold => HOLD,
    }
}

/// What `job` returns, or `otherwise` if it panics.
pub(super) fn guarded<R>(otherwise: R, job: impl FnOnce() -> R) -> R {
    // Filters allow for it: they take their state out before they change it.
    match catch_unwind(AssertUnwindSafe(job)) {
        Ok(result) => result,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            log::error!("panicked: {}", text.unwrap_or("without a word"));
            // It may be of a type whose drop panics.
            std::mem::forget(panic);
            otherwise
        }
    }
}

/// What `hook` makes of a stream and its filter, or `otherwise` if it panics.
///
/// # Safety
///
/// `stream` is a stream of Envoy's, on its worker. `filter` is its filter, which
/// [`envoy_dynamic_module_on_http_filter_new`] made and which was not destroyed; no other reference
/// to it lasts.
unsafe fn hooked<R>(
    otherwise: R,
    stream: *mut c_void,
    filter: *const c_void,
    hook: impl FnOnce(&mut Filter, &mut Stream<'_>) -> R,
) -> R {
    guarded(otherwise, || {
        // SAFETY: the caller's promise.
        let (mut stream, filter) = unsafe { (Stream::new(stream), &mut *filter.cast_mut().cast()) };
        hook(filter, &mut stream)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn envoy_dynamic_module_on_program_init() -> *const c_char {
    VERSION.as_ptr()
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn envoy_dynamic_module_on_http_filter_config_new(
    config: *mut c_void,
    _name: EnvoyBuffer,
    json: EnvoyBuffer,
) -> *const c_void {
    guarded(std::ptr::null(), || {
        follow_log();
        // SAFETY: Envoy passes its configuration and a text, both valid during the hook.
        let (mut host, json) = unsafe { (ConfigHost::new(config), json.bytes()) };
        match Shared::open(&mut host, json) {
            Ok(shared) => Arc::into_raw(shared).cast(),
            Err(why) => {
                log::error!("configuration: {why}");
                std::ptr::null()
            }
        }
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn envoy_dynamic_module_on_http_filter_config_destroy(
    config: *const c_void,
) {
    // Null if it was refused.
    if !config.is_null() {
        guarded((), || {
            // SAFETY: `config_new` made it, and Envoy does not use it any more.
            drop(unsafe { Arc::<Shared>::from_raw(config.cast()) });
        });
    }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn envoy_dynamic_module_on_http_filter_new(
    config: *const c_void,
    _filter: *mut c_void,
) -> *const c_void {
    // SAFETY: `config_new` made it, and Envoy keeps it while it makes filters. The count of owners
    // grows by this filter.
    let shared = unsafe {
        Arc::<Shared>::increment_strong_count(config.cast());
        Arc::<Shared>::from_raw(config.cast())
    };
    Box::into_raw(Box::new(Filter::new(shared)))
        .cast_const()
        .cast()
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn envoy_dynamic_module_on_http_filter_destroy(filter: *const c_void) {
    guarded((), || {
        // SAFETY: `filter_new` made it, and Envoy does not use it any more. Hooks hold no reference
        // when they call what may destroy it.
        drop(unsafe { Box::<Filter>::from_raw(filter.cast_mut().cast()) });
    });
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn envoy_dynamic_module_on_http_filter_request_headers(
    stream: *mut c_void,
    filter: *const c_void,
    end: bool,
) -> c_uint {
    // SAFETY: Envoy passes a stream and its filter, on the stream's worker.
    unsafe {
        hooked(CONTINUE, stream, filter, |filter, stream| {
            status(filter.headers(stream, end))
        })
    }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn envoy_dynamic_module_on_http_filter_request_body(
    stream: *mut c_void,
    filter: *const c_void,
    end: bool,
) -> c_uint {
    // SAFETY: Envoy passes a stream and its filter, on the stream's worker.
    unsafe {
        hooked(CONTINUE, stream, filter, |filter, stream| {
            status(filter.body(stream, end))
        })
    }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn envoy_dynamic_module_on_http_filter_request_trailers(
    stream: *mut c_void,
    filter: *const c_void,
) -> c_uint {
    // SAFETY: Envoy passes a stream and its filter, on the stream's worker.
    unsafe {
        hooked(CONTINUE, stream, filter, |filter, stream| {
            status(filter.trailers(stream))
        })
    }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn envoy_dynamic_module_on_http_filter_scheduled(
    stream: *mut c_void,
    filter: *const c_void,
    _event: u64,
) {
    // A request that waited goes on after a panic, too.
    // SAFETY: Envoy passes a stream and its filter, on the stream's worker.
    let resumes = unsafe { hooked(true, stream, filter, Filter::scheduled) };
    if resumes {
        // SAFETY: Envoy passes a stream. The reference to its filter has ended.
        unsafe { Stream::new(stream) }.go_on();
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn envoy_dynamic_module_on_http_filter_response_headers(
    _stream: *mut c_void,
    _filter: *const c_void,
    _end: bool,
) -> c_uint {
    CONTINUE
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn envoy_dynamic_module_on_http_filter_response_body(
    _stream: *mut c_void,
    _filter: *const c_void,
    _end: bool,
) -> c_uint {
    CONTINUE
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn envoy_dynamic_module_on_http_filter_response_trailers(
    _stream: *mut c_void,
    _filter: *const c_void,
) -> c_uint {
    CONTINUE
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn envoy_dynamic_module_on_http_filter_stream_complete(
    _stream: *mut c_void,
    _filter: *const c_void,
) {
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn envoy_dynamic_module_on_http_filter_downstream_above_write_buffer_high_watermark(
    _stream: *mut c_void,
    _filter: *const c_void,
) {
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn envoy_dynamic_module_on_http_filter_downstream_below_write_buffer_low_watermark(
    _stream: *mut c_void,
    _filter: *const c_void,
) {
}

// The filter calls nobody, so that these are never called.

#[unsafe(no_mangle)]
pub(super) extern "C" fn envoy_dynamic_module_on_http_filter_http_callout_done(
    _stream: *mut c_void,
    _filter: *const c_void,
    _callout: u64,
    _result: c_uint,
    _headers: *mut c_void,
    _headers_size: usize,
    _chunks: *mut EnvoyBuffer,
    _chunks_size: usize,
) {
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn envoy_dynamic_module_on_http_filter_http_stream_headers(
    _stream: *mut c_void,
    _filter: *const c_void,
    _id: u64,
    _headers: *mut c_void,
    _headers_size: usize,
    _end: bool,
) {
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn envoy_dynamic_module_on_http_filter_http_stream_data(
    _stream: *mut c_void,
    _filter: *const c_void,
    _id: u64,
    _chunks: *const EnvoyBuffer,
    _chunks_size: usize,
    _end: bool,
) {
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn envoy_dynamic_module_on_http_filter_http_stream_trailers(
    _stream: *mut c_void,
    _filter: *const c_void,
    _id: u64,
    _trailers: *mut c_void,
    _trailers_size: usize,
) {
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn envoy_dynamic_module_on_http_filter_http_stream_complete(
    _stream: *mut c_void,
    _filter: *const c_void,
    _id: u64,
) {
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn envoy_dynamic_module_on_http_filter_http_stream_reset(
    _stream: *mut c_void,
    _filter: *const c_void,
    _id: u64,
    _reason: c_uint,
) {
}
