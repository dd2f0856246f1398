//! Keys of server dialback (XEP-0185).
//!
//! What must hold: a key says nothing about the secret nor about any other key; it counts for one pair of
//! domains in one direction on one stream, and two different triples never yield the same input, whatever
//! the stream's id holds (CVE-2016-0756); the secret is as random as the system can make it and dies with
//! the process (CVE-2016-1232).

use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Bytes of the secret.
const SECRET: usize = 32;

/// Makes keys and knows its own again.
pub(crate) struct Keys {
    /// `SHA256(secret)` in hexadecimal, which is what XEP-0185 takes for the key of the HMAC.
    hashed: Zeroizing<String>,
}

impl Keys {
    /// Keys of a new random secret.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub(crate) fn random() -> Result<Self, getrandom::Error> {
        let mut secret = Zeroizing::new([0; SECRET]);
        getrandom::fill(secret.as_mut())?;
        Ok(Self::new(secret.as_ref()))
    }

    /// Keys of a given secret.
    pub(crate) fn new(secret: &[u8]) -> Self {
        Self { hashed: Zeroizing::new(hex(&Sha256::digest(secret))) }
    }

    /// The key with which the server of `originating` proves itself to that of `receiving`, on the stream to
    /// which that one gave the id `stream` (XEP-0185 2). Both domains must be prepared: a prepared domain
    /// holds no space, so that the two spaces separate the three fields without a doubt.
    pub(crate) fn make(&self, receiving: &str, originating: &str, stream: &str) -> String {
        debug_assert!(!receiving.contains(' ') && !originating.contains(' '), "a domain is not prepared");
        #[expect(clippy::unwrap_used, reason = "cannot fail: HMAC takes a key of any length")]
        let mut mac = Hmac::<Sha256>::new_from_slice(self.hashed.as_bytes()).unwrap();
        for part in [receiving, " ", originating, " ", stream] {
            mac.update(part.as_bytes());
        }
        hex(&mac.finalize().into_bytes())
    }

    /// Whether `key` is the one of the three, in a time that does not tell how much of it is right.
    pub(crate) fn check(&self, key: &str, receiving: &str, originating: &str, stream: &str) -> bool {
        self.make(receiving, originating, stream).as_bytes().ct_eq(key.as_bytes()).into()
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_the_specifications() {
        // XEP-0185 3.
        let keys = Keys::new(b"s3cr3tf0rd14lb4ck");
        assert_eq!(*keys.hashed, "a7136eb1f46c9ef18c5e78c36ca257067c69b3d518285f0b18a96c33beae9acc");
        assert_eq!(
            keys.make("xmpp.example.com", "example.org", "D60000229F"),
            "37c69b1cf07a3f67c04a5ef5902fa5114f2c76fe4a2686482ba5b89323075643"
        );
        // XEP-0220 2.1.1 and 2.2.2.
        assert_eq!(
            keys.make("montague.example", "capulet.example", "D60000229F"),
            "b4835385f37fe2895af6c196b59097b16862406db80559900d96bf6fa7d23df3"
        );
        assert_eq!(
            Keys::new(b"d14lb4ck43v3r").make("capulet.example", "montague.example", "417GAF25"),
            "225cc5aa6a071133249d25fef42ae516fc7a86c523aa1c6980a7f73e784c972d"
        );
    }

    #[test]
    fn m10_fields_are_separated() {
        let keys = Keys::random().unwrap();
        let (to, from, id) = ("to.example", "example.org", "1x");
        let key = keys.make(to, from, id);
        assert!(keys.check(&key, to, from, id));
        // The same characters, cut at other places (CVE-2016-0756).
        for (to, from, id) in [
            ("to.example", "xexample.org", "1"),
            ("to.example", "example.org1", "x"),
            ("to.examplee", "xample.org", "1x"),
            ("to.example", "example.org", "1x "),
            ("to.example", "example.org", " 1x"),
            ("example.org", "to.example", "1x"),
        ] {
            assert!(!keys.check(&key, to, from, id), "{to} {from} {id}");
        }
    }

    #[test]
    fn m10_a_key_counts_for_one_stream_pair_and_process() {
        let keys = Keys::random().unwrap();
        let key = keys.make("a.example", "b.example", "one");
        assert!(!keys.check(&key, "a.example", "b.example", "two"), "another stream");
        assert!(!keys.check(&key, "c.example", "b.example", "one"), "another receiving domain");
        assert!(!keys.check(&key, "a.example", "c.example", "one"), "another sending domain");
        assert!(!Keys::random().unwrap().check(&key, "a.example", "b.example", "one"), "another process");
        assert_eq!(key.len(), 64);
        for wrong in ["", &key[1..], &key[..63], &format!("{key}0")] {
            assert!(!keys.check(wrong, "a.example", "b.example", "one"), "{wrong}");
        }
    }
}
