//! What is stored of a password: the SCRAM keys for both hash functions, in a versioned record.
//!
//! Layout of a record, version 1, integers big-endian: the version (1 byte); then for SHA-1 and
//! for SHA-256 each: iterations (4), length of the salt (1), the salt, StoredKey, ServerKey (20
//! or 32 bytes each). Nothing follows.
//!
//! What must hold: the password cannot be read from a record; a record either decodes to what was
//! encoded or not at all.

use subtle::Choice;
use waystation_core::prep::{self, PrepError};

use crate::crypto::{self, Hash, Secret};

/// Iterations for new passwords, both hash functions.
///
/// RFC 7677 4 asks for at least 4,096 and warns of phones, which pay the same price as whoever
/// guesses passwords from stolen records, at each login unless they cache their keys. 10,000 is
/// what Prosody gives new accounts; slow clients are still done in well under a second.
pub const DEFAULT_ITERATIONS: u32 = 10_000;

/// Fewest iterations (RFC 5802 5.1, RFC 7677 3).
pub const MIN_ITERATIONS: u32 = 4096;

/// Most iterations in a record. Above this a login would take seconds.
const MAX_ITERATIONS: u32 = 10_000_000;

/// Bytes of a salt.
pub(crate) const SALT_LEN: usize = 16;

const VERSION: u8 = 1;

/// The authentication information of one hash function (RFC 5802 2.1).
#[derive(Clone, Debug)]
pub(crate) struct ScramKeys {
    pub(crate) salt: Vec<u8>,
    pub(crate) iterations: u32,
    pub(crate) stored_key: Secret,
    pub(crate) server_key: Secret,
}

impl ScramKeys {
    /// Derives the keys from a prepared password (RFC 5802 3).
    pub(crate) fn derive(hash: Hash, password: &[u8], salt: &[u8], iterations: u32) -> Self {
        let salted = crypto::hi(hash, password, salt, iterations);
        let client_key = crypto::hmac(hash, salted.as_bytes(), &[b"Client Key"]);
        Self {
            salt: salt.to_vec(),
            iterations,
            stored_key: crypto::digest(hash, client_key.as_bytes()),
            server_key: crypto::hmac(hash, salted.as_bytes(), &[b"Server Key"]),
        }
    }

    /// Checks a client's proof, and computes the server's signature in any case.
    pub(crate) fn verify(&self, hash: Hash, auth_message: &[u8], proof: &[u8]) -> (Choice, Secret) {
        let signature = crypto::hmac(hash, self.stored_key.as_bytes(), &[auth_message]);
        // A proof of the wrong length is cut or padded; the hash over it cannot match.
        let mut client_key = signature.as_bytes().to_vec();
        client_key.iter_mut().zip(proof).for_each(|(key, byte)| *key ^= byte);
        let client_key = Secret::new(client_key);
        let right_length = Choice::from(u8::from(proof.len() == hash.len()));
        let matches = self.stored_key.ct_eq(crypto::digest(hash, client_key.as_bytes()).as_bytes());
        let server_signature = crypto::hmac(hash, self.server_key.as_bytes(), &[auth_message]);
        (matches & right_length, server_signature)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.iterations.to_be_bytes());
        // Salts are made by this module, or checked by `decode`: they fit one byte.
        out.push(self.salt.len() as u8);
        out.extend_from_slice(&self.salt);
        out.extend_from_slice(self.stored_key.as_bytes());
        out.extend_from_slice(self.server_key.as_bytes());
    }

    fn decode(hash: Hash, input: &mut &[u8]) -> Result<Self, RecordError> {
        let iterations = take(input, 4)?.iter().fold(0, |n, &b| n << 8 | u32::from(b));
        let salt_len = usize::from(take(input, 1)?[0]);
        let salt = take(input, salt_len)?.to_vec();
        if !(MIN_ITERATIONS..=MAX_ITERATIONS).contains(&iterations) || salt.is_empty() {
            return Err(RecordError::Damaged);
        }
        let stored_key = Secret::new(take(input, hash.len())?.to_vec());
        let server_key = Secret::new(take(input, hash.len())?.to_vec());
        Ok(Self { salt, iterations, stored_key, server_key })
    }
}

fn take<'a>(input: &mut &'a [u8], n: usize) -> Result<&'a [u8], RecordError> {
    let (head, tail) = input.split_at_checked(n).ok_or(RecordError::Damaged)?;
    *input = tail;
    Ok(head)
}

/// Why a record cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// It was written by a later version.
    #[error("the credentials record has version {0}, which this server does not know")]
    Version(u8),
    /// It is cut short, has trailing bytes, or holds impossible numbers.
    #[error("the credentials record is damaged")]
    Damaged,
}

/// The stored credentials of an account.
#[derive(Clone, Debug)]
pub struct Credentials {
    pub(crate) sha1: ScramKeys,
    pub(crate) sha256: ScramKeys,
}

impl Credentials {
    /// Derives credentials from a password, with new salts.
    ///
    /// Takes milliseconds: run it by [`PasswordWorkers`](crate::PasswordWorkers). Fewer than
    /// [`MIN_ITERATIONS`] are raised to it.
    ///
    /// # Errors
    /// [`PrepError`] when the password cannot be prepared (SASLprep).
    pub fn derive(password: &str, iterations: u32) -> Result<Self, DeriveError> {
        let password = prepare(password)?;
        let iterations = iterations.clamp(MIN_ITERATIONS, MAX_ITERATIONS);
        let keys = |hash| -> Result<ScramKeys, DeriveError> {
            let salt = crypto::random::<SALT_LEN>()?;
            Ok(ScramKeys::derive(hash, password.as_bytes(), &salt, iterations))
        };
        Ok(Self { sha1: keys(Hash::Sha1)?, sha256: keys(Hash::Sha256)? })
    }

    pub(crate) fn keys(&self, hash: Hash) -> &ScramKeys {
        match hash {
            Hash::Sha1 => &self.sha1,
            Hash::Sha256 => &self.sha256,
        }
    }

    /// The record to store.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(160);
        out.push(VERSION);
        self.sha1.encode(&mut out);
        self.sha256.encode(&mut out);
        out
    }

    /// Reads a stored record.
    ///
    /// # Errors
    /// [`RecordError`] when it is not exactly a record of a known version.
    pub fn decode(record: &[u8]) -> Result<Self, RecordError> {
        let mut input = record;
        match take(&mut input, 1)?[0] {
            VERSION => {}
            version => return Err(RecordError::Version(version)),
        }
        let sha1 = ScramKeys::decode(Hash::Sha1, &mut input)?;
        let sha256 = ScramKeys::decode(Hash::Sha256, &mut input)?;
        if input.is_empty() { Ok(Self { sha1, sha256 }) } else { Err(RecordError::Damaged) }
    }
}

/// Why credentials cannot be derived.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub enum DeriveError {
    /// The password cannot be prepared.
    #[error("the password is empty, too long, or holds a forbidden character")]
    Password(#[from] PrepError),
    /// The operating system has no random bytes.
    #[error("no random bytes: {0}")]
    Random(#[from] getrandom::Error),
}

/// A prepared password, wiped when dropped.
pub(crate) fn prepare(password: &str) -> Result<Secret, PrepError> {
    Ok(Secret::new(prep::password(password)?.into_owned().into_bytes()))
}

/// What a login is verified against: real credentials, or made-up ones that nothing matches.
///
/// Made by [`Decoys::candidate`](crate::Decoys::candidate). Which of the two it is shows nowhere
/// but in the outcome.
#[derive(Clone, Debug)]
pub struct Candidate {
    credentials: Credentials,
    known: Choice,
}

impl Candidate {
    pub(crate) fn new(credentials: Credentials, known: Choice) -> Self {
        Self { credentials, known }
    }

    pub(crate) fn keys(&self, hash: Hash) -> &ScramKeys {
        self.credentials.keys(hash)
    }

    /// Checks a proof. The second value is the server's signature.
    pub(crate) fn verify(&self, hash: Hash, auth_message: &[u8], proof: &[u8]) -> (bool, Secret) {
        let (matches, signature) = self.keys(hash).verify(hash, auth_message, proof);
        ((matches & self.known).into(), signature)
    }

    /// Checks a prepared password. Takes milliseconds.
    pub(crate) fn verify_password(&self, password: &Secret) -> bool {
        let stored = &self.credentials.sha256;
        let given = ScramKeys::derive(Hash::Sha256, password.as_bytes(), &stored.salt, stored.iterations);
        (stored.stored_key.ct_eq(given.stored_key.as_bytes()) & self.known).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn b64(text: &str) -> Vec<u8> {
        crate::encoding::decode_base64(text).unwrap()
    }

    /// The exchanges of RFC 5802 5 and RFC 7677 3: user `user`, password `pencil`.
    #[test]
    fn vectors_of_rfc5802_and_rfc7677() {
        let vectors = [
            (
                Hash::Sha1,
                "QSXCR+Q6sek8bf92",
                "n=user,r=fyko+d2lbbFgONRv9qkxdawL,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,\
                 s=QSXCR+Q6sek8bf92,i=4096,c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j",
                "v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
                "rmF9pqV8S7suAoZWja4dJRkFsKQ=",
            ),
            (
                Hash::Sha256,
                "W22ZaJ0SNY7soEsUEjb6gQ==",
                "n=user,r=rOprNGfwEbeRWgbNEkqO,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                 s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,\
                 r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0",
                "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
                "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
            ),
        ];
        for (hash, salt, auth_message, proof, signature) in vectors {
            let keys = ScramKeys::derive(hash, b"pencil", &b64(salt), 4096);
            let (ok, server_signature) = keys.verify(hash, auth_message.as_bytes(), &b64(proof));
            assert!(bool::from(ok));
            assert_eq!(crate::encoding::encode_base64(server_signature.as_bytes()), signature);
            // Any flipped bit, a missing and an extra byte are wrong.
            for i in 0..hash.len() {
                let mut wrong = b64(proof);
                wrong[i] ^= 1;
                assert!(!bool::from(keys.verify(hash, auth_message.as_bytes(), &wrong).0));
            }
            assert!(!bool::from(keys.verify(hash, auth_message.as_bytes(), &b64(proof)[1..]).0));
            assert!(!bool::from(
                keys.verify(hash, auth_message.as_bytes(), &[b64(proof), vec![0]].concat()).0
            ));
            assert!(!bool::from(keys.verify(hash, auth_message.as_bytes(), &[]).0));
        }
    }

    #[test]
    fn records_are_read_back_and_hold_no_password() {
        let credentials = Credentials::derive("CANARY-pencil", 5000).unwrap();
        let record = credentials.encode();
        assert_eq!(record.len(), 1 + 2 * (4 + 1 + SALT_LEN) + 2 * 20 + 2 * 32);
        assert!(!record.windows(6).any(|w| w == b"CANARY"));
        assert!(!format!("{credentials:?}").contains("CANARY"));
        let again = Credentials::decode(&record).unwrap();
        assert_eq!(again.encode(), record);
        assert_eq!(again.sha256.iterations, 5000);
    }

    #[test]
    fn salts_are_new_each_time() {
        let (a, b) = (Credentials::derive("x", 4096).unwrap(), Credentials::derive("x", 4096).unwrap());
        assert_ne!(a.sha1.salt, b.sha1.salt);
        assert_ne!(a.sha256.salt, b.sha256.salt);
        assert_ne!(a.sha1.salt, a.sha256.salt);
    }

    #[test]
    fn too_few_iterations_are_raised() {
        assert_eq!(Credentials::derive("x", 1).unwrap().sha1.iterations, MIN_ITERATIONS);
    }

    #[test]
    fn damaged_records_are_refused() {
        let record = Credentials::derive("x", 4096).unwrap().encode();
        for len in 0..record.len() {
            assert_eq!(Credentials::decode(&record[..len]).err(), Some(RecordError::Damaged), "{len} bytes");
        }
        assert_eq!(Credentials::decode(&[&record[..], &[0]].concat()).err(), Some(RecordError::Damaged));
        let with = |at: usize, byte: u8| {
            let mut changed = record.clone();
            changed[at] = byte;
            Credentials::decode(&changed).err()
        };
        assert_eq!(with(0, 2), Some(RecordError::Version(2)));
        assert_eq!(with(1, 255), Some(RecordError::Damaged), "4 billion iterations");
        assert_eq!(with(3, 0), Some(RecordError::Damaged), "no iterations");
        let mut no_salt = Credentials::decode(&record).unwrap();
        no_salt.sha1.salt.clear();
        assert_eq!(Credentials::decode(&no_salt.encode()).err(), Some(RecordError::Damaged), "no salt");
    }

    #[test]
    fn a9_passwords_are_prepared_as_scram_clients_do() {
        let known = Choice::from(1);
        for (stored, given) in
            [("a\u{a0}b", "a b"), ("\u{fb01}sh", "fish"), ("e\u{301}", "\u{e9}"), ("I\u{ad}X", "\u{2168}")]
        {
            let candidate = Candidate::new(Credentials::derive(stored, 4096).unwrap(), known);
            assert!(candidate.verify_password(&prepare(given).unwrap()), "{stored:?} {given:?}");
        }
        let candidate = Candidate::new(Credentials::derive("Pencil", 4096).unwrap(), known);
        assert!(!candidate.verify_password(&prepare("pencil").unwrap()), "case counts");
        for bad in ["", "\u{7}", "\u{ad}", "\u{1f600}", "\u{627}1"] {
            assert!(matches!(Credentials::derive(bad, 4096), Err(DeriveError::Password(_))), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(bytes: Vec<u8>) {
            if let Ok(credentials) = Credentials::decode(&bytes) {
                prop_assert_eq!(credentials.encode(), bytes);
            }
        }
    }
}
