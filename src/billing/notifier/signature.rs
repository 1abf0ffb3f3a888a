//! How a receiver knows that an order is ours.
//!
//! `X-Forefront-Signature: sha256=<hex of HMAC-SHA-256>` over four lines, each ended by a line feed but the last:
//!
//! ```text
//! GET
//! /off?userID=7
//! 7-1                  the Idempotency-Key
//! 1767225600           X-Forefront-Timestamp, seconds since the epoch
//! ```
//! The timestamp is of the try, not of the order, so that a receiver may refuse what is older than some minutes.

use aws_lc_rs::hmac;

use super::Secret;

pub const SIGNATURE: &str = "x-forefront-signature";
pub const TIMESTAMP: &str = "x-forefront-timestamp";

/// The text under the signature.
pub fn signed_text(path_and_query: &str, key: &str, timestamp: &str) -> String {
    format!("GET\n{path_and_query}\n{key}\n{timestamp}")
}

/// The value of the field.
pub fn signature(secret: &Secret, text: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    format!("sha256={}", hex::encode(hmac::sign(&key, text.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed with `openssl dgst -sha256 -hmac key`, so that receivers in other languages agree.
    #[test]
    fn a_signature_is_what_others_compute() {
        let text = signed_text("/off?userID=7", "7-1", "1767225600");
        assert_eq!(text, "GET\n/off?userID=7\n7-1\n1767225600");
        assert_eq!(
            signature(&Secret::new("key"), &text),
            "sha256=e1570e22a16e66bad68ac38d3377d9569b976c36d832fbc266ef0cf71272be3c"
        );
    }
}
