//! The command line: what can be said, and the help that teaches it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use horizon_crds::{DEFAULT_NAMESPACE, IdentityDigest, KindName, Name, TimeSpan};

use super::admin::AdminCommand;
use super::backup::{BackupArgs, RestoreArgs};
use super::envelope::EnvelopeCommand;
use super::security_args::{AnomaliesCommand, BlockArgs, EventsCommand, FlagArgs, NotificationsCommand};
use super::{
    device::DeviceCommand,
    rotate::{HandoverArgs, RotateCommand},
};
use crate::{
    config::{Advertised, Settings, defaults},
    export::{Format, Place},
};

const EXAMPLES: &str = "\
Getting started:
  horizon-controller init my-org         make a folder with settings, keys and starter documents
  horizon-controller run --config my-org/config.toml
  cd my-org
  horizon-controller token home          a string to paste on the machine that becomes 'home'
  horizon-controller invite ann          a string that user 'ann' pastes into her client
  horizon-controller get all             what is declared and how it goes

To change things, edit the files in my-org/resources; the running controller follows at once.
  horizon-controller validate resources  check files, without a controller
  horizon-controller diff resources      see what would change, and whom it affects

Commands that talk to a running controller find it through --socket, HORIZON_SOCKET, the settings
in --config (or ./config.toml), or at ./data/horizon.sock.";

/// Reads what an organisation declares, tells its appliances, and grants its people sessions.
#[derive(Debug, Parser)]
#[command(name = "horizon-controller", version, after_help = EXAMPLES, max_term_width = 110)]
pub struct Cli {
    /// The file of settings. Unset: ./config.toml, if there is one.
    #[arg(long, global = true, env = "HORIZON_CONFIG", hide_env_values = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a folder with settings, keys and starter documents.
    Init(InitArgs),
    /// Run the controller until it is stopped (SIGTERM or Ctrl-C).
    #[command(after_help = settings_help())]
    Run(Box<Settings>),
    /// Bring the schema of the Postgres database up to date, as the user of `migration_url_file`. Repeating it does
    /// nothing; controllers of the version before go on meanwhile.
    #[command(after_help = settings_help())]
    Migrate(Box<Settings>),
    /// Make a backup while the controller runs: one encrypted file with the database, the keys, the settings and what is declared
    /// in files.
    #[command(after_help = BACKUP_EXAMPLES)]
    Backup(Box<BackupArgs>),
    /// Restore a backup into an empty system. Appliances and devices come back by themselves.
    #[command(after_help = RESTORE_EXAMPLES)]
    Restore(Box<RestoreArgs>),
    /// Show settings.
    Config {
        /// What to do.
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Check resource files, without a controller. Every problem is listed; the exit status is 1 if there are any.
    Validate {
        /// The directory, or one file.
        directory: PathBuf,
    },
    /// Show what would change if the running controller read this directory, and whom it affects.
    Diff {
        /// The directory.
        directory: PathBuf,
        /// The form of the answer.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
        /// Which controller.
        #[command(flatten)]
        connection: Connection,
    },
    /// Make a registration token for a server: one string to paste on the machine that becomes it.
    #[command(
        after_help = "The token works once, for one machine, within its lifetime. On that machine:\n  \
        horizon-appliance enroll TOKEN"
    )]
    Token {
        /// The name of the Server.
        server: Name,
        /// Its namespace.
        #[arg(short, long, default_value = DEFAULT_NAMESPACE)]
        namespace: Name,
        /// How long the token can be used.
        #[arg(long, default_value = "24h")]
        lifetime: TimeSpan,
        /// Which controller.
        #[command(flatten)]
        connection: Connection,
    },
    /// Make a personal key for a user: one string to paste into the client, once on each device.
    #[command(after_help = "The user enrols each device with:\n  horizon key add")]
    Invite {
        /// The name of the User.
        user: Name,
        /// Their namespace.
        #[arg(short, long, default_value = DEFAULT_NAMESPACE)]
        namespace: Name,
        /// How long the key can be used. Unset: until it is revoked.
        #[arg(long)]
        lifetime: Option<TimeSpan>,
        /// Which controller.
        #[command(flatten)]
        connection: Connection,
    },
    /// List resources of a kind, or `all`, `sessions`, `devices`, `events`, `audit`.
    #[command(after_help = GET_EXAMPLES)]
    Get {
        /// The kind, its plural or its short name; or one of `all`, `sessions`, `devices`, `events`, `audit`.
        what: What,
        /// The name of one resource.
        name: Option<String>,
        /// The namespace. Unset: all of them for lists, `default` for one resource.
        #[arg(short, long)]
        namespace: Option<Name>,
        /// The form of the answer.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
        /// The most entries of sessions, devices, events and audit, the newest first.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
        /// Which controller.
        #[command(flatten)]
        connection: Connection,
    },
    /// Tell everything about one resource, one session or one device: what is declared, what is so, and why.
    Describe {
        /// The kind, its plural or its short name; or `session`, or `device`.
        kind: Described,
        /// The name; of a session or a device its id.
        name: Name,
        /// The namespace.
        #[arg(short, long, default_value = DEFAULT_NAMESPACE)]
        namespace: Name,
        /// Which controller.
        #[command(flatten)]
        connection: Connection,
    },
    /// Accept the changed identity of a server's appliance.
    #[command(after_help = "See what changed before: horizon-controller describe server NAME")]
    Approve {
        /// The name of the Server.
        server: Name,
        /// The digest of the identity to accept, as `describe` shows it. Unset: the one that is pending now.
        #[arg(long)]
        digest: Option<IdentityDigest>,
        /// Why, for the audit trail.
        #[arg(long, default_value = "")]
        reason: String,
        /// Its namespace.
        #[arg(short, long, default_value = DEFAULT_NAMESPACE)]
        namespace: Name,
        /// Which controller.
        #[command(flatten)]
        connection: Connection,
    },
    /// Revoke a server, a device or a key, for good.
    #[command(
        after_help = "Examples:\n  horizon-controller revoke device 0198f3… --reason 'laptop lost' --compromised\n  \
        horizon-controller revoke personalkey ann-1 --reason 'left the club'"
    )]
    Revoke {
        /// What it is.
        kind: Revocable,
        /// The name; of a device its id.
        name: Name,
        /// Why, for the audit trail.
        #[arg(long)]
        reason: String,
        /// It is believed to be in wrong hands.
        #[arg(long)]
        compromised: bool,
        /// Its namespace.
        #[arg(short, long, default_value = DEFAULT_NAMESPACE)]
        namespace: Name,
        /// Which controller.
        #[command(flatten)]
        connection: Connection,
    },
    /// Hand a personal key over to a person: a string to send and a code to tell, each useless without the other.
    Handover(HandoverArgs),
    /// The audit trail: who changed what.
    Audit {
        /// What to do.
        #[command(subcommand)]
        command: AuditCommand,
    },
    /// The key that everything sealed in the database hangs on.
    Envelope {
        /// What to do.
        #[command(subcommand)]
        command: EnvelopeCommand,
    },
    /// Replace keys now.
    Rotate {
        /// What.
        #[command(subcommand)]
        command: RotateCommand,
    },
    /// Decide about a device: block, allow, suspect, forget or rename it.
    #[command(
        after_help = "Example:\n  horizon-controller device block 0198f3… --reason 'in repair until Friday'"
    )]
    Device {
        /// What.
        #[command(subcommand)]
        command: DeviceCommand,
    },
    /// Write out everything that is declared, as documents with the identities of their resources: a backup, or the way to
    /// another kind of source. With the same database and keys, they are the same resources when they are applied again.
    #[command(after_help = EXPORT_EXAMPLES)]
    Export {
        /// The language.
        #[arg(short = 'o', long, value_enum, default_value_t)]
        format: Format,
        /// A directory that is empty or not there yet, for one file each; `-` for all of them to the standard output.
        #[arg(long, value_name = "DIR|-", default_value = "-")]
        output: Place,
        /// Which controller.
        #[command(flatten)]
        connection: Connection,
    },
    /// Let resources go whose files vanished, when so many vanished at once that the controller asks.
    ConfirmPrune {
        /// Which controller.
        #[command(flatten)]
        connection: Connection,
    },
    /// Block an address or a range: who is connected from there is refused at once, and whoever comes.
    #[command(
        after_help = "Examples:\n  horizon-controller block 192.0.2.7 --reason 'tries keys' --for 24h\n  \
        horizon-controller block 2001:db8::/48 --reason 'hosting range' --severity malicious"
    )]
    Block(BlockArgs),
    /// Lift the block of an address or a range.
    Unblock {
        /// The address or the range, as `get blocks` shows it.
        range: String,
        /// Which controller.
        #[command(flatten)]
        connection: Connection,
    },
    /// Handle security events. To list them: `get events`.
    Events {
        /// What to do.
        #[command(subcommand)]
        command: EventsCommand,
    },
    /// Say of anomalies whether they were any. To list them: `get anomalies`.
    Anomalies {
        /// What to do.
        #[command(subcommand)]
        command: AnomaliesCommand,
    },
    /// Read notifications and note what was done. To list them: `get notifications`.
    Notifications {
        /// What to do.
        #[command(subcommand)]
        command: NotificationsCommand,
    },
    /// Flag a server or a user as suspicious, so that somebody looks. Nothing is refused for it.
    Flag(FlagArgs),
    /// Take the flag of a server or a user away.
    Unflag(FlagArgs),
    /// Manage the accounts of administrators, who sign in at the REST API.
    Admin {
        /// What to do.
        #[command(subcommand)]
        command: AdminCommand,
    },
    /// Tell how the controller does.
    Status {
        /// The form of the answer.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
        /// Which controller.
        #[command(flatten)]
        connection: Connection,
    },
}

fn settings_help() -> String {
    format!(
        "Every setting can also be written into the file of settings, under its name with '_' for '-'.\n\
         Flags go over environment variables, these over the file, that over the defaults:\n{}",
        defaults()
    )
}

const BACKUP_EXAMPLES: &str = "\
Examples:
  horizon-controller backup --to horizon.backup                      asks for a passphrase
  horizon-controller backup key --to horizon-backup.key              makes a key, prints its public half
  horizon-controller backup --to horizon.backup --recipient KEY      needs no secret
  horizon-controller backup verify --from horizon.backup --key-file horizon-backup.key";

const RESTORE_EXAMPLES: &str = "\
Examples:
  horizon-controller --config my-org/config.toml restore --from horizon.backup
  horizon-controller restore --from horizon.backup --key-file horizon-backup.key --root ROOT";

const GET_EXAMPLES: &str = "\
Examples:
  horizon-controller get all
  horizon-controller get servers -o wide
  horizon-controller get user ann -o yaml
  horizon-controller get events --limit 20";

const EXPORT_EXAMPLES: &str = "\
Examples:
  horizon-controller export --output backup
  horizon-controller export -o yaml | kubectl apply --server-side -f -";

/// What `init` is told.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// The folder; made if it does not exist.
    pub directory: PathBuf,
    /// How appliances and clients on other machines reach this one: `HOST` or `HOST:PORT`. Unset: the addresses of this
    /// machine.
    #[arg(long, value_name = "ADDRESS", num_args = 1..)]
    pub advertise: Vec<Advertised>,
    /// This machine is to be the appliance as well: declare it, and print the steps that enrol it.
    #[arg(long)]
    pub with_appliance: bool,
}

/// The commands about settings.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print the settings in effect, in the form of the file. There are no secrets among them.
    Print(Box<Settings>),
}

/// The commands about the audit trail.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Find out whether the audit trail is as it was written: no row edited, deleted or put in, its end not cut off, nothing
    /// computed anew. Needs the database alone; no controller has to run. The exit status is 1 if something is wrong.
    #[command(
        after_help = "What appliances witnessed shows what an intruder with all keys could hide otherwise. On some of them:\n  \
        horizon-appliance witnesses > witnesses.txt\n\
        and here:\n  horizon-controller audit verify --config my-org/config.toml --witnesses witnesses.txt"
    )]
    Verify(Box<AuditVerifyArgs>),
}

/// What `audit verify` is told.
#[derive(Debug, Args)]
pub struct AuditVerifyArgs {
    /// A database file of SQLite, such as a copy. Unset: the database of the settings.
    #[arg(long, value_name = "FILE")]
    pub database: Option<PathBuf>,
    /// A backup. Unset: the database of the settings.
    #[arg(long, value_name = "FILE", conflicts_with = "database")]
    pub backup: Option<PathBuf>,
    /// The file with the private half of the key that the backup was made for. Unset: its passphrase, which is asked for.
    #[arg(long, value_name = "FILE", requires = "backup")]
    pub key_file: Option<PathBuf>,
    /// A file with the passphrase of the backup; `-` is standard input.
    #[arg(long, value_name = "FILE", requires = "backup", conflicts_with = "key_file")]
    pub passphrase_file: Option<PathBuf>,
    /// What appliances witnessed: a file, or a directory of such files.
    #[arg(long, value_name = "FILE|DIR")]
    pub witnesses: Vec<PathBuf>,
    /// The form of the answer.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
    /// The settings.
    #[command(flatten)]
    pub settings: Settings,
}

/// Which controller to talk to.
#[derive(Debug, Args)]
pub struct Connection {
    /// The Unix socket of the controller.
    #[arg(long, env = "HORIZON_SOCKET", hide_env_values = true, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// The form of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Columns for people.
    #[default]
    Table,
    /// More columns for people.
    Wide,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// What `describe` tells about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Described {
    /// A resource of a kind.
    Kind(KindName),
    /// A session.
    Session,
    /// A device.
    Device,
}

impl std::str::FromStr for Described {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_lowercase().as_str() {
            "session" | "sessions" => Ok(Self::Session),
            "device" | "devices" => Ok(Self::Device),
            other => KindName::parse(other)
                .map(Self::Kind)
                .map_err(|error| format!("{error}; besides kinds there are session and device")),
        }
    }
}

/// What `get` lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Every kind.
    All,
    /// One kind.
    Kind(KindName),
    /// Sessions, live and past.
    Sessions,
    /// Enrolled devices.
    Devices,
    /// Security events.
    Events,
    /// The audit trail.
    Audit,
    /// What detectors found.
    Anomalies,
    /// Blocked addresses.
    Blocks,
    /// Servers and users that are flagged.
    Flags,
    /// Notifications to administrators.
    Notifications,
    /// Scheduled tasks.
    Tasks,
    /// How the parts of the system do.
    Services,
    /// Reports.
    Reports,
}

impl std::str::FromStr for What {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.to_lowercase().as_str() {
            "all" => Self::All,
            "session" | "sessions" => Self::Sessions,
            "device" | "devices" => Self::Devices,
            "event" | "events" => Self::Events,
            "audit" => Self::Audit,
            "anomaly" | "anomalies" => Self::Anomalies,
            "block" | "blocks" => Self::Blocks,
            "flag" | "flags" => Self::Flags,
            "notification" | "notifications" => Self::Notifications,
            "task" | "tasks" => Self::Tasks,
            "service" | "services" => Self::Services,
            "report" | "reports" => Self::Reports,
            other => Self::Kind(KindName::parse(other).map_err(|error| {
                format!("{error}; besides kinds there are all, sessions, devices, events and audit")
            })?),
        })
    }
}

/// What can be revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revocable(pub horizon_crds::TargetKind);

impl std::str::FromStr for Revocable {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        use horizon_crds::TargetKind;
        if matches!(text.to_lowercase().as_str(), "device" | "devices") {
            return Ok(Self(TargetKind::Device));
        }
        match KindName::parse(text) {
            Ok(KindName::Server) => Ok(Self(TargetKind::Server)),
            Ok(KindName::PersonalKey) => Ok(Self(TargetKind::PersonalKey)),
            Ok(KindName::RegistrationKey) => Ok(Self(TargetKind::RegistrationKey)),
            Ok(KindName::User) => Err(
                "a user is not revoked but suspended: write 'suspended = true' into their file, or remove it"
                    .into(),
            ),
            _ => Err("what can be revoked is a server, a device, a personalkey or a registrationkey".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn commands_are_read() {
        let cli = Cli::try_parse_from(["x", "get", "srv", "-o", "yaml", "-n", "lab"]).unwrap();
        let Command::Get { what, output, namespace, name, .. } = cli.command else { panic!("{cli:?}") };
        assert_eq!((what, output, name), (What::Kind(KindName::Server), Output::Yaml, None));
        assert_eq!(namespace.as_deref(), Some("lab"));

        let cli = Cli::try_parse_from([
            "x",
            "run",
            "--config",
            "c.toml",
            "--advertise",
            "a:1,b",
            "--debounce",
            "9ms",
        ])
        .unwrap();
        assert_eq!(cli.config, Some("c.toml".into()));
        let Command::Run(settings) = cli.command else { panic!() };
        assert_eq!(settings.advertise.unwrap().len(), 2);

        let cli = Cli::try_parse_from(["x", "describe", "session", "0198f3"]).unwrap();
        assert!(matches!(cli.command, Command::Describe { kind: Described::Session, .. }));
        let cli = Cli::try_parse_from(["x", "describe", "srv", "home"]).unwrap();
        let server = Described::Kind(KindName::Server);
        assert!(matches!(cli.command, Command::Describe { kind, .. } if kind == server));

        let cli =
            Cli::try_parse_from(["x", "init", "d", "--advertise", "a", "b", "--with-appliance"]).unwrap();
        let Command::Init(args) = cli.command else { panic!() };
        assert!(args.with_appliance && args.advertise.len() == 2);
    }

    #[test]
    fn mistakes_are_answered_with_what_to_write() {
        let error = |args: &[&str]| Cli::try_parse_from(args).unwrap_err().to_string();
        assert!(error(&["x", "get", "severs"]).contains("did you mean"));
        assert!(error(&["x", "revoke", "user", "ann", "--reason", "r"]).contains("suspended = true"));
        assert!(error(&["x", "revoke", "server", "home"]).contains("--reason"));
        assert!(error(&["x", "run", "--prune-limit-percent", "101"]).contains("0..=100"));
        assert!(error(&["x", "init", "d", "--advertise", "a b"]).contains("write 192.0.2.1"));
    }
}
