//! `device`: what is decided about devices, and everything about one.

use std::io::Write;

use clap::{Args, Subcommand};
use horizon_crds::{DEFAULT_NAMESPACE, DeviceVerdict, Name};
use horizon_model::DeviceId;

use super::args::Connection;
use crate::api::{
    client::Client,
    model::{DeviceDecisionRequest, Recorded},
};

/// What is decided.
#[derive(Debug, Subcommand)]
pub enum DeviceCommand {
    /// End its session and refuse it until it is allowed again. For good is `revoke device`.
    Block(Decision),
    /// Let it connect: neither blocked nor suspicious any more; the machine it runs on now is its machine.
    Allow(Decision),
    /// Doubt it. What that means is `devices.suspicious` of the SecurityPolicy.
    Suspect(Decision),
    /// Forget it: its session ends, and it must be enrolled again with a personal key.
    Forget(Decision),
    /// Give it another name.
    Rename {
        /// The new name.
        #[arg(long)]
        name: String,
        /// Which, and why.
        #[command(flatten)]
        decision: Decision,
    },
}

/// A device, and why something is decided about it.
#[derive(Debug, Args)]
pub struct Decision {
    /// The id of the device, as `get devices` shows it.
    id: DeviceId,
    /// Why, for the audit trail; a device that is refused tells its user.
    #[arg(long)]
    reason: String,
    /// The namespace of its user.
    #[arg(short, long, default_value = DEFAULT_NAMESPACE)]
    namespace: Name,
    /// Which controller.
    #[command(flatten)]
    connection: Connection,
}

impl DeviceCommand {
    fn parts(self) -> (DeviceVerdict, Option<String>, Decision) {
        match self {
            Self::Block(decision) => (DeviceVerdict::Block, None, decision),
            Self::Allow(decision) => (DeviceVerdict::Allow, None, decision),
            Self::Suspect(decision) => (DeviceVerdict::Suspect, None, decision),
            Self::Forget(decision) => (DeviceVerdict::Forget, None, decision),
            Self::Rename { name, decision } => (DeviceVerdict::Rename, Some(name), decision),
        }
    }
}

/// Has the controller record the decision.
pub(super) async fn decide(
    command: DeviceCommand,
    client: impl FnOnce(Connection) -> anyhow::Result<Client>,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let (decision, new_name, Decision { id, reason, namespace, connection }) = command.parts();
    let request = DeviceDecisionRequest { namespace, device: id, decision, reason, new_name };
    let recorded: Recorded = client(connection)?.post("/v1/devicedecisions", &request).await?;
    writeln!(out, "{}", recorded.message)?;
    Ok(())
}
