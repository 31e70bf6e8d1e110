//! The protocol between the service and its front ends (the command line, a desktop application).
//!
//! A front end connects to the service's Unix socket and writes one request as a line of JSON. The service answers with
//! any number of `{"progress": …}` lines and exactly one last line, `{"done": …}` or `{"failed": …}`; then the next
//! request may follow. Every line ends with `\n` and has at most [`MAX_LINE`] bytes with it. Front ends ignore fields
//! they do not know; the service refuses requests it does not know with a `failed` line that says so. A line that is too
//! long or no JSON ends the connection after its `failed` line. A front end that closes its side while its `connect` is
//! under way gives it up.
//!
//! ```text
//! > {"request":"connect","server":"paris-1"}
//! < {"progress":{"phase":"requesting"}}
//! < {"progress":{"phase":"connecting"}}
//! < {"done":{"reply":"status","phase":"connected","server":"paris-1",…}}
//! ```

use std::{fmt, net::IpAddr};

use horizon_model::{Capability, KeyId, SessionId};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::{failure::Failure, session::Phase, settings::Settings, status::Status};

/// The longest line in bytes, the line feed included. A list of a thousand servers fits.
pub const MAX_LINE: usize = 1024 * 1024;
/// The longest line the service accepts: a request is small.
pub const MAX_REQUEST_LINE: usize = 16 * 1024;

/// What a front end asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum Request {
    /// Makes this device known with a personal key. Answered by [`Reply::Enrolled`].
    AddKey {
        /// The string the user was given.
        key: KeyText,
        /// How the device is to be called; its host name when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
    /// Lists the servers the user may use. Answered by [`Reply::Servers`].
    Servers,
    /// Connects. Answered by [`Reply::Status`] once packets flow.
    Connect {
        /// The server's name.
        server: String,
        /// The session that may be ended for this one, as a conflict named it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        take_over: Option<SessionId>,
        /// The far end of the SSH connection the user sits at: it stays reachable outside the tunnel.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ssh_peer: Option<IpAddr>,
        /// Whether the connection stays without [`Request::Confirm`] although `ssh_peer` is set.
        #[serde(default)]
        confirmed: bool,
        /// Whether another server must be used when this one stays away.
        #[serde(default)]
        failover: bool,
        /// Whether one is used where the organisation allows it.
        #[serde(default)]
        failover_liked: bool,
    },
    /// Keeps a connection that would otherwise be reverted. Answered by [`Reply::Status`].
    Confirm,
    /// What is so now, as measured. Answered by [`Reply::Status`].
    Status,
    /// Ends the session and puts the host back. Answered by [`Reply::Status`].
    Disconnect,
    /// Fetches the personal key that is handed over. Answered by [`Reply::Key`].
    ClaimKey {
        /// The string the user was given.
        handover: KeyText,
        /// The code that they were told in another way.
        code: String,
    },
    /// The settings that follow the user, brought together with those of the other devices if the controller can be reached.
    /// Answered by [`Reply::Settings`].
    Settings,
    /// The same as this device has them, without asking anybody. Answered by [`Reply::Settings`].
    KeptSettings,
    /// Changes them on every device of the user. Answered by [`Reply::Settings`].
    SetSettings {
        /// All of them.
        settings: Settings,
    },
    /// Shares the settings of this device anew, under a new key: those that are shared now cannot be read by anybody.
    /// Answered by [`Reply::Settings`].
    StartSettingsOver,
    /// Asks for the personal key that the organisation sent in the place of the one before, if one waits. It waits on until
    /// [`Request::KeyTaken`]. Answered by [`Reply::Key`].
    TakeKey,
    /// Says that the personal key is kept by its user now. Answered by [`Reply::Key`] without one.
    KeyTaken {
        /// Which.
        id: KeyId,
    },
}

/// A personal key on its way to the service. Wiped when dropped; `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(transparent)]
pub struct KeyText(String);

impl KeyText {
    /// Takes the string as it was typed or read.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The string.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for KeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyText(..)")
    }
}

/// One line of the service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Message {
    /// How far the request is.
    Progress(Progress),
    /// The request is done.
    Done(Reply),
    /// It is not, and will not be.
    Failed(Failure),
}

/// How far a request is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// The session's phase now.
    pub phase: Phase,
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Reply {
    /// The device is known.
    Enrolled {
        /// The user it belongs to.
        user: String,
        /// The device's name.
        device: String,
    },
    /// The servers the user may use.
    Servers {
        /// One by one, in the controller's order.
        servers: Vec<ServerView>,
    },
    /// What is so now.
    Status(Box<Status>),
    /// The settings that follow the user.
    Settings {
        /// What holds on this device.
        settings: Settings,
        /// Why it may be otherwise on others, if it may.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        note: String,
    },
    /// The personal key that waits for its user.
    Key {
        /// The string; absent when none waits.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<KeyText>,
    },
}

/// A server as a list shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerView {
    /// Its name.
    pub name: String,
    /// Whether it accepts sessions now.
    pub available: bool,
    /// Why not, when not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// What it may be used for.
    #[serde(default)]
    pub capabilities: Vec<Capability>,
    /// Where it is, as its owner says.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub location: String,
    /// The virtual networks the user reaches through it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<String>,
}

/// Why bytes are not a line of this protocol.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LineError {
    /// Too many bytes without a line feed.
    #[error("a line of more than {0} bytes is not accepted")]
    TooLong(usize),
    /// No JSON, or none of the known shapes.
    #[error("the line is no message of this protocol: {0}")]
    Malformed(String),
}

/// A message as a line with its line feed.
pub fn encode(message: &impl Serialize) -> Result<Vec<u8>, LineError> {
    let mut line = serde_json::to_vec(message).map_err(|e| LineError::Malformed(e.to_string()))?;
    line.push(b'\n');
    if line.len() > MAX_LINE { Err(LineError::TooLong(MAX_LINE)) } else { Ok(line) }
}

/// Cuts a stream of bytes into lines and reads each. Its buffer never exceeds the limit.
#[derive(Debug)]
pub struct Lines {
    buffer: Vec<u8>,
    limit: usize,
}

impl Lines {
    /// A reader of lines of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { buffer: Vec::new(), limit }
    }

    /// Takes bytes as they came. Call [`read`](Self::read) until it has nothing before pushing more.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether there is enough to read before more may be pushed.
    pub fn is_full(&self) -> bool {
        self.buffer.len() >= self.limit
    }

    /// The next whole line; `None` when more bytes are needed. An error is final for the stream.
    pub fn read<T: DeserializeOwned>(&mut self) -> Result<Option<T>, LineError> {
        let Some(end) = self.buffer.iter().take(self.limit).position(|b| *b == b'\n') else {
            return if self.buffer.len() >= self.limit {
                Err(LineError::TooLong(self.limit))
            } else {
                Ok(None)
            };
        };
        let parsed =
            serde_json::from_slice(&self.buffer[..end]).map_err(|e| LineError::Malformed(e.to_string()));
        self.buffer[..end].zeroize();
        self.buffer.drain(..=end);
        parsed.map(Some)
    }
}

impl Drop for Lines {
    /// A line may hold a key.
    fn drop(&mut self) {
        self.buffer.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_all(bytes: &[u8], cut: usize) -> (Vec<Request>, Option<LineError>) {
        let mut lines = Lines::new(MAX_REQUEST_LINE);
        let mut got = Vec::new();
        for piece in bytes.chunks(cut) {
            lines.push(piece);
            loop {
                match lines.read() {
                    Ok(Some(request)) => got.push(request),
                    Ok(None) => break,
                    Err(error) => return (got, Some(error)),
                }
            }
        }
        (got, None)
    }

    #[test]
    fn requests_have_the_documented_form() {
        for (text, expected) in [
            (r#"{"request":"status"}"#, Request::Status),
            (
                r#"{"request":"addKey","key":"hzn-key-a"}"#,
                Request::AddKey { key: KeyText::new("hzn-key-a".into()), name: None },
            ),
            (
                r#"{"request":"connect","server":"paris-1","sshPeer":"192.0.2.7"}"#,
                Request::Connect {
                    server: "paris-1".into(),
                    take_over: None,
                    ssh_peer: Some("192.0.2.7".parse().unwrap()),
                    confirmed: false,
                    failover: false,
                    failover_liked: false,
                },
            ),
        ] {
            assert_eq!(serde_json::from_str::<Request>(text).unwrap(), expected);
            let again = encode(&expected).unwrap();
            assert_eq!(read_all(&again, 7), (vec![expected], None));
        }
    }

    #[test]
    fn bad_lines_are_told_apart_and_bounded() {
        let long = vec![b'x'; MAX_REQUEST_LINE + 1];
        assert_eq!(read_all(&long, 4096).1, Some(LineError::TooLong(MAX_REQUEST_LINE)));
        for bad in
            ["\n", "{}\n", "{\"request\":\"fly\"}\n", "[1]\n", "{\"request\":\"connect\"}\n", "\u{0}\n"]
        {
            assert!(matches!(read_all(bad.as_bytes(), 3).1, Some(LineError::Malformed(_))), "{bad:?}");
        }
        assert_eq!(format!("{:?}", KeyText::new("hzn-key-a".into())), "KeyText(..)");
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_any_cut_reads_the_same(
            bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 1usize..40,
        ) {
            prop_assert_eq!(read_all(&bytes, cut), read_all(&bytes, 300));
        }
    }
}
