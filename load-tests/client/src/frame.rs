//! WebSocket frames (RFC 6455), as far as a client of this service needs them. Pure.

use std::io;

/// The longest frame that is believed; the server's own limit for clients is far below.
const MAX_PAYLOAD: usize = 4 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    Text = 1,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    pub opcode: Opcode,
    pub payload: &'a [u8],
}

/// The first frame of `input` and the bytes it takes; None if it is not whole yet. A server that
/// masks, fragments, uses extensions or sends binary frames is at fault here.
pub fn decode(input: &[u8]) -> io::Result<Option<(Frame<'_>, usize)>> {
    let &[first, second, ref rest @ ..] = input else {
        return Ok(None);
    };
    let opcode = match first {
        0x81 => Opcode::Text,
        0x88 => Opcode::Close,
        0x89 => Opcode::Ping,
        0x8a => Opcode::Pong,
        _ => return Err(fault(format!("a frame begins with {first:#04x}"))),
    };
    let (size, head) = match second {
        0..=125 => (u64::from(second), 2),
        126 => match rest.first_chunk() {
            Some(size) => (u64::from(u16::from_be_bytes(*size)), 4),
            None => return Ok(None),
        },
        127 => match rest.first_chunk() {
            Some(size) => (u64::from_be_bytes(*size), 10),
            None => return Ok(None),
        },
        _ => return Err(fault("the server masks its frames".to_owned())),
    };
    let size = usize::try_from(size).ok().filter(|size| *size <= MAX_PAYLOAD);
    let size = size.ok_or_else(|| fault("a frame is too large".to_owned()))?;
    let end = head + size;
    let frame = input.get(head..end).map(|payload| (Frame { opcode, payload }, end));
    Ok(frame)
}

/// Appends a masked frame to `out`.
pub fn encode(out: &mut Vec<u8>, opcode: Opcode, mask: u32, payload: &[u8]) {
    out.push(0x80 | opcode as u8);
    match payload.len() {
        size @ 0..=125 => out.push(0x80 | size as u8),
        size @ 126..=0xffff => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(size as u16).to_be_bytes());
        }
        size => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(size as u64).to_be_bytes());
        }
    }
    let mask = mask.to_ne_bytes();
    out.extend_from_slice(&mask);
    let start = out.len();
    out.extend_from_slice(payload);
    for chunk in out[start..].chunks_mut(4) {
        for (byte, key) in chunk.iter_mut().zip(mask) {
            *byte ^= key;
        }
    }
}

fn fault(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a server would send: the frame unmasked.
    fn unmasked(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
        let mut masked = Vec::new();
        encode(&mut masked, opcode, 0, payload);
        let head = masked.len() - payload.len();
        masked[1] &= 0x7f;
        masked.drain(head - 4..head);
        masked
    }

    #[test]
    fn what_is_encoded_is_decoded_at_each_length() {
        for size in [0, 1, 125, 126, 65_535, 65_536] {
            let payload: Vec<u8> = (0..size).map(|n| n as u8).collect();
            let wire = unmasked(Opcode::Text, &payload);
            for part in [0, 1, 2, 3, wire.len() - 1] {
                if part < wire.len() {
                    assert_eq!(decode(&wire[..part]).unwrap(), None, "{size}: {part} bytes");
                }
            }
            let (frame, used) = decode(&wire).unwrap().unwrap();
            assert_eq!((frame.opcode, frame.payload), (Opcode::Text, &payload[..]));
            assert_eq!(used, wire.len());
        }
    }

    #[test]
    fn the_mask_is_that_of_the_rfc() {
        // RFC 6455, section 5.7: a masked "Hello".
        let mut out = Vec::new();
        encode(&mut out, Opcode::Text, u32::from_ne_bytes([0x37, 0xfa, 0x21, 0x3d]), b"Hello");
        let expected = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        assert_eq!(out, expected);
    }

    #[test]
    fn two_frames_are_told_apart() {
        let mut wire = unmasked(Opcode::Ping, b"7");
        wire.extend(unmasked(Opcode::Close, &[3, 232]));
        let (ping, used) = decode(&wire).unwrap().unwrap();
        assert_eq!(ping, Frame { opcode: Opcode::Ping, payload: b"7" });
        let (close, _) = decode(&wire[used..]).unwrap().unwrap();
        assert_eq!(close, Frame { opcode: Opcode::Close, payload: &[3, 232] });
    }

    #[test]
    fn faults_of_the_server_are_seen() {
        let mut masked = Vec::new();
        encode(&mut masked, Opcode::Text, 1, b"x");
        assert!(decode(&masked).is_err());
        assert!(decode(&[0x82, 0]).is_err(), "binary");
        assert!(decode(&[0x01, 0]).is_err(), "a fragment");
        assert!(decode(&[0xc1, 0]).is_err(), "a reserved bit");
        assert!(decode(&[0x81, 127, 0, 0, 1, 0, 0, 0, 0, 0]).is_err(), "a terabyte");
    }
}
