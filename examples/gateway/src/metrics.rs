//! What is counted, in the text formats of Prometheus and OpenMetrics.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64};

use hubrouter::layer::{RouteReason, RouteRecord};
use hubrouter::{Router, StoreWatch};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text::encode};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::gateway::{APIS, Upstream};

/// Seconds: a hit of the cache takes some microseconds, a computation milliseconds.
const ROUTE: [f64; 13] = [
    25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3, 0.5,
];

/// Seconds until an upstream begins to answer, or has answered.
const ANSWER: [f64; 12] = [
    0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct RequestLabels {
    pub api: &'static str,
    pub code: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct DecisionLabels {
    pub api: &'static str,
    pub reason: &'static str,
    pub fallback: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ModelLabels {
    pub model: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct CachedLabels {
    pub cached: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct UpstreamLabels {
    pub upstream: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct UpstreamErrorLabels {
    pub upstream: String,
    pub kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ReloadLabels {
    pub what: &'static str,
    pub result: &'static str,
}

type Latency<L> = Family<L, Histogram, fn() -> Histogram>;

#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    pub requests: Family<RequestLabels, Counter>,
    pub request_duration: Histogram,
    pub open_requests: Gauge,
    pub open_connections: Gauge,
    pub broken_connections: Counter,
    decisions: Family<DecisionLabels, Counter>,
    routed: Family<ModelLabels, Counter>,
    route_duration: Latency<CachedLabels>,
    pub upstream_duration: Latency<UpstreamLabels>,
    pub upstream_errors: Family<UpstreamErrorLabels, Counter>,
    pub changes: Family<ReloadLabels, Counter>,
    pub explanations: Counter,
    pub feedback_lost: Counter,
}

impl Metrics {
    pub fn new(
        router: Arc<Router>,
        watch: Option<Arc<StoreWatch>>,
        upstreams: &[Upstream],
    ) -> Self {
        let route = || Histogram::new(ROUTE);
        let answer = || Histogram::new(ANSWER);
        let mut metrics = Self {
            registry: Registry::default(),
            requests: Family::default(),
            request_duration: answer(),
            open_requests: Gauge::<i64, AtomicI64>::default(),
            open_connections: Gauge::<i64, AtomicI64>::default(),
            broken_connections: Counter::<u64, AtomicU64>::default(),
            decisions: Family::default(),
            routed: Family::default(),
            route_duration: Family::new_with_constructor(route),
            upstream_duration: Family::new_with_constructor(answer),
            upstream_errors: Family::default(),
            changes: Family::default(),
            explanations: Counter::default(),
            feedback_lost: Counter::default(),
        };
        metrics.begin_with_zeros(upstreams);
        metrics.register(RouterCollector { router, watch });
        metrics
    }

    /// Rates and alerts need a zero before the first event.
    fn begin_with_zeros(&self, upstreams: &[Upstream]) {
        for (api, _) in APIS {
            let api = crate::config::api_name(api);
            for reason in RouteReason::ALL {
                let reason = reason.as_str();
                for fallback in ["false", "true"] {
                    let labels = DecisionLabels {
                        api,
                        reason,
                        fallback,
                    };
                    drop(self.decisions.get_or_create(&labels));
                }
            }
        }
        for cached in ["false", "true"] {
            drop(self.route_duration.get_or_create(&CachedLabels { cached }));
        }
        for upstream in upstreams {
            let name = || upstream.name.clone();
            let labels = UpstreamLabels { upstream: name() };
            drop(self.upstream_duration.get_or_create(&labels));
            for kind in ["connect", "timeout", "server_error"] {
                let labels = UpstreamErrorLabels {
                    upstream: name(),
                    kind,
                };
                drop(self.upstream_errors.get_or_create(&labels));
            }
            for model in &upstream.models {
                let labels = ModelLabels {
                    model: model.name.clone(),
                };
                drop(self.routed.get_or_create(&labels));
            }
        }
        for what in ["reload", "rollback"] {
            for result in ["changed", "unchanged", "error"] {
                drop(self.changes.get_or_create(&ReloadLabels { what, result }));
            }
        }
    }

    fn register(&mut self, router: RouterCollector) {
        let registry = &mut self.registry;
        registry.register_collector(Box::new(router));
        let registry = registry.sub_registry_with_prefix("hubrouter");
        registry.register(
            "gateway_requests",
            "Requests to the three APIs, by status code",
            self.requests.clone(),
        );
        registry.register_with_unit(
            "gateway_request_duration",
            "From the head of a request to the head of its answer",
            Unit::Seconds,
            self.request_duration.clone(),
        );
        registry.register(
            "gateway_open_requests",
            "Requests whose answer has not ended",
            self.open_requests.clone(),
        );
        registry.register(
            "gateway_open_connections",
            "Connections of clients",
            self.open_connections.clone(),
        );
        registry.register(
            "gateway_broken_connections",
            "Connections that ended with an error of HTTP, such as a head that was too large",
            self.broken_connections.clone(),
        );
        registry.register(
            "decisions",
            "Requests for a routed model, by why they went where they went",
            self.decisions.clone(),
        );
        registry.register(
            "routed_requests",
            "Requests for a routed model, by the model that they went to",
            self.routed.clone(),
        );
        registry.register_with_unit(
            "route_duration",
            "From the end of a body to the model",
            Unit::Seconds,
            self.route_duration.clone(),
        );
        registry.register_with_unit(
            "upstream_duration",
            "From the call of an upstream to the head of its answer",
            Unit::Seconds,
            self.upstream_duration.clone(),
        );
        registry.register(
            "upstream_errors",
            "Calls of an upstream that failed, or that it answered with 5xx",
            self.upstream_errors.clone(),
        );
        registry.register(
            "generation_changes",
            "Calls of reload and rollback",
            self.changes.clone(),
        );
        registry.register("explanations", "Dry runs", self.explanations.clone());
        registry.register(
            "feedback_lost",
            "Lines that could not be written",
            self.feedback_lost.clone(),
        );
    }

    /// Counts a decision.
    pub fn decided(&self, api: &'static str, record: &RouteRecord) {
        let reason = record.reason.as_str();
        let fallback = if record.fallback { "true" } else { "false" };
        self.decisions
            .get_or_create(&DecisionLabels {
                api,
                reason,
                fallback,
            })
            .inc();
        if let Some(model) = &record.model {
            let labels = ModelLabels {
                model: model.to_string(),
            };
            self.routed.get_or_create(&labels).inc();
        }
        let cached = record
            .decision
            .as_ref()
            .is_some_and(|decision| decision.cached);
        let labels = CachedLabels {
            cached: if cached { "true" } else { "false" },
        };
        self.route_duration
            .get_or_create(&labels)
            .observe(record.elapsed.as_secs_f64());
    }

    /// The text; in Prometheus's own format unless `open` asks for OpenMetrics.
    pub fn text(&self, open: bool) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(if open { text } else { prometheus(&text) })
    }
}

/// OpenMetrics as the older format: a counter's or an info's type names the sample as it is
/// spelled, and there is no unit and no end.
fn prometheus(open: &str) -> String {
    let mut text = String::with_capacity(open.len());
    let mut help = None;
    for line in open.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line
            .strip_prefix("# TYPE ")
            .and_then(|rest| rest.split_once(' '))
        {
            let (name, kind) = match kind {
                "counter" => (format!("{name}_total"), "counter"),
                "info" => (format!("{name}_info"), "gauge"),
                kind => (name.to_owned(), kind),
            };
            if let Some((_, help)) = help.take() {
                text += &format!("# HELP {name} {help}\n");
            }
            text += &format!("# TYPE {name} {kind}\n");
        } else if !line.starts_with('#') {
            text += line;
            text.push('\n');
        }
    }
    // HELP comes before TYPE in both; `encode` writes it first.
    text
}

/// What the router counts itself, and this process.
#[derive(Debug)]
struct RouterCollector {
    router: Arc<Router>,
    watch: Option<Arc<StoreWatch>>,
}

impl Collector for RouterCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let stats = self.router.stats();
        let mut counter = |name: &str, help: &str, value: u64| {
            let metric = ConstCounter::new(value);
            let descriptor = encoder.encode_descriptor(name, help, None, metric.metric_type())?;
            metric.encode(descriptor)
        };
        let cache = stats.cache.unwrap_or_default();
        counter(
            "hubrouter_cache_hits",
            "Decisions that were made before",
            cache.hits,
        )?;
        counter(
            "hubrouter_cache_misses",
            "Decisions that were not",
            cache.misses,
        )?;
        counter(
            "hubrouter_cache_evictions",
            "Decisions that made room",
            cache.evictions,
        )?;
        let queue = stats.queue.unwrap_or_default();
        counter(
            "hubrouter_queue_refused",
            "Calls that found the queue full",
            queue.refused,
        )?;
        let (reloads, errors) = self
            .watch
            .as_ref()
            .map_or((0, 0), |watch| (watch.reloads(), watch.errors()));
        counter(
            "hubrouter_watch_reloads",
            "Generations that came from the store",
            reloads,
        )?;
        counter(
            "hubrouter_watch_errors",
            "Looks at the store that failed",
            errors,
        )?;
        let mut gauge = |name: &str, help: &str, unit: Option<Unit>, value: f64| {
            let metric = ConstGauge::new(value);
            let kind = metric.metric_type();
            let descriptor = encoder.encode_descriptor(name, help, unit.as_ref(), kind)?;
            metric.encode(descriptor)
        };
        #[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
        let real = |count: u64| count as f64;
        let bytes = || Some(Unit::Bytes);
        gauge(
            "hubrouter_cache_used",
            "Memory of the cache",
            bytes(),
            real(cache.bytes),
        )?;
        gauge(
            "hubrouter_cache_capacity",
            "Its bound",
            bytes(),
            real(cache.capacity),
        )?;
        gauge(
            "hubrouter_queue_waiting",
            "Calls that wait",
            None,
            real(queue.waiting),
        )?;
        gauge(
            "hubrouter_queue_computing",
            "Calls that compute",
            None,
            real(queue.computing),
        )?;
        gauge(
            "hubrouter_sessions",
            "Conversations with a model",
            None,
            real(stats.sessions),
        )?;
        let active = real(self.router.hub().active() as u64);
        gauge(
            "hubrouter_hub_models",
            "Models that are not retired",
            None,
            active,
        )?;
        if let Some(resident) = resident_bytes() {
            let help = "Memory of this process in use";
            gauge("process_resident_memory", help, bytes(), resident)?;
        }
        let info = Info::new([
            ("generation", self.router.generation().as_str().to_owned()),
            ("precision", self.router.precision().to_string()),
            ("device", self.router.device_name()),
        ]);
        let help = "What is served";
        let descriptor =
            encoder.encode_descriptor("hubrouter_generation", help, None, info.metric_type())?;
        info.encode(descriptor)
    }
}

/// Of this process, on Linux.
fn resident_bytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::prometheus;

    #[test]
    fn open_metrics_become_the_older_format() {
        let open = "# HELP a_b Things.\n# TYPE a_b counter\na_b_total{x=\"1\"} 2\n\
                    # HELP t_seconds Time.\n# TYPE t_seconds histogram\n# UNIT t_seconds seconds\n\
                    t_seconds_sum 1.0\n# HELP g What.\n# TYPE g info\ng_info{v=\"1\"} 1\n# EOF\n";
        let want = "# HELP a_b_total Things.\n# TYPE a_b_total counter\na_b_total{x=\"1\"} 2\n\
                    # HELP t_seconds Time.\n# TYPE t_seconds histogram\nt_seconds_sum 1.0\n\
                    # HELP g_info What.\n# TYPE g_info gauge\ng_info{v=\"1\"} 1\n";
        assert_eq!(prometheus(open), want);
    }
}
