//! The secret that the nodes share: it is made once and stays in the state directory, as an operator's would.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// As many as the keys made from it have.
const SECRET_BYTES: usize = 32;

/// Makes the file if it is not there, for this user only: random bytes in hexadecimal digits.
pub fn ensure(file: &Path) -> io::Result<()> {
    if file.try_exists()? {
        return Ok(());
    }
    let mut secret = [0; SECRET_BYTES];
    aws_lc_rs::rand::fill(&mut secret).map_err(|_| io::Error::other("the system has no random bytes"))?;
    let draft = file.with_extension(std::process::id().to_string());
    let mut options = fs::OpenOptions::new();
    let mut open = options.write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    writeln!(open, "{}", hex::encode(secret))?;
    open.sync_all()?;
    // A link is whole at once and, unlike a rename, never replaces what another `dev` made meanwhile.
    let linked = fs::hard_link(&draft, file);
    fs::remove_file(&draft)?;
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn it_is_made_once_and_for_its_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("secret");
        ensure(&file).unwrap();
        let made = fs::read_to_string(&file).unwrap();
        assert_eq!(hex::decode(made.trim_end()).unwrap().len(), SECRET_BYTES);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        ensure(&file).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), made);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);

        let other = directory.path().join("other");
        ensure(&other).unwrap();
        assert_ne!(fs::read_to_string(&other).unwrap(), made);
    }
}
