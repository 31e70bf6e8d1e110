//! The CLI's side of the API.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;
use tokio::net::UnixStream;

use super::ApiError;

/// How long one request may take in all.
pub const TIMEOUT: Duration = Duration::from_secs(60);
/// The largest answer that is read, in bytes.
pub const MAX_ANSWER_BYTES: usize = 256 << 20;

/// Why a request brought nothing.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens at the socket.
    #[error(
        "the controller is not running: nothing answers at {0}\nStart it with `horizon-controller run --config \
         DIR/config.toml`, or name the socket of a running one with --socket"
    )]
    NotRunning(PathBuf),
    /// The socket belongs to another account.
    #[error(
        "this account may not talk to the controller at {0}\nUse the account that runs the controller, or root"
    )]
    Denied(PathBuf),
    /// The connection failed.
    #[error(
        "the connection to the controller at {socket} failed: {error}\nSee the controller's log, and try again"
    )]
    Connection {
        /// The socket.
        socket: PathBuf,
        /// Why.
        error: String,
    },
    /// The controller took too long.
    #[error("the controller did not answer within {} s\nSee the controller's log, and try again", TIMEOUT.as_secs())]
    Timeout,
    /// The controller refused.
    #[error(transparent)]
    Refused(#[from] ApiError),
}

/// A controller, reached through its socket. Each request is a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// The controller at a socket. Nothing is sent yet.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Fetches what is at `path`.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.send(Method::GET, path, Vec::new()).await
    }

    /// Sends `body` to `path` and reads the answer.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| self.broken(&error))?;
        self.send(Method::POST, path, body).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<T, ClientError> {
        let answer = tokio::time::timeout(TIMEOUT, self.exchange(method, path, body));
        let (status, bytes) = answer.await.map_err(|_| ClientError::Timeout)??;
        if status.is_success() {
            return serde_json::from_slice(&bytes).map_err(|error| self.broken(&error));
        }
        let mut refused: ApiError = serde_json::from_slice(&bytes).unwrap_or_else(|_| {
            let message = format!("the controller answered {status}");
            ApiError { status: 0, message, remedy: "check that both are of the same version".into() }
        });
        refused.status = status.as_u16();
        Err(refused.into())
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning(self.socket.clone())
            }
            io::ErrorKind::PermissionDenied => ClientError::Denied(self.socket.clone()),
            _ => self.broken(&error),
        })?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.broken(&error))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "controller")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| self.broken(&error))?;
        let answer = async {
            let answer = sender.send_request(request).await.map_err(|error| self.broken(&error))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
            Ok((status, body.map_err(|error| self.broken(&error))?.to_bytes()))
        };
        // The connection makes progress only while it is polled; it outlives no request.
        let drive = async {
            let _ = connection.await;
            std::future::pending().await
        };
        tokio::select! { answer = answer => answer, never = drive => never }
    }

    fn broken(&self, error: &dyn std::fmt::Display) -> ClientError {
        ClientError::Connection { socket: self.socket.clone(), error: error.to_string() }
    }
}

/// Escapes a text for use as one segment of a path or as the value of a query (RFC 3986, section 2.1).
pub fn escape(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_escaped() {
        assert_eq!(escape("a/b c?ä"), "a%2Fb%20c%3F%C3%A4");
    }

    #[tokio::test]
    async fn a_controller_that_does_not_run_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let client = Client::new(dir.path().join("none.sock"));
        let error = client.get::<serde_json::Value>("/v1/status").await.unwrap_err().to_string();
        assert!(
            error.contains("the controller is not running") && error.contains("Start it with"),
            "{error}"
        );
    }
}
