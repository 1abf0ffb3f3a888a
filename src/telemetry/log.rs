//! Events of `tracing` and records of `log`, filtered, to standard error.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::str::FromStr;
use std::time::Duration;

use prometheus::{IntCounter, Registry};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use super::{Error, sink::Sink};

/// How much may wait to be written: a burst of a few thousand events.
const CAPACITY_BYTES: usize = 1 << 20;

/// How long the end of the process waits for a slow reader of the last lines.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(1);

/// How an event is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people: one line, coloured on a terminal.
    #[default]
    Text,
    /// For collectors: one JSON object per line, the event's fields at its top level.
    Json,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Format, String> {
        match text {
            "text" => Ok(Format::Text),
            "json" => Ok(Format::Json),
            _ => Err(format!("{text:?} is neither \"text\" nor \"json\"")),
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Format::Text => "text",
            Format::Json => "json",
        })
    }
}

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// Default: text.
    pub format: Format,
    /// A level (`info`) or directives by target (`info,forefront::cache=debug`), as
    /// [`tracing_subscriber::EnvFilter`] takes them. Default: `info`.
    pub filter: String,
}

impl Default for LogConfig {
    fn default() -> LogConfig {
        LogConfig { format: Format::Text, filter: "info".to_owned() }
    }
}

impl LogConfig {
    /// Checks the filter without installing anything.
    ///
    /// # Errors
    /// [`Error::Filter`].
    pub fn check(&self) -> Result<(), Error> {
        self.parse().map(drop)
    }

    fn parse(&self) -> Result<EnvFilter, Error> {
        EnvFilter::builder()
            .parse(&self.filter)
            .map_err(|source| Error::Filter { filter: self.filter.clone(), source })
    }
}

/// The running log. Keep it until the process ends: dropping it waits up to a second for the last lines.
#[must_use = "the last lines are only waited for when this is dropped at the end"]
pub struct Log(Sink);

impl Log {
    /// Registers `forefront_telemetry_log_lines_dropped_total`.
    ///
    /// # Errors
    /// [`Error::Register`] when there is one in this registry already.
    pub fn register(&self, registry: &Registry) -> Result<(), Error> {
        registry.register(Box::new(self.0.dropped().clone())).map_err(Error::Register)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.0.flush(LAST_WORDS_TIMEOUT);
    }
}

/// Installs the subscriber of this process, and the bridge for records of the `log` crate.
///
/// Lines go to standard error through a thread; when nobody reads them, they are dropped and counted.
///
/// # Errors
/// [`Error::Filter`], [`Error::Thread`], or [`Error::AlreadySet`] when there is a subscriber already.
pub fn init(config: &LogConfig) -> Result<Log, Error> {
    let filter = config.parse()?;
    let stderr = std::io::stderr();
    let colours = stderr.is_terminal();
    let output = raw(&stderr).map_err(Error::Thread)?;
    let sink = start(Box::new(output))?;
    let layer = layer(config.format, colours, Lines(sink.clone()));
    tracing_subscriber::registry().with(filter).with(layer).try_init().map_err(Error::AlreadySet)?;
    Ok(Log(sink))
}

/// The descriptor behind a standard stream, without the lock and buffer of `std`, which a stuck reader would
/// leave held.
pub(super) fn raw(stream: &impl AsFd) -> std::io::Result<File> {
    stream.as_fd().try_clone_to_owned().map(File::from)
}

fn start(output: Box<dyn Write + Send>) -> Result<Sink, Error> {
    let dropped = IntCounter::new(
        "forefront_telemetry_log_lines_dropped_total",
        "Log lines dropped because their reader was too slow or gone.",
    )
    .map_err(Error::Register)?;
    Sink::start("log", output, CAPACITY_BYTES, dropped).map_err(Error::Thread)
}

fn layer<S>(format: Format, colours: bool, lines: Lines) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(lines);
    match format {
        Format::Text => layer.with_ansi(colours).boxed(),
        Format::Json => layer.json().flatten_event(true).with_span_list(false).boxed(),
    }
}

/// Gives each event a writer; the formatter writes an event in one call.
struct Lines(Sink);

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(&self.0)
    }
}

struct Line<'a>(&'a Sink);

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.line(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is written for one event under the given settings.
    fn written(config: &LogConfig, event: impl FnOnce()) -> String {
        let (mut read, write) = std::io::pipe().unwrap();
        let sink = start(Box::new(write)).unwrap();
        let layer = layer(config.format, false, Lines(sink.clone()));
        let subscriber = tracing_subscriber::registry().with(config.parse().unwrap()).with(layer);
        tracing::subscriber::with_default(subscriber, event);
        assert!(sink.flush(Duration::from_secs(20)));
        drop(sink);
        let mut text = String::new();
        std::io::Read::read_to_string(&mut read, &mut text).unwrap();
        text
    }

    #[test]
    fn json_has_the_fields_at_the_top() {
        let config = LogConfig { format: Format::Json, ..LogConfig::default() };
        let text = written(&config, || tracing::warn!(endpoint = "a:1", "an endpoint went down"));
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["level"], "WARN");
        assert_eq!(line["endpoint"], "a:1");
        assert_eq!(line["message"], "an endpoint went down");
        assert!(line["timestamp"].is_string() && line["target"].is_string());
    }

    #[test]
    fn the_filter_holds() {
        let config = LogConfig { filter: "warn".to_owned(), ..LogConfig::default() };
        let text = written(&config, || {
            tracing::info!("quiet");
            tracing::error!("loud");
        });
        assert!(text.contains("loud") && !text.contains("quiet"), "{text}");
        assert_eq!(text.lines().count(), 1);
    }

    #[test]
    fn a_bad_filter_is_told() {
        let config = LogConfig { filter: "forefront=shout".to_owned(), ..LogConfig::default() };
        assert!(config.check().unwrap_err().to_string().contains("forefront=shout"));
        assert!(LogConfig::default().check().is_ok());
        assert_eq!("json".parse::<Format>(), Ok(Format::Json));
        assert!("yaml".parse::<Format>().is_err());
    }
}
