//! Where Redis is: one server, a primary that sentinels watch, or a cluster.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use thiserror::Error;
use zeroize::Zeroizing;

use crate::config::{UrlFileError, read_url};

/// The most hosts that are taken.
const MAX_HOSTS: usize = 64;
/// The largest file of certificates, in bytes.
const MAX_CA: u64 = 1 << 20;
const REDIS_PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

/// Why an address of Redis cannot be used. No message shows the password.
#[derive(Debug, Error)]
pub enum RedisUrlError {
    /// Its file cannot be used.
    #[error(transparent)]
    File(#[from] UrlFileError),
    /// Something in it is wrong.
    #[error(
        "the address of Redis {0}: write redis://:PASSWORD@HOST[:PORT][/DATABASE], \
         redis+sentinel://:PASSWORD@HOST,HOST/MASTER[/DATABASE] or redis+cluster://:PASSWORD@HOST,HOST, \
         with rediss for TLS and ?ca=FILE for an authority of your own"
    )]
    Malformed(&'static str),
    /// The certificates of its authority cannot be read.
    #[error("the certificates at {path} that the address of Redis names: {error}")]
    Authority {
        /// Where.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// What answers there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// One server.
    Single,
    /// Sentinels, that know which server is the primary under a name.
    Sentinel {
        service: String,
        /// Whether the sentinels want the password too.
        auth: bool,
    },
    /// Some nodes of a cluster.
    Cluster,
}

/// Where Redis is, and the password. Neither `Display` nor `Debug` shows that.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl {
    pub(super) shape: Shape,
    pub(super) hosts: Vec<(String, u16)>,
    pub(super) tls: bool,
    pub(super) user: Option<String>,
    pub(super) password: Option<Zeroizing<String>>,
    pub(super) database: i64,
    /// Certificates of authorities (PEM) to be trusted instead of those of the system.
    pub(super) authority: Option<Vec<u8>>,
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shape = match &self.shape {
            Shape::Single => "",
            Shape::Sentinel { .. } => "+sentinel",
            Shape::Cluster => "+cluster",
        };
        write!(f, "redis{}{shape}://", if self.tls { "s" } else { "" })?;
        for (number, (host, port)) in self.hosts.iter().enumerate() {
            let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
            write!(f, "{}{open}{host}{close}:{port}", if number == 0 { "" } else { "," })?;
        }
        if let Shape::Sentinel { service, .. } = &self.shape {
            write!(f, "/{service}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisUrl({self})")
    }
}

impl RedisUrl {
    /// Reads a file with an address, and the certificates that it names.
    ///
    /// # Errors
    /// When either cannot be used.
    pub fn read(path: &Path) -> Result<Self, RedisUrlError> {
        Self::parse(&read_url(path)?)
    }

    /// Reads an address, and the certificates that it names.
    ///
    /// # Errors
    /// When either cannot be used.
    pub fn parse(text: &str) -> Result<Self, RedisUrlError> {
        use RedisUrlError::Malformed;
        let (scheme, rest) = text.split_once("://").ok_or(Malformed("has no scheme"))?;
        let (tls, kind) = match scheme.split_once('+').unwrap_or((scheme, "")) {
            ("redis", kind) => (false, kind),
            ("rediss", kind) => (true, kind),
            _ => return Err(Malformed("has another scheme")),
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        // A password may hold a slash: what follows the last @ is the place.
        let (secrets, place) = rest.rsplit_once('@').map_or((None, rest), |(s, place)| (Some(s), place));
        let (hosts, path) = place.split_once('/').unwrap_or((place, ""));
        let (mut sentinel_auth, mut authority) = (true, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("ca", path)) if tls => authority = Some(read_authority(Path::new(&*decode(path)?))?),
                Some(("ca", _)) => return Err(Malformed("names an authority, but does not use TLS")),
                Some(("sentinel-auth", "none")) => sentinel_auth = false,
                _ => return Err(Malformed("has an unknown option after the question mark")),
            }
        }
        let (shape, database, port) = match kind {
            "" => (Shape::Single, path, REDIS_PORT),
            "sentinel" => {
                let (service, database) = path.split_once('/').unwrap_or((path, ""));
                if service.is_empty() {
                    return Err(Malformed("does not name the master that the sentinels watch"));
                }
                let service = decode(service)?.to_string();
                (Shape::Sentinel { service, auth: sentinel_auth }, database, SENTINEL_PORT)
            }
            "cluster" if path.is_empty() => (Shape::Cluster, "", REDIS_PORT),
            "cluster" => return Err(Malformed("names a database, but a cluster has only one")),
            _ => return Err(Malformed("has another scheme")),
        };
        let database = match database {
            "" => 0,
            number => number
                .parse::<u16>()
                .map(i64::from)
                .map_err(|_| Malformed("has another database than a number"))?,
        };
        let hosts: Vec<_> = hosts
            .split(',')
            .map(|host| parse_host(host, port))
            .collect::<Option<_>>()
            .filter(|hosts: &Vec<_>| hosts.len() <= MAX_HOSTS)
            .ok_or(Malformed("has a host that cannot be understood"))?;
        if hosts.len() > 1 && shape == Shape::Single {
            return Err(Malformed("names several hosts, but neither sentinels nor a cluster"));
        }
        let (user, password) = match secrets {
            None => (None, None),
            Some(secrets) => {
                let (user, password) =
                    secrets.split_once(':').ok_or(Malformed("has no colon before the password"))?;
                let user =
                    (!user.is_empty()).then(|| decode(user).map(|user| user.to_string())).transpose()?;
                (user, Some(decode(password)?))
            }
        };
        Ok(Self { shape, hosts, tls, user, password, database, authority })
    }
}

fn parse_host(text: &str, port: u16) -> Option<(String, u16)> {
    let (host, rest) = match text.strip_prefix('[') {
        Some(six) => {
            let (host, rest) = six.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            (host, rest)
        }
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let port = match rest {
        "" => port,
        rest => rest.strip_prefix(':')?.parse().ok().filter(|port| *port != 0)?,
    };
    (!host.is_empty()).then(|| (host.to_owned(), port))
}

/// Undoes `%40` and the like.
fn decode(text: &str) -> Result<Zeroizing<String>, RedisUrlError> {
    let wrong = || RedisUrlError::Malformed("has a % that is not followed by two digits");
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || rest.next().and_then(|b| char::from(b).to_digit(16)).ok_or_else(wrong);
                u8::try_from(digit()? * 16 + digit()?).map_err(|_| wrong())?
            }
            byte => byte,
        });
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| RedisUrlError::Malformed("is not text"))?;
    Ok(Zeroizing::new(text.to_owned()))
}

fn read_authority(path: &Path) -> Result<Vec<u8>, RedisUrlError> {
    let read = fs::metadata(path).and_then(|metadata| {
        if metadata.len() > MAX_CA {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is too large"));
        }
        fs::read(path)
    });
    read.map_err(|error| RedisUrlError::Authority { path: path.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_shown_without_the_password() {
        let table = [
            ("redis://h", "redis://h:6379", Shape::Single, None, 0),
            ("redis://:s%40c@h:1/3", "redis://h:1", Shape::Single, Some("s@c"), 3),
            ("rediss://u:a/b@[::1]:7", "rediss://[::1]:7", Shape::Single, Some("a/b"), 0),
            (
                "redis+sentinel://:pw@a,b:9/m/2",
                "redis+sentinel://a:26379,b:9/m",
                Shape::Sentinel { service: "m".into(), auth: true },
                Some("pw"),
                2,
            ),
            (
                "rediss+sentinel://a/m?sentinel-auth=none",
                "rediss+sentinel://a:26379/m",
                Shape::Sentinel { service: "m".into(), auth: false },
                None,
                0,
            ),
            ("redis+cluster://:pw@a:1,b:2", "redis+cluster://a:1,b:2", Shape::Cluster, Some("pw"), 0),
        ];
        for (text, shown, shape, password, database) in table {
            let url = RedisUrl::parse(text).unwrap();
            assert_eq!(url.to_string(), shown);
            assert_eq!((&url.shape, url.database), (&shape, database), "{text}");
            assert_eq!(url.password.as_ref().map(|p| p.as_str()), password, "{text}");
            assert!(!format!("{url:?}").contains("pw"));
        }
    }

    #[test]
    fn what_is_wrong_is_said_without_the_password() {
        for text in [
            "",
            "h:6379",
            "http://:pw-secret@h",
            "redis+unix://:pw-secret@h",
            "redis://:pw-secret@",
            "redis://:pw-secret@h:0",
            "redis://:pw-secret@h:x",
            "redis://:pw-secret@h/x",
            "redis://:pw-secret@a,b",
            "redis://pw-secret@h",
            "redis://:pw-secret%4@h",
            "redis://:pw-secret@h?db=1",
            "redis://:pw-secret@h?ca=/x",
            "redis://:pw-secret@[h]",
            "redis+sentinel://:pw-secret@h",
            "redis+cluster://:pw-secret@h/1",
            "rediss://:pw-secret@h?ca=/nowhere/ca.pem",
        ] {
            let error = RedisUrl::parse(text).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("pw-secret"), "{error}");
        }
        let directory = tempfile::tempdir().unwrap();
        let ca = directory.path().join("ca.pem");
        fs::write(&ca, "certificates").unwrap();
        let url = RedisUrl::parse(&format!("rediss://h?ca={}", ca.display())).unwrap();
        assert_eq!(url.authority.as_deref(), Some(&b"certificates"[..]));
    }
}
