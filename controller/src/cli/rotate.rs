//! `rotate`: keys are replaced now.

use std::io::Write;

use clap::{Args, Subcommand, ValueEnum};
use horizon_crds::{DEFAULT_NAMESPACE, Name, RotationTarget, RotationType, TimeSpan};

use super::args::Connection;
use crate::api::{
    client::Client,
    model::{HandedOver, HandoverRequest, Issued, KeyStringRequest, Recorded, RotationRequest},
};
use crate::store::ENVELOPE_CLASS;

/// What is rotated.
#[derive(Debug, Subcommand)]
pub enum RotateCommand {
    /// Replace keys of the organisation itself. Nobody notices, unless it is an emergency: then the old key is dropped at
    /// once, and whoever still proves it is refused.
    #[command(
        after_help = "Examples:\n  horizon-controller rotate keys --class tls --reason 'every year'\n  \
        horizon-controller rotate keys --class envelope --reason 'every year'\n  \
        horizon-controller rotate keys --class state --emergency --reason 'a backup was stolen'\n\
        See how far it is: horizon-controller status"
    )]
    Keys {
        /// Which keys, one or several with commas between.
        #[arg(long, value_enum, value_delimiter = ',', required = true)]
        class: Vec<Class>,
        /// The old key may be in wrong hands: it is dropped at once.
        #[arg(long, conflicts_with = "compromised")]
        emergency: bool,
        /// The old key is in wrong hands: it is dropped at once.
        #[arg(long)]
        compromised: bool,
        /// For how long the old key is still trusted. Unset: as the policy says, or 7 days.
        #[arg(long, conflicts_with_all = ["emergency", "compromised"])]
        overlap: Option<TimeSpan>,
        /// Why, for the audit trail.
        #[arg(long)]
        reason: String,
        /// Which controller.
        #[command(flatten)]
        connection: Connection,
    },
    /// Give people new personal keys. Their devices take the new key by themselves and nobody notices, unless the old one is to be
    /// dead at once: then sessions end, and its user enters the new one.
    #[command(
        visible_alias = "personalkeys",
        after_help = "Examples:\n  horizon-controller rotate personalkey ann-1 --reason 'every year'\n  \
        horizon-controller rotate personalkey ann-1 --emergency --reason 'the laptop was left open'\n  \
        horizon-controller rotate personalkey ann-1 --compromised --reason 'found on a wall'\n\
        See how far it is: horizon-controller get keyrotations"
    )]
    Personalkey {
        /// The names of the PersonalKeys.
        #[arg(required = true)]
        names: Vec<Name>,
        /// The old key is dead at once: somebody wants it so.
        #[arg(long, conflicts_with_all = ["emergency", "compromised"])]
        manual: bool,
        /// The old key is dead at once: there is reason to worry.
        #[arg(long, conflicts_with = "compromised")]
        emergency: bool,
        /// The old key is dead at once: it is believed to be in wrong hands.
        #[arg(long)]
        compromised: bool,
        /// For how long the old key goes on beside the new one. Unset: as the key's policy says, or 7 days.
        #[arg(long, conflicts_with_all = ["manual", "emergency", "compromised"])]
        overlap: Option<TimeSpan>,
        /// Why, for the audit trail and for whoever has to enter the new key.
        #[arg(long)]
        reason: String,
        /// Their namespace.
        #[arg(short, long, default_value = DEFAULT_NAMESPACE)]
        namespace: Name,
        /// Which controller.
        #[command(flatten)]
        connection: Connection,
    },
    /// Give appliances new verification secrets.
    Secrets {
        /// The names of the Servers. Unset: all of the namespace.
        servers: Vec<Name>,
        /// Their namespace.
        #[arg(short, long, default_value = DEFAULT_NAMESPACE)]
        namespace: Name,
        /// Why, for the audit trail.
        #[arg(long)]
        reason: String,
        /// Which controller.
        #[command(flatten)]
        connection: Connection,
    },
}

/// A class of keys of the organisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Class {
    /// By which peers know a controller.
    Tls,
    /// Which signs the states of appliances.
    State,
    /// Which signs tickets.
    Ticket,
    /// What seals the secrets of the database: every one of them is sealed anew.
    Envelope,
    /// Which signs the others. Tokens that are handed out pin it; those of the old one go on to work, unless it was stolen.
    Root,
}

impl Class {
    fn name(self) -> anyhow::Result<Name> {
        let text = match self {
            Self::Tls => "tls",
            Self::State => "state",
            Self::Ticket => "ticket",
            Self::Root => "root",
            Self::Envelope => ENVELOPE_CLASS,
        };
        Ok(text.try_into()?)
    }
}

/// Has the controller record the rotation.
pub(super) async fn rotate(
    command: RotateCommand,
    client: impl FnOnce(Connection) -> anyhow::Result<Client>,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let (request, connection) = match command {
        RotateCommand::Keys { class, emergency, compromised, overlap, reason, connection } => {
            let names = class.into_iter().map(Class::name).collect::<anyhow::Result<_>>()?;
            let kind = match (emergency, compromised) {
                (_, true) => RotationType::Compromised,
                (true, _) => RotationType::Emergency,
                _ => RotationType::Scheduled,
            };
            let namespace = DEFAULT_NAMESPACE.try_into()?;
            let target = RotationTarget::ControllerKeys;
            (RotationRequest { namespace, target, names, kind, reason, overlap }, connection)
        }
        RotateCommand::Personalkey {
            names,
            manual,
            emergency,
            compromised,
            overlap,
            reason,
            namespace,
            connection,
        } => {
            let kind = match (manual, emergency, compromised) {
                (_, _, true) => RotationType::Compromised,
                (_, true, _) => RotationType::Emergency,
                (true, ..) => RotationType::Manual,
                _ => RotationType::Scheduled,
            };
            let target = RotationTarget::PersonalKeys;
            (RotationRequest { namespace, target, names, kind, reason, overlap }, connection)
        }
        RotateCommand::Secrets { servers, namespace, reason, connection } => {
            let target = RotationTarget::VerificationSecrets;
            let kind = RotationType::Scheduled;
            (RotationRequest { namespace, target, names: servers, kind, reason, overlap: None }, connection)
        }
    };
    let client = client(connection)?;
    let recorded: Recorded = client.post("/v1/keyrotations", &request).await?;
    writeln!(out, "{}", recorded.message)?;
    if request.target == RotationTarget::PersonalKeys && request.kind != RotationType::Scheduled {
        for name in request.names {
            new_string(&client, request.namespace.clone(), name, out).await?;
        }
    }
    Ok(())
}

/// Shows the string that the user of a replaced key has to enter, or where it is.
async fn new_string(client: &Client, namespace: Name, name: Name, out: &mut dyn Write) -> anyhow::Result<()> {
    let asked = KeyStringRequest { namespace, name };
    match client.post::<Issued>("/v1/personal-key-strings", &asked).await {
        Ok(issued) => {
            writeln!(
                out,
                "The user of '{}' enters this on every device, with `horizon key enter`:",
                asked.name
            )?;
            writeln!(out, "{}", issued.secret)?;
        }
        // It is elsewhere, or the key has ended: the answer says which.
        Err(error) => writeln!(out, "{error:#}")?,
    }
    Ok(())
}

/// Has the controller make a hand-over.
pub(super) async fn hand_over(
    args: HandoverArgs,
    client: impl FnOnce(Connection) -> anyhow::Result<Client>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> anyhow::Result<()> {
    let HandoverArgs { what: HandoverCommand::Personalkey { name, namespace, lifetime, connection } } = args;
    let request = HandoverRequest { namespace, name, lifetime };
    let made: HandedOver = client(connection)?.post("/v1/handovers", &request).await?;
    writeln!(out, "{}", made.handover)?;
    writeln!(out, "{}", made.code)?;
    writeln!(
        err,
        "Send the first line; tell the second, the code, in another way. Their user runs `horizon key add`. Both are shown \
         once and can be used until {}, on one device, with five tries of the code.",
        made.expires_at
    )?;
    Ok(())
}

/// What is handed over.
#[derive(Debug, Args)]
pub struct HandoverArgs {
    /// What.
    #[command(subcommand)]
    what: HandoverCommand,
}

/// What can be handed over.
#[derive(Debug, Subcommand)]
pub(super) enum HandoverCommand {
    /// A personal key that nobody uses yet: it is new, or it was replaced at once.
    Personalkey {
        /// The name of the PersonalKey.
        name: Name,
        /// Its namespace.
        #[arg(short, long, default_value = DEFAULT_NAMESPACE)]
        namespace: Name,
        /// How long it can be used; seven days at most.
        #[arg(long, default_value = "24h")]
        lifetime: TimeSpan,
        /// Which controller.
        #[command(flatten)]
        connection: Connection,
    },
}
