//! The spaces that connectors ask for names: what spaces and indexes there are. Read-only and constant. Pure.

use std::sync::LazyLock;

use rmpv::Value as Term;

use super::codec::{Arguments, Select};
use super::msgpack::Value;

/// The one space with contents of its own.
pub const ACCOUNTS: u64 = 512;
const VSPACE: u64 = 281;
const VINDEX: u64 = 289;

/// What an index is over: places in a tuple.
struct Index {
    id: u64,
    parts: &'static [usize],
}

struct Space {
    indexes: [Index; 2],
    tuples: Vec<Term>,
}

static SPACES: LazyLock<Space> = LazyLock::new(|| Space {
    indexes: [Index { id: 0, parts: &[0] }, Index { id: 2, parts: &[2] }],
    tuples: vec![
        space(VSPACE, "_vspace", "sysview", &[("id", "unsigned"), ("owner", "unsigned"), ("name", "string")]),
        space(VINDEX, "_vindex", "sysview", &[("id", "unsigned"), ("iid", "unsigned"), ("name", "string")]),
        space(
            ACCOUNTS,
            "accounts",
            "memtx",
            &[("id", "unsigned"), ("balance", "integer"), ("velocity", "integer")],
        ),
    ],
});

static INDEXES: LazyLock<Space> = LazyLock::new(|| Space {
    indexes: [Index { id: 0, parts: &[0, 1] }, Index { id: 2, parts: &[0, 2] }],
    tuples: vec![
        index(VSPACE, 0, "primary", &[(0, "unsigned")]),
        index(VSPACE, 2, "name", &[(2, "string")]),
        index(VINDEX, 0, "primary", &[(0, "unsigned"), (1, "unsigned")]),
        index(VINDEX, 2, "name", &[(0, "unsigned"), (2, "string")]),
        index(ACCOUNTS, 0, "primary", &[(0, "unsigned")]),
    ],
});

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Missing {
    Space,
    Index,
    /// An iterator that is not served here.
    Iterator,
}

pub fn is_schema(space: u64) -> bool {
    matches!(space, VSPACE | VINDEX)
}

/// The tuples asked for, by equality of the key's parts; all without a key.
pub fn select(select: &Select) -> Result<Vec<&'static Term>, Missing> {
    let space = match select.space {
        VSPACE => &*SPACES,
        VINDEX => &*INDEXES,
        _ => return Err(Missing::Space),
    };
    let index = space.indexes.iter().find(|index| index.id == select.index).ok_or(Missing::Index)?;
    let key = select.key.get().ok_or(Missing::Iterator)?;
    // EQ, REQ and ALL; an ordered walk through the schema is nothing a connector does.
    if !matches!(select.iterator, 0..=2) || key.len() > index.parts.len() {
        return Err(Missing::Iterator);
    }
    let fits = |tuple: &&Term| index.parts.iter().zip(key).all(|(part, key)| is(&tuple[*part], key));
    let (offset, limit) = (usize::try_from(select.offset), usize::try_from(select.limit));
    let (offset, limit) = (offset.unwrap_or(usize::MAX), limit.unwrap_or(usize::MAX));
    Ok(space.tuples.iter().filter(fits).skip(offset).take(limit).collect())
}

fn is(term: &Term, value: &Value) -> bool {
    match value {
        Value::Integer(number) => term.as_u64().map(i128::from) == Some(*number),
        Value::Text(text) => term.as_str().is_some_and(|name| name.as_bytes() == *text),
        _ => false,
    }
}

/// The id of an account, and which side of it is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Range {
    One(u64),
    All,
    From(u64),
    After(u64),
    Nothing,
}

/// What a select on the accounts asks for.
pub fn range(iterator: u64, key: &Arguments) -> Result<Range, Missing> {
    let number = match key.get() {
        Some([]) => None,
        Some([Value::Integer(number)]) => Some(*number),
        _ => return Err(Missing::Iterator),
    };
    let Some(number) = number else {
        return if matches!(iterator, 0 | 2 | 5 | 6) { Ok(Range::All) } else { Err(Missing::Iterator) };
    };
    let id = u64::try_from(number).ok();
    match (iterator, id) {
        (0 | 1, Some(id)) => Ok(Range::One(id)),
        (2 | 5, Some(id)) => Ok(Range::From(id)),
        (6, Some(id)) => Ok(Range::After(id)),
        (2 | 5 | 6, None) if number < 0 => Ok(Range::All),
        (0..=2 | 5 | 6, None) => Ok(Range::Nothing),
        _ => Err(Missing::Iterator),
    }
}

fn space(id: u64, name: &str, engine: &str, format: &[(&str, &str)]) -> Term {
    let field = |(name, kind): &(&str, &str)| {
        Term::Map(vec![("name".into(), (*name).into()), ("type".into(), (*kind).into())])
    };
    let format = format.iter().map(field).collect();
    Term::Array(vec![
        id.into(),
        1.into(),
        name.into(),
        engine.into(),
        0.into(),
        Term::Map(Vec::new()),
        Term::Array(format),
    ])
}

fn index(space: u64, id: u64, name: &str, parts: &[(u64, &str)]) -> Term {
    let part = |(place, kind): &(u64, &str)| Term::Array(vec![(*place).into(), (*kind).into()]);
    let options = Term::Map(vec![("unique".into(), true.into())]);
    let parts = Term::Array(parts.iter().map(part).collect());
    Term::Array(vec![space.into(), id.into(), name.into(), "tree".into(), options, parts])
}
