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

const PROXY_KEYS: [&str; 9] =
    ["route", "upstream", "listen", "limits", "cache", "drain", "health", "tls", "log"];
/// Of these, what the proxy alone has; `[listen]` and `[log]` are billing's as well.
const PROXY_ONLY: [&str; 2] = ["route", "upstream"];
const BILLING_KEYS: [&str; 3] = ["journal", "shards", "notifier"];

/// Errors: the file cannot be read, is for several roles, or for none.
pub fn kind(file: &Path) -> Result<Kind, Problems> {
    kind_of(file, &document::text_of(file)?)
}

fn kind_of(file: &Path, text: &str) -> Result<Kind, Problems> {
    // A file that is not quite TOML still shows its headers; its own reader will tell the rest.
    let (tree, _) = DeTable::parse_recoverable(text);
    let has = |key: &str| tree.get_ref().contains_key(key);
    if let Some(key) = BILLING_KEYS.into_iter().find(|key| has(key)) {
        let other = ["process"].into_iter().chain(PROXY_ONLY).find(|key| has(key));
        return match other {
            None => Ok(Kind::Billing),
            Some(other) => Err(Problems::of_file(
                file,
                format!("has both [{key}] (billing's) and [[{other}]] (another role's)"),
                Some("make two files of it, one per role"),
            )),
        };
    }
    let proxy = PROXY_KEYS.into_iter().find(|key| has(key));
    match (proxy, has("process")) {
        (None, true) => Ok(Kind::Supervise),
        (Some(_), false) => Ok(Kind::Proxy),
        (Some(key), true) => Err(Problems::of_file(
            file,
            format!("has both [[process]] (the keeper's) and [{key}] (the proxy's)"),
            Some("make two files of it, one per role"),
        )),
        (None, false) => Err(Problems::of_file(
            file,
            "is no configuration of forefront: it has neither [[route]] and [[upstream]], nor [[process]], nor [journal]",
            Some("see docs/configuration.md"),
        )),
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
        assert!(kind("").unwrap_err().contains("no configuration of forefront"));
        assert!(kind("[journal]\n[[upstream]]").unwrap_err().contains("[[upstream]] (another role's)"));
        assert!(kind("[[route]]\n[[process]]").unwrap_err().contains("two files"));
    }
}
