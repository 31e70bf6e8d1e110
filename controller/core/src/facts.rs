//! What decisions need to know beyond resources: facts that only the store and the live layer have.

use horizon_model::DeviceId;

/// Why access is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A session is to begin: the server must take new ones.
    NewSession,
    /// A session exists: it goes on through maintenance and quarantine.
    LiveSession,
}

/// What the store knows about a server's right to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerStanding {
    /// No appliance has registered for it.
    Unregistered,
    /// Its appliance is trusted.
    Good,
    /// Its appliance waits for an approval: no new sessions.
    Quarantined,
    /// It was revoked: no sessions at all.
    Revoked,
}

/// What the store knows about a device's right to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceStanding {
    /// Nothing speaks against it.
    Good,
    /// The device was revoked.
    Revoked,
    /// The device is blocked until an administrator allows it again.
    Blocked,
    /// The device was forgotten, or belongs to another user now.
    Forgotten,
    /// The device became suspicious since its request was looked at.
    Suspicious,
    /// The personal key that enrolled it was revoked or deactivated.
    KeyRevoked,
    /// The personal key that enrolled it has expired.
    KeyExpired,
    /// The personal key that enrolled it was replaced at once, and its user has not entered the new one.
    KeyReplaced,
}

/// What policies may ask of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceTraits {
    /// Which.
    pub id: DeviceId,
    /// The operating system, as it reports it.
    pub platform: String,
    /// Whether it is doubted.
    pub suspicious: bool,
}

/// The facts a grant is decided on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrantFacts<'a> {
    /// Why it is asked.
    pub purpose: Purpose,
    /// The server.
    pub server: ServerStanding,
    /// The device.
    pub device: DeviceStanding,
    /// What policies may ask of the device; `None` where no particular one is meant: then every policy speaks of it.
    pub traits: Option<&'a DeviceTraits>,
}

impl GrantFacts<'_> {
    /// Nothing speaks against a new session: what policy alone says.
    pub const POLICY_ONLY: Self = Self {
        purpose: Purpose::NewSession,
        server: ServerStanding::Good,
        device: DeviceStanding::Good,
        traits: None,
    };
}
