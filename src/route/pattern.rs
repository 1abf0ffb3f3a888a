//! Path patterns of a route.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use super::path::Shape;

/// What paths a route takes: `/ping` (exact), `/api/movie/{id}` (each `{name}` is one non-empty segment), or a prefix:
/// `/billing/v1/*` takes `/billing/v1/` and all below it, `/*` takes everything.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: Box<str>,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Exact,
    Params(Box<[Segment]>),
    /// Ends in `/`.
    Prefix(Box<str>),
}

/// A segment of a `{param}` pattern. Literal sorts before Param: the narrower one is tried first.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Segment {
    Literal(Box<str>),
    Param,
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum PatternError {
    #[error("a path begins with `/`")]
    NoSlash,
    #[error("{0:?} cannot be part of a path; write it percent-encoded")]
    Character(char),
    #[error("a path has no query and no fragment")]
    Query,
    #[error("`*` may only be the whole last segment, as in \"/billing/v1/*\"")]
    Star,
    #[error("a parameter is a whole segment such as {{id}}; its name has letters, digits and `_`")]
    Param,
    #[error("the parameter {{{0}}} is there twice")]
    ParamTwice(Box<str>),
    #[error("a prefix with parameters is not supported: give {{name}} segments or a final `*`, not both")]
    ParamAndStar,
    #[error(
        "a path with `//`, dot segments, backslashes, %2F, %5C or %2E could never be matched: \
         requests like it reach prefix routes only"
    )]
    Ambiguous,
}

impl Pattern {
    /// Does the pattern take this path? Slower than [`super::Table::find`], but the same answer for one pattern.
    pub fn matches(&self, path: &str) -> bool {
        let shape = Shape::of(path);
        match &self.kind {
            Kind::Exact => &*self.text == path,
            Kind::Params(segments) => shape == Shape::Plain && params_match(segments, path),
            Kind::Prefix(prefix) => prefix_matches(prefix, path, shape),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub(super) fn kind(&self) -> &Kind {
        &self.kind
    }
}

/// Two patterns are equal if they take the same paths, whatever their parameters are called.
impl PartialEq for Pattern {
    fn eq(&self, other: &Pattern) -> bool {
        self.kind == other.kind && (self.kind != Kind::Exact || self.text == other.text)
    }
}

impl Eq for Pattern {}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Pattern, PatternError> {
        if !text.starts_with('/') {
            return Err(PatternError::NoSlash);
        }
        check_characters(text)?;
        if Shape::of(text) != Shape::Plain {
            return Err(PatternError::Ambiguous);
        }
        let (body, prefix) = match text.strip_suffix("/*") {
            Some(_) => (&text[..text.len() - 1], true),
            None => (text, false),
        };
        if body.contains('*') {
            return Err(PatternError::Star);
        }
        let segments = segments(body)?;
        let params = segments.contains(&Segment::Param);
        let kind = match (params, prefix) {
            (true, true) => return Err(PatternError::ParamAndStar),
            (true, false) => Kind::Params(segments.into_boxed_slice()),
            (false, true) => Kind::Prefix(body.into()),
            (false, false) => Kind::Exact,
        };
        Ok(Pattern { text: text.into(), kind })
    }
}

fn check_characters(text: &str) -> Result<(), PatternError> {
    for character in text.chars() {
        match character {
            '?' | '#' => return Err(PatternError::Query),
            // A backslash has an error of its own, and braces are ours.
            '\\' | '{' | '}' => {}
            '!'..='~' if !matches!(character, '"' | '<' | '>' | '^' | '`' | '|') => {}
            other => return Err(PatternError::Character(other)),
        }
    }
    Ok(())
}

fn segments(body: &str) -> Result<Vec<Segment>, PatternError> {
    let mut names: Vec<&str> = Vec::new();
    let mut segments = Vec::new();
    for segment in body[1..].split('/') {
        let Some(name) = segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) else {
            if segment.contains(['{', '}']) {
                return Err(PatternError::Param);
            }
            segments.push(Segment::Literal(segment.into()));
            continue;
        };
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return Err(PatternError::Param);
        }
        if names.contains(&name) {
            return Err(PatternError::ParamTwice(name.into()));
        }
        names.push(name);
        segments.push(Segment::Param);
    }
    Ok(segments)
}

/// `path` must be of a plain shape; the caller has looked.
pub(super) fn params_match(segments: &[Segment], path: &str) -> bool {
    let Some(rest) = path.strip_prefix('/') else { return false };
    let mut sent = rest.split('/');
    for segment in segments {
        let matched = match (segment, sent.next()) {
            (Segment::Literal(literal), Some(part)) => **literal == *part,
            (Segment::Param, Some(part)) => !part.is_empty(),
            (_, None) => false,
        };
        if !matched {
            return false;
        }
    }
    sent.next().is_none()
}

/// A path that may climb is held by `/` alone; whatever else an origin does stays below a prefix that was sent as it is.
pub(super) fn prefix_matches(prefix: &str, path: &str, shape: Shape) -> bool {
    path.starts_with(prefix) && (shape != Shape::Climbing || prefix == "/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_by_kind() {
        for (pattern, path, expected) in [
            ("/", "/", true),
            ("/", "/a", false),
            ("/ping", "/ping", true),
            ("/ping", "/ping/", false),
            ("/ping", "/PING", false),
            ("/api/movie/{id}", "/api/movie/5", true),
            ("/api/movie/{id}", "/api/movie/%35", true),
            ("/api/movie/{id}", "/api/movie/", false),
            ("/api/movie/{id}", "/api/movie", false),
            ("/api/movie/{id}", "/api/movie/5/", false),
            ("/api/movie/{id}", "/api/movie/5/6", false),
            ("/api/movie/{id}", "/api/movie/..", false),
            ("/api/movie/{id}", "/api/movie/a%2Fb", false),
            ("/api/{kind}/{id}/", "/api/a/b/", true),
            ("/billing/v1/*", "/billing/v1/", true),
            ("/billing/v1/*", "/billing/v1/a/b", true),
            ("/billing/v1/*", "/billing/v1/a%2Fb", true),
            ("/billing/v1/*", "/billing/v1", false),
            ("/billing/v1/*", "/billing/v1x", false),
            ("/billing/v1/*", "/billing/v1/../../long_dummy", false),
            ("/billing/v1/*", "/billing/v1/%2e%2e/x", false),
            ("/billing/v1/*", "//billing/v1/a", false),
            ("/*", "/../..", true),
            ("/*", "/", true),
            ("/*", "*", false),
            ("/*", "", false),
        ] {
            assert_eq!(pattern.parse::<Pattern>().unwrap().matches(path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn refuses_what_cannot_be_a_pattern() {
        for (text, error) in [
            ("", PatternError::NoSlash),
            ("ping", PatternError::NoSlash),
            ("*", PatternError::NoSlash),
            ("/a b", PatternError::Character(' ')),
            ("/é", PatternError::Character('é')),
            ("/a?b", PatternError::Query),
            ("/a#b", PatternError::Query),
            ("/a*", PatternError::Star),
            ("/*/a", PatternError::Star),
            ("/a/{id}x", PatternError::Param),
            ("/a/{}", PatternError::Param),
            ("/a/{i-d}", PatternError::Param),
            ("/a/}", PatternError::Param),
            ("/{a}/{a}", PatternError::ParamTwice("a".into())),
            ("/{a}/*", PatternError::ParamAndStar),
            ("//", PatternError::Ambiguous),
            ("/a//b", PatternError::Ambiguous),
            ("/a/../b", PatternError::Ambiguous),
            ("/a\\b", PatternError::Ambiguous),
            ("/a%2Fb", PatternError::Ambiguous),
            ("/a//*", PatternError::Ambiguous),
        ] {
            assert_eq!(text.parse::<Pattern>(), Err(error), "{text}");
        }
    }
}
