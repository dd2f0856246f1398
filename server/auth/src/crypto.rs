//! The primitives of SCRAM (RFC 5802 2.2) and the type that keeps secrets.
//!
//! What must hold: a [`Secret`] is wiped when dropped, cannot be printed, and can be compared in
//! constant time only; every HMAC, hash and iteration passes through this module, where the tests
//! count them.

use std::fmt;

use hmac::digest::KeyInit;
use hmac::{Hmac, Mac};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};
use zeroize::Zeroize;

/// The hash function of a mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hash {
    Sha1,
    Sha256,
}

impl Hash {
    /// Bytes of its output.
    pub(crate) fn len(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
        }
    }
}

/// Secret bytes: wiped when dropped, never printed, compared in constant time.
#[derive(Clone)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Takes the bytes over.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Compares without telling by its duration where the two differ. Lengths are no secret.
    pub fn ct_eq(&self, other: &[u8]) -> Choice {
        self.0.as_slice().ct_eq(other)
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// HMAC over the concatenation of `parts`.
pub(crate) fn hmac(hash: Hash, key: &[u8], parts: &[&[u8]]) -> Secret {
    fn mac<M: Mac + KeyInit>(key: &[u8], parts: &[&[u8]]) -> Secret {
        // HMAC hashes long keys and pads short ones (RFC 2104 2), so no length is wrong.
        let mut mac = <M as KeyInit>::new_from_slice(key).expect("HMAC takes a key of any length");
        for part in parts {
            mac.update(part);
        }
        Secret(mac.finalize().into_bytes().to_vec())
    }
    #[cfg(test)]
    work::count(|w| w.hmacs += 1);
    match hash {
        Hash::Sha1 => mac::<Hmac<Sha1>>(key, parts),
        Hash::Sha256 => mac::<Hmac<Sha256>>(key, parts),
    }
}

/// H of RFC 5802 2.2.
pub(crate) fn digest(hash: Hash, data: &[u8]) -> Secret {
    #[cfg(test)]
    work::count(|w| w.hashes += 1);
    match hash {
        Hash::Sha1 => Secret(Sha1::digest(data).to_vec()),
        Hash::Sha256 => Secret(Sha256::digest(data).to_vec()),
    }
}

/// Hi of RFC 5802 2.2, which is PBKDF2. Slow on purpose: not for a thread that serves sessions.
pub(crate) fn hi(hash: Hash, password: &[u8], salt: &[u8], iterations: u32) -> Secret {
    #[cfg(test)]
    work::count(|w| w.iterations += u64::from(iterations));
    let mut out = vec![0; hash.len()];
    match hash {
        Hash::Sha1 => pbkdf2::pbkdf2_hmac::<Sha1>(password, salt, iterations, &mut out),
        Hash::Sha256 => pbkdf2::pbkdf2_hmac::<Sha256>(password, salt, iterations, &mut out),
    }
    Secret(out)
}

/// Random bytes from the operating system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], getrandom::Error> {
    let mut out = [0; N];
    getrandom::fill(&mut out)?;
    Ok(out)
}

/// Counts the work of the current thread, so that a test can compare that of two exchanges.
#[cfg(test)]
pub(crate) mod work {
    use std::cell::Cell;

    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub(crate) struct Work {
        pub(crate) hmacs: u64,
        pub(crate) hashes: u64,
        pub(crate) iterations: u64,
    }

    thread_local!(static WORK: Cell<Work> = const { Cell::new(Work { hmacs: 0, hashes: 0, iterations: 0 }) });

    pub(super) fn count(add: impl FnOnce(&mut Work)) {
        let mut work = WORK.get();
        add(&mut work);
        WORK.set(work);
    }

    /// The work since the last call.
    pub(crate) fn take() -> Work {
        WORK.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn hi_is_pbkdf2_of_rfc6070_and_rfc7914() {
        let out = hi(Hash::Sha1, b"password", b"salt", 4096);
        assert_eq!(hex(out.as_bytes()), "4b007901b765489abead49d926f721d065a429c1");
        let out = hi(Hash::Sha256, b"passwd", b"salt", 1);
        assert_eq!(hex(out.as_bytes()), "55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc");
    }

    #[test]
    fn hmac_joins_its_parts() {
        let whole = hmac(Hash::Sha1, b"Jefe", &[b"what do ya want for nothing?"]);
        assert_eq!(hex(whole.as_bytes()), "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79");
        let parts = hmac(Hash::Sha1, b"Jefe", &[b"what do ya ", b"want for nothing?"]);
        assert!(bool::from(parts.ct_eq(whole.as_bytes())));
    }

    /// Implemented once for every type and once more for those with `==`, so that a type for which
    /// the compiler need not ask which one is meant has none.
    trait NoEquality<A> {
        fn holds() {}
    }
    impl<T: ?Sized> NoEquality<()> for T {}
    impl<T: ?Sized + PartialEq> NoEquality<u8> for T {}

    #[test]
    fn a6_what_holds_secrets_has_no_equality() {
        // This is about compiling, not running.
        <Secret as NoEquality<_>>::holds();
        <crate::ServerSecret as NoEquality<_>>::holds();
        <crate::Credentials as NoEquality<_>>::holds();
        <crate::credentials::ScramKeys as NoEquality<_>>::holds();
        <crate::credentials::Candidate as NoEquality<_>>::holds();
    }

    #[test]
    fn a6_secrets_are_not_printed() {
        let secret = Secret::new(b"CANARY-key".to_vec());
        assert!(!format!("{secret:?}").contains("CANARY"));
        assert!(bool::from(secret.ct_eq(b"CANARY-key")));
        assert!(!bool::from(secret.ct_eq(b"CANARY-kez")));
        assert!(!bool::from(secret.ct_eq(b"CANARY")));
    }
}
