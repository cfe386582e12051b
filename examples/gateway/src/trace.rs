//! W3C trace context: a request continues its client's trace, and the upstream's call is a child.

use std::fmt::Write;

use http::{HeaderMap, HeaderName, HeaderValue};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Where a request stands in a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    pub trace_id: String,
    /// The client's span, if it sent one.
    pub parent_id: Option<String>,
    /// The gateway's own span.
    pub span_id: String,
    flags: String,
}

impl TraceContext {
    /// Continues the trace of `headers`, or begins one.
    pub fn of(headers: &HeaderMap) -> Self {
        let given = headers
            .get(TRACEPARENT)
            .and_then(|value| value.to_str().ok());
        let span_id = random(8);
        match given.and_then(parsed) {
            Some((trace_id, parent_id, flags)) => Self {
                trace_id: trace_id.to_owned(),
                parent_id: Some(parent_id.to_owned()),
                span_id,
                flags: flags.to_owned(),
            },
            None => Self {
                trace_id: random(16),
                parent_id: None,
                span_id,
                flags: "01".to_owned(),
            },
        }
    }

    /// The id of a span for the upstream's call, which `headers` name from now on. `tracestate`
    /// stays if it belongs to the trace.
    pub fn child(&self, headers: &mut HeaderMap) -> String {
        let span_id = random(8);
        let value = format!("00-{}-{span_id}-{}", self.trace_id, self.flags);
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(TRACEPARENT, value);
        }
        if self.parent_id.is_none() {
            headers.remove(TRACESTATE);
        }
        span_id
    }
}

/// Trace, parent and flags of a `traceparent`. Of a later version the first four fields count.
fn parsed(value: &str) -> Option<(&str, &str, &str)> {
    let mut fields = value.trim().split('-');
    let mut field = |length: usize| {
        let hex = |c: u8| matches!(c, b'0'..=b'9' | b'a'..=b'f');
        fields
            .next()
            .filter(|field| field.len() == length && field.bytes().all(hex))
    };
    let (version, trace_id, parent_id, flags) = (field(2)?, field(32)?, field(16)?, field(2)?);
    let is_last = fields.next().is_none();
    let zero = |id: &str| id.bytes().all(|c| c == b'0');
    let known = version != "ff" && (version != "00" || is_last);
    (known && !zero(trace_id) && !zero(parent_id)).then_some((trace_id, parent_id, flags))
}

/// So many random bytes, in hexadecimal digits; never all 0.
fn random(bytes: usize) -> String {
    let mut id = vec![0; bytes];
    if getrandom::fill(&mut id).is_err() || id.iter().all(|byte| *byte == 0) {
        id[0] = 1;
    }
    id.iter()
        .fold(String::with_capacity(2 * bytes), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const GIVEN: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn headers(traceparent: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT, traceparent.parse().unwrap());
        headers.insert(TRACESTATE, "vendor=1".parse().unwrap());
        headers
    }

    #[test]
    fn a_trace_goes_on_with_a_span_of_its_own() {
        let mut headers = headers(GIVEN);
        let context = TraceContext::of(&headers);
        assert_eq!(context.trace_id, &GIVEN[3..35]);
        assert_eq!(context.parent_id.as_deref(), Some(&GIVEN[36..52]));
        let child = context.child(&mut headers);
        assert_ne!(child, context.span_id);
        assert_eq!(headers[TRACEPARENT], format!("{}{child}-01", &GIVEN[..36]));
        assert_eq!(headers[TRACESTATE], "vendor=1");
    }

    #[test]
    fn a_malformed_parent_begins_a_trace() {
        for bad in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
        ] {
            let mut headers = headers(bad);
            let context = TraceContext::of(&headers);
            assert_eq!(context.parent_id, None, "{bad}");
            context.child(&mut headers);
            assert!(parsed(headers[TRACEPARENT].to_str().unwrap()).is_some());
            assert!(!headers.contains_key(TRACESTATE));
        }
        let later = GIVEN.replacen("00", "01", 1) + "-more";
        assert!(TraceContext::of(&headers(&later)).parent_id.is_some());
    }
}
