//! Which database: a file of SQLite, or the URL of a Postgres database.

use std::{
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use thiserror::Error;
use zeroize::Zeroizing;

/// The longest URL that is read, in bytes.
const MAX_URL: usize = 4096;
const POSTGRES_PORT: u16 = 5432;

/// Which database is opened.
#[derive(Clone, Debug)]
pub enum Database {
    /// SQLite, in this file.
    Sqlite(PathBuf),
    /// Postgres.
    Postgres(PostgresOptions),
}

impl From<&Path> for Database {
    fn from(path: &Path) -> Self {
        Self::Sqlite(path.to_owned())
    }
}

impl From<&PathBuf> for Database {
    fn from(path: &PathBuf) -> Self {
        Self::Sqlite(path.clone())
    }
}

impl From<PathBuf> for Database {
    fn from(path: PathBuf) -> Self {
        Self::Sqlite(path)
    }
}

impl From<PostgresOptions> for Database {
    fn from(options: PostgresOptions) -> Self {
        Self::Postgres(options)
    }
}

/// Why a text is no URL of a Postgres database. Says where it is wrong, never what it holds.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "the address of Postgres is wrong: {0}; write postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=verify-full&sslrootcert=FILE"
)]
pub struct InvalidUrl(String);

/// How a Postgres database is reached. Its password shows nowhere.
#[derive(Clone)]
pub struct PostgresOptions {
    host: String,
    port: u16,
    user: String,
    password: Zeroizing<String>,
    database: String,
    mode: TlsMode,
    authority: Option<PathBuf>,
}

impl fmt::Debug for PostgresOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgresOptions({self})")
    }
}

impl fmt::Display for PostgresOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}:{} as {}", self.database, self.host, self.port, self.user)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TlsMode {
    Disable,
    Require,
    VerifyCa,
    VerifyFull,
}

impl FromStr for PostgresOptions {
    type Err = InvalidUrl;

    /// Reads `postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=MODE&sslrootcert=FILE`. Parts may be percent-encoded.
    /// Without `sslmode` the server proves its name (`verify-full`), unless it is on this machine. Modes that an attacker
    /// can talk down (`allow`, `prefer`) are refused, and so is what this program would not heed.
    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        let wrong = |why: &str| InvalidUrl(why.to_owned());
        let text = text.trim();
        if text.len() > MAX_URL {
            return Err(wrong("it is too long"));
        }
        let rest = text
            .strip_prefix("postgres://")
            .or_else(|| text.strip_prefix("postgresql://"))
            .ok_or_else(|| wrong("it does not begin with postgres://"))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) =
            rest.split_once('/').ok_or_else(|| wrong("the database is missing after the host"))?;
        let (account, place) =
            authority.rsplit_once('@').ok_or_else(|| wrong("the user is missing before the host"))?;
        let (user, password) = account.split_once(':').unwrap_or((account, ""));
        let (host, port) = match place.strip_prefix('[') {
            Some(six) => {
                let (host, port) =
                    six.split_once(']').ok_or_else(|| wrong("a ] is missing after the host"))?;
                (host, port.strip_prefix(':'))
            }
            None => place.split_once(':').map_or((place, None), |(host, port)| (host, Some(port))),
        };
        let port = match port {
            Some(port) => port.parse().map_err(|_| wrong("the port is not a number up to 65535"))?,
            None => POSTGRES_PORT,
        };
        let part = |what: &str, text: &str| {
            decode(text).ok_or_else(|| InvalidUrl(format!("the {what} is not percent-encoded rightly")))
        };
        let named = |what: &str, text: &str| match part(what, text) {
            Ok(text) if text.is_empty() => Err(InvalidUrl(format!("the {what} is missing"))),
            other => other,
        };
        let host = named("host", host)?;
        let (mut mode, mut authority) = (None, None);
        for (key, value) in
            query.split('&').filter(|p| !p.is_empty()).map(|p| p.split_once('=').unwrap_or((p, "")))
        {
            match key {
                "sslmode" => {
                    mode = Some(match value {
                        "disable" => TlsMode::Disable,
                        "require" => TlsMode::Require,
                        "verify-ca" => TlsMode::VerifyCa,
                        "verify-full" => TlsMode::VerifyFull,
                        _ => {
                            return Err(wrong(
                                "sslmode is one of disable, require, verify-ca and verify-full",
                            ));
                        }
                    });
                }
                "sslrootcert" => authority = Some(PathBuf::from(named("sslrootcert", value)?)),
                _ => return Err(wrong("of the options after '?' only sslmode and sslrootcert are known")),
            }
        }
        let here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        let verified = here && authority.is_none();
        Ok(Self {
            mode: mode.unwrap_or(if verified { TlsMode::Disable } else { TlsMode::VerifyFull }),
            host,
            port,
            user: named("user", user)?,
            password: Zeroizing::new(part("password", password)?),
            database: named("database", database)?,
            authority,
        })
    }
}

impl PostgresOptions {
    /// Reads the URL of a database, see [`FromStr`].
    ///
    /// # Errors
    /// What is wrong with it, in a sentence that holds nothing of it.
    pub fn parse(url: &str) -> Result<Self, InvalidUrl> {
        url.parse()
    }

    /// The user it is reached as.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The options for sqlx. Nothing is left to what the environment says (`PGHOST`, `PGPASSWORD`, …).
    pub(super) fn connect(&self) -> PgConnectOptions {
        let options = PgConnectOptions::new_without_pgpass()
            .host(&self.host)
            .port(self.port)
            .username(&self.user)
            .password(&self.password)
            .database(&self.database)
            .ssl_mode(match self.mode {
                TlsMode::Disable => PgSslMode::Disable,
                TlsMode::Require => PgSslMode::Require,
                TlsMode::VerifyCa => PgSslMode::VerifyCa,
                TlsMode::VerifyFull => PgSslMode::VerifyFull,
            });
        match &self.authority {
            Some(file) => options.ssl_root_cert(file),
            None => options,
        }
    }
}

/// A text with `%XX` as bytes of UTF-8.
fn decode(text: &str) -> Option<String> {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.bytes());
    while let Some(byte) = rest.next() {
        let digit = |b: Option<u8>| char::from(b?).to_digit(16);
        bytes.push(match byte {
            b'%' => u8::try_from(digit(rest.next())? * 16 + digit(rest.next())?).ok()?,
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read() {
        let read = |text: &str| text.parse::<PostgresOptions>();
        let full = read("postgres://ana:p%40ss%2Fword@db.example:6432/horizon?sslmode=verify-full&sslrootcert=/etc/ca.pem").unwrap();
        assert_eq!((full.host.as_str(), full.port, full.user.as_str()), ("db.example", 6432, "ana"));
        assert_eq!((full.password.as_str(), full.database.as_str()), ("p@ss/word", "horizon"));
        assert_eq!(
            (full.mode, full.authority.as_deref()),
            (TlsMode::VerifyFull, Some(Path::new("/etc/ca.pem")))
        );
        assert_eq!(format!("{full:?}"), "PostgresOptions(horizon at db.example:6432 as ana)");
        assert_eq!(
            read("postgresql://a:b@db/x").unwrap().mode,
            TlsMode::VerifyFull,
            "a network is not trusted"
        );
        assert_eq!(read("postgres://a:b@127.0.0.1/x").unwrap().mode, TlsMode::Disable);
        assert_eq!(read("postgres://a:b@127.0.0.1/x?sslrootcert=/ca").unwrap().mode, TlsMode::VerifyFull);
        let six = read("postgres://a@[::1]:5433/x\n").unwrap();
        assert_eq!((six.host.as_str(), six.port, six.mode), ("::1", 5433, TlsMode::Disable));
    }

    #[test]
    fn errors_say_what_is_wrong_and_no_secret() {
        for (text, why) in [
            ("mysql://u:s3cret@h/d", "postgres://"),
            ("postgres://u:s3cret@h", "database is missing"),
            ("postgres://u:s3cret@h/", "database is missing"),
            ("postgres://h/d", "user is missing"),
            ("postgres://:s3cret@h/d", "user is missing"),
            ("postgres://u:s3cret@/d", "host is missing"),
            ("postgres://u:s3cret@h:s3cret/d", "port"),
            ("postgres://u:s3cret@[::1/d", "]"),
            ("postgres://u:s3cret%4@h/d", "password is not percent-encoded"),
            ("postgres://u:s3cret%ff@h/d", "password is not percent-encoded"),
            ("postgres://u:s3cret@h/d?sslmode=prefer", "sslmode"),
            ("postgres://u:s3cret@h/d?sslpassword=s3cret", "only sslmode"),
            ("postgres://u:s3cret@h/d?sslrootcert=", "sslrootcert is missing"),
        ] {
            let error = text.parse::<PostgresOptions>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
        let long = format!("postgres://u:{}@h/d", "x".repeat(MAX_URL));
        assert!(long.parse::<PostgresOptions>().unwrap_err().to_string().contains("too long"));
    }
}
