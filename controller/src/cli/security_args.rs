//! The commands about what is out of the ordinary.

use clap::{Args, Subcommand};
use horizon_crds::{DEFAULT_NAMESPACE, KindName, Name, TimeSpan};

use super::args::Connection;
use crate::store::BlockSeverity;

/// What is to be blocked.
#[derive(Debug, Args)]
pub struct BlockArgs {
    /// An address, or a range like 192.0.2.0/24.
    pub range: String,
    /// Why, for the audit trail.
    #[arg(long)]
    pub reason: String,
    /// For how long. Unset: until it is unblocked.
    #[arg(long = "for", value_name = "TIME")]
    pub span: Option<TimeSpan>,
    /// How it is judged.
    #[arg(long, value_enum)]
    pub severity: Option<BlockSeverity>,
    /// Which controller.
    #[command(flatten)]
    pub connection: Connection,
}

/// The commands about security events.
#[derive(Debug, Subcommand)]
pub enum EventsCommand {
    /// Note that an event was handled.
    Handle {
        /// Its number, as `get events -o wide` shows it.
        id: i64,
        /// What was found out and done.
        #[arg(long)]
        note: String,
        /// Which controller.
        #[command(flatten)]
        connection: Connection,
    },
}

/// The commands about anomalies.
#[derive(Debug, Subcommand)]
pub enum AnomaliesCommand {
    /// Say whether an anomaly was one. It decides what becomes of others like it, of the same subject.
    Feedback {
        /// Its number, as `get anomalies` shows it.
        id: i64,
        /// It was no sign of anything: the same is not told of this subject again.
        #[arg(long, required_unless_present = "confirmed", conflicts_with = "confirmed")]
        false_positive: bool,
        /// It was what it looked like: the same is told of this subject sooner.
        #[arg(long)]
        confirmed: bool,
        /// What was found out and done.
        #[arg(long, default_value = "")]
        note: String,
        /// Which controller.
        #[command(flatten)]
        connection: Connection,
    },
}

/// The commands about notifications.
#[derive(Debug, Subcommand)]
pub enum NotificationsCommand {
    /// Show a notification, and note that it was read.
    Read {
        /// Its number, as `get notifications` shows it.
        id: i64,
        /// Which controller.
        #[command(flatten)]
        connection: Connection,
    },
    /// Note what was done about a notification.
    Done {
        /// Its number.
        id: i64,
        /// What was done.
        #[arg(long)]
        what: String,
        /// Which controller.
        #[command(flatten)]
        connection: Connection,
    },
}

/// What is flagged, or no longer.
#[derive(Debug, Args)]
pub struct FlagArgs {
    /// `server` or `user`.
    #[arg(value_parser = kind)]
    pub kind: KindName,
    /// Its name.
    pub name: Name,
    /// Why, for the audit trail.
    #[arg(long)]
    pub reason: String,
    /// Its namespace.
    #[arg(short, long, default_value = DEFAULT_NAMESPACE)]
    pub namespace: Name,
    /// Which controller.
    #[command(flatten)]
    pub connection: Connection,
}

fn kind(word: &str) -> Result<KindName, String> {
    match KindName::parse(word) {
        Ok(kind @ (KindName::Server | KindName::User)) => Ok(kind),
        _ => Err("what is flagged is a server or a user".to_owned()),
    }
}
