//! Counters and times, among Envoy's own: `/stats/prometheus` of its admin address has them as
//! `envoy_hubrouter_...`, with the `metrics_namespace` of `envoy.yaml`.

use hubrouter::ErrorKind;

use crate::abi::{ConfigHost, CounterId, HistogramId, Stream};
use crate::filter::Reason;

/// Made with the configuration; later Envoy takes no new ones.
#[derive(Debug)]
pub(crate) struct Metrics {
    decisions: CounterId<2>,
    cache_hits: CounterId<0>,
    errors: CounterId<1>,
    passed: CounterId<0>,
    route_us: HistogramId,
}

impl Metrics {
    /// Errors: Envoy refuses one.
    pub(crate) fn define(host: &mut ConfigHost<'_>) -> Result<Self, String> {
        let mut counters = || {
            Some(Self {
                decisions: host.counter("decisions", ["reason", "fallback"])?,
                cache_hits: host.counter("cache_hits", [])?,
                errors: host.counter("errors", ["kind"])?,
                passed: host.counter("passed", [])?,
                route_us: host.histogram("route_us")?,
            })
        };
        counters().ok_or_else(|| "expected Envoy to take metrics, and it refused one".to_owned())
    }

    /// A request whose model was to be routed; `fallback`: the configured model answers.
    pub(crate) fn decided(&self, stream: &Stream<'_>, reason: Reason, fallback: bool) {
        let fallback = if fallback { "true" } else { "false" };
        stream.count(self.decisions, [reason.word(), fallback]);
        if reason == Reason::Cached {
            stream.count(self.cache_hits, []);
        }
    }

    /// Microseconds from the end of a body to its model.
    pub(crate) fn took(&self, stream: &Stream<'_>, microseconds: u64) {
        stream.record(self.route_us, microseconds);
    }

    /// An error of the router.
    pub(crate) fn failed(&self, stream: &Stream<'_>, kind: ErrorKind) {
        let name = serde_json::to_value(kind).unwrap_or_default();
        stream.count(self.errors, [name.as_str().unwrap_or("other")]);
    }

    /// A request of a chat API that names a model of its own, or none.
    pub(crate) fn passed(&self, stream: &Stream<'_>) {
        stream.count(self.passed, []);
    }
}
