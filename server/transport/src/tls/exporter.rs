//! Channel binding `tls-exporter` (RFC 9266) from the secrets of a handshake.
//!
//! rustls exports keying material on its buffered connections only; on the unbuffered ones, which cost a
//! third of the memory, the exporter is not reachable. The derivation is small and fixed, so it is done here
//! with the hash functions of the negotiated cipher suite. Tests compare it with rustls' and OpenSSL's own.

use rustls::SupportedCipherSuite;
use rustls::crypto::tls13::OkmBlock;

const LABEL: &[u8] = b"EXPORTER-Channel-Binding";

/// The parts of a ServerHello that the exporter of TLS 1.2 needs.
#[derive(Clone, Copy)]
pub(crate) struct ServerHello {
    pub(crate) random: [u8; 32],
    pub(crate) extended_master_secret: bool,
}

impl ServerHello {
    /// Parses the ServerHello at the start of an unencrypted handshake record of ours, if there is one.
    pub(crate) fn parse(record: &[u8]) -> Option<Self> {
        const HANDSHAKE_RECORD: u8 = 22;
        const SERVER_HELLO: u8 = 2;
        const EXTENDED_MASTER_SECRET: u16 = 23;

        let mut record = Fields(record);
        if record.take(1)? != [HANDSHAKE_RECORD] {
            return None;
        }
        record.take(2)?;
        let fragment_len = record.length(2)?;
        let mut fragment = Fields(record.take(fragment_len)?);
        if fragment.take(1)? != [SERVER_HELLO] {
            return None;
        }
        let hello_len = fragment.length(3)?;
        let mut hello = Fields(fragment.take(hello_len)?);
        hello.take(2)?;
        let random = hello.take(32)?.try_into().ok()?;
        let session_id_len = hello.length(1)?;
        // The session id, the cipher suite and the compression method.
        hello.take(session_id_len + 3)?;
        let mut extended_master_secret = false;
        if let Some(extensions_len) = hello.length(2) {
            let mut extensions = Fields(hello.take(extensions_len)?);
            while let Some(kind) = extensions.length(2) {
                let len = extensions.length(2)?;
                extensions.take(len)?;
                extended_master_secret |= kind == usize::from(EXTENDED_MASTER_SECRET);
            }
        }
        Some(Self { random, extended_master_secret })
    }
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    /// A big-endian number of `width` bytes.
    fn length(&mut self, width: usize) -> Option<usize> {
        Some(self.take(width)?.iter().fold(0, |value, byte| value << 8 | usize::from(*byte)))
    }
}

/// The binding of a TLS 1.3 session, from its exporter master secret (RFC 8446 section 7.5).
pub(crate) fn tls13(suite: SupportedCipherSuite, exporter_secret: &[u8]) -> Option<[u8; 32]> {
    let suite = suite.tls13()?;
    if exporter_secret.len() != suite.common.hash_provider.output_len() {
        return None;
    }
    let empty_hash = suite.common.hash_provider.hash(b"");
    let derived = {
        let expander = suite.hkdf_provider.expander_for_okm(&OkmBlock::new(exporter_secret));
        let mut secret = zeroize::Zeroizing::new([0u8; OkmBlock::MAX_LEN]);
        let secret = &mut secret[..exporter_secret.len()];
        expand_label(&*expander, LABEL, empty_hash.as_ref(), secret)?;
        OkmBlock::new(secret)
    };
    let mut binding = [0; 32];
    let expander = suite.hkdf_provider.expander_for_okm(&derived);
    expand_label(&*expander, b"exporter", empty_hash.as_ref(), &mut binding)?;
    Some(binding)
}

/// HKDF-Expand-Label, RFC 8446 section 7.1.
fn expand_label(
    expander: &dyn rustls::crypto::tls13::HkdfExpander,
    label: &[u8],
    context: &[u8],
    output: &mut [u8],
) -> Option<()> {
    const PREFIX: &[u8] = b"tls13 ";
    let output_len = u16::try_from(output.len()).ok()?.to_be_bytes();
    let label_len = [u8::try_from(PREFIX.len() + label.len()).ok()?];
    let context_len = [u8::try_from(context.len()).ok()?];
    let info: [&[u8]; 6] = [&output_len, &label_len, PREFIX, label, &context_len, context];
    expander.expand_slice(&info, output).ok()
}

/// The binding of a TLS 1.2 session with an extended master secret (RFC 5705 section 4, with a context of
/// length zero as RFC 9266 asks, which is not the same as no context).
pub(crate) fn tls12(
    suite: SupportedCipherSuite,
    master_secret: &[u8],
    client_random: &[u8],
    hello: &ServerHello,
) -> Option<[u8; 32]> {
    let SupportedCipherSuite::Tls12(suite) = suite else { return None };
    if !hello.extended_master_secret {
        return None;
    }
    const NO_CONTEXT: [u8; 2] = 0u16.to_be_bytes();
    let seed = [client_random, &hello.random, &NO_CONTEXT].concat();
    let mut binding = [0; 32];
    suite.prf_provider.for_secret(&mut binding, master_secret, LABEL, &seed);
    Some(binding)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server_hello(extensions: &[u8]) -> Vec<u8> {
        let mut hello = vec![3, 3];
        hello.extend_from_slice(&[0xab; 32]);
        hello.extend_from_slice(&[2, 1, 2, 0xc0, 0x2f, 0]);
        hello.extend_from_slice(&(extensions.len() as u16).to_be_bytes());
        hello.extend_from_slice(extensions);
        let mut message = vec![2, 0, 0, hello.len() as u8];
        message.extend_from_slice(&hello);
        let mut record = vec![22, 3, 3, 0, message.len() as u8];
        record.extend_from_slice(&message);
        record
    }

    #[test]
    fn server_hello_is_read_with_and_without_extended_master_secret() {
        let with = ServerHello::parse(&server_hello(&[0xff, 1, 0, 1, 0, 0, 23, 0, 0])).unwrap();
        assert!(with.extended_master_secret);
        assert_eq!(with.random, [0xab; 32]);
        let without = ServerHello::parse(&server_hello(&[0xff, 1, 0, 1, 23])).unwrap();
        assert!(!without.extended_master_secret);
    }

    #[test]
    fn a_cut_server_hello_is_no_server_hello() {
        let whole = server_hello(&[0, 23, 0, 0]);
        for n in 0..whole.len() {
            assert!(ServerHello::parse(&whole[..n]).is_none(), "{n} bytes");
        }
        let mut other = whole;
        other[5] = 11;
        assert!(ServerHello::parse(&other).is_none());
    }
}
