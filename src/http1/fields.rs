//! Field lines as they came: one buffer and the places of names and values in it, so that passing a message on copies
//! bytes once and keeps the order and the letter case of what was sent.

use bytes::Bytes;
use http::HeaderMap;
use http::header::COOKIE;

#[derive(Clone, Copy, Debug)]
struct Place {
    start: u32,
    end: u32,
}

impl Place {
    fn of(part: &[u8], base: usize) -> Place {
        let start = (part.as_ptr() as usize).wrapping_sub(base) as u32;
        Place { start, end: start + part.len() as u32 }
    }

    fn get(self, raw: &[u8]) -> &[u8] {
        raw.get(self.start as usize..self.end as usize).unwrap_or_default()
    }
}

/// The field lines of one message, in order.
#[derive(Clone, Debug, Default)]
pub struct Fields {
    raw: Bytes,
    places: Vec<(Place, Place)>,
}

impl Fields {
    /// The fields of a head that httparse parsed out of a buffer that begins at `base`; `attach` gives the buffer.
    pub(super) fn from_parsed(base: usize, parsed: &[httparse::Header<'_>]) -> Fields {
        let places =
            parsed.iter().map(|h| (Place::of(h.name.as_bytes(), base), Place::of(h.value, base))).collect();
        Fields { raw: Bytes::new(), places }
    }

    /// Gives the buffer the places point into: the head they were parsed from, whole.
    pub(super) fn attach(&mut self, raw: Bytes) {
        self.raw = raw;
    }

    /// Builds from names and values, for answers made here and for tests.
    pub fn from_pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Fields {
        let mut raw = Vec::new();
        let mut places = Vec::new();
        for (name, value) in pairs {
            let start = raw.len() as u32;
            raw.extend_from_slice(name.as_bytes());
            let middle = raw.len() as u32;
            raw.extend_from_slice(value);
            places.push((Place { start, end: middle }, Place { start: middle, end: raw.len() as u32 }));
        }
        Fields { raw: raw.into(), places }
    }

    /// The fields of an HTTP/2 or HTTP/3 message. What their clients send of `Cookie` in crumbs is one field again
    /// (RFC 9113, 8.2.3; RFC 9114, 4.2.1).
    pub fn from_map(map: &HeaderMap) -> Fields {
        let crumbs = map.get_all(COOKIE).iter().count();
        if crumbs < 2 {
            return Fields::from_pairs(
                map.iter().map(|(name, value)| (name.as_str(), value.as_bytes().trim_ascii())),
            );
        }
        let crumbs: Vec<&[u8]> =
            map.get_all(COOKIE).iter().map(|crumb| crumb.as_bytes().trim_ascii()).collect();
        let cookie = crumbs.join(&b"; "[..]);
        let others = map.iter().filter(|(name, _)| **name != COOKIE);
        let others = others.map(|(name, value)| (name.as_str(), value.as_bytes().trim_ascii()));
        Fields::from_pairs(others.chain([("cookie", &cookie[..])]))
    }

    /// Names and values in order; values without surrounding white space.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.places.iter().map(|(name, value)| {
            (std::str::from_utf8(name.get(&self.raw)).unwrap_or_default(), value.get(&self.raw))
        })
    }

    /// The values of every field of this name, in order.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.iter().filter(move |(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The first value of this name.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    pub fn contains(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Does the comma-separated list of this name hold `token` (letter case aside)?
    pub fn has_token(&self, name: &str, token: &str) -> bool {
        self.all(name).any(|value| tokens(value).any(|t| t.eq_ignore_ascii_case(token.as_bytes())))
    }

    pub fn len(&self) -> usize {
        self.places.len()
    }

    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }
}

/// The members of a comma-separated list, without white space and empty members (RFC 9110, 5.6.1).
pub fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|t| !t.is_empty())
}
