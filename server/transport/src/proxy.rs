//! The PROXY protocol, versions 1 and 2: a proxy for TCP says in front of a connection whose it is.
//!
//! What must hold: a header is looked for only where the configuration says that there is one; exactly the
//! header is taken from the socket, never a byte behind it; a header that is not right in every byte ends
//! the connection.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};

/// How long a header may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(5);
/// Connections of one listener whose header is not complete; more are closed.
pub(crate) const MAX_UNREAD: usize = 1024;

/// The first bytes of version 2.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// The longest header of version 1, its line end included.
const MAX_V1: usize = 107;
/// The longest that may follow the fixed part of version 2: addresses and extensions.
const MAX_V2: usize = 4096;

/// Why a header was not accepted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProxyError {
    /// The socket failed or ended.
    #[error("socket: {0}")]
    Io(#[from] io::Error),
    /// There is no header, or it is not right.
    #[error("no valid PROXY header")]
    Malformed,
}

/// Takes a header off a connection. `None` is for a connection of the proxy itself, and for a client whose
/// address the proxy cannot tell.
pub(crate) async fn read<R: AsyncRead + Unpin>(stream: &mut R) -> Result<Option<SocketAddr>, ProxyError> {
    // The shortest header of either version is longer.
    let mut start = [0; SIGNATURE.len()];
    stream.read_exact(&mut start).await?;
    if start == SIGNATURE { read_v2(stream).await } else { read_v1(stream, &start).await }
}

async fn read_v1<R: AsyncRead + Unpin>(
    stream: &mut R,
    start: &[u8],
) -> Result<Option<SocketAddr>, ProxyError> {
    if !start.starts_with(b"PROXY ") {
        return Err(ProxyError::Malformed);
    }
    let mut line = start.to_vec();
    // Byte by byte: what is behind the line belongs to the client.
    while !line.ends_with(b"\r\n") {
        if line.len() == MAX_V1 {
            return Err(ProxyError::Malformed);
        }
        line.push(stream.read_u8().await?);
    }
    let line = std::str::from_utf8(&line[..line.len() - 2]).map_err(|_| ProxyError::Malformed)?;
    let mut words = line.split(' ').skip(1);
    let family = words.next();
    if family == Some("UNKNOWN") {
        return Ok(None);
    }
    let (source, destination) = (words.next(), words.next());
    let (source_port, destination_port) = (words.next(), words.next());
    if words.next().is_some() {
        return Err(ProxyError::Malformed);
    }
    let address = |text: Option<&str>| -> Option<IpAddr> {
        match family? {
            "TCP4" => Some(IpAddr::V4(text?.parse::<Ipv4Addr>().ok()?)),
            "TCP6" => Some(IpAddr::V6(text?.parse::<Ipv6Addr>().ok()?)),
            _ => None,
        }
    };
    let port = |text: Option<&str>| -> Option<u16> {
        let text = text?;
        let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
        text.parse().ok().filter(|_| plain)
    };
    match (address(source), address(destination), port(source_port), port(destination_port)) {
        (Some(source), Some(_), Some(port), Some(_)) => Ok(Some(SocketAddr::new(source, port))),
        _ => Err(ProxyError::Malformed),
    }
}

async fn read_v2<R: AsyncRead + Unpin>(stream: &mut R) -> Result<Option<SocketAddr>, ProxyError> {
    let mut fixed = [0; 4];
    stream.read_exact(&mut fixed).await?;
    let [version_and_command, family, high, low] = fixed;
    let len = usize::from(u16::from_be_bytes([high, low]));
    if len > MAX_V2 {
        return Err(ProxyError::Malformed);
    }
    let mut rest = vec![0; len];
    stream.read_exact(&mut rest).await?;
    let source = |octets: usize| -> Result<SocketAddr, ProxyError> {
        // Two addresses, then two ports.
        let port = rest.get(2 * octets..2 * octets + 4).ok_or(ProxyError::Malformed)?;
        let address = match octets {
            4 => IpAddr::from(<[u8; 4]>::try_from(&rest[..4]).map_err(|_| ProxyError::Malformed)?),
            _ => IpAddr::from(<[u8; 16]>::try_from(&rest[..16]).map_err(|_| ProxyError::Malformed)?),
        };
        Ok(SocketAddr::new(address, u16::from_be_bytes([port[0], port[1]])))
    };
    match (version_and_command, family) {
        // LOCAL: the proxy's own connection, as for its health checks.
        (0x20, _) => Ok(None),
        (0x21, 0x11) => source(4).map(Some),
        (0x21, 0x21) => source(16).map(Some),
        // Unspecified, and UNIX sockets: no address to be had.
        (0x21, 0x00 | 0x31 | 0x32) => Ok(None),
        _ => Err(ProxyError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a header says, and what is left behind it.
    fn header(bytes: &[u8]) -> (Result<Option<SocketAddr>, ProxyError>, Vec<u8>) {
        let mut stream = bytes;
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let outcome = runtime.block_on(read(&mut stream));
        (outcome, stream.to_vec())
    }

    fn accepted(bytes: &[u8], client: Option<&str>) {
        let (outcome, rest) = header(&[bytes, b"<stream"].concat());
        assert_eq!(outcome.unwrap(), client.map(|text| text.parse().unwrap()), "{bytes:?}");
        assert_eq!(rest, b"<stream", "{bytes:?}");
    }

    fn refused(bytes: &[u8]) {
        assert!(header(bytes).0.is_err(), "{bytes:?}");
    }

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let len = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &len, rest].concat()
    }

    #[test]
    fn version_1() {
        accepted(b"PROXY TCP4 192.0.2.7 198.51.100.1 5000 5222\r\n", Some("192.0.2.7:5000"));
        accepted(b"PROXY TCP6 2001:db8::7 ::1 0 65535\r\n", Some("[2001:db8::7]:0"));
        accepted(b"PROXY UNKNOWN\r\n", None);
        accepted(b"PROXY UNKNOWN ff:: ff:: 1 2\r\n", None);
    }

    #[test]
    fn version_1_malformed() {
        for bad in [
            &b"<stream:stream "[..],
            b"PROXY TCP4 192.0.2.7 198.51.100.1 5000\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 5000 5222 1\r\n",
            b"PROXY TCP4  192.0.2.7 198.51.100.1 5000 5222\r\n",
            b"PROXY TCP4 ::1 ::1 5000 5222\r\n",
            b"PROXY TCP6 192.0.2.7 198.51.100.1 5000 5222\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 +5000 5222\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 05000 5222\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 65536 5222\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 5000 5222\n",
            b"PROXY UDP4 192.0.2.7 198.51.100.1 5000 5222\r\n",
            b"PROXY \xff\xff\xff\xff\xff\xff\xff\r\n",
            b"PROXY",
        ] {
            refused(bad);
        }
        refused(&[b"PROXY UNKNOWN ", &[b'x'; 200][..], b"\r\n"].concat());
    }

    #[test]
    fn version_2() {
        let v4 = [192, 0, 2, 7, 198, 51, 100, 1, 0x13, 0x88, 0x14, 0x66];
        accepted(&v2(0x21, 0x11, &v4), Some("192.0.2.7:5000"));
        let with_extension = [&v4[..], &[0x04, 0, 1, 0]].concat();
        accepted(&v2(0x21, 0x11, &with_extension), Some("192.0.2.7:5000"));
        let mut v6 = [0; 36];
        v6[15] = 9;
        v6[33] = 80;
        accepted(&v2(0x21, 0x21, &v6), Some("[::9]:80"));
        accepted(&v2(0x20, 0x11, &v4), None);
        accepted(&v2(0x20, 0, &[]), None);
        accepted(&v2(0x21, 0, &[]), None);
        accepted(&v2(0x21, 0x31, &[0; 216]), None);
    }

    #[test]
    fn version_2_malformed() {
        refused(&v2(0x21, 0x11, &[0; 11]));
        refused(&v2(0x21, 0x21, &[0; 35]));
        refused(&v2(0x11, 0x11, &[0; 12]));
        refused(&v2(0x22, 0x11, &[0; 12]));
        refused(&v2(0x21, 0x12, &[0; 12]));
        refused(&v2(0x21, 0x11, &[0; MAX_V2 + 1]));
        refused(&v2(0x21, 0x11, &[0; 12])[..20]);
    }
}
