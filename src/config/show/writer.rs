//! Lines of TOML.

use std::fmt::Display;
use std::time::Duration;

use crate::config::units;

#[derive(Default)]
pub(super) struct Writer(String);

impl Writer {
    /// `[name]` or `[[name]]`, after an empty line.
    pub(super) fn header(&mut self, header: &str) {
        if !self.0.is_empty() {
            self.0.push('\n');
        }
        self.line(header);
    }

    pub(super) fn line(&mut self, line: &str) {
        self.0.push_str(line);
        self.0.push('\n');
    }

    /// A number or a flag.
    pub(super) fn plain(&mut self, key: &str, value: impl Display) {
        self.line(&format!("{key} = {value}"));
    }

    pub(super) fn text(&mut self, key: &str, value: impl Display) {
        self.plain(key, quoted(value));
    }

    pub(super) fn maybe_text(&mut self, key: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.text(key, value);
        }
    }

    pub(super) fn texts(&mut self, key: &str, values: impl IntoIterator<Item = impl Display>) {
        self.plain(key, list(values));
    }

    pub(super) fn duration(&mut self, key: &str, value: Duration) {
        self.text(key, units::duration(value));
    }

    pub(super) fn size(&mut self, key: &str, bytes: u64) {
        self.text(key, units::size(bytes));
    }

    pub(super) fn done(self) -> String {
        self.0
    }
}

/// `["one", "other"]`.
pub(super) fn list(values: impl IntoIterator<Item = impl Display>) -> String {
    let values: Vec<String> = values.into_iter().map(quoted).collect();
    format!("[{}]", values.join(", "))
}

/// A basic string on one line.
pub(super) fn quoted(value: impl Display) -> String {
    let mut text = String::from("\"");
    for character in value.to_string().chars() {
        match character {
            '"' | '\\' => text.extend(['\\', character]),
            control if control.is_control() => text.push_str(&format!("\\u{:04X}", u32::from(control))),
            other => text.push(other),
        }
    }
    text.push('"');
    text
}
