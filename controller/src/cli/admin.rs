//! The accounts of administrators on the command line.

use std::io::Write;

use clap::Subcommand;
use serde_json::{Value, json};

use super::args::{Connection, Output};
use crate::api::{
    client::{Client, escape},
    model::List,
};

/// The commands about administrators.
#[derive(Debug, Subcommand)]
pub enum AdminCommand {
    /// Make an account. Its one-time password is shown once, and must be changed with its first use.
    Add {
        /// The name to sign in with: lower-case letters, digits and '.-_'.
        name: String,
        /// What it may do: `admin`, `operator`, `viewer`, `auditor`, or a role of your own.
        #[arg(long, value_delimiter = ',', default_value = "viewer")]
        role: Vec<String>,
        /// Where to reach them.
        #[arg(long)]
        email: Option<String>,
        /// What they are called.
        #[arg(long, default_value = "")]
        full_name: String,
        /// Which controller.
        #[command(flatten)]
        connection: Connection,
    },
    /// List the accounts.
    List {
        /// The form of the answer.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
        /// Which controller.
        #[command(flatten)]
        connection: Connection,
    },
    /// Suspend an account: it may no longer sign in, and is signed out everywhere.
    Suspend {
        /// The account.
        name: String,
        /// Why; it is kept, and told to who knows the password.
        #[arg(long)]
        reason: String,
        /// Which controller.
        #[command(flatten)]
        connection: Connection,
    },
    /// Let a suspended account sign in again.
    Activate {
        /// The account.
        name: String,
        /// Which controller.
        #[command(flatten)]
        connection: Connection,
    },
    /// Forgive failed attempts, so that a locked account may sign in at once.
    Unlock {
        /// The account.
        name: String,
        /// Which controller.
        #[command(flatten)]
        connection: Connection,
    },
    /// Give an account another one-time password, and sign it out everywhere.
    ResetPassword {
        /// The account.
        name: String,
        /// Which controller.
        #[command(flatten)]
        connection: Connection,
    },
    /// Have an account set up one-time codes anew, and sign it out everywhere.
    ResetTotp {
        /// The account.
        name: String,
        /// Which controller.
        #[command(flatten)]
        connection: Connection,
    },
}

impl AdminCommand {
    /// Which controller is meant.
    pub(super) fn take_connection(&mut self) -> Connection {
        let connection = match self {
            Self::Add { connection, .. }
            | Self::List { connection, .. }
            | Self::Suspend { connection, .. }
            | Self::Activate { connection, .. }
            | Self::Unlock { connection, .. }
            | Self::ResetPassword { connection, .. }
            | Self::ResetTotp { connection, .. } => connection,
        };
        Connection { socket: connection.socket.take() }
    }
}

/// Carries a command out.
pub(super) async fn admin(
    client: &Client,
    command: AdminCommand,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> anyhow::Result<()> {
    let (name, action, body, done) = match command {
        AdminCommand::Add { name, role, email, full_name, .. } => {
            let body = json!({ "username": name, "email": email, "fullName": full_name, "roles": role });
            let made: Value = client.post("/v1/admins", &body).await?;
            return Ok(tell_password(&made, out, err)?);
        }
        AdminCommand::ResetPassword { name, .. } => {
            let path = format!("/v1/admins/{}/reset-password", escape(&name));
            let made: Value = client.post(&path, &json!({})).await?;
            return Ok(tell_password(&made, out, err)?);
        }
        AdminCommand::List { output, .. } => return list(client, output, out).await,
        AdminCommand::Suspend { name, reason, .. } => {
            (name, "suspend", json!({ "reason": reason }), "is suspended and signed out")
        }
        AdminCommand::Activate { name, .. } => (name, "activate", json!({}), "may sign in again"),
        AdminCommand::Unlock { name, .. } => (name, "unlock", json!({}), "is not locked"),
        AdminCommand::ResetTotp { name, .. } => {
            (name, "reset-totp", json!({}), "sets up one-time codes anew with the next sign-in")
        }
    };
    let _: Value = client.post(&format!("/v1/admins/{}/{action}", escape(&name)), &body).await?;
    writeln!(out, "administrator '{name}' {done}")?;
    Ok(())
}

fn tell_password(made: &Value, out: &mut dyn Write, err: &mut dyn Write) -> std::io::Result<()> {
    let text = |field: &str| made[field].as_str().unwrap_or_default().to_owned();
    writeln!(out, "{}", text("password"))?;
    writeln!(
        err,
        "This is the one-time password of '{}', until {}. It is shown once, and must be changed with its first use.",
        text("username"),
        text("expiresAt")
    )
}

async fn list(client: &Client, output: Output, out: &mut dyn Write) -> anyhow::Result<()> {
    let admins: List<Value> = client.get("/v1/admins").await?;
    if matches!(output, Output::Json) {
        writeln!(out, "{}", serde_json::to_string_pretty(&admins)?)?;
        return Ok(());
    }
    if matches!(output, Output::Yaml) {
        write!(out, "{}", serde_saphyr::to_string(&admins)?)?;
        return Ok(());
    }
    writeln!(out, "{:<24} {:<10} {:<24} {:<5} LAST LOGIN", "NAME", "STATUS", "ROLES", "TOTP")?;
    for admin in &admins.items {
        let text = |field: &str| admin[field].as_str().unwrap_or("-").to_owned();
        let roles = admin["roles"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let totp = if admin["totp"] == true { "yes" } else { "no" };
        let roles = roles.collect::<Vec<_>>().join(",");
        writeln!(
            out,
            "{:<24} {:<10} {:<24} {totp:<5} {}",
            text("username"),
            text("status"),
            roles,
            text("lastLogin")
        )?;
    }
    Ok(())
}
