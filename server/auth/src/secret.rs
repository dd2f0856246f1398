//! The server's own secret, and the credentials that stand in for those of unknown accounts.
//!
//! What must hold: what an unknown account is asked is stable over time (same salt, same count),
//! cannot be computed by outsiders, and costs as much to make up as to leave unused.

use subtle::Choice;

use crate::credentials::{Candidate, Credentials, SALT_LEN, ScramKeys};
use crate::crypto::{self, Hash, Secret};

/// Bytes of a [`ServerSecret`].
pub(crate) const SECRET_LEN: usize = 32;

/// A random secret of this installation. It is made on the first start and kept in storage.
#[derive(Clone, Debug)]
pub struct ServerSecret(Secret);

impl ServerSecret {
    /// Makes a new secret.
    ///
    /// # Errors
    /// When the operating system has no random bytes.
    pub fn generate() -> Result<Self, getrandom::Error> {
        Ok(Self(Secret::new(crypto::random::<SECRET_LEN>()?.to_vec())))
    }

    /// Takes a stored secret over; `None` when it has the wrong length.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        (bytes.len() == SECRET_LEN).then(|| Self(Secret::new(bytes.to_vec())))
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// Makes credentials for accounts that do not exist (row A5).
#[derive(Clone, Debug)]
pub struct Decoys {
    secret: ServerSecret,
    iterations: u32,
}

impl Decoys {
    /// `iterations` must be the count of new accounts, or unknown names could be told by it.
    pub fn new(secret: ServerSecret, iterations: u32) -> Self {
        Self { secret, iterations }
    }

    /// What to verify a login against: the credentials found, or made-up ones that nothing can
    /// match. The made-up ones are computed in both cases, so that both take as long.
    pub fn candidate(&self, host: &str, local: &str, found: Option<Credentials>) -> Candidate {
        let decoy = Credentials {
            sha1: self.keys(Hash::Sha1, host, local),
            sha256: self.keys(Hash::Sha256, host, local),
        };
        let known = Choice::from(u8::from(found.is_some()));
        Candidate::new(found.unwrap_or(decoy), known)
    }

    fn keys(&self, hash: Hash, host: &str, local: &str) -> ScramKeys {
        let derive = |label: &str| {
            let parts = [label.as_bytes(), b"\0", host.as_bytes(), b"\0", local.as_bytes()];
            crypto::hmac(hash, self.secret.as_bytes(), &parts)
        };
        ScramKeys {
            salt: derive("salt").as_bytes()[..SALT_LEN].to_vec(),
            iterations: self.iterations,
            stored_key: derive("stored key"),
            server_key: derive("server key"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoys() -> Decoys {
        Decoys::new(ServerSecret::from_bytes(&[7; SECRET_LEN]).unwrap(), 4096)
    }

    fn salt(decoys: &Decoys, host: &str, local: &str) -> Vec<u8> {
        decoys.candidate(host, local, None).keys(Hash::Sha256).salt.clone()
    }

    #[test]
    fn a5_the_salt_of_an_unknown_account_is_stable_and_its_own() {
        let first = salt(&decoys(), "localhost", "nobody");
        for _ in 0..5 {
            assert_eq!(salt(&decoys(), "localhost", "nobody"), first);
        }
        assert_ne!(salt(&decoys(), "localhost", "nobody2"), first);
        assert_ne!(salt(&decoys(), "other", "nobody"), first);
        let other = Decoys::new(ServerSecret::generate().unwrap(), 4096);
        assert_ne!(salt(&other, "localhost", "nobody"), first);
    }

    #[test]
    fn a5_decoys_look_like_real_credentials() {
        let real = Credentials::derive("pencil", 4096).unwrap();
        let decoy = decoys().candidate("localhost", "nobody", None);
        for hash in [Hash::Sha1, Hash::Sha256] {
            let (real, decoy) = (real.keys(hash), decoy.keys(hash));
            assert_eq!(real.salt.len(), decoy.salt.len());
            assert_eq!(real.iterations, decoy.iterations);
            assert_eq!(real.stored_key.as_bytes().len(), decoy.stored_key.as_bytes().len());
        }
    }

    #[test]
    fn stored_secrets_have_one_length() {
        assert!(ServerSecret::from_bytes(&[1; 31]).is_none());
        assert!(ServerSecret::from_bytes(&[]).is_none());
        assert!(ServerSecret::from_bytes(&[1; 32]).is_some());
    }
}
