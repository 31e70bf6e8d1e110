//! What is so now, and how it is shown. Everything in a [`Status`] is measured: "connected" means that the tunnel's own
//! connection is alive and the host's routes lead to it.

use std::{
    collections::BTreeMap,
    fmt::Write,
    net::{IpAddr, SocketAddr},
};

use horizon_model::{DeviceId, SessionConflict, SessionId};
use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    failure::Failure,
    ipc::ServerView,
    session::{Moved, Phase},
};

/// What is so now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Where the session stands.
    pub phase: Phase,
    /// Why the last attempt or session ended, when it ended with a failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// Whose device this is; absent before a personal key was added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceView>,
    /// The server that is wished for or connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// From where the session moved to that server by itself, and why, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved: Option<Moved>,
    /// The session, once it is granted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionView>,
    /// What the user should know about the personal key; absent when nothing is to be known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_notice: Option<KeyNotice>,
    /// The control channel.
    pub controller: ControllerView,
    /// The version of the service.
    pub version: String,
}

/// This device, as the organisation knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceView {
    /// The user it belongs to.
    pub user: String,
    /// Its name.
    pub name: String,
    /// Its identifier.
    pub id: DeviceId,
}

/// What the user should know about the personal key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyNotice {
    /// Where the key stands.
    pub state: KeyState,
    /// The same in words, as the controller says it.
    pub message: String,
    /// When, where it is about a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
}

/// Where a personal key stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum KeyState {
    /// Nothing is to be done.
    Fine,
    /// It was replaced at once: the new one has to be entered.
    Replaced,
    /// It ends soon.
    Expires,
    /// It is replaced soon, by itself.
    Rotates,
    /// It was revoked, or its time is over.
    Ended,
}

impl KeyNotice {
    fn text(&self) -> String {
        let what = match self.state {
            KeyState::Replaced => "manual rotation is required: enter the new key with `horizon key enter`",
            KeyState::Expires => "ask for a new key in time",
            KeyState::Ended => "ask for a new key and enter it with `horizon key enter`",
            KeyState::Fine | KeyState::Rotates => return self.message.clone(),
        };
        if self.message.is_empty() { what.to_owned() } else { format!("{}; {what}", self.message) }
    }
}

/// The control channel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ControllerView {
    /// Whether it stands.
    pub state: ControllerState,
    /// The controller's address, while connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddr>,
    /// Why it does not stand, when it should.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// Whether the control channel stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ControllerState {
    /// Nobody needs it now.
    #[default]
    Idle,
    /// It is being set up.
    Connecting,
    /// It stands.
    Connected,
    /// No controller can be reached; it is tried again and again.
    Away,
}

/// A session as measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionView {
    /// Which.
    pub id: SessionId,
    /// Since when.
    pub since: Timestamp,
    /// The same, in seconds.
    pub seconds: u64,
    /// The server's address, while a path works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<SocketAddr>,
    /// The smoothed round-trip time of the path in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_micros: Option<u64>,
    /// Seconds without a working path, while reconnecting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pathless_seconds: Option<u64>,
    /// Seconds until the connection is reverted unless it is confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm_seconds: Option<u64>,
    /// This host's addresses in the tunnel.
    pub addresses: Vec<IpNet>,
    /// What goes through the tunnel.
    pub routes: Vec<IpNet>,
    /// The resolvers in use; empty when the host's own are.
    #[serde(default)]
    pub dns: Vec<IpAddr>,
    /// The virtual networks of the session.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<String>,
    /// The MTU inside the tunnel, in bytes.
    pub mtu: u16,
    /// Bytes of IP packets sent through the tunnel.
    pub bytes_sent: u64,
    /// Bytes of IP packets received through it.
    pub bytes_received: u64,
    /// Packets from the server's side that were dropped because they answered nothing or broke another rule, by the
    /// reason's name; reasons with no packet are left out.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub violations: BTreeMap<String, u64>,
}

impl Phase {
    /// The phase in words for a line of text.
    pub fn words(self) -> &'static str {
        match self {
            Self::Disconnected => "disconnected",
            Self::Enrolling => "adding a personal key",
            Self::Requesting => "asking the controller",
            Self::Connecting => "connecting",
            Self::Connected => "connected",
            Self::Reconnecting => "reconnecting (nothing leaves beside the tunnel meanwhile)",
            Self::Disconnecting => "disconnecting",
            Self::Failed => "disconnected",
        }
    }
}

impl Status {
    /// The status as a person reads it, in lines.
    pub fn text(&self) -> String {
        let mut out = Lines(String::new());
        out.line("status", self.phase.words());
        if let Some(server) = &self.server {
            out.line("server", server);
        }
        if let Some(moved) = &self.moved {
            out.line("moved", &format!("from {}: {}", moved.from, moved.reason));
        }
        if let Some(session) = &self.session {
            session.write(&mut out);
        }
        match &self.device {
            Some(device) => out.line("device", &format!("{} of {}", device.name, device.user)),
            None => out.line("device", "not enrolled: add your personal key with `horizon key add`"),
        }
        if let Some(notice) = &self.key_notice {
            out.line("key", &notice.text());
        }
        out.line("controller", &self.controller.text());
        if let Some(failure) = &self.failure {
            out.line("reason", &failure.to_string().replace('\n', "\n             "));
        }
        out.0
    }
}

impl ControllerView {
    fn text(&self) -> String {
        match (self.state, &self.address) {
            (ControllerState::Idle, _) => "not needed now".into(),
            (ControllerState::Connecting, _) => "being reached".into(),
            (ControllerState::Connected, Some(address)) => format!("connected to {address}"),
            (ControllerState::Connected, None) => "connected".into(),
            (ControllerState::Away, _) => format!("away, tried again: {}", self.detail),
        }
    }
}

impl SessionView {
    fn write(&self, out: &mut Lines) {
        out.line(
            "since",
            &format!("{} ({})", self.since.strftime("%Y-%m-%d %H:%M:%S UTC"), duration(self.seconds)),
        );
        if let Some(remote) = self.remote {
            let rtt = self.rtt_micros.map(|m| format!(", round trip {}", millis(m))).unwrap_or_default();
            out.line("path", &format!("{remote}{rtt}"));
        }
        if let Some(seconds) = self.pathless_seconds {
            out.line("path", &format!("none for {}", duration(seconds)));
        }
        out.line("addresses", &list(&self.addresses));
        out.line("routes", &list(&self.routes));
        if !self.dns.is_empty() {
            out.line("resolvers", &list(&self.dns));
        }
        if !self.networks.is_empty() {
            out.line("networks", &list(&self.networks));
        }
        out.line("sent", &bytes(self.bytes_sent));
        out.line("received", &bytes(self.bytes_received));
        if !self.violations.is_empty() {
            let shown: Vec<_> = self.violations.iter().map(|(k, n)| format!("{n} {k}")).collect();
            out.line("dropped", &list(&shown));
        }
        if let Some(seconds) = self.confirm_seconds {
            out.line(
                "confirm",
                &format!("reverted in {} unless you run: horizon confirm", duration(seconds)),
            );
        }
    }
}

struct Lines(String);

impl Lines {
    fn line(&mut self, name: &str, value: &str) {
        let _ = writeln!(self.0, "{name:<12} {value}");
    }
}

fn list<T: ToString>(values: &[T]) -> String {
    if values.is_empty() {
        return "none".into();
    }
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn millis(micros: u64) -> String {
    format!("{}.{} ms", micros / 1000, micros % 1000 / 100)
}

/// A length of time in its two largest units: `3 d 4 h`, `5 min 20 s`.
pub fn duration(seconds: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")];
    let first = UNITS.iter().position(|(size, _)| seconds >= *size).unwrap_or(UNITS.len() - 1);
    let mut rest = seconds;
    let mut parts = Vec::new();
    for (size, name) in UNITS.iter().skip(first).take(2) {
        if rest / size > 0 || parts.is_empty() {
            parts.push(format!("{} {name}", rest / size));
        }
        rest %= size;
    }
    parts.join(" ")
}

/// A number of bytes: `312 B`, `4.2 MiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let exponent = (63 - count.leading_zeros()) / 10;
    let name = UNITS.get(exponent as usize - 1).unwrap_or(&"EiB");
    // The shift keeps one decimal without going through floating point.
    let tenths = ((u128::from(count) * 10) >> (10 * exponent)) as u64;
    format!("{}.{} {name}", tenths / 10, tenths % 10)
}

/// The question before another device's session is ended: who, where, how long.
pub fn conflict(conflict: &SessionConflict, now: Timestamp) -> String {
    let seconds = now.duration_since(conflict.since).as_secs().max(0).unsigned_abs();
    format!(
        "Your device {} has been connected to {} for {}.",
        conflict.device_name,
        conflict.server_name,
        duration(seconds)
    )
}

/// The servers as a table.
pub fn servers(list: &[ServerView]) -> String {
    let header = ["SERVER", "STATE", "LOCATION", "CAPABILITIES", "NETWORKS"].map(str::to_owned);
    let rows = list.iter().map(|s| {
        let state = match (s.available, s.reason.is_empty()) {
            (true, _) => "available".to_owned(),
            (false, true) => "unavailable".to_owned(),
            (false, false) => format!("unavailable: {}", s.reason),
        };
        let capabilities: Vec<_> = s.capabilities.iter().map(|c| c.as_str()).collect();
        [s.name.clone(), state, dash(&s.location), dash(&capabilities.join(",")), dash(&s.networks.join(","))]
    });
    let rows: Vec<[String; 5]> = std::iter::once(header).chain(rows).collect();
    let mut widths = [0; 5];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(line, "{cell:<width$}   ");
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
}

fn dash(text: &str) -> String {
    if text.is_empty() { "-".into() } else { text.to_owned() }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
