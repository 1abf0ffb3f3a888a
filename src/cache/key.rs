//! The key of an answer: `{scope}\0{path and kept query}`. Pure.
//!
//! The scope is the name of the route, so that two routes with different policies never share an entry. NUL cannot
//! occur in a path or a query, so no path can reach into another scope.

use super::QueryKey;

const SEPARATOR: char = '\0';

/// Writes the key of a request over `buffer`. Allocates nothing if the buffer is large enough.
/// `path` is the path as sent; `query` is what follows the first `?`, if there is one.
pub fn write(buffer: &mut String, scope: &str, path: &str, query: Option<&str>, kept: &QueryKey) {
    buffer.clear();
    buffer.push_str(scope);
    buffer.push(SEPARATOR);
    buffer.push_str(path);
    let Some(query) = query else { return };
    match kept {
        QueryKey::None => {}
        QueryKey::All => {
            buffer.push('?');
            buffer.push_str(query);
        }
        QueryKey::Names(names) => write_named(buffer, query, names),
    }
}

/// Parameters in the order of `names`, so that clients who order them otherwise share an entry; those of one name in
/// the order sent, which may mean something.
fn write_named(buffer: &mut String, query: &str, names: &[String]) {
    let mut mark = '?';
    for name in names {
        for pair in query.split('&') {
            if pair.split('=').next() == Some(name.as_str()) {
                buffer.push(mark);
                buffer.push_str(pair);
                mark = '&';
            }
        }
    }
}

/// Takes a key apart: scope, and path with query as the origin is asked for it.
pub fn split(key: &str) -> (&str, &str) {
    key.split_once(SEPARATOR).unwrap_or(("", key))
}

/// The prefix that every key of a scope has, for `Cache::purge_prefix`.
pub fn scope_prefix(scope: &str) -> String {
    format!("{scope}{SEPARATOR}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(query: Option<&str>, kept: &QueryKey) -> String {
        let mut buffer = String::from("left over");
        write(&mut buffer, "r", "/p", query, kept);
        buffer
    }

    #[test]
    fn keeps_the_part_of_the_query_that_counts() {
        let names = QueryKey::Names(vec!["b".into(), "a".into()]);
        for (query, kept, expected) in [
            (None, &QueryKey::All, "r\0/p"),
            (Some(""), &QueryKey::All, "r\0/p?"),
            (Some("x=1&y"), &QueryKey::All, "r\0/p?x=1&y"),
            (Some("x=1"), &QueryKey::None, "r\0/p"),
            (Some("a=1&b=2&c=3&a=0"), &names, "r\0/p?b=2&a=1&a=0"),
            (Some("c=3&ab=1&%61=2"), &names, "r\0/p"),
            (Some("a&b="), &names, "r\0/p?b=&a"),
        ] {
            assert_eq!(key(query, kept), expected, "{query:?} {kept:?}");
        }
    }

    #[test]
    fn needs_no_larger_buffer_the_second_time() {
        let mut buffer = String::new();
        write(&mut buffer, "route", "/path", Some("a=1"), &QueryKey::All);
        let (place, size) = (buffer.as_ptr(), buffer.capacity());
        write(&mut buffer, "route", "/path", Some("a=2"), &QueryKey::All);
        assert_eq!((buffer.as_ptr(), buffer.capacity()), (place, size));
    }

    #[test]
    fn splits_what_it_wrote() {
        assert_eq!(split(&key(Some("x=1"), &QueryKey::All)), ("r", "/p?x=1"));
        assert!(key(None, &QueryKey::None).starts_with(&scope_prefix("r")));
    }
}
