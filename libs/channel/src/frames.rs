//! Frames over one bidirectional QUIC stream.

use horizon_wire::{
    frame::{self, Decoder, FrameError},
    proto,
};
use thiserror::Error;

/// How much is read from the stream at once, in bytes.
const CHUNK: usize = 64 << 10;

/// Why a message could not be sent: the connection or the stream is gone.
#[derive(Debug, Error)]
#[error("the connection is gone: {0}")]
pub struct SendError(#[from] quinn::WriteError);

/// Why no further message can be received.
#[derive(Debug, Error)]
pub enum ReceiveError {
    /// The peer broke the framing or a limit.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The connection ended.
    #[error("the connection is gone: {0}")]
    Connection(#[from] quinn::ReadError),
}

/// The sending half of a controller's stream.
#[derive(Debug)]
pub struct Sender {
    stream: quinn::SendStream,
}

impl Sender {
    pub(crate) fn new(stream: quinn::SendStream) -> Self {
        Self { stream }
    }

    /// Sends a message; waits while the peer's window is full. Returns how many bytes went out.
    pub async fn send(&mut self, message: &proto::FromController) -> Result<usize, SendError> {
        let bytes = frame::encode(message);
        let size = bytes.len();
        self.stream.write_chunk(bytes).await?;
        Ok(size)
    }

    pub(crate) async fn send_to_controller(
        &mut self,
        message: &proto::ToController,
    ) -> Result<(), SendError> {
        Ok(self.stream.write_chunk(frame::encode(message)).await?)
    }

    /// Says that nothing follows, and waits until the peer has everything or is gone.
    pub async fn finish(mut self) {
        // A stream that was stopped or a connection that was lost has no more to wait for.
        let _ = self.stream.finish();
        let _ = self.stream.stopped().await;
    }
}

/// The receiving half of a stream.
#[derive(Debug)]
pub struct Receiver {
    stream: quinn::RecvStream,
    decoder: Decoder,
}

impl Receiver {
    pub(crate) fn new(stream: quinn::RecvStream, limit: usize) -> Self {
        Self { stream, decoder: Decoder::new(limit) }
    }

    /// Refuses messages above `limit` bytes from the next one on.
    pub fn set_limit(&mut self, limit: usize) {
        self.decoder.set_limit(limit);
    }

    /// The next message of a peer; `None` when the peer said that nothing follows. Cancel safe.
    pub async fn next(&mut self) -> Result<Option<proto::ToController>, ReceiveError> {
        self.read().await
    }

    pub(crate) async fn read<M: horizon_wire::Message + Default>(
        &mut self,
    ) -> Result<Option<M>, ReceiveError> {
        loop {
            if let Some(message) = self.decoder.poll()? {
                return Ok(Some(message));
            }
            match self.stream.read_chunk(CHUNK, true).await? {
                Some(chunk) => self.decoder.push(&chunk.bytes),
                None => return Ok(None),
            }
        }
    }
}
