//! Settings of a `SecurityPolicy` about the identity of servers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// When a changed machine needs an approval. Each difference between what was approved and what is reported now weighs some
/// points; the defaults let software, a disk or a network card change, and stop at another machine, TPM or country.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(inline)]
pub struct IdentityPolicy {
    /// From how many points on a server takes no new sessions until somebody approves its identity.
    #[schemars(range(min = 1, max = 1000))]
    pub significant_change: u16,
    /// How much each kind of difference weighs.
    pub weights: IdentityWeights,
}

impl Default for IdentityPolicy {
    fn default() -> Self {
        Self { significant_change: 50, weights: IdentityWeights::default() }
    }
}

macro_rules! weights {
    ($($(#[doc = $doc:literal])+ $name:ident = $default:literal,)+) => {
        /// Points of a difference, when all of its kind differs: of several disks or network cards each has its part. 0 ignores
        /// the kind. Hardware counts in proportion where a machine tells little of itself.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
        #[schemars(inline)]
        pub struct IdentityWeights {
            $($(#[doc = $doc])+ #[schemars(range(max = 1000))] pub $name: u16,)+
        }

        impl Default for IdentityWeights {
            fn default() -> Self {
                Self { $($name: $default),+ }
            }
        }
    };
}

weights! {
    /// Serial numbers and UUIDs of board, chassis and product.
    board = 35,
    /// Names of maker and model.
    model = 10,
    /// Model and number of processors.
    processor = 10,
    /// Disks, by serial number where they tell one.
    disks = 20,
    /// Network cards, by hardware address.
    network_cards = 20,
    /// The processor's architecture.
    architecture = 30,
    /// The id that was made when the system was installed.
    machine_id = 15,
    /// The attestation key of the TPM: another one, or none any more.
    tpm = 60,
    /// What the TPM measured of firmware and boot.
    boot = 10,
    /// The country of the public address.
    country = 60,
    /// The city of the public address.
    city = 5,
    /// The network (autonomous system) of the public address.
    provider = 10,
    /// Links, gateways and resolvers.
    network = 8,
    /// The release of the operating system.
    system = 5,
    /// The release of the kernel.
    kernel = 2,
    /// The digest of the appliance's program.
    program = 2,
    /// The image that the system was started from.
    image = 4,
}
