//! How HTTP/2 begins: 24 bytes that are always the same, then a frame with the client's settings.
//!
//! ```text
//! frame = 3 bytes: length | type | flags | 4 bytes: stream | payload
//! ```

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEAD_BYTES: usize = 9;

/// Follows the first bytes of a client.
#[derive(Debug, Default)]
pub(crate) struct Preface {
    seen: usize,
    /// Of the frame's payload.
    length: usize,
    is_other: bool,
}

impl Preface {
    /// Whether all of it has come with `bytes`. Never, if they are something else: then a request has to come.
    pub(crate) fn is_over(&mut self, bytes: &[u8]) -> bool {
        const HEAD_END: usize = PREFACE.len() + FRAME_HEAD_BYTES;
        for &byte in bytes {
            match self.seen {
                place @ 0..24 => self.is_other |= PREFACE[place] != byte,
                24..27 => self.length = self.length << 8 | usize::from(byte),
                _ => {}
            }
            if self.is_other {
                return false;
            }
            self.seen += 1;
            if self.seen >= HEAD_END && self.seen - HEAD_END >= self.length {
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http2_has_begun_with_the_last_byte_of_the_clients_settings() {
        let mut bytes = PREFACE.to_vec();
        bytes.extend([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100]);
        for cut in 0..bytes.len() {
            let mut preface = Preface::default();
            assert!(!preface.is_over(&bytes[..cut]), "{cut}");
            assert!(preface.is_over(&bytes[cut..]), "{cut}");
        }
        let mut preface = Preface::default();
        assert!(!preface.is_over(b"GET / HTTP/1.1\r\nhost: a name that is longer than a preface\r\n\r\n"));
    }
}
