//! Whether the tunnel's port can be reached from outside, in words.

/// What the controller's dial-back has shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reachability {
    /// No probe was announced yet.
    #[default]
    Unknown,
    /// A probe was announced and has not arrived yet.
    Awaited,
    /// A probe arrived.
    Reached,
    /// A probe was announced and did not arrive in time.
    Missed,
}

impl Reachability {
    /// A short name, for machines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Awaited => "awaited",
            Self::Reached => "reached",
            Self::Missed => "missed",
        }
    }

    /// A sentence, with what to do.
    pub fn words(self, port: u16) -> String {
        match self {
            Self::Unknown => format!("the controller has not tried UDP port {port} yet"),
            Self::Awaited => format!("waiting for the controller's probe on UDP port {port}"),
            Self::Reached => format!("the controller's probe arrived on UDP port {port}"),
            Self::Missed => format!(
                "the controller's probe did not arrive on UDP port {port}: open UDP port {port} in the firewall, \
                 and forward it to this host if it is behind an address translator"
            ),
        }
    }
}
