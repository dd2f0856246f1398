//! The client's half of SCRAM-SHA-256 (RFC 5802 3, RFC 7677), for tools that log in to a server.
//!
//! What must hold: a server that does not prove that it has the account's keys is not trusted; no
//! channel is bound, so that this is for connections that need no protection.

use subtle::ConstantTimeEq;

use crate::crypto::{self, Hash, Secret, digest, hi, hmac};
use crate::encoding::{decode_base64, encode_base64};

/// The most rounds of hashing that a server may ask for.
const MAX_ITERATIONS: u32 = 1_000_000;

/// Why an exchange came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The challenge is none of SCRAM, or not the answer to what was sent.
    #[error("the server's challenge is wrong")]
    Challenge,
    /// The system has no random bytes.
    #[error("the system has no random bytes")]
    Random,
}

/// One exchange with a server.
#[derive(Debug)]
pub struct ScramClient {
    bare: String,
    nonce: String,
    password: Secret,
    server_signature: Option<Secret>,
}

impl ScramClient {
    /// The name on the wire.
    pub const MECHANISM: &'static str = "SCRAM-SHA-256";

    /// Begins an exchange.
    ///
    /// # Errors
    /// [`ClientError::Random`].
    pub fn new(username: &str, password: &str) -> Result<Self, ClientError> {
        let random = crypto::random::<18>().map_err(|_| ClientError::Random)?;
        Ok(Self::with_nonce(username, password, encode_base64(&random)))
    }

    fn with_nonce(username: &str, password: &str, nonce: String) -> Self {
        let username = username.replace('=', "=3D").replace(',', "=2C");
        Self {
            bare: format!("n={username},r={nonce}"),
            nonce,
            password: Secret::new(password.as_bytes().to_vec()),
            server_signature: None,
        }
    }

    /// The content of `<auth/>`.
    pub fn first(&self) -> String {
        encode_base64(format!("n,,{}", self.bare).as_bytes())
    }

    /// The content of `<response/>` to the content of a `<challenge/>`. Hashes for milliseconds.
    ///
    /// # Errors
    /// [`ClientError::Challenge`].
    pub fn respond(&mut self, challenge: &str) -> Result<String, ClientError> {
        let challenge = decode_base64(challenge).map_err(|_| ClientError::Challenge)?;
        let challenge = std::str::from_utf8(&challenge).map_err(|_| ClientError::Challenge)?;
        let attribute = |name: &str| challenge.split(',').find_map(|part| part.strip_prefix(name));
        let (Some(nonce), Some(salt), Some(iterations)) = (attribute("r="), attribute("s="), attribute("i="))
        else {
            return Err(ClientError::Challenge);
        };
        let salt = decode_base64(salt).map_err(|_| ClientError::Challenge)?;
        let iterations: u32 = iterations.parse().map_err(|_| ClientError::Challenge)?;
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err(ClientError::Challenge);
        }
        if !(1..=MAX_ITERATIONS).contains(&iterations) {
            return Err(ClientError::Challenge);
        }
        let hash = Hash::Sha256;
        let salted = hi(hash, self.password.as_bytes(), &salt, iterations);
        let client_key = hmac(hash, salted.as_bytes(), &[b"Client Key"]);
        let server_key = hmac(hash, salted.as_bytes(), &[b"Server Key"]);
        let without_proof = format!("c={},r={nonce}", encode_base64(b"n,,"));
        let signed = format!("{},{challenge},{without_proof}", self.bare);
        let stored_key = digest(hash, client_key.as_bytes());
        let signature = hmac(hash, stored_key.as_bytes(), &[signed.as_bytes()]);
        let pairs = client_key.as_bytes().iter().zip(signature.as_bytes());
        let proof: Vec<u8> = pairs.map(|(key, signature)| key ^ signature).collect();
        self.server_signature = Some(hmac(hash, server_key.as_bytes(), &[signed.as_bytes()]));
        Ok(encode_base64(format!("{without_proof},p={}", encode_base64(&proof)).as_bytes()))
    }

    /// True when the content of `<success/>` proves that the server has the account's keys.
    pub fn trusts(&self, success: &str) -> bool {
        let Some(signature) = &self.server_signature else { return false };
        let expected = format!("v={}", encode_base64(signature.as_bytes()));
        decode_base64(success).is_ok_and(|given| given.ct_eq(expected.as_bytes()).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHALLENGE: &str =
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";

    fn client() -> ScramClient {
        ScramClient::with_nonce("user", "pencil", "rOprNGfwEbeRWgbNEkqO".to_owned())
    }

    #[test]
    fn the_example_of_rfc_7677() {
        let mut client = client();
        let success = encode_base64(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        assert!(!client.trusts(&success));
        let response = client.respond(&encode_base64(CHALLENGE.as_bytes())).unwrap();
        assert_eq!(
            decode_base64(&response).unwrap(),
            b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
              p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        assert!(client.trusts(&success));
        assert!(!client.trusts(&encode_base64(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G5=")));
        assert!(!client.trusts("="));
    }

    #[test]
    fn wrong_challenges_are_refused() {
        for bad in [
            "",
            "r=rOprNGfwEbeRWgbNEkqO,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
            "r=another-nonce,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
            "r=rOprNGfwEbeRWgbNEkqOx,s=!,i=4096",
            "r=rOprNGfwEbeRWgbNEkqOx,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=0",
            "r=rOprNGfwEbeRWgbNEkqOx,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4000000000",
        ] {
            let refused = client().respond(&encode_base64(bad.as_bytes()));
            assert_eq!(refused, Err(ClientError::Challenge), "{bad}");
        }
    }
}
