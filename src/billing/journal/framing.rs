//! How payloads are laid out: a version, and a checksum that binds them to their place.

use std::time::Duration;

/// The first byte of everything stored. A reader refuses what it does not know.
pub(super) const VERSION: u8 = 1;

/// Snapshots are stored in parts of at most this many bytes: a batch that is to be durable waits for what the disk was given
/// before, and 256 KiB are below a millisecond of that.
pub(super) const PART_BYTES: usize = 256 << 10;
/// After each of them, for the same reason. 32 MB/s at most.
pub(super) const PART_REST: Duration = Duration::from_millis(8);
/// After each piece of what is forgotten.
pub(super) const FORGET_REST: Duration = Duration::from_millis(4);

/// CRC-32 (IEEE) of the place and the payload.
pub fn checksum(shard: u32, seq: u64, epoch: u64, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[VERSION]);
    hasher.update(&shard.to_be_bytes());
    hasher.update(&seq.to_be_bytes());
    hasher.update(&epoch.to_be_bytes());
    hasher.update(payload);
    hasher.finalize()
}

/// What follows the version byte, or why it cannot be read.
pub(super) fn unframed(stored: &[u8]) -> Result<&[u8], String> {
    match stored.split_first() {
        Some((&VERSION, rest)) => Ok(rest),
        Some((version, _)) => Err(format!("format {version} is not known here")),
        None => Err("it is empty".to_owned()),
    }
}

/// `Err` tells both sums.
pub(super) fn compare(stored: u32, computed: u32) -> Result<(), String> {
    if stored == computed {
        Ok(())
    } else {
        Err(format!("its checksum is {computed:08x}, {stored:08x} was written"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_in_another_place_has_another_checksum() {
        let sum = checksum(1, 2, 3, b"payload");
        assert_eq!(sum, checksum(1, 2, 3, b"payload"));
        for other in [
            checksum(2, 2, 3, b"payload"),
            checksum(1, 3, 3, b"payload"),
            checksum(1, 2, 4, b"payload"),
            checksum(1, 2, 3, b"paiload"),
            checksum(1, 2, 3, b"payloa"),
        ] {
            assert_ne!(sum, other);
        }
    }

    #[test]
    fn another_version_is_refused() {
        assert_eq!(unframed(&[VERSION, 7]), Ok(&[7][..]));
        assert!(unframed(&[VERSION + 1, 7]).is_err());
        assert!(unframed(&[]).is_err());
    }
}
