//! Classes of identity factors, and what a change of each weighs.

use horizon_crds::IdentityWeights;
use horizon_model::FactorKind;

/// What a factor is about. The weights are those of [`IdentityWeights`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Serial numbers and UUIDs of board, chassis and product.
    Board,
    /// Names of maker and model.
    Model,
    /// The processor.
    Processor,
    /// Disks, each an item.
    Disks,
    /// Network cards, each an item, by hardware address.
    NetworkCards,
    /// The processor's architecture.
    Architecture,
    /// The id that was made when the system was installed.
    MachineId,
    /// The attestation key of a TPM, by its name.
    Tpm,
    /// What a TPM measured of firmware and boot.
    Boot,
    /// The country of the public address.
    Country,
    /// Its city.
    City,
    /// The network it belongs to.
    Provider,
    /// Links, gateways and resolvers.
    Network,
    /// The operating system's release.
    System,
    /// The kernel's release.
    Kernel,
    /// The digest of the appliance's program.
    Program,
    /// The image that the system was started from.
    Image,
}

impl Class {
    /// The class of a factor.
    pub fn of(kind: FactorKind, name: &str) -> Self {
        match kind {
            FactorKind::HardwareFingerprint => Self::of_hardware(name),
            FactorKind::NetworkSignature => Self::Network,
            FactorKind::Geolocation => match name {
                "country" => Self::Country,
                "asn" => Self::Provider,
                _ => Self::City,
            },
            FactorKind::CryptographicAttestation => match name {
                "tpm/key" => Self::Tpm,
                _ => Self::Boot,
            },
            FactorKind::RuntimeEnvironment => match name {
                "machine-id" => Self::MachineId,
                "architecture" => Self::Architecture,
                "kernel" => Self::Kernel,
                _ if name.starts_with("program/") => Self::Program,
                _ if name.starts_with("image/") => Self::Image,
                _ => Self::System,
            },
        }
    }

    fn of_hardware(name: &str) -> Self {
        match name.split_once('/') {
            Some(("dmi", field)) if names_one_machine(field) => Self::Board,
            Some(("processor", _)) => Self::Processor,
            Some(("disk", _)) => Self::Disks,
            Some(("network-card", _)) => Self::NetworkCards,
            _ => Self::Model,
        }
    }

    /// What it weighs when all of the class is another.
    pub fn weight(self, weights: &IdentityWeights) -> u16 {
        match self {
            Self::Board => weights.board,
            Self::Model => weights.model,
            Self::Processor => weights.processor,
            Self::Disks => weights.disks,
            Self::NetworkCards => weights.network_cards,
            Self::Architecture => weights.architecture,
            Self::MachineId => weights.machine_id,
            Self::Tpm => weights.tpm,
            Self::Boot => weights.boot,
            Self::Country => weights.country,
            Self::City => weights.city,
            Self::Provider => weights.provider,
            Self::Network => weights.network,
            Self::System => weights.system,
            Self::Kernel => weights.kernel,
            Self::Program => weights.program,
            Self::Image => weights.image,
        }
    }

    /// Whether it is hardware that the appliance names.
    pub fn is_hardware(self) -> bool {
        matches!(self, Self::Board | Self::Model | Self::Processor | Self::Disks | Self::NetworkCards)
    }

    /// Whether the digest of an identity covers it: what can wait for an approval by itself. What changes with every
    /// upgrade stays out, so that an approval still fits when it comes.
    pub fn identifies(self) -> bool {
        self.is_hardware() || matches!(self, Self::Architecture | Self::MachineId | Self::Tpm | Self::Country)
    }
}

fn names_one_machine(dmi: &str) -> bool {
    dmi.ends_with("_serial") || dmi.ends_with("_uuid") || dmi.ends_with("_tag")
}
