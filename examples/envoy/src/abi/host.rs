//! Safe calls into Envoy.

use std::ffi::{c_uint, c_void};
use std::marker::PhantomData;
use std::ptr::{null, null_mut};

use super::*;

impl ModuleBuffer {
    fn new(bytes: &[u8]) -> Self {
        Self {
            ptr: bytes.as_ptr().cast(),
            length: bytes.len(),
        }
    }

    /// Stands for no value at all.
    const NONE: Self = Self {
        ptr: null(),
        length: 0,
    };
}

impl EnvoyBuffer {
    const EMPTY: Self = Self {
        ptr: null(),
        length: 0,
    };

    /// # Safety
    ///
    /// Envoy gave the buffer, and nothing ends its bytes while `'b` lasts.
    pub(super) unsafe fn bytes<'b>(self) -> &'b [u8] {
        if self.ptr.is_null() {
            return &[];
        }
        // SAFETY: the caller promises that the bytes are there for `'b`.
        unsafe { std::slice::from_raw_parts(self.ptr.cast(), self.length) }
    }
}

/// A part of a request's body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BodyPart {
    /// What came with this call: `..._http_body_type_ReceivedRequestBody`.
    Received = 0,
    /// What was held back: `..._http_body_type_BufferedRequestBody`.
    Buffered = 1,
}

/// The id of a counter, and the number of its labels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CounterId<const LABELS: usize>(usize);

/// The id of a histogram without labels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HistogramId(usize);

/// A configuration of the filter, while it is being made.
pub(crate) struct ConfigHost<'hook> {
    raw: *mut c_void,
    hook: PhantomData<&'hook ()>,
}

impl ConfigHost<'_> {
    /// # Safety
    ///
    /// `raw` is the configuration that Envoy passed to the hook under way, which `'hook` does not
    /// outlive.
    pub(super) unsafe fn new(raw: *mut c_void) -> Self {
        Self {
            raw,
            hook: PhantomData,
        }
    }

    /// A counter with these labels. `None`: Envoy refuses.
    pub(crate) fn counter<const N: usize>(
        &mut self,
        name: &str,
        labels: [&str; N],
    ) -> Option<CounterId<N>> {
        let mut labels = labels.map(|label| ModuleBuffer::new(label.as_bytes()));
        let (name, mut id) = (ModuleBuffer::new(name.as_bytes()), 0);
        // SAFETY: the configuration is valid during the hook; Envoy reads the texts and writes the
        // id before it returns.
        let result = unsafe {
            envoy_dynamic_module_callback_http_filter_config_define_counter(
                self.raw,
                name,
                labels.as_mut_ptr(),
                N,
                &raw mut id,
            )
        };
        (result == METRIC_OK).then_some(CounterId(id))
    }

    /// A histogram. `None`: Envoy refuses.
    pub(crate) fn histogram(&mut self, name: &str) -> Option<HistogramId> {
        let (name, mut id) = (ModuleBuffer::new(name.as_bytes()), 0);
        // SAFETY: as for a counter.
        let result = unsafe {
            envoy_dynamic_module_callback_http_filter_config_define_histogram(
                self.raw,
                name,
                null_mut(),
                0,
                &raw mut id,
            )
        };
        (result == METRIC_OK).then_some(HistogramId(id))
    }
}

/// A stream, on its worker, while a hook runs.
///
/// Bytes of Envoy are borrowed from it, and what changes the stream borrows it mutably, so that no
/// bytes are read after a change.
pub(crate) struct Stream<'hook> {
    raw: *mut c_void,
    hook: PhantomData<&'hook ()>,
}

impl Stream<'_> {
    /// # Safety
    ///
    /// `raw` is the filter that Envoy passed to the hook under way, which `'hook` does not outlive.
    pub(super) unsafe fn new(raw: *mut c_void) -> Self {
        Self {
            raw,
            hook: PhantomData,
        }
    }

    /// The first value of a header of the request.
    pub(crate) fn header(&self, name: &str) -> Option<&[u8]> {
        let (name, mut value) = (ModuleBuffer::new(name.as_bytes()), EnvoyBuffer::EMPTY);
        // SAFETY: the stream is valid during the hook; Envoy reads the name and writes the value
        // before it returns, and takes null for the count.
        let found = unsafe {
            envoy_dynamic_module_callback_http_get_header(
                self.raw,
                REQUEST_HEADER,
                name,
                &raw mut value,
                0,
                null_mut(),
            )
        };
        if !found {
            return None;
        }
        // SAFETY: the value is valid until a setter is called or the hook ends; setters need the
        // stream mutably, and the stream ends with the hook.
        Some(unsafe { value.bytes() })
    }

    /// Sets a header of the request, in place of all its values.
    pub(crate) fn set_header(&mut self, name: &str, value: &[u8]) {
        self.put_header(name, ModuleBuffer::new(value));
    }

    /// Removes a header of the request. True if it was there.
    pub(crate) fn remove_header(&mut self, name: &str) -> bool {
        let there = self.header(name).is_some();
        if there {
            self.put_header(name, ModuleBuffer::NONE);
        }
        there
    }

    fn put_header(&mut self, name: &str, value: ModuleBuffer) {
        let name = ModuleBuffer::new(name.as_bytes());
        // SAFETY: the stream is valid during the hook, and Envoy copies both texts.
        unsafe {
            envoy_dynamic_module_callback_http_set_header(self.raw, REQUEST_HEADER, name, value);
        }
    }

    /// Bytes of a part of the body.
    pub(crate) fn body_size(&self, part: BodyPart) -> usize {
        // SAFETY: the stream is valid during the hook.
        unsafe { envoy_dynamic_module_callback_http_get_body_size(self.raw, part as c_uint) }
    }

    /// The body as far as it has come.
    pub(crate) fn body(&self) -> Vec<u8> {
        let parts = [BodyPart::Buffered, BodyPart::Received];
        let size = parts.iter().map(|part| self.body_size(*part)).sum();
        let mut body = Vec::with_capacity(size);
        for part in parts.map(|part| part as c_uint) {
            // SAFETY: the stream is valid during the hook.
            let count =
                unsafe { envoy_dynamic_module_callback_http_get_body_chunks_size(self.raw, part) };
            let mut chunks = vec![EnvoyBuffer::EMPTY; count];
            // SAFETY: there is room for as many chunks as Envoy counted, and nothing changed the
            // body since.
            let found = unsafe {
                envoy_dynamic_module_callback_http_get_body_chunks(
                    self.raw,
                    part,
                    chunks.as_mut_ptr(),
                )
            };
            for chunk in chunks.into_iter().filter(|_| found) {
                // SAFETY: the bytes are valid until the body changes, which needs the stream
                // mutably.
                body.extend_from_slice(unsafe { chunk.bytes() });
            }
        }
        body
    }

    /// Replaces the whole body. `into`: the part that gets it.
    pub(crate) fn set_body(&mut self, body: &[u8], into: BodyPart) {
        for part in [BodyPart::Buffered, BodyPart::Received] {
            let size = self.body_size(part);
            if size > 0 {
                // SAFETY: the stream is valid during the hook.
                unsafe {
                    envoy_dynamic_module_callback_http_drain_body(self.raw, part as c_uint, size);
                }
            }
        }
        let data = ModuleBuffer::new(body);
        // SAFETY: the stream is valid during the hook, and Envoy copies the bytes.
        unsafe {
            envoy_dynamic_module_callback_http_append_body(self.raw, into as c_uint, data);
        }
    }

    /// Lets Envoy hold `bytes` of this request and what comes with one more read, which is about as
    /// much as it would hold otherwise.
    pub(crate) fn hold_at_least(&mut self, bytes: u64) {
        // SAFETY: the stream is valid during the hook.
        let limit = unsafe { envoy_dynamic_module_callback_http_get_buffer_limit(self.raw) };
        // 0: there is no limit.
        if limit > 0 {
            let more = limit.max(1 << 20).saturating_mul(2);
            let bytes = bytes.saturating_add(more);
            // SAFETY: as above.
            unsafe { envoy_dynamic_module_callback_http_set_buffer_limit(self.raw, bytes) }
        }
    }

    /// Makes Envoy pick the route again.
    pub(crate) fn pick_route_again(&mut self) {
        // SAFETY: the stream is valid during the hook.
        unsafe { envoy_dynamic_module_callback_http_clear_route_cache(self.raw) }
    }

    /// A way back to this stream from another thread.
    pub(crate) fn scheduler(&mut self) -> Option<Scheduler> {
        // SAFETY: the stream is valid during the hook.
        let raw = unsafe { envoy_dynamic_module_callback_http_filter_scheduler_new(self.raw) };
        (!raw.is_null()).then_some(Scheduler { raw })
    }

    pub(crate) fn count<const N: usize>(&self, counter: CounterId<N>, labels: [&str; N]) {
        let mut labels = labels.map(|label| ModuleBuffer::new(label.as_bytes()));
        // SAFETY: the stream is valid during the hook, the counter is of its configuration, and
        // there are as many labels as the counter has.
        unsafe {
            envoy_dynamic_module_callback_http_filter_increment_counter(
                self.raw,
                counter.0,
                labels.as_mut_ptr(),
                N,
                1,
            );
        }
    }

    pub(crate) fn record(&self, histogram: HistogramId, value: u64) {
        // SAFETY: the stream is valid during the hook, and the histogram is of its configuration.
        unsafe {
            envoy_dynamic_module_callback_http_filter_record_histogram_value(
                self.raw,
                histogram.0,
                null_mut(),
                0,
                value,
            );
        }
    }

    /// Lets the request go on. Envoy may end the stream and free its filter meanwhile.
    pub(super) fn go_on(self) {
        // SAFETY: the stream is valid during the hook, and is not used afterwards.
        unsafe { envoy_dynamic_module_callback_http_filter_continue_decoding(self.raw) }
    }
}

/// A way back to a stream: its hook `scheduled` is called on its worker, if it is still there.
///
/// Envoy promises that a stream may be gone. It promises nothing about its worker: a scheduler is
/// used and dropped before its filter is destroyed, which [`crate::pool::Slot`] sees to.
pub(crate) struct Scheduler {
    raw: *mut c_void,
}

// SAFETY: it is made to be used from other threads, and `commit` and `delete` take it from any.
unsafe impl Send for Scheduler {}

impl Scheduler {
    pub(crate) fn wake(&self) {
        // SAFETY: the scheduler is deleted when it is dropped.
        unsafe { envoy_dynamic_module_callback_http_filter_scheduler_commit(self.raw, 0) }
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        // SAFETY: Envoy made it for this module to delete, and nothing has it any more.
        unsafe { envoy_dynamic_module_callback_http_filter_scheduler_delete(self.raw) }
    }
}

/// The log of Envoy, as component `dynamic_modules`.
struct EnvoyLog;

/// `envoy_dynamic_module_type_log_level`.
fn level(level: log::Level) -> c_uint {
    match level {
        log::Level::Trace => 0,
        log::Level::Debug => 1,
        log::Level::Info => 2,
        log::Level::Warn => 3,
        log::Level::Error => 4,
    }
}

impl log::Log for EnvoyLog {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        // SAFETY: Envoy's loggers are there from before a module is loaded, for all threads.
        unsafe { envoy_dynamic_module_callback_log_enabled(level(metadata.level())) }
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let text = format!("hubrouter: {}", record.args());
            // SAFETY: as for `enabled`, and Envoy copies the text.
            unsafe {
                envoy_dynamic_module_callback_log(
                    level(record.level()),
                    ModuleBuffer::new(text.as_bytes()),
                );
            }
        }
    }

    fn flush(&self) {}
}

/// Sends this module's log lines, and the library's, to Envoy.
pub(crate) fn follow_log() {
    // A second configuration finds it done.
    if log::set_logger(&EnvoyLog).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
}
