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
}

const PROXY_KEYS: [&str; 9] =
    ["route", "upstream", "listen", "limits", "cache", "drain", "health", "tls", "log"];

/// Errors: the file cannot be read, is for both roles, or for none.
pub fn kind(file: &Path) -> Result<Kind, Problems> {
    kind_of(file, &document::text_of(file)?)
}

fn kind_of(file: &Path, text: &str) -> Result<Kind, Problems> {
    // A file that is not quite TOML still shows its headers; its own reader will tell the rest.
    let (tree, _) = DeTable::parse_recoverable(text);
    let has = |key: &str| tree.get_ref().contains_key(key);
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
            "is no configuration of forefront: it has neither [[route]] and [[upstream]] nor [[process]]",
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
        assert!(kind("").unwrap_err().contains("no configuration of forefront"));
        assert!(kind("[[route]]\n[[process]]").unwrap_err().contains("two files"));
    }
}
