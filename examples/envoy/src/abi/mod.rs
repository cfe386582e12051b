//! The part of Envoy's interface for dynamic modules that the filter uses, declared by hand after
//! `source/extensions/dynamic_modules/abi/abi.h` of Envoy 1.39 and 1.40.
//!
//! [`host`] has safe calls into Envoy, [`hooks`] the functions that Envoy calls. Nothing else of
//! the crate is `unsafe`.
#![expect(unsafe_code, reason = "a C interface")]

mod hooks;
mod host;
#[cfg(test)]
mod tests;

use std::ffi::{c_char, c_uint, c_void};

pub(crate) use host::{
    BodyPart, ConfigHost, CounterId, HistogramId, Scheduler, Stream, follow_log,
};

/// The version of the interface that this module is built for. Envoy 1.39 has it; 1.40 has v0.2.0,
/// promises to serve modules of the version before, and logs a warning.
const VERSION: &std::ffi::CStr = c"v0.1.0";

/// `envoy_dynamic_module_type_envoy_buffer`: bytes of Envoy's.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct EnvoyBuffer {
    pub(crate) ptr: *const c_char,
    pub(crate) length: usize,
}

/// `envoy_dynamic_module_type_module_buffer`: bytes of this module's.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct ModuleBuffer {
    pub(crate) ptr: *const c_char,
    pub(crate) length: usize,
}

// The types are pairs of words, and Envoy passes them by value.
const _: () = assert!(size_of::<EnvoyBuffer>() == 2 * size_of::<usize>());
const _: () = assert!(size_of::<ModuleBuffer>() == 2 * size_of::<usize>());

/// `envoy_dynamic_module_type_http_header_type_RequestHeader`.
const REQUEST_HEADER: c_uint = 0;

/// `envoy_dynamic_module_type_metrics_result_Success`.
const METRIC_OK: c_uint = 0;

unsafe extern "C" {
    fn envoy_dynamic_module_callback_log(level: c_uint, message: ModuleBuffer);
    fn envoy_dynamic_module_callback_log_enabled(level: c_uint) -> bool;
    fn envoy_dynamic_module_callback_http_filter_config_define_counter(
        config: *mut c_void,
        name: ModuleBuffer,
        label_names: *mut ModuleBuffer,
        label_names_length: usize,
        id: *mut usize,
    ) -> c_uint;
    fn envoy_dynamic_module_callback_http_filter_config_define_histogram(
        config: *mut c_void,
        name: ModuleBuffer,
        label_names: *mut ModuleBuffer,
        label_names_length: usize,
        id: *mut usize,
    ) -> c_uint;
    fn envoy_dynamic_module_callback_http_filter_increment_counter(
        filter: *mut c_void,
        id: usize,
        label_values: *mut ModuleBuffer,
        label_values_length: usize,
        value: u64,
    ) -> c_uint;
    fn envoy_dynamic_module_callback_http_filter_record_histogram_value(
        filter: *mut c_void,
        id: usize,
        label_values: *mut ModuleBuffer,
        label_values_length: usize,
        value: u64,
    ) -> c_uint;
    fn envoy_dynamic_module_callback_http_get_header(
        filter: *mut c_void,
        kind: c_uint,
        key: ModuleBuffer,
        value: *mut EnvoyBuffer,
        index: usize,
        count: *mut usize,
    ) -> bool;
    fn envoy_dynamic_module_callback_http_set_header(
        filter: *mut c_void,
        kind: c_uint,
        key: ModuleBuffer,
        value: ModuleBuffer,
    ) -> bool;
    fn envoy_dynamic_module_callback_http_get_body_size(filter: *mut c_void, part: c_uint)
    -> usize;
    fn envoy_dynamic_module_callback_http_get_body_chunks_size(
        filter: *mut c_void,
        part: c_uint,
    ) -> usize;
    fn envoy_dynamic_module_callback_http_get_body_chunks(
        filter: *mut c_void,
        part: c_uint,
        chunks: *mut EnvoyBuffer,
    ) -> bool;
    fn envoy_dynamic_module_callback_http_drain_body(
        filter: *mut c_void,
        part: c_uint,
        bytes: usize,
    ) -> bool;
    fn envoy_dynamic_module_callback_http_append_body(
        filter: *mut c_void,
        part: c_uint,
        data: ModuleBuffer,
    ) -> bool;
    fn envoy_dynamic_module_callback_http_get_buffer_limit(filter: *mut c_void) -> u64;
    fn envoy_dynamic_module_callback_http_set_buffer_limit(filter: *mut c_void, limit: u64);
    fn envoy_dynamic_module_callback_http_clear_route_cache(filter: *mut c_void);
    fn envoy_dynamic_module_callback_http_filter_continue_decoding(filter: *mut c_void);
    fn envoy_dynamic_module_callback_http_filter_scheduler_new(filter: *mut c_void) -> *mut c_void;
    fn envoy_dynamic_module_callback_http_filter_scheduler_delete(scheduler: *mut c_void);
    fn envoy_dynamic_module_callback_http_filter_scheduler_commit(
        scheduler: *mut c_void,
        event: u64,
    );
}
