//! Frames: a 4-byte big-endian length, then one protobuf message.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use thiserror::Error;

/// The largest first frame, a Hello, that a controller accepts from anybody, in bytes.
pub const MAX_HELLO: usize = 4 * 1024;
/// The largest frame a controller accepts from a device, in bytes. Anybody may claim to be one, and there are many.
pub const MAX_FROM_DEVICE: usize = 16 * 1024;
/// The largest frame a controller accepts from who says to be an appliance and has not shown whose, in bytes: a registration with
/// as many factors as there may be fits.
pub const MAX_FROM_STRANGER: usize = 80 * 1024;
/// The largest frame a controller accepts from an appliance, in bytes.
pub const MAX_TO_CONTROLLER: usize = 256 * 1024;
/// The largest frame a controller sends: the whole state of an appliance with ten thousand sessions fits.
pub const MAX_FROM_CONTROLLER: usize = 8 * 1024 * 1024;

const LENGTH_BYTES: usize = 4;

/// Why bytes are not a frame.
#[derive(Debug, Error)]
pub enum FrameError {
    /// The length is above the limit.
    #[error("a message of {size} bytes is above the limit of {limit}")]
    TooLarge {
        /// What the peer announced.
        size: usize,
        /// What is allowed.
        limit: usize,
    },
    /// The message cannot be read.
    #[error("the message cannot be read: {0}")]
    Malformed(#[from] prost::DecodeError),
}

/// One message as a frame.
pub fn encode(message: &impl Message) -> Bytes {
    let size = message.encoded_len();
    let mut out = BytesMut::with_capacity(LENGTH_BYTES + size);
    out.put_u32(u32::try_from(size).expect("messages are far below 4 GiB"));
    // A BytesMut grows, so encoding cannot run out of space.
    message.encode(&mut out).expect("a growing buffer has room");
    out.freeze()
}

/// Puts frames back together from a stream of bytes.
#[derive(Debug)]
pub struct Decoder {
    buffer: BytesMut,
    limit: usize,
}

impl Decoder {
    /// A decoder that refuses frames above `limit` bytes before they are buffered.
    pub fn new(limit: usize) -> Self {
        Self { buffer: BytesMut::new(), limit }
    }

    /// Refuses frames above `limit` bytes from the next one on.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Takes bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, `None` when more bytes are needed. An error is final for the stream.
    pub fn poll<M: Message + Default>(&mut self) -> Result<Option<M>, FrameError> {
        let Some(head) = self.buffer.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let size = u32::from_be_bytes(*head) as usize;
        if size > self.limit {
            return Err(FrameError::TooLarge { size, limit: self.limit });
        }
        if self.buffer.len() < LENGTH_BYTES + size {
            return Ok(None);
        }
        self.buffer.advance(LENGTH_BYTES);
        let message = M::decode(self.buffer.split_to(size))?;
        if self.buffer.is_empty() {
            // There are many streams, and most of them are silent most of the time.
            self.buffer = BytesMut::new();
        }
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::{HeartbeatAck, ToController};

    #[test]
    fn oversized_frames_are_refused_by_their_length_alone() {
        let mut decoder = Decoder::new(100);
        decoder.push(&101u32.to_be_bytes());
        assert!(matches!(
            decoder.poll::<HeartbeatAck>(),
            Err(FrameError::TooLarge { size: 101, limit: 100 })
        ));
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut(counters in prop::collection::vec(any::<u64>(), 0..8), cut in 1usize..20) {
            let sent: Vec<_> = counters.iter().map(|&counter| HeartbeatAck { counter, ratchet_nonce: vec![1; 32], checkpoint: None }).collect();
            let bytes: Vec<u8> = sent.iter().flat_map(|m| encode(m).to_vec()).collect();
            let mut decoder = Decoder::new(1024);
            let mut got = Vec::new();
            for piece in bytes.chunks(cut) {
                decoder.push(piece);
                while let Some(m) = decoder.poll::<HeartbeatAck>().unwrap() {
                    got.push(m);
                }
            }
            prop_assert_eq!(got, sent);
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            let mut decoder = Decoder::new(4096);
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.poll::<ToController>() {}
        }
    }
}
