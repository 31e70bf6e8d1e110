//! The file that says how administrators are notified. Secrets are in files of their own.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use serde::Deserialize;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::store::Urgency;

/// The largest file that is read, in bytes.
const MAX_BYTES: u64 = 64 << 10;
/// The most recipients of an e-mail.
const MOST_RECIPIENTS: usize = 50;

/// Why nobody can be notified as the settings say.
#[derive(Debug, Error)]
pub enum NotifyError {
    /// A file cannot be read.
    #[error("cannot read {path}: {error}")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file is not what it should be.
    #[error("{path}: {why}")]
    Invalid {
        /// Which.
        path: PathBuf,
        /// What is wrong and what to do.
        why: String,
    },
    /// A value cannot be used.
    #[error("the settings of notifications cannot be used: {0}")]
    Unusable(String),
}

/// How administrators are notified.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NotifySettings {
    /// From which urgency on: `low`, `normal`, `high` or `critical`.
    #[serde(default = "normal")]
    pub minimum_urgency: Urgency,
    /// An HTTP request for each.
    pub webhook: Option<WebhookSettings>,
    /// An e-mail for each.
    pub smtp: Option<SmtpSettings>,
}

/// Where HTTP requests go.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookSettings {
    /// `https://…`; `http://` only to this machine.
    pub url: String,
    /// A file with the secret under which requests are signed.
    pub secret_file: PathBuf,
    /// From which urgency on this way is used.
    pub minimum_urgency: Option<Urgency>,
    /// A file with certificates (PEM) that are believed besides those of the system.
    pub ca_file: Option<PathBuf>,
    /// Addresses that may be connected to although nobody outside can reach them.
    #[serde(default)]
    pub allow: Vec<IpNet>,
}

/// How the conversation with the mail server is protected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SmtpTls {
    /// It begins in the clear and must change over (port 587).
    #[default]
    Starttls,
    /// From the first byte (port 465).
    Implicit,
}

/// Where e-mails go.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SmtpSettings {
    /// The mail server.
    pub host: String,
    /// Its port.
    pub port: Option<u16>,
    /// `starttls` or `implicit`.
    #[serde(default)]
    pub tls: SmtpTls,
    /// The name to log in with.
    pub username: Option<String>,
    /// A file with the password.
    pub password_file: Option<PathBuf>,
    /// From which urgency on this way is used.
    pub minimum_urgency: Option<Urgency>,
    /// A file with certificates (PEM) that are believed besides those of the system.
    pub ca_file: Option<PathBuf>,
    /// The sender.
    pub from: String,
    /// The recipients.
    pub to: Vec<String>,
}

fn normal() -> Urgency {
    Urgency::Normal
}

impl NotifySettings {
    /// Reads the file. Its relative paths are relative to it.
    ///
    /// # Errors
    /// When it cannot be read or breaks a rule.
    pub fn read(path: &Path) -> Result<Self, NotifyError> {
        let invalid = |why: String| NotifyError::Invalid { path: path.to_owned(), why };
        let text = String::from_utf8(bytes(path)?.to_vec()).map_err(|_| invalid("it is no text".into()))?;
        let mut settings: Self =
            toml::from_str(&text).map_err(|e| invalid(e.message().replace('\n', "; ")))?;
        let base = path.parent().unwrap_or(Path::new(""));
        let webhook = settings.webhook.as_mut().map(|w| (Some(&mut w.secret_file), w.ca_file.as_mut()));
        let smtp = settings.smtp.as_mut().map(|s| (s.password_file.as_mut(), s.ca_file.as_mut()));
        for file in webhook.into_iter().chain(smtp).flat_map(|(a, b)| [a, b]).flatten() {
            *file = base.join(&*file);
        }
        if let Some(smtp) = &settings.smtp {
            if smtp.to.is_empty() || smtp.to.len() > MOST_RECIPIENTS {
                return Err(invalid(format!("smtp.to names 1 to {MOST_RECIPIENTS} recipients")));
            }
            if smtp.username.is_some() != smtp.password_file.is_some() {
                return Err(invalid("smtp.username and smtp.password_file go together".into()));
            }
        }
        Ok(settings)
    }
}

/// A secret of a file: its text without the white space around it.
#[derive(Clone)]
pub(super) struct FileSecret(Zeroizing<String>);

impl FileSecret {
    pub(super) fn read(path: &Path) -> Result<Self, NotifyError> {
        let bytes = bytes(path)?;
        let invalid = |why: &str| NotifyError::Invalid { path: path.to_owned(), why: why.to_owned() };
        let text = std::str::from_utf8(&bytes).map_err(|_| invalid("the secret is no text"))?.trim();
        if text.is_empty() {
            return Err(invalid("the file is empty: write the secret into it"));
        }
        Ok(Self(Zeroizing::new(text.to_owned())))
    }

    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for FileSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FileSecret")
    }
}

pub(super) fn bytes(path: &Path) -> Result<Zeroizing<Vec<u8>>, NotifyError> {
    let unreadable = |error| NotifyError::Unreadable { path: path.to_owned(), error };
    if fs::metadata(path).map_err(unreadable)?.len() > MAX_BYTES {
        return Err(NotifyError::Invalid { path: path.to_owned(), why: "it is larger than 64 KiB".into() });
    }
    fs::read(path).map(Zeroizing::new).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_and_checked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify.toml");
        let read = |text: &str| {
            fs::write(&path, text).unwrap();
            NotifySettings::read(&path)
        };
        let settings = read(
            "minimum_urgency = \"high\"\n[webhook]\nurl = \"https://example.org/x\"\nsecret_file = \"secret\"\n\
             [smtp]\nhost = \"mail\"\nfrom = \"a@example.org\"\nto = [\"b@example.org\"]\n",
        )
        .unwrap();
        assert_eq!(settings.minimum_urgency, Urgency::High);
        assert_eq!(settings.webhook.unwrap().secret_file, dir.path().join("secret"));
        assert_eq!(settings.smtp.unwrap().tls, SmtpTls::Starttls);
        let wrong = |text: &str| read(text).unwrap_err().to_string();
        assert!(
            wrong("[webhook]\nurl = \"x\"\nsecret = \"s\"\nsecret_file = \"s\"").contains("unknown field")
        );
        assert!(wrong("[smtp]\nhost = \"m\"\nfrom = \"a\"\nto = []").contains("recipients"));
        let login = "[smtp]\nhost = \"m\"\nfrom = \"a\"\nto = [\"b\"]\nusername = \"u\"";
        assert!(wrong(login).contains("go together"));
        let secret = dir.path().join("secret");
        fs::write(&secret, " abc\n").unwrap();
        let secret = FileSecret::read(&secret).unwrap();
        assert_eq!((secret.expose(), format!("{secret:?}").as_str()), ("abc", "FileSecret"));
    }
}
