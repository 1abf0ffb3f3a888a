//! Files that an operator may replace at any moment: read within a bound, and recognized as the same or not.

use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::Error;

/// A chain has a few kilobytes. The bound is for a path that was mistaken.
const BYTES_MAX: u64 = 1024 * 1024;

/// The whole content of a regular file. Others are refused, since a pipe or a device may never end.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    read_regular(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}

fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    // Before it is opened: opening a pipe would wait for its writer.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut content = Vec::new();
    File::open(path)?.take(BYTES_MAX + 1).read_to_end(&mut content)?;
    if content.len() as u64 > BYTES_MAX {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    Ok(content)
}

/// Tells one state of a file from another without reading it. Symbolic links are followed, for certbot and Kubernetes
/// replace those.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size_bytes: u64,
    modified: (i64, i64),
    /// No tool can set it back, as some do with the time of modification.
    changed: (i64, i64),
}

impl Stamp {
    /// `None` if there is no such file, or none that can be seen.
    pub(super) fn of(path: &Path) -> Option<Stamp> {
        let metadata: Metadata = std::fs::metadata(path).ok()?;
        Some(Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            size_bytes: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_ends_is_refused() {
        for path in ["/dev/zero", "/proc/self", "/nonexistent"] {
            assert!(matches!(read(Path::new(path)), Err(Error::Read { .. })), "{path}");
        }
    }

    #[test]
    fn what_is_too_large_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(BYTES_MAX).unwrap();
        assert_eq!(read(file.path()).unwrap().len() as u64, BYTES_MAX);
        file.as_file().set_len(BYTES_MAX + 1).unwrap();
        assert!(read(file.path()).is_err());
    }
}
