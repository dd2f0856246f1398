//! The client's half of SASL: PLAIN and SCRAM with and without channel binding.
//!
//! The messages are exposed one by one, so that a test can send a wrong one.
//! Salted keys are kept for the life of the process: the load generator logs in
//! thousands of times, and PBKDF2 on its side would measure the generator.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, Mac};
use sha1::{Digest, Sha1};
use sha2::Sha256;

/// A SASL mechanism that the harness can speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mechanism {
    /// RFC 4616.
    Plain,
    /// RFC 5802.
    ScramSha1,
    /// RFC 5802 with channel binding.
    ScramSha1Plus,
    /// RFC 7677.
    ScramSha256,
    /// RFC 7677 with channel binding.
    ScramSha256Plus,
}

impl Mechanism {
    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha1 => "SCRAM-SHA-1",
            Self::ScramSha1Plus => "SCRAM-SHA-1-PLUS",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha256Plus => "SCRAM-SHA-256-PLUS",
        }
    }

    /// Finds a mechanism by its name on the wire.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::ScramSha256Plus, Self::ScramSha1Plus, Self::ScramSha256, Self::ScramSha1, Self::Plain]
            .into_iter()
            .find(|m| m.name() == name)
    }

    /// True for the two mechanisms that bind to the TLS channel.
    pub fn is_plus(self) -> bool {
        matches!(self, Self::ScramSha1Plus | Self::ScramSha256Plus)
    }

    /// The hash of a SCRAM mechanism; `None` for PLAIN.
    pub fn hash(self) -> Option<Hash> {
        match self {
            Self::Plain => None,
            Self::ScramSha1 | Self::ScramSha1Plus => Some(Hash::Sha1),
            Self::ScramSha256 | Self::ScramSha256Plus => Some(Hash::Sha256),
        }
    }
}

/// The hash function of a SCRAM mechanism.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hash {
    /// SHA-1, 20 bytes.
    Sha1,
    /// SHA-256, 32 bytes.
    Sha256,
}

impl Hash {
    /// The digest of `data`.
    pub fn digest(self, data: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha1 => Sha1::digest(data).to_vec(),
            Self::Sha256 => Sha256::digest(data).to_vec(),
        }
    }

    /// HMAC of `data` under `key`.
    pub fn hmac(self, key: &[u8], data: &[u8]) -> Vec<u8> {
        fn run<M: Mac + hmac::digest::KeyInit>(key: &[u8], data: &[u8]) -> Vec<u8> {
            let mut mac = <M as Mac>::new_from_slice(key).expect("HMAC takes a key of any length");
            mac.update(data);
            mac.finalize().into_bytes().to_vec()
        }
        match self {
            Self::Sha1 => run::<Hmac<Sha1>>(key, data),
            Self::Sha256 => run::<Hmac<Sha256>>(key, data),
        }
    }

    fn salted_password(self, password: &str, salt: &[u8], iterations: u32) -> Vec<u8> {
        match self {
            Self::Sha1 => {
                pbkdf2::pbkdf2_hmac_array::<Sha1, 20>(password.as_bytes(), salt, iterations).to_vec()
            }
            Self::Sha256 => {
                pbkdf2::pbkdf2_hmac_array::<Sha256, 32>(password.as_bytes(), salt, iterations).to_vec()
            }
        }
    }
}

/// The keys that SCRAM derives from a password.
#[derive(Debug, Clone)]
pub struct Keys {
    /// The secret that the client proves it has.
    pub client_key: Vec<u8>,
    /// H(ClientKey): what a server stores to check the proof.
    pub stored_key: Vec<u8>,
    /// What a server signs with.
    pub server_key: Vec<u8>,
}

impl Keys {
    /// Derives the keys (RFC 5802 section 3); from the process-wide cache when they were derived before.
    pub fn derive(hash: Hash, password: &str, salt: &[u8], iterations: u32) -> Self {
        type Cache = HashMap<(Hash, String, Vec<u8>, u32), Keys>;
        static CACHE: LazyLock<Mutex<Cache>> = LazyLock::new(Mutex::default);
        const MAX_CACHED: usize = 100_000;

        let index = (hash, password.to_owned(), salt.to_vec(), iterations);
        if let Some(keys) = CACHE.lock().unwrap_or_else(PoisonError::into_inner).get(&index) {
            return keys.clone();
        }
        let salted = hash.salted_password(password, salt, iterations);
        let client_key = hash.hmac(&salted, b"Client Key");
        let keys = Self {
            stored_key: hash.digest(&client_key),
            server_key: hash.hmac(&salted, b"Server Key"),
            client_key,
        };
        let mut cache = CACHE.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= MAX_CACHED {
            cache.clear();
        }
        cache.insert(index, keys.clone());
        keys
    }
}

/// What the client says about channel binding in its first message (RFC 5802 section 6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Binding {
    /// `n`: the client has no channel binding.
    NotSupported,
    /// `y`: the client has it, but believes that the server has not.
    NotOffered,
    /// `p=kind`: bound to this data.
    Bound {
        /// `tls-exporter` or `tls-server-end-point`.
        kind: String,
        /// The channel binding data.
        data: Vec<u8>,
    },
}

/// One SCRAM exchange, seen from the client.
#[derive(Debug, Clone)]
pub struct Scram {
    hash: Hash,
    password: String,
    gs2_header: String,
    binding: Binding,
    first_bare: String,
    nonce: String,
    server_signature: Option<Vec<u8>>,
}

impl Scram {
    /// Starts an exchange. `authzid` is normally empty (the account itself).
    pub fn new(hash: Hash, user: &str, password: &str, authzid: &str, binding: Binding) -> Self {
        let mut random = [0u8; 18];
        getrandom::fill(&mut random).expect("the system has a random source");
        let nonce = BASE64.encode(random);
        let flag = match &binding {
            Binding::NotSupported => "n".to_owned(),
            Binding::NotOffered => "y".to_owned(),
            Binding::Bound { kind, .. } => format!("p={kind}"),
        };
        let authz = if authzid.is_empty() { String::new() } else { format!("a={}", escape(authzid)) };
        Self {
            hash,
            password: password.to_owned(),
            gs2_header: format!("{flag},{authz},"),
            binding,
            first_bare: format!("n={},r={nonce}", escape(user)),
            nonce,
            server_signature: None,
        }
    }

    /// The client-first message.
    pub fn client_first(&self) -> String {
        format!("{}{}", self.gs2_header, self.first_bare)
    }

    /// The client-final message that answers `server_first`; an error text if that message is wrong.
    pub fn client_final(&mut self, server_first: &str) -> Result<String, String> {
        let field = |name: &str| {
            server_first
                .split(',')
                .find_map(|part| part.strip_prefix(name))
                .ok_or_else(|| format!("no {name} in {server_first:?}"))
        };
        let nonce = field("r=")?;
        if !nonce.starts_with(&self.nonce) || nonce.len() < self.nonce.len() + 16 {
            return Err(format!("the server's nonce does not extend ours: {nonce:?}"));
        }
        let salt = BASE64.decode(field("s=")?).map_err(|e| format!("salt: {e}"))?;
        let iterations: u32 = field("i=")?.parse().map_err(|e| format!("iterations: {e}"))?;
        let keys = Keys::derive(self.hash, &self.password, &salt, iterations);

        let mut bound = self.gs2_header.clone().into_bytes();
        if let Binding::Bound { data, .. } = &self.binding {
            bound.extend_from_slice(data);
        }
        let without_proof = format!("c={},r={nonce}", BASE64.encode(bound));
        let auth_message = format!("{},{server_first},{without_proof}", self.first_bare);
        let signature = self.hash.hmac(&keys.stored_key, auth_message.as_bytes());
        let proof: Vec<u8> = keys.client_key.iter().zip(&signature).map(|(k, s)| k ^ s).collect();
        self.server_signature = Some(self.hash.hmac(&keys.server_key, auth_message.as_bytes()));
        Ok(format!("{without_proof},p={}", BASE64.encode(proof)))
    }

    /// Whether the server-final message proves that the server has the account's keys.
    pub fn server_is_genuine(&self, server_final: &str) -> bool {
        let given = server_final.strip_prefix("v=").and_then(|v| BASE64.decode(v).ok());
        given.is_some() && given == self.server_signature
    }
}

/// The PLAIN message (RFC 4616).
pub fn plain(authzid: &str, user: &str, password: &str) -> String {
    format!("{authzid}\0{user}\0{password}")
}

fn escape(name: &str) -> String {
    name.replace('=', "=3D").replace(',', "=2C")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exchange(hash: Hash, nonce: &str, server_first: &str) -> (String, Scram) {
        let mut scram = Scram::new(hash, "user", "pencil", "", Binding::NotSupported);
        scram.nonce = nonce.to_owned();
        scram.first_bare = format!("n=user,r={nonce}");
        let last = scram.client_final(server_first).unwrap();
        (last, scram)
    }

    /// RFC 5802 section 5.
    #[test]
    fn sha1_example() {
        let (last, scram) = exchange(
            Hash::Sha1,
            "fyko+d2lbbFgONRv9qkxdawL",
            "r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096",
        );
        assert_eq!(
            last,
            "c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts="
        );
        assert!(scram.server_is_genuine("v=rmF9pqV8S7suAoZWja4dJRkFsKQ="));
        assert!(!scram.server_is_genuine("v=rmF9pqV8S7suAoZWja4dJRkFsKA="));
    }

    /// RFC 7677 section 3.
    #[test]
    fn sha256_example() {
        let (last, scram) = exchange(
            Hash::Sha256,
            "rOprNGfwEbeRWgbNEkqO",
            "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
        );
        assert_eq!(
            last,
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
             p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        assert!(scram.server_is_genuine("v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="));
    }

    #[test]
    fn a_foreign_nonce_is_refused() {
        let mut scram = Scram::new(Hash::Sha1, "user", "pencil", "", Binding::NotSupported);
        assert!(scram.client_final("r=somethingelse0123456789,s=QSXCR+Q6sek8bf92,i=4096").is_err());
    }
}
