//! Why something is refused, and the document that would allow it.

use horizon_crds::{
    AccessPolicySpec, Destination, DeviceCondition, Document, Metadata, Name, Resource, ServerSelector,
    ServerSpec, Subjects, document::to_toml,
};
use horizon_model::{Capability, Failover, Protocol};
use thiserror::Error;

use crate::grant::opens_access;

/// Why a user may not use a server. Its text says what happened; [`Denial::remedy`] says what to do.
#[derive(Clone, Debug, PartialEq, Error)]
#[allow(missing_docs, reason = "the texts say what each means")]
pub enum Denial {
    #[error("your user does not exist any more")]
    UserGone,
    #[error("the server does not exist any more")]
    ServerGone,
    #[error("there is no user '{user}'")]
    UnknownUser { user: Name },
    #[error("there is no server '{server}'")]
    UnknownServer { server: Name },
    #[error("user '{user}' is suspended{}", because(.reason))]
    Suspended { user: Name, reason: String },
    #[error("this device was revoked")]
    DeviceRevoked,
    #[error("this device is blocked")]
    DeviceBlocked,
    #[error("this device was forgotten: it belongs to nobody until it is enrolled again")]
    DeviceForgotten,
    #[error("this device is suspicious and gets no new session until an administrator allows it")]
    DeviceSuspicious,
    #[error("the policies that let you use server '{server}' do not speak of this device")]
    DeviceExcluded { server: Name },
    #[error("the personal key that enrolled this device was revoked")]
    KeyRevoked,
    #[error("the personal key that enrolled this device has expired")]
    KeyExpired,
    #[error("the personal key of this device was replaced, and the new one has to be entered")]
    KeyReplaced,
    #[error("no policy allows user '{user}' to use server '{server}'")]
    NoPolicy { user: Name, server: Name, allowing: Box<Resource> },
    #[error("server '{server}' and the policies for it have nothing in common: {missing}")]
    NothingInCommon { server: Name, missing: String, allowing: Box<Resource> },
    #[error("server '{server}' is in maintenance{}", because(.reason))]
    Maintenance { server: Name, reason: String },
    #[error("server '{server}' is decommissioned{}", because(.reason))]
    Decommissioned { server: Name, reason: String },
    #[error("server '{server}' has no appliance yet")]
    Unregistered { server: Name },
    #[error("server '{server}' was revoked")]
    ServerRevoked { server: Name },
    #[error("server '{server}' reports a changed identity and takes no new sessions until it is approved")]
    Quarantined { server: Name },
}

fn toml(resource: &Resource) -> String {
    to_toml(std::slice::from_ref(resource))
}

fn because(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(": {reason}") }
}

impl Denial {
    /// The document that would allow what was refused, in TOML, where a document would.
    pub fn document(&self) -> Option<String> {
        match self {
            Self::NoPolicy { allowing, .. } | Self::NothingInCommon { allowing, .. } => Some(toml(allowing)),
            _ => None,
        }
    }

    /// What to do about it, in words and where possible with the document.
    pub fn remedy(&self) -> String {
        match self {
            Self::UnknownUser { user } => format!("ask an administrator to declare a User '{user}'"),
            Self::UserGone => "ask an administrator for a new invitation".into(),
            Self::ServerGone | Self::UnknownServer { .. } => {
                "list the servers you may use, and choose one of them".into()
            }
            Self::Suspended { .. } => "ask an administrator to end the suspension".into(),
            Self::DeviceRevoked | Self::KeyRevoked | Self::KeyExpired => {
                "ask an administrator for a new personal key and add it to this device".into()
            }
            Self::KeyReplaced => {
                "ask an administrator for the new personal key and enter it: `horizon key add`".into()
            }
            Self::DeviceBlocked | Self::DeviceSuspicious => {
                "an administrator can allow it: `horizon-controller device allow`".into()
            }
            Self::DeviceForgotten => "add your personal key again: `horizon key add`".into(),
            Self::DeviceExcluded { .. } => {
                "use another of your devices, or ask an administrator to change `devices` of the policy"
                    .into()
            }
            Self::NoPolicy { allowing, .. } => {
                format!("an administrator can allow it with this document:\n\n{}", toml(allowing))
            }
            Self::NothingInCommon { allowing, .. } => {
                format!(
                    "an administrator can allow it by changing the {} to:\n\n{}",
                    allowing.id(),
                    toml(allowing)
                )
            }
            Self::Maintenance { .. } => "try again later, or use another server".into(),
            Self::Decommissioned { .. } | Self::ServerRevoked { .. } => "use another server".into(),
            Self::Unregistered { server } => {
                format!(
                    "make a registration token (`horizon-controller token {server}`) and enrol an appliance with it"
                )
            }
            Self::Quarantined { server } => {
                format!("an administrator can approve the identity: `horizon-controller approve {server}`")
            }
        }
    }

    pub(crate) fn no_policy(namespace: &Name, user: &Name, server: &Name, spec: &ServerSpec) -> Self {
        let offers = |capability| spec.capabilities.contains(&capability);
        let mut capabilities: Vec<_> =
            spec.capabilities.iter().copied().filter(|c| opens_access(*c)).collect();
        let networks = if offers(Capability::LanEmulation) { spec.networks.clone() } else { Vec::new() };
        if !networks.is_empty() {
            capabilities.push(Capability::LanEmulation);
        }
        if capabilities.is_empty() {
            capabilities.push(Capability::Vpn);
        }
        let destinations =
            if capabilities.iter().copied().any(opens_access) { everywhere() } else { Vec::new() };
        let allowing = Resource::AccessPolicy(Document {
            metadata: Metadata::new(namespace.clone(), policy_name(user, server)),
            spec: AccessPolicySpec {
                subjects: Subjects { users: vec![user.clone()], groups: Vec::new() },
                devices: DeviceCondition::default(),
                servers: vec![ServerSelector::Named(server.clone())],
                capabilities,
                networks,
                destinations,
                allow_inbound: false,
                failover: Failover::default(),
            },
        });
        Self::NoPolicy { user: user.clone(), server: server.clone(), allowing: Box::new(allowing) }
    }

    /// Policies match, but nothing they list is offered by the server: the server's document is what to change.
    pub(crate) fn nothing_in_common(
        server: &Name,
        stored: &Resource,
        policies: &[&AccessPolicySpec],
    ) -> Self {
        let mut allowing = stored.clone();
        let mut missing = Vec::new();
        if let Resource::Server(document) = &mut allowing {
            let spec = &mut document.spec;
            for policy in policies {
                let opening: Vec<_> =
                    policy.capabilities.iter().copied().filter(|c| opens_access(*c)).collect();
                if !policy.destinations.is_empty() && !opening.iter().any(|c| spec.capabilities.contains(c)) {
                    let wanted = opening.first().copied().unwrap_or(Capability::Vpn);
                    missing.push(format!("the capability {}", camel(wanted)));
                    spec.capabilities.push(wanted);
                }
                if !policy.networks.is_empty() && !spec.capabilities.contains(&Capability::LanEmulation) {
                    missing.push(format!("the capability {}", camel(Capability::LanEmulation)));
                    spec.capabilities.push(Capability::LanEmulation);
                }
                for network in &policy.networks {
                    if !spec.networks.contains(network) {
                        missing.push(format!("the network '{network}'"));
                        spec.networks.push(network.clone());
                    }
                }
            }
        }
        let missing = if missing.is_empty() {
            "the policies do not list the capability that what they grant needs".to_owned()
        } else {
            format!("the server lacks {}", missing.join(" and "))
        };
        Self::NothingInCommon { server: server.clone(), missing, allowing: Box::new(allowing) }
    }
}

fn everywhere() -> Vec<Destination> {
    let all = ["0.0.0.0/0", "::/0"];
    all.iter()
        .filter_map(|cidr| cidr.parse().ok())
        .map(|cidr| Destination { cidr, protocol: Protocol::Any, ports: Vec::new() })
        .collect()
}

/// `alice-berlin`, cut to a name.
fn policy_name(user: &Name, server: &Name) -> Name {
    let mut text = format!("{user}-{server}");
    text.truncate(Name::MAX_BYTES);
    text.trim_end_matches('-').parse().unwrap_or_else(|_| user.clone())
}

/// The capability as documents spell it.
pub(crate) fn camel(capability: Capability) -> String {
    match serde_json::to_value(capability) {
        Ok(serde_json::Value::String(text)) => text,
        _ => capability.as_str().to_owned(),
    }
}
