//! Session tickets that either node opens (RFC 5077; RFC 8446, 4.6.1), without a word between the nodes: the keys come
//! from the shared secret and the time.
//!
//! The price: who gets hold of the secret can derive all keys there ever were from it. With TLS 1.3 that opens no
//! recorded connection, for each resumption brings a fresh key exchange; with TLS 1.2 it does. A new secret now and
//! then bounds it.
//!
//! A ticket is a version, the period whose key it is under, a nonce, and the sealed session; version and period are
//! authenticated with it.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use arc_swap::ArcSwapOption;
use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use rustls::server::ProducesTickets;

use super::Secret;
use crate::clock;

/// How long one key seals. With random nonces a key is good for 2^32 tickets (NIST SP 800-38D, 8.3), which is 200
/// thousand a second.
const PERIOD_SECS: u64 = 6 * 60 * 60;

/// How many periods before the current one still open.
const PERIODS_BACK: u64 = 2;

/// A node whose clock is ahead is already in the next one.
const PERIODS_AHEAD: u64 = 1;

/// Promised to clients. Younger tickets open at any time; older ones until the key goes, six hours later at most.
const LIFETIME_SECS: u32 = (PERIODS_BACK * PERIOD_SECS) as u32;

const VERSION: u8 = 1;
const HEADER_BYTES: usize = 1 + 8;

/// Sessions have a few hundred bytes. A client can send us 64 KiB to copy.
const TICKET_BYTES_MAX: usize = 4096;

/// Seals and opens tickets with the keys of the current time.
#[derive(Debug)]
pub(super) struct Ticketer {
    secret: Secret,
    /// `None` until the first ticket. Cores that find it outdated at the same time derive the same keys.
    keys: ArcSwapOption<Keys>,
}

impl Ticketer {
    pub(super) fn new(secret: Secret) -> Ticketer {
        Ticketer { secret, keys: ArcSwapOption::empty() }
    }

    fn encrypt_at(&self, plain: &[u8], now_secs: u64) -> Option<Vec<u8>> {
        if HEADER_BYTES + NONCE_LEN + plain.len() + AES_256_GCM.tag_len() > TICKET_BYTES_MAX {
            return None;
        }
        let period = now_secs / PERIOD_SECS;
        let keys = self.keys_at(period)?;
        let header = header(period);
        let mut sealed = plain.to_vec();
        let nonce = keys.of(period)?.seal_in_place_append_tag(Aad::from(header), &mut sealed).ok()?;
        Some([header.as_slice(), nonce.as_ref(), &sealed].concat())
    }

    fn decrypt_at(&self, ticket: &[u8], now_secs: u64) -> Option<Vec<u8>> {
        if ticket.len() > TICKET_BYTES_MAX {
            return None;
        }
        let (head, rest) = ticket.split_first_chunk::<HEADER_BYTES>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let (_, period) = head.split_last_chunk::<8>()?;
        let period = u64::from_be_bytes(*period);
        if *head != header(period) {
            return None;
        }
        let keys = self.keys_at(now_secs / PERIOD_SECS)?;
        let mut plain = sealed.to_vec();
        let length =
            keys.of(period)?.open_in_place(Nonce::from(nonce), Aad::from(head), &mut plain).ok()?.len();
        plain.truncate(length);
        Some(plain)
    }

    /// The keys in use during this period.
    fn keys_at(&self, period: u64) -> Option<Arc<Keys>> {
        if let Some(keys) = self.keys.load().as_ref().filter(|keys| keys.period == period) {
            return Some(Arc::clone(keys));
        }
        let keys = Arc::new(Keys::derive(&self.secret, period)?);
        self.keys.store(Some(Arc::clone(&keys)));
        Some(keys)
    }
}

impl ProducesTickets for Ticketer {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        LIFETIME_SECS
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.encrypt_at(plain, now_secs())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.decrypt_at(ticket, now_secs())
    }
}

fn now_secs() -> u64 {
    clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn header(period: u64) -> [u8; HEADER_BYTES] {
    let mut header = [VERSION; HEADER_BYTES];
    header[1..].copy_from_slice(&period.to_be_bytes());
    header
}

/// The keys of one period and of its neighbours.
#[derive(Debug)]
struct Keys {
    period: u64,
    first: u64,
    from_first: Vec<RandomizedNonceKey>,
}

impl Keys {
    fn derive(secret: &Secret, period: u64) -> Option<Keys> {
        let first = period.saturating_sub(PERIODS_BACK);
        let key = |period: u64| {
            let key = secret.derive("tls ticket", &period.to_be_bytes());
            RandomizedNonceKey::new(&AES_256_GCM, &key)
        };
        let from_first = (first..=period + PERIODS_AHEAD).map(key).collect::<Result<_, _>>().ok()?;
        Some(Keys { period, first, from_first })
    }

    fn of(&self, period: u64) -> Option<&RandomizedNonceKey> {
        let index = period.checked_sub(self.first)?;
        self.from_first.get(usize::try_from(index).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_790_000_000;

    /// Two nodes with one secret, and a stranger.
    fn nodes() -> (Ticketer, Ticketer, Ticketer) {
        let secret = Secret::random().unwrap();
        let stranger = Secret::random().unwrap();
        (Ticketer::new(secret.clone()), Ticketer::new(secret), Ticketer::new(stranger))
    }

    #[test]
    fn the_other_node_opens_it_and_a_stranger_does_not() {
        let (one, other, stranger) = nodes();
        let ticket = one.encrypt_at(b"session", NOW).unwrap();
        assert_eq!(other.decrypt_at(&ticket, NOW).as_deref(), Some(b"session".as_slice()));
        assert_eq!(stranger.decrypt_at(&ticket, NOW), None);
    }

    #[test]
    fn the_same_session_is_never_the_same_ticket() {
        let (one, ..) = nodes();
        let (first, second) = (one.encrypt_at(b"session", NOW), one.encrypt_at(b"session", NOW));
        assert_ne!(first.unwrap(), second.unwrap());
    }

    #[test]
    fn it_opens_for_twelve_hours_at_least_and_eighteen_at_most() {
        let (one, other, _) = nodes();
        let begin = NOW - NOW % PERIOD_SECS;
        for sealed in [begin, begin + PERIOD_SECS / 2, begin + PERIOD_SECS - 1] {
            let ticket = one.encrypt_at(b"session", sealed).unwrap();
            let opens = |at: u64| other.decrypt_at(&ticket, at).is_some();
            assert!(opens(sealed + u64::from(LIFETIME_SECS)));
            assert!(opens(begin + 3 * PERIOD_SECS - 1));
            assert!(!opens(begin + 3 * PERIOD_SECS));
            assert!(opens(begin - PERIOD_SECS), "by a node whose clock is behind");
            assert!(!opens(begin - PERIOD_SECS - 1));
        }
    }

    #[test]
    fn a_clock_at_either_end_of_time_is_no_harm() {
        let (one, other, _) = nodes();
        for now in [0, 1, PERIOD_SECS, u64::MAX] {
            let ticket = one.encrypt_at(b"session", now).unwrap();
            assert!(other.decrypt_at(&ticket, now).is_some());
        }
    }

    #[test]
    fn what_is_too_long_is_neither_sealed_nor_opened() {
        let (one, ..) = nodes();
        let longest = TICKET_BYTES_MAX - HEADER_BYTES - NONCE_LEN - 16;
        let ticket = one.encrypt_at(&vec![7; longest], NOW).unwrap();
        assert_eq!(ticket.len(), TICKET_BYTES_MAX);
        assert_eq!(one.decrypt_at(&ticket, NOW).unwrap(), vec![7; longest]);
        assert_eq!(one.encrypt_at(&vec![7; longest + 1], NOW), None);
        assert_eq!(one.decrypt_at(&[ticket, vec![0]].concat(), NOW), None);
    }

    proptest! {
        #[test]
        fn anything_comes_back(plain in proptest::collection::vec(any::<u8>(), 0..1000), now in any::<u64>()) {
            let (one, other, _) = nodes();
            let ticket = one.encrypt_at(&plain, now).unwrap();
            prop_assert_eq!(other.decrypt_at(&ticket, now), Some(plain));
        }

        #[test]
        fn one_changed_bit_or_a_lost_end_closes_it(at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let (one, ..) = nodes();
            let ticket = one.encrypt_at(b"session", NOW).unwrap();
            let at = at.index(ticket.len());
            prop_assert_eq!(one.decrypt_at(&ticket[..at], NOW), None);
            let mut changed = ticket;
            changed[at] ^= 1 << bit;
            prop_assert_eq!(one.decrypt_at(&changed, NOW), None);
        }

        #[test]
        fn garbage_is_no_ticket(
            garbage in proptest::collection::vec(any::<u8>(), 0..5000),
            has_header in any::<bool>(),
            now in any::<u64>(),
        ) {
            let (one, ..) = nodes();
            let front = if has_header { header(now / PERIOD_SECS).to_vec() } else { Vec::new() };
            prop_assert_eq!(one.decrypt_at(&[front, garbage].concat(), now), None);
        }
    }
}
