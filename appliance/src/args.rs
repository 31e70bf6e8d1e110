//! The command line.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};

/// The server side of Horizon: carries people's traffic from their tunnels to this host's network.
///
/// An appliance is enrolled once with a token, and then does what its organisation's controller
/// declares. It keeps the last good state on disk, so that it works, and restarts, while the
/// controller is away.
///
///   On the controller:  horizon-controller token SERVER
///   On this host:       horizon-appliance enroll TOKEN
///                       horizon-appliance run
///
/// Every option may also be given in the environment.
#[derive(Debug, Parser)]
#[command(name = "horizon-appliance", version, max_term_width = 110, verbatim_doc_comment)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Options of every command.
    #[command(flatten)]
    pub common: Common,
}

/// Options of every command.
#[derive(Args, Clone, Debug)]
pub struct Common {
    /// Where the key, the enrolment and the last good state are kept (mode 0700)
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "HORIZON_APPLIANCE_STATE_DIR",
        default_value = "/var/lib/horizon-appliance"
    )]
    pub state_dir: PathBuf,
    /// The root of the file system whose /sys, /proc and /etc describe this machine, for a container that sees its host's
    #[arg(long, global = true, value_name = "DIR", env = "HORIZON_APPLIANCE_HOST_ROOT", default_value = "/")]
    pub host_root: PathBuf,
    /// A file with the digest of the image that this system was started from, where /etc/os-release names none
    #[arg(long, global = true, value_name = "FILE", env = "HORIZON_APPLIANCE_IMAGE_FILE")]
    pub image_file: Option<PathBuf>,
    /// What to log: error, warn, info, debug, trace, or a filter such as info,horizon_tunnel=debug
    #[arg(long, global = true, value_name = "FILTER", env = "HORIZON_APPLIANCE_LOG", default_value = "info")]
    pub log: String,
    /// How to log, on the standard error
    #[arg(long, global = true, value_enum, env = "HORIZON_APPLIANCE_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// How to log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// How to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Text for people.
    Table,
    /// JSON for programs.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make this host the server that a registration token is for
    ///
    /// The token comes from `horizon-controller token SERVER` and is used once; repeating the command with the same token
    /// on the same host is harmless. The host's key is made here and never leaves it.
    Enroll {
        /// The token (hzn-reg-...), `-` to read it from the standard input, or `@FILE`
        #[arg(env = "HORIZON_APPLIANCE_TOKEN", hide_env_values = true)]
        token: String,
        /// Leave the server or organisation that this host belonged to before
        #[arg(long, env = "HORIZON_APPLIANCE_FORCE")]
        force: bool,
    },
    /// Run until stopped, and leave the host as it was found
    ///
    /// Needs root or CAP_NET_ADMIN, /dev/net/tun and the program nft. Touches only its own TUN device, its own nftables
    /// table (inet horizon) and the kernel's forwarding settings, which it puts back when it stops.
    Run {
        /// The name of the TUN device
        #[arg(long, value_name = "NAME", env = "HORIZON_APPLIANCE_TUN", default_value = "hzn0", value_parser = device_name)]
        tun: String,
        /// An address of the tunnel to tell clients before those that are discovered; may be repeated
        #[arg(long, value_name = "IP:PORT", env = "HORIZON_APPLIANCE_ADVERTISE", value_delimiter = ',')]
        advertise: Vec<SocketAddr>,
        /// The TPM 2.0 that vouches for this machine, where there is one: a device, or a socket that takes the same bytes
        #[arg(long, value_name = "PATH", env = "HORIZON_APPLIANCE_TPM", default_value = crate::tpm::DEVICE)]
        tpm: PathBuf,
    },
    /// Show how the running appliance is: controller, state, tunnel, sessions
    Status {
        /// The form of the answer
        #[arg(short, long, value_enum, default_value = "table")]
        output: Output,
    },
    /// Print the checkpoints of the organisation's audit trail that this appliance witnessed, one a line
    ///
    /// `horizon-controller audit verify --witnesses FILE` compares them with a database.
    Witnesses,
    /// Check everything that an appliance needs, and say what to do about what is missing
    Diagnose {
        /// The form of the answer
        #[arg(short, long, value_enum, default_value = "table")]
        output: Output,
    },
}

/// Names that the kernel takes for a link.
fn device_name(name: &str) -> Result<String, String> {
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > 15 || !name.bytes().all(ok) || name == "." || name == ".." {
        return Err(
            "a device's name has 1 to 15 of the characters a-z, A-Z, 0-9, '-', '_' and '.'".to_owned()
        );
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn device_names_are_those_of_the_kernel() {
        assert!(device_name("hzn0").is_ok());
        for name in ["", "a b", "sixteen-letters-", "a/b", "x\"y", ".."] {
            assert!(device_name(name).is_err(), "{name}");
        }
    }
}
