//! What may be typed, and the help that teaches it.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Parser, Subcommand, ValueEnum};

use crate::service::{DEFAULT_SOCKET, DEFAULT_STATE_DIR, Settings};

const AFTER: &str = "\
First steps:
  sudo horizon service run &      the service, usually started by systemd
  horizon key add                 paste the personal key you were given, once per device
  horizon servers                 what you may use
  horizon connect paris-1         packets flow when this returns
  horizon status
  horizon disconnect              the host is exactly as before

Exit codes: 0 done, 1 failure, 2 wrong usage, 3 refused by the organisation, 4 no controller can be reached,
5 another of your devices is connected (see `horizon connect --take-over`).";

/// Connects this machine to the servers of a Horizon organisation.
#[derive(Debug, Parser)]
#[command(name = "horizon", version, after_help = AFTER)]
pub(super) struct Args {
    /// The socket of the service.
    #[arg(long, global = true, value_name = "PATH", default_value = DEFAULT_SOCKET, env = "HORIZON_SOCKET")]
    pub socket: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Manage the personal key of this device.
    Key {
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// Hand out the personal key that is kept here, for another of your devices: `horizon key add` there.
    ///
    /// Whoever has the key can add devices in your name until it is revoked, so this asks first.
    ExportKey(Export),
    /// List the servers you may use.
    Servers {
        /// How to print them.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Show or change the settings that follow you to all your devices.
    ///
    /// Your organisation keeps them, and cannot read them: they are sealed under a key that only your devices have.
    Settings {
        #[command(subcommand)]
        command: Option<SettingsCommand>,
    },
    /// Connect to a server. Returns when packets flow.
    ///
    /// The host's addresses, routes and resolvers are changed while the connection lasts and put back exactly afterwards.
    /// While the path to the server is broken, nothing leaves beside the tunnel. When you are logged in over SSH, the
    /// machine you sit at stays reachable, and the connection is reverted after 30 s unless you run `horizon confirm`.
    Connect(Connect),
    /// Keep a connection made over SSH that would otherwise be reverted.
    Confirm,
    /// Show what is so now, as measured.
    Status {
        /// How to print it.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// End the connection and put the host back as it was.
    Disconnect,
    /// Run or repair the privileged service.
    Service {
        #[command(subcommand)]
        command: ServiceCommand,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum SettingsCommand {
    /// Set one: preferred-server NAME, failover on|off, alias.NAME SERVER; without a value it is taken back.
    Set {
        /// Which.
        name: String,
        /// To what.
        #[arg(default_value = "")]
        value: String,
    },
    /// Share the settings of this device anew when those that are shared cannot be read any more, because every device that
    /// could is lost.
    StartOver,
}

#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Add the personal key you were given, or enter the one that replaces it; it makes this device yours.
    ///
    /// The key is kept in the keyring of your session, so that you can export it for another device. Without a keyring it is
    /// not kept, unless you choose an encrypted file; the device works either way.
    /// The key is read from a prompt that does not show it, or from standard input: `horizon key add < key.txt`. It is
    /// never taken from the command line, where other users of the machine could read it.
    #[command(visible_alias = "enter")]
    Add(KeyAdd),
    /// Show which personal key is kept and where; nothing of its secret.
    Show(KeyPlace),
    /// Remove the kept personal key. This device stays enrolled.
    Remove(KeyRemove),
}

/// Where the personal key is kept: in the keyring, unless a file is chosen.
#[derive(Debug, clap::Args)]
pub(super) struct KeyPlace {
    /// Keep the key in this file under a passphrase instead of in the keyring.
    #[arg(long, value_name = "PATH")]
    pub encrypted_file: Option<PathBuf>,
    /// Read the passphrase from the first line of this file instead of asking for it.
    #[arg(long, value_name = "PATH", requires = "encrypted_file")]
    pub passphrase_file: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(super) struct KeyRemove {
    /// Remove this encrypted file instead of the key in the keyring.
    #[arg(long, value_name = "PATH")]
    pub encrypted_file: Option<PathBuf>,
    /// Ask nothing.
    #[arg(short, long)]
    pub yes: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Export {
    #[command(flatten)]
    pub place: KeyPlace,
    /// Write the key into this new file, which only you can read, instead of printing it.
    #[arg(short, long, value_name = "PATH")]
    pub output: Option<PathBuf>,
    /// Ask nothing.
    #[arg(short, long)]
    pub yes: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct KeyAdd {
    /// How this device is called in the organisation's lists; its host name if not given.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    #[command(flatten)]
    pub place: KeyPlace,
    /// Keep the key nowhere.
    #[arg(long, conflicts_with = "encrypted_file")]
    pub do_not_keep: bool,
    /// Taken only to be refused without being printed.
    #[arg(hide = true, value_name = "KEY")]
    pub on_command_line: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Connect {
    /// The server's name, as `horizon servers` lists it, or your alias of it. Unset: the setting preferred-server.
    pub server: Option<String>,
    /// End the connection of your other device, if there is one. Without this a terminal is asked, and a script ends with
    /// exit code 5.
    #[arg(long)]
    pub take_over: bool,
    /// Use another server that offers as much when this one stays away, without a moment outside the tunnel.
    #[arg(long)]
    pub failover: bool,
    /// Ask nothing: keep a connection made over SSH without `horizon confirm`.
    #[arg(short, long)]
    pub yes: bool,
    /// How to print the result.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// How something is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs; fields are only ever added.
    Json,
}

#[derive(Debug, Subcommand)]
pub(super) enum ServiceCommand {
    /// Run the service until SIGTERM or SIGINT; needs root (CAP_NET_ADMIN).
    ///
    /// A small parent process watches the service: if it is killed, the host is put back at once, and the service
    /// started again. After a restart an open session is taken up again. HORIZON_LOG sets what is logged
    /// (error, warn, info, debug).
    Run(Run),
    /// Put back what a killed service left changed: routes, rules, resolvers. `run` does so at every start.
    Repair(Places),
}

#[derive(Debug, clap::Args)]
pub(super) struct Run {
    #[command(flatten)]
    places: Places,
    /// A user, by name or number, who may use the service besides root.
    #[arg(long, value_name = "USER", env = "HORIZON_OWNER")]
    owner: Option<String>,
    /// A group, by name or number, whose members may use the service.
    #[arg(long, value_name = "GROUP", env = "HORIZON_GROUP")]
    group: Option<String>,
    /// Seconds after which a connection made over SSH is reverted unless confirmed.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    confirm_seconds: u64,
    /// Do not take up a session that a former run left open.
    #[arg(long)]
    no_resume: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Places {
    /// The folder of the device key, the enrolment and the journal of changes.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE_DIR, env = "HORIZON_STATE_DIR")]
    state_dir: PathBuf,
    /// The resolver's file.
    #[arg(long, value_name = "PATH", default_value = "/etc/resolv.conf")]
    resolv_conf: PathBuf,
    /// The name of the TUN device, at most 15 characters.
    #[arg(long, value_name = "NAME", default_value = horizon_client_core::plan::DEVICE, value_parser = device_name)]
    device: String,
}

impl Run {
    pub(super) fn settings(self, socket: &Path) -> Settings {
        Settings {
            owner: self.owner,
            group: self.group,
            confirm_within: Duration::from_secs(self.confirm_seconds),
            resume: !self.no_resume,
            ..self.places.settings(socket)
        }
    }
}

impl Places {
    pub(super) fn settings(self, socket: &Path) -> Settings {
        Settings {
            socket: socket.to_owned(),
            state_dir: self.state_dir,
            resolv_conf: self.resolv_conf,
            device: self.device,
            owner: None,
            group: None,
            confirm_within: Duration::ZERO,
            resume: false,
        }
    }
}

fn device_name(text: &str) -> Result<String, String> {
    // IFNAMSIZ of linux/if.h, with its final zero.
    let fits = (1..16).contains(&text.len());
    if fits && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        Ok(text.to_owned())
    } else {
        Err("a device name has 1 to 15 letters, digits, '-', '_' or '.'".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent_and_the_help_teaches() {
        Args::command().debug_assert();
        let help = Args::command().render_long_help().to_string();
        for word in ["horizon key add", "horizon connect paris-1", "Exit codes", "--socket"] {
            assert!(help.contains(word), "{help}");
        }
    }

    #[test]
    fn commands_are_read() {
        let parse = |line: &str| Args::try_parse_from(line.split(' '));
        let args = parse("horizon connect paris-1 --take-over --yes --socket /tmp/s").unwrap();
        assert_eq!(args.socket, PathBuf::from("/tmp/s"));
        assert!(matches!(args.command, Command::Connect(Connect { take_over: true, yes: true, .. })));
        let args = parse("horizon service run --state-dir /tmp/d --confirm-seconds 3 --owner 1000").unwrap();
        let Command::Service { command: ServiceCommand::Run(run) } = args.command else { panic!() };
        let settings = run.settings(Path::new("/tmp/s"));
        assert_eq!(settings.confirm_within, Duration::from_secs(3));
        assert!(settings.resume);
        for bad in ["horizon", "horizon key", "horizon service run --device a/b", "horizon status -o yaml"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
