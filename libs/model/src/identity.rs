//! What tells one machine from another.

use serde::{Deserialize, Serialize};

/// The kinds of identity factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FactorKind {
    /// The stable parts of the machine: board, processor, disks, network cards.
    HardwareFingerprint,
    /// How it sits in its network: interfaces, gateways, resolvers.
    NetworkSignature,
    /// Where its public address is.
    Geolocation,
    /// A quote of a TPM.
    CryptographicAttestation,
    /// Operating system, kernel, program.
    RuntimeEnvironment,
}

impl FactorKind {
    /// The name the database uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HardwareFingerprint => "hardware_fingerprint",
            Self::NetworkSignature => "network_signature",
            Self::Geolocation => "geolocation",
            Self::CryptographicAttestation => "cryptographic_attestation",
            Self::RuntimeEnvironment => "runtime_environment",
        }
    }
}

/// One fact about a machine: `hardwareFingerprint`, `disk/0/model`, `Samsung SSD 980`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Factor {
    /// What sort of fact.
    pub kind: FactorKind,
    /// Which fact; at most 64 bytes.
    pub name: String,
    /// The value, readable where that is harmless, else `sha256:` and a digest; at most 256 bytes.
    pub value: String,
}

/// One difference between what a server's identity was and what it says now.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct IdentityChange {
    /// What sort of fact.
    pub kind: FactorKind,
    /// Which fact.
    pub name: String,
    /// What it was; `None` if it is new.
    pub from: Option<String>,
    /// What it is; `None` if it is gone.
    pub to: Option<String>,
}

/// What a device says of itself when it enrols.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceInfo {
    /// A name its user knows it by, by default the host name.
    pub name: String,
    /// `linux`, `windows`, `macos`.
    pub platform: String,
    /// The release of the operating system.
    pub os_version: String,
    /// The version of the client.
    pub app_version: String,
    /// A digest over the stable parts of the machine.
    pub hardware_fingerprint: String,
}
