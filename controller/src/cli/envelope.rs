//! `envelope rewrap`: the data keys of the database are wrapped under another envelope key, in a file or in hardware.

use std::{io::Write, path::Path, process::ExitCode, sync::Arc};

use clap::{Args, Subcommand, ValueEnum};
use horizon_model::Secret;
use jiff::Timestamp;

use crate::{
    app,
    config::Config,
    config::Settings,
    keys::{Envelope, Token, TokenSettings},
    metrics::Metrics,
    store::{Actor, EnvelopeKey, Store, random},
};

/// What is done about the envelope key.
#[derive(Debug, Subcommand)]
pub enum EnvelopeCommand {
    /// Move to another kind of envelope key: from a file or a Secret into a hardware security module, back, or from one key of a
    /// module to another. Every data key is wrapped under the new one too; no value is touched, and what runs goes on. Needs the
    /// database and the keys; controllers may run meanwhile.
    #[command(after_help = "Into a module, with pkcs11_module, pkcs11_token and pkcs11_key set:\n  \
        horizon-controller envelope rewrap --to pkcs11 --config my-org/config.toml\n\
        Then start every controller anew. When all use it, the key before opens nothing any more, and its file can go.\n\
        To replace the envelope key by another of its kind: horizon-controller rotate keys --class envelope")]
    Rewrap(Box<RewrapArgs>),
}

/// What `envelope rewrap` is told.
#[derive(Debug, Args)]
pub struct RewrapArgs {
    /// To what kind of envelope key.
    #[arg(long, value_enum)]
    to: Kind,
    /// The label of the key on the token that is in use so far, where it is not the one of the settings.
    #[arg(long, value_name = "LABEL")]
    from_key: Option<String>,
    /// The settings.
    #[command(flatten)]
    settings: Settings,
}

/// Kinds of envelope keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// With the organisation's keys, in their directory or Secret.
    File,
    /// On the token of the settings.
    Pkcs11,
}

/// Does it.
pub(super) async fn envelope(
    file: Option<&Path>,
    command: EnvelopeCommand,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let EnvelopeCommand::Rewrap(args) = command;
    let RewrapArgs { to, from_key, settings } = *args;
    let config = Config::load(file, settings)?;
    let now = Timestamp::now();
    let home = app::keys_home(&config).await?;
    let keys = home.open(now).await?;
    let token = |label: Option<String>| -> anyhow::Result<Envelope> {
        let at = config.pkcs11.as_ref();
        let at = at.ok_or_else(|| anyhow::anyhow!("set pkcs11_module, pkcs11_token and pkcs11_key"))?;
        let mut settings = TokenSettings::read(at)?;
        settings.key = label.unwrap_or(settings.key);
        Ok(Arc::new(Token::new(settings)).into())
    };
    let from = match (to, &from_key) {
        (Kind::Pkcs11, None) => keys.envelope_key()?.into(),
        _ => token(from_key)?,
    };
    let store = Store::open(app::database(&config)?, from, Metrics::default()).await?;
    let next = match (to, &keys.envelope) {
        (Kind::Pkcs11, _) => token(None)?,
        (Kind::File, Some(key)) => key.into(),
        (Kind::File, None) => {
            let key = EnvelopeKey(Secret::new(random()));
            home.keep_envelope(&key).await?;
            (&key).into()
        }
    };
    next.check().await?;
    let done = store.rewrap_data_keys(&next, &Actor::System("envelope"), now).await;
    store.close().await;
    match done? {
        true => writeln!(
            out,
            "The data keys are wrapped under {} too. Start every controller with settings for it; when all use it, the \
             envelope key before opens nothing any more.",
            next.id()
        )?,
        false => {
            writeln!(out, "The data keys are wrapped under {} already; nothing was changed.", next.id())?
        }
    }
    Ok(ExitCode::SUCCESS)
}
