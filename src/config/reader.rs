//! A small typed reader over a parsed TOML tree. It reports and goes on: a value that cannot be used is told with its
//! key path, line and a hint, and then counts as not given.

use std::fmt::Display;
use std::ops::{Range, RangeInclusive};
use std::str::FromStr;
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use super::document::Sink;
use super::units;

/// A table of the file, or one that is not there (then every key has its default).
///
/// Read every key that may be given, also after a problem, then call `finish`: it reports the keys nobody asked for.
#[must_use = "call finish, which reports unknown keys"]
pub(super) struct Section<'d> {
    sink: &'d Sink<'d>,
    path: String,
    /// Where the section begins: what is missing is reported there.
    span: Range<usize>,
    table: Option<&'d DeTable<'d>>,
    known: Vec<&'static str>,
}

/// One value and where it stands.
pub(super) struct Value<'d> {
    sink: &'d Sink<'d>,
    path: String,
    span: Range<usize>,
    value: &'d DeValue<'d>,
}

/// A place in the file, kept for a problem that shows only later.
#[derive(Clone)]
pub(super) struct Place<'d> {
    sink: &'d Sink<'d>,
    path: String,
    span: Range<usize>,
}

impl<'d> Section<'d> {
    pub(super) fn root(sink: &'d Sink<'d>, table: &'d DeTable<'d>) -> Section<'d> {
        Section { sink, path: String::new(), span: 0..0, table: Some(table), known: Vec::new() }
    }

    /// Is the section there at all?
    pub(super) fn is_given(&self) -> bool {
        self.table.is_some()
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    /// None if it is not given or cannot be used.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(Value<'d>) -> Option<T>,
    ) -> Option<T> {
        self.value(key).and_then(read)
    }

    pub(super) fn or<T>(
        &mut self,
        key: &'static str,
        default: T,
        read: impl FnOnce(Value<'d>) -> Option<T>,
    ) -> T {
        self.optional(key, read).unwrap_or(default)
    }

    /// Reports it if it is not given; `example` is what a line of it looks like.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        example: &str,
        read: impl FnOnce(Value<'d>) -> Option<T>,
    ) -> Option<T> {
        match self.value(key) {
            Some(value) => read(value),
            None => {
                let path = self.path_of(key);
                let hint = Some(format!("add {example}"));
                self.sink.report(self.span.clone(), &path, "is missing".to_owned(), hint);
                None
            }
        }
    }

    /// A table of its own: `[key]` or `key = { .. }`.
    pub(super) fn section(&mut self, key: &'static str) -> Section<'d> {
        let path = self.path_of(key);
        let span = self.place_of(key).span;
        let table = self.value(key).and_then(|value| value.table());
        Section { sink: self.sink, path, span, table, known: Vec::new() }
    }

    /// `[[key]]`, each with a place of its own.
    pub(super) fn sections(&mut self, key: &'static str) -> Vec<Section<'d>> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let DeValue::Array(_) = value.value else {
            value.place().refuse("is not a list of tables", &format!("write [[{key}]]"));
            return Vec::new();
        };
        value.items().into_iter().filter_map(Value::into_section).collect()
    }

    /// The entries of a table with free keys, all of them known.
    pub(super) fn entries(&mut self, key: &'static str) -> Vec<(String, Value<'d>)> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let Some(table) = value.table() else { return Vec::new() };
        let entry =
            |(name, item): (&toml::Spanned<std::borrow::Cow<'_, str>>, &'d toml::Spanned<DeValue<'d>>)| {
                let path = format!("{}.{}", value.path, name.get_ref());
                let entry = Value { sink: value.sink, path, span: item.span(), value: item.get_ref() };
                (name.get_ref().to_string(), entry)
            };
        table.iter().map(entry).collect()
    }

    /// Where `key` stands, or the section if it is not given.
    pub(super) fn place_of(&self, key: &str) -> Place<'d> {
        let found = self.table.and_then(|table| table.get_key_value(key));
        let span = found.map_or_else(|| self.span.clone(), |(name, _)| name.span());
        Place { sink: self.sink, path: self.path_of(key), span }
    }

    /// How many problems the file has so far.
    pub(super) fn problems(&self) -> usize {
        self.sink.count()
    }

    /// The section itself.
    pub(super) fn place(&self) -> Place<'d> {
        Place { sink: self.sink, path: self.path.clone(), span: self.span.clone() }
    }

    /// Reports every key that was not asked for.
    pub(super) fn finish(self) {
        let Some(table) = self.table else { return };
        for (name, _) in table.iter() {
            let key: &str = name.get_ref();
            if self.known.contains(&key) {
                continue;
            }
            let hint = match nearest(key, &self.known) {
                Some(near) => format!("did you mean {near:?}?"),
                None => format!("known here: {}", self.known.join(", ")),
            };
            self.sink.report(name.span(), &self.path_of(key), "is not a known key".to_owned(), Some(hint));
        }
    }

    fn value(&mut self, key: &'static str) -> Option<Value<'d>> {
        self.known.push(key);
        let item = self.table?.get(key)?;
        Some(Value { sink: self.sink, path: self.path_of(key), span: item.span(), value: item.get_ref() })
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

impl Place<'_> {
    /// Reports a message that says what to do by itself.
    pub(super) fn tell(&self, message: &str) {
        self.sink.report(self.span.clone(), &self.path, message.to_owned(), None);
    }

    pub(super) fn refuse(&self, message: &str, hint: &str) {
        self.sink.report(self.span.clone(), &self.path, message.to_owned(), Some(hint.to_owned()));
    }
}

impl<'d> Value<'d> {
    pub(super) fn place(&self) -> Place<'d> {
        Place { sink: self.sink, path: self.path.clone(), span: self.span.clone() }
    }

    /// What `read` makes of it, with its place for problems that show only later.
    pub(super) fn placed<T>(self, read: impl FnOnce(Value<'d>) -> Option<T>) -> Option<(T, Place<'d>)> {
        let place = self.place();
        read(self).map(|read| (read, place))
    }

    /// Reports it; always None, so that a reader can end with it.
    pub(super) fn refuse<T>(&self, message: &str, hint: &str) -> Option<T> {
        self.place().refuse(message, hint);
        None
    }

    /// As `refuse`, with the value in front of the message.
    pub(super) fn refuse_value<T>(&self, message: &str, hint: &str) -> Option<T> {
        self.refuse(&format!("{} {message}", self.shown()), hint)
    }

    pub(super) fn is_text(&self) -> bool {
        self.value.is_str()
    }

    pub(super) fn is_list(&self) -> bool {
        self.value.is_array()
    }

    pub(super) fn is(&self, word: &str) -> bool {
        self.value.as_str() == Some(word)
    }

    pub(super) fn text(self) -> Option<&'d str> {
        match self.value.as_str() {
            Some(text) => Some(text),
            None => self.refuse_value("is not a text", "write it in quotes"),
        }
    }

    /// A text with something in it and no control characters.
    pub(super) fn filled(self) -> Option<String> {
        let place = self.place();
        let text = self.text()?;
        if text.trim().is_empty() || text.chars().any(char::is_control) {
            place.refuse(
                &format!("{text:?} is empty or has control characters"),
                "write a text that can be read",
            );
            return None;
        }
        Some(text.to_owned())
    }

    /// A name that can be a label of metrics.
    pub(super) fn name(self) -> Option<String> {
        let place = self.place();
        let text = self.text()?;
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if text.is_empty() || text.len() > 64 || !text.bytes().all(fits) {
            place
                .refuse(&format!("{text:?} is not a name"), "write 1 to 64 letters, digits, `-`, `_` or `.`");
            return None;
        }
        Some(text.to_owned())
    }

    pub(super) fn flag(self) -> Option<bool> {
        match self.value.as_bool() {
            Some(flag) => Some(flag),
            None => self.refuse_value("is neither true nor false", "write true or false, without quotes"),
        }
    }

    pub(super) fn integer<N: TryFrom<u64> + Copy + PartialOrd + Display>(
        self,
        range: RangeInclusive<N>,
    ) -> Option<N> {
        let number = self
            .value
            .as_integer()
            .and_then(|integer| u64::from_str_radix(integer.as_str(), integer.radix()).ok())
            .and_then(|number| N::try_from(number).ok())
            .filter(|number| range.contains(number));
        let hint = format!("write a number without quotes, from {} to {}", range.start(), range.end());
        number.or_else(|| self.refuse_value("is not a number that fits here", &hint))
    }

    pub(super) fn decimal(self, range: RangeInclusive<f64>) -> Option<f64> {
        let written = match self.value {
            DeValue::Integer(integer) if integer.radix() == 10 => integer.as_str().parse().ok(),
            DeValue::Float(float) => float.as_str().parse().ok(),
            _ => None,
        };
        let hint = format!("write a number without quotes, from {} to {}", range.start(), range.end());
        written
            .filter(|number| range.contains(number))
            .or_else(|| self.refuse_value("is not a number that fits here", &hint))
    }

    /// Longer than zero.
    pub(super) fn duration(self) -> Option<Duration> {
        let place = self.place();
        let duration = self.duration_or_zero()?;
        if duration.is_zero() {
            place.refuse("must be longer than zero", "write a number and a unit, e.g. \"30s\"");
            return None;
        }
        Some(duration)
    }

    pub(super) fn duration_or_zero(self) -> Option<Duration> {
        self.value.as_str().and_then(units::parse_duration).or_else(|| {
            self.refuse_value(
                "is not a duration",
                "write a whole number and a unit (d, h, m, s, ms, us), e.g. \"30s\"; 366d at most",
            )
        })
    }

    /// In bytes.
    pub(super) fn size(self, range: RangeInclusive<u64>) -> Option<u64> {
        let Some(size) = self.value.as_str().and_then(units::parse_size) else {
            return self.refuse_value("is not a size", "write a whole number and a unit, e.g. \"16 MiB\"");
        };
        if !range.contains(&size) {
            let (from, to) = (units::size(*range.start()), units::size(*range.end()));
            return self.refuse_value("is out of bounds", &format!("write from {from:?} to {to:?}"));
        }
        Some(size)
    }

    /// As [`Value::size`], for what is counted in memory.
    pub(super) fn memory(self, range: RangeInclusive<u64>) -> Option<usize> {
        self.size(range).and_then(|bytes| usize::try_from(bytes).ok())
    }

    /// A text that its type can read. `what` completes "is not ...", `hint` is an example.
    pub(super) fn parsed<T: FromStr>(self, what: &str, hint: &str) -> Option<T> {
        let parsed = self.value.as_str().and_then(|text| text.parse().ok());
        parsed.or_else(|| self.refuse_value(&format!("is not {what}"), hint))
    }

    /// As `parsed`, with the reason its type gives.
    pub(super) fn explained<T: FromStr<Err: Display>>(self, hint: &str) -> Option<T> {
        let place = self.place();
        match self.text()?.parse() {
            Ok(parsed) => Some(parsed),
            Err(error) => {
                place.refuse(&format!("{error}"), hint);
                None
            }
        }
    }

    /// One of a closed set of words.
    pub(super) fn choice<T: Copy>(self, words: &[(&str, T)]) -> Option<T> {
        let found = self.value.as_str().and_then(|text| words.iter().find(|(word, _)| *word == text));
        if let Some((_, choice)) = found {
            return Some(*choice);
        }
        let words: Vec<String> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
        self.refuse_value("is not one of the choices", &format!("write {}", words.join(" or ")))
    }

    /// The elements that can be used; those that cannot are reported each by its index.
    pub(super) fn list<T>(self, read: impl Fn(Value<'d>) -> Option<T>) -> Option<Vec<T>> {
        if !self.is_list() {
            return self.refuse_value("is not a list", "write it in brackets, e.g. [\"one\", \"other\"]");
        }
        Some(self.items().into_iter().filter_map(read).collect())
    }

    /// As `list`, and not empty.
    pub(super) fn list_of_some<T>(self, read: impl Fn(Value<'d>) -> Option<T>) -> Option<Vec<T>> {
        if self.value.as_array().is_some_and(|array| array.is_empty()) {
            return self.refuse("must not be empty", "name at least one");
        }
        self.list(read)
    }

    /// One value, or a list of some.
    pub(super) fn one_or_more<T>(self, read: impl Fn(Value<'d>) -> Option<T>) -> Option<Vec<T>> {
        if self.is_list() { self.list_of_some(read) } else { read(self).map(|one| vec![one]) }
    }

    /// Its keys, as a section; reported if it is no table.
    pub(super) fn into_section(self) -> Option<Section<'d>> {
        let table = self.table()?;
        Some(Section {
            sink: self.sink,
            path: self.path,
            span: self.span,
            table: Some(table),
            known: Vec::new(),
        })
    }

    fn table(&self) -> Option<&'d DeTable<'d>> {
        match self.value {
            DeValue::Table(table) => Some(table),
            _ => self.refuse_value("is not a table", "write key = value pairs, in { } or under a [header]"),
        }
    }

    fn items(&self) -> Vec<Value<'d>> {
        let DeValue::Array(array) = self.value else { return Vec::new() };
        let item = |(index, item): (usize, &'d toml::Spanned<DeValue<'d>>)| Value {
            sink: self.sink,
            path: format!("{}[{index}]", self.path),
            span: item.span(),
            value: item.get_ref(),
        };
        array.iter().enumerate().map(item).collect()
    }

    /// As it is written, for a message; cut if it is long.
    fn shown(&self) -> String {
        let text = match self.value {
            DeValue::String(text) => format!("{text:?}"),
            DeValue::Integer(integer) => integer.to_string(),
            DeValue::Float(float) => float.to_string(),
            DeValue::Boolean(flag) => flag.to_string(),
            DeValue::Datetime(time) => time.to_string(),
            DeValue::Array(_) => "a list".to_owned(),
            DeValue::Table(_) => "a table".to_owned(),
        };
        match text.char_indices().nth(80) {
            Some((at, _)) => format!("{}...", &text[..at]),
            None => text,
        }
    }
}

/// The name that was probably meant: at most a third of it is wrong.
pub(super) fn nearest<'n>(written: &str, names: &[&'n str]) -> Option<&'n str> {
    let close = |name: &&&'n str| {
        let distance = distance(written, name);
        distance <= (name.len().max(3) / 3).min(3) && distance < name.len()
    };
    names.iter().filter(close).min_by_key(|name| distance(written, name)).copied()
}

/// Levenshtein's, over the first 64 bytes of each.
fn distance(one: &str, other: &str) -> usize {
    let bytes = |text: &str| text.bytes().take(64).collect::<Vec<u8>>();
    let (one, other) = (bytes(one), bytes(other));
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in other.iter().enumerate() {
            let substituted = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name() {
        let names = ["interval", "timeout", "path"];
        assert_eq!(nearest("timout", &names), Some("timeout"));
        assert_eq!(nearest("intervall", &names), Some("interval"));
        assert_eq!(nearest("paths", &names), Some("path"));
        assert_eq!(nearest("colour", &names), None);
        assert_eq!(nearest("", &names), None);
        assert_eq!(nearest("v", &["u"]), None);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
