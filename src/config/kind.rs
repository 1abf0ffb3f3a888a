//! Whose configuration a file is, by what is in it.

use std::path::Path;

use toml::de::DeTable;

use super::document;
use super::error::Problems;

/// The role a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Proxy,
    Supervise,
    Billing,
}

/// Tables that one role alone has.
const TABLES: [(Kind, &[&str]); 3] = [
    (Kind::Billing, &["journal", "shards", "notifier"]),
    (Kind::Supervise, &["process"]),
    (Kind::Proxy, &["route", "upstream", "limits", "cache", "drain", "health", "tls"]),
];
/// Of tables that several roles have, the keys of the proxy.
const PROXY_KEYS: [(&str, &[&str]); 3] = [
    ("node", &["threads"]),
    ("listen", &["https", "http3", "proxy_protocol", "proxy_protocol_from"]),
    ("log", &["access_sample"]),
];

/// Errors: the file cannot be read, is for several roles, or for none.
pub fn kind(file: &Path) -> Result<Kind, Problems> {
    kind_of(file, &document::text_of(file)?)
}

fn kind_of(file: &Path, text: &str) -> Result<Kind, Problems> {
    // A file that is not quite TOML still shows its headers; its own reader will tell the rest.
    let (tree, _) = DeTable::parse_recoverable(text);
    let tree = tree.get_ref();
    let has = |key: &str| tree.contains_key(key);
    let found: Vec<(Kind, &str)> = TABLES
        .into_iter()
        .filter_map(|(kind, tables)| Some((kind, tables.iter().copied().find(|table| has(table))?)))
        .collect();
    let shared = PROXY_KEYS.iter().any(|(table, _)| has(table));
    match found[..] {
        [(kind, _)] => Ok(kind),
        // A proxy that lacks its routes; without any of these it is billing's, which needs no table of its own.
        [] if shared && (has("admin") || has_proxy_key(tree)) => Ok(Kind::Proxy),
        [] if shared => Ok(Kind::Billing),
        [] => Err(Problems::of_file(
            file,
            "is no configuration of forefront: it has neither [[route]] and [[upstream]], nor [[process]], nor [journal]",
            Some("see docs/configuration.md"),
        )),
        [(one, table), (other, its), ..] => Err(Problems::of_file(
            file,
            format!("has both {} ({}) and {} ({})", shown(table), whose(one), shown(its), whose(other)),
            Some("make two files of it, one per role"),
        )),
    }
}

fn has_proxy_key(tree: &DeTable<'_>) -> bool {
    PROXY_KEYS.iter().any(|(table, keys)| {
        let table = tree.get(*table).and_then(|value| value.get_ref().as_table());
        table.is_some_and(|table| keys.iter().any(|key| table.contains_key(*key)))
    })
}

/// As it stands in a file.
fn shown(table: &str) -> String {
    match table {
        "route" | "upstream" | "process" => format!("[[{table}]]"),
        _ => format!("[{table}]"),
    }
}

fn whose(kind: Kind) -> &'static str {
    match kind {
        Kind::Proxy => "the proxy's",
        Kind::Supervise => "the keeper's",
        Kind::Billing => "billing's",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_content() {
        let kind = |text: &str| kind_of(Path::new("x.toml"), text).map_err(|problems| problems.to_string());
        assert_eq!(kind("[[route]]\nname = 'a'"), Ok(Kind::Proxy));
        assert_eq!(kind("[[upstream]]"), Ok(Kind::Proxy));
        assert_eq!(kind("[node]\nname = 'a'\n[[process]]"), Ok(Kind::Supervise));
        assert_eq!(kind("[[process]]\nname = \n"), Ok(Kind::Supervise));
        assert_eq!(kind("[listen]\n[journal]\n[log]"), Ok(Kind::Billing));
        assert_eq!(kind("[notifier]\nurl = "), Ok(Kind::Billing));
        // What has no table of one role is billing's: the others need one.
        assert_eq!(
            kind("[node]\nname = 'a'\nstate_dir = '/x'\n[listen]\nhttp = '127.0.0.1:1'"),
            Ok(Kind::Billing)
        );
        assert_eq!(kind("[listen]\niproto = '127.0.0.1:1'"), Ok(Kind::Billing));
        assert_eq!(kind("[listen]\nhttps = '127.0.0.1:1'"), Ok(Kind::Proxy));
        assert_eq!(kind("[limits]\n[log]"), Ok(Kind::Proxy));
        assert_eq!(kind("[listen]\n[admin]"), Ok(Kind::Proxy));
        for text in ["", "[admin]\nlisten = '127.0.0.1:1'", "x = 1"] {
            assert!(kind(text).unwrap_err().contains("no configuration of forefront"), "{text}");
        }
        for (text, both) in [
            ("[journal]\n[[upstream]]", "has both [journal] (billing's) and [[upstream]] (the proxy's)"),
            ("[shards]\n[cache]", "has both [shards] (billing's) and [cache] (the proxy's)"),
            ("[notifier]\n[[process]]", "has both [notifier] (billing's) and [[process]] (the keeper's)"),
            ("[[route]]\n[[process]]", "has both [[process]] (the keeper's) and [[route]] (the proxy's)"),
        ] {
            let told = kind(text).unwrap_err();
            assert!(told.contains(both) && told.contains("two files"), "{told}");
        }
    }
}
