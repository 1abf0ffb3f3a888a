//! The password: where it is read, and where it is not shown.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::address::{is_uri, pairs};

/// More than this is no password.
const BYTES_MAX: usize = 4096;

const MASK: &str = "***";

/// The file's one line, without white space around it. Warns if everyone may read it; a group may, since that is how a service
/// without privileges is given a file of root's.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, String> {
    let shown = path.display();
    let content =
        std::fs::read(path).map_err(|error| format!("cannot read the password {shown}: {error}"))?;
    let password = content.trim_ascii();
    if password.is_empty() || password.len() > BYTES_MAX || password.iter().any(u8::is_ascii_control) {
        return Err(format!("the password {shown} must be one line of 1 to {BYTES_MAX} bytes"));
    }
    if std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0) {
        tracing::warn!(file = %shown, "everyone may read the journal's password; chmod o= helps");
    }
    Ok(password.to_vec())
}

/// A connection string for people. Hides more rather than less where it cannot be read.
pub(in crate::billing::journal) fn without_password(text: &str) -> String {
    if is_uri(text) { of_uri(text) } else { of_pairs(text) }
}

fn of_uri(text: &str) -> String {
    let start = text.find("://").map_or(0, |at| at + 3);
    let (scheme, rest) = text.split_at(start);
    // The driver, too, takes all before an `@` for a name and a password.
    let rest = match rest.rsplit_once('@') {
        Some((who, rest)) if who.contains(':') => {
            format!("{}:{MASK}@{rest}", who.split(':').next().unwrap_or_default())
        }
        _ => rest.to_owned(),
    };
    let Some((base, query)) = rest.split_once('?') else { return format!("{scheme}{rest}") };
    let options = query.split('&').map(|option| match option.split_once('=') {
        Some((key, _)) if key.contains("password") || key.contains('%') => format!("{key}={MASK}"),
        _ => option.to_owned(),
    });
    format!("{scheme}{base}?{}", options.collect::<Vec<_>>().join("&"))
}

fn of_pairs(text: &str) -> String {
    let Ok(pairs) = pairs(text) else { return MASK.to_owned() };
    if !pairs.iter().any(|(key, _)| key.contains("password")) {
        return text.to_owned();
    }
    let shown = pairs.iter().map(|(key, value)| {
        let value = if key.contains("password") { MASK } else { value };
        format!("{key}={value}")
    });
    shown.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_is_shown_and_all_else_is() {
        for (text, shown) in [
            ("host=a user=u", "host=a user=u"),
            ("host=a password=secret user=u", "host=a password=*** user=u"),
            (r"host=a password = 'se cr\'secret'  user=u", "host=a password=*** user=u"),
            (r"password=secr\ et host=a", "password=*** host=a"),
            ("host=a password='secret", "***"),
            ("secret", "***"),
            ("postgresql://a,b:1/d?sslmode=require", "postgresql://a,b:1/d?sslmode=require"),
            ("postgresql://u:secret@a:1,b/d", "postgresql://u:***@a:1,b/d"),
            ("postgres://u:se@cret@a/d", "postgres://u:***@a/d"),
            (
                "postgresql://u@a/d?password=secret&connect_timeout=1",
                "postgresql://u@a/d?password=***&connect_timeout=1",
            ),
            ("postgresql://u@a/d?pass%77ord=secret", "postgresql://u@a/d?pass%77ord=***"),
        ] {
            assert_eq!(without_password(text), shown);
        }
    }

    #[test]
    fn a_file_has_one_line() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("password");
        assert!(read(&file).unwrap_err().contains("cannot read"));
        for bad in [b"".to_vec(), b" \n".to_vec(), b"one\ntwo\n".to_vec(), vec![b'x'; 4097]] {
            std::fs::write(&file, bad).unwrap();
            assert!(read(&file).unwrap_err().contains("one line"));
        }
        std::fs::write(&file, " p w\n").unwrap();
        assert_eq!(read(&file).unwrap(), b"p w");
    }
}
