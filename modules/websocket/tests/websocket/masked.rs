//! Frames as clients write them, for the tests of the reader and those over a socket.

/// A client's frame; `first` is its first byte.
pub(crate) fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    match payload.len() {
        len @ 0..=125 => out.push(0x80 | len as u8),
        len @ 126..=0xFFFF => {
            out.push(0x80 | 126);
            out.extend((len as u16).to_be_bytes());
        }
        len => {
            out.push(0x80 | 127);
            out.extend((len as u64).to_be_bytes());
        }
    }
    let mask = [0xA5, 0x00, 0x5A, 0xFF];
    out.extend(mask);
    out.extend(payload.iter().enumerate().map(|(n, byte)| byte ^ mask[n % 4]));
    out
}
