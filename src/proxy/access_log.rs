//! One JSON line a request. Laid out in a buffer of the thread, so that a logged request allocates nothing for it.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::context::Context;
use crate::telemetry::access::Writer;

/// Targets and agents longer than this are cut in the log.
const TEXT_BYTES_MAX: usize = 512;

/// What the line says of a request beside its [`Context`].
pub struct Line<'a> {
    pub method: &'a str,
    pub host: &'a str,
    pub target: &'a str,
    pub user_agent: Option<&'a [u8]>,
    pub route: &'a str,
    pub took: Duration,
}

/// Decides and writes.
#[derive(Clone)]
pub struct AccessWriter {
    writer: Option<Writer>,
}

impl AccessWriter {
    pub fn new(writer: Option<Writer>) -> AccessWriter {
        AccessWriter { writer }
    }

    /// Is there a log at all?
    pub fn is_on(&self) -> bool {
        self.writer.is_some()
    }

    /// Is a request with this status logged? Failures always are, unless the log is off.
    pub fn wants(&self, sample: f64, status: u16) -> bool {
        self.writer.is_some() && sample > 0.0 && (sample >= 1.0 || status >= 500 || fastrand::f64() < sample)
    }

    /// Writes the line of a request that has ended.
    pub fn write(&self, context: &Context, line: &Line<'_>) {
        thread_local! {
            static BUFFER: RefCell<String> = const { RefCell::new(String::new()) };
        }
        let Some(writer) = &self.writer else { return };
        BUFFER.with_borrow_mut(|buffer| {
            buffer.clear();
            lay_out(context, line, buffer);
            writer.line(buffer.as_bytes());
        });
    }
}

fn lay_out(context: &Context, line: &Line<'_>, out: &mut String) {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Writing to a String cannot fail.
    let _ = write!(out, "{{\"time\":{}.{:03},\"request_id\":", since.as_secs(), since.subsec_millis());
    text(context.id_bytes(), out);
    let _ = write!(
        out,
        ",\"client\":\"{}\",\"protocol\":\"{}\",\"method\":",
        context.downstream.peer, context.downstream.protocol
    );
    text(line.method.as_bytes(), out);
    out.push_str(",\"host\":");
    text(line.host.as_bytes(), out);
    out.push_str(",\"target\":");
    text(line.target.as_bytes(), out);
    let _ = write!(
        out,
        ",\"route\":\"{}\",\"status\":{},\"duration_ms\":{:.3},\"bytes_in\":{},\"bytes_out\":{},\"cache\":\"{}\"",
        line.route,
        context.status,
        line.took.as_secs_f64() * 1000.0,
        context.bytes_in,
        context.bytes_out,
        context.cache.as_str(),
    );
    if let Some(endpoint) = &context.endpoint {
        let _ = write!(out, ",\"endpoint\":\"{endpoint}\",\"retries\":{}", context.retries);
    }
    if let Some(failure) = context.failure {
        let _ = write!(out, ",\"failure\":\"{failure}\"");
    }
    if let Some(agent) = line.user_agent {
        out.push_str(",\"user_agent\":");
        text(agent, out);
    }
    out.push('}');
}

/// Appends bytes of the network as a JSON string; what is not visible ASCII is escaped as Latin-1.
fn text(bytes: &[u8], out: &mut String) {
    out.push('"');
    for byte in bytes.iter().take(TEXT_BYTES_MAX) {
        match byte {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            b' '..=b'~' => out.push(char::from(*byte)),
            other => {
                let _ = write!(out, "\\u00{other:02x}");
            }
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::super::context::Downstream;
    use super::*;

    #[test]
    fn lines_are_json_whatever_the_client_sent() {
        let mut context =
            Context::new(std::time::Instant::now(), Downstream::plain("[::1]:9".parse().unwrap()), false);
        context.endpoint = Some("127.0.0.1:1".into());
        context.failure = Some("connection_refused");
        let line = Line {
            method: "GET",
            host: "a\"b\\",
            target: "/\u{7f}",
            user_agent: Some(b"\xff\0\n"),
            route: "rest",
            took: Duration::from_millis(3),
        };
        let mut out = String::new();
        lay_out(&context, &line, &mut out);
        let value: serde_json::Value = serde_json::from_str(&out).expect(&out);
        assert_eq!(
            (value["host"].as_str(), value["endpoint"].as_str()),
            (Some("a\"b\\"), Some("127.0.0.1:1"))
        );
    }
}
