//! Every setting once: its name, type, environment variable, default and description. The flags, the keys of the file, the
//! commented example and `config print` all follow from this list.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr};

use horizon_crds::{Name, TimeSpan};
use serde::{Deserialize, Serialize};

/// The file that is read when none is named, if it exists.
pub const DEFAULT_FILE: &str = "config.toml";

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Where resources are declared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    /// In a directory of TOML files.
    #[default]
    Files,
    /// In Kubernetes.
    Kubernetes,
}

/// Settings that are unset unless somebody sets them; the commented file shows an example of each.
pub(super) const UNSET: [&str; 18] = [
    "pkcs11_module",
    "pkcs11_token",
    "pkcs11_key",
    "pkcs11_pin_file",
    "notifications_file",
    "advertise",
    "kubernetes_namespaces",
    "kubeconfig",
    "database_url_file",
    "migration_url_file",
    "redis_url_file",
    "keys_secret",
    "replica",
    "rest_listen",
    "rest_certificate",
    "rest_key",
    "geoip_database",
    "geoip_asn_database",
];

macro_rules! settings {
    ($(
        $(#[doc = $doc:literal])+
        $name:ident: $type:ty = $default:literal, $env:literal $(, $arg:meta)*;
    )+) => {
        /// Settings from one origin; `None` where it says nothing.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, clap::Args)]
        #[command(next_help_heading = "Settings")]
        #[serde(deny_unknown_fields)]
        pub struct Settings {
            $(
                $(#[doc = $doc])+
                #[arg(long, env = $env, hide_env_values = true $(, $arg)*)]
                #[serde(default, skip_serializing_if = "Option::is_none")]
                pub $name: Option<$type>,
            )+
        }

        impl Settings {
            /// The names of all settings, as the file spells them.
            pub const NAMES: &[&str] = &[$(stringify!($name)),+];

            /// These settings, and those of `lower` where these say nothing.
            #[must_use]
            pub fn over(self, lower: Self) -> Self {
                Self { $($name: self.$name.or(lower.$name)),+ }
            }
        }

        /// Every setting that has a default, with it, one line each, for the help.
        pub fn defaults() -> String {
            let all = [$((stringify!($name), $default)),+];
            let with = all.iter().filter(|(name, _)| !UNSET.contains(name));
            with.map(|(name, default)| format!("  {name} = {default}")).collect::<Vec<_>>().join("\n")
        }

        /// An example of the file, with every setting described and commented out.
        pub fn commented_file() -> String {
            let mut text = String::new();
            $(
                $(text.push_str(&format!("#{}\n", $doc));)+
                text.push_str(&format!("# {} = {}\n\n", stringify!($name), $default));
            )+
            text
        }
    };
}

settings! {
    /// Where resources are declared: `files`, or `kubernetes`.
    source: SourceKind = r#""files""#, "HORIZON_SOURCE";
    /// The directory of the resource files.
    resources: PathBuf = r#""resources""#, "HORIZON_RESOURCES";
    /// The namespaces whose objects are read from Kubernetes. Unset: all of them.
    kubernetes_namespaces: Vec<Name> = r#"["default"]"#, "HORIZON_KUBERNETES_NAMESPACES", value_delimiter = ',';
    /// The kubeconfig that leads to the API server. Unset: the service account of the pod; never that of the user.
    kubeconfig: PathBuf = r#""kubeconfig""#, "HORIZON_KUBECONFIG";
    /// A file with the address of a Postgres database: `postgres://USER:PASSWORD@HOST/DATABASE?sslmode=verify-full`. Unset:
    /// SQLite, in the data directory.
    database_url_file: PathBuf = r#""database-url""#, "HORIZON_DATABASE_URL_FILE";
    /// The same with a user that may change tables, for `migrate`. Unset: that of `database_url_file`.
    migration_url_file: PathBuf = r#""migration-url""#, "HORIZON_MIGRATION_URL_FILE";
    /// A file with the address of Redis: `rediss://:PASSWORD@HOST`, or `redis+sentinel://…/MASTER`, `redis+cluster://…`.
    /// Unset: replicas hear of each other through Postgres.
    redis_url_file: PathBuf = r#""redis-url""#, "HORIZON_REDIS_URL_FILE";
    /// The Kubernetes Secret that holds the organisation's keys, `NAMESPACE/NAME`; made if it is not there. Unset: `keys` in
    /// the data directory.
    keys_secret: SecretName = r#""horizon-system/horizon-keys""#, "HORIZON_KEYS_SECRET";
    /// The PKCS#11 module of a hardware security module, a shared library, that holds the envelope key: what seals the secrets of the
    /// database hangs on that. Unset: the envelope key is `envelope.key`, with the organisation's keys.
    pkcs11_module: PathBuf = r#""/usr/lib/softhsm/libsofthsm2.so""#, "HORIZON_PKCS11_MODULE";
    /// The label of the token.
    pkcs11_token: String = r#""horizon""#, "HORIZON_PKCS11_TOKEN";
    /// The label of the AES-256 key on it.
    pkcs11_key: String = r#""horizon-envelope""#, "HORIZON_PKCS11_KEY";
    /// A file with the PIN of the token's user. Unset: the environment variable `HORIZON_PKCS11_PIN`.
    pkcs11_pin_file: PathBuf = r#""pkcs11-pin""#, "HORIZON_PKCS11_PIN_FILE";
    /// The name of this replica. Unset: the name of the host.
    replica: String = r#""horizon-0""#, "HORIZON_REPLICA";
    /// For how long a leader leads without renewing; another replica takes over within about twice that.
    lease_duration: TimeSpan = r#""3s""#, "HORIZON_LEASE_DURATION";
    /// The directory of the database, the keys and the socket.
    data: PathBuf = r#""data""#, "HORIZON_DATA";
    /// The Unix socket of the API; `horizon.sock` in the data directory unless set.
    socket: PathBuf = r#""data/horizon.sock""#, "HORIZON_SOCKET";
    /// Where appliances and clients connect (QUIC, UDP).
    listen: SocketAddr = r#""[::]:7440""#, "HORIZON_LISTEN";
    /// How appliances and clients on other machines reach this controller: `HOST:PORT` or `HOST`, best first. They are
    /// written into every token and invitation. Unset: the addresses of this machine.
    advertise: Vec<Advertised> = r#"["horizon.example.org:7440"]"#, "HORIZON_ADVERTISE", value_delimiter = ',';
    /// Where metrics and health are served (HTTP, TCP).
    metrics_listen: SocketAddr = r#""127.0.0.1:7441""#, "HORIZON_METRICS_LISTEN";
    /// A database of places in MaxMind's format (.mmdb), by which the country and city of an address are known. It is read again
    /// when it changes. Unset: they are unknown.
    geoip_database: PathBuf = r#""GeoLite2-City.mmdb""#, "HORIZON_GEOIP_DATABASE";
    /// The same for the network (autonomous system) that an address belongs to, where that is in a file of its own.
    geoip_asn_database: PathBuf = r#""GeoLite2-ASN.mmdb""#, "HORIZON_GEOIP_ASN_DATABASE";
    /// A file that says how administrators are notified: by webhook, by e-mail (docs/notifications.md). Unset: notifications
    /// are only stored.
    notifications_file: PathBuf = r#""notifications.toml""#, "HORIZON_NOTIFICATIONS_FILE";
    /// Where the REST API is served (HTTPS, TCP). Unset: nowhere.
    rest_listen: SocketAddr = r#""[::]:7443""#, "HORIZON_REST_LISTEN";
    /// The certificate of the REST API with its chain (PEM); read again when it changes. Unset: the API is served in the
    /// clear, and only at a loopback address.
    rest_certificate: PathBuf = r#""tls.crt""#, "HORIZON_REST_CERTIFICATE";
    /// The private key of that certificate (PEM).
    rest_key: PathBuf = r#""tls.key""#, "HORIZON_REST_KEY";
    /// For how long single heartbeats are kept.
    keep_heartbeats: TimeSpan = r#""24h""#, "HORIZON_KEEP_HEARTBEATS";
    /// For how long it is kept how much sessions moved, minute by minute.
    keep_traffic: TimeSpan = r#""30d""#, "HORIZON_KEEP_TRAFFIC";
    /// For how long challenges and their answers are kept.
    keep_challenges: TimeSpan = r#""30d""#, "HORIZON_KEEP_CHALLENGES";
    /// For how long it is kept from where people connected: the addresses of ended sessions and of events.
    keep_addresses: TimeSpan = r#""90d""#, "HORIZON_KEEP_ADDRESSES";
    /// For how long security events are kept, and what else is about them.
    keep_events: TimeSpan = r#""365d""#, "HORIZON_KEEP_EVENTS";
    /// For how long ended sessions are kept.
    keep_sessions: TimeSpan = r#""365d""#, "HORIZON_KEEP_SESSIONS";
    /// For how long the audit trail is kept, by whole months of 30 days.
    keep_audit: TimeSpan = r#""400d""#, "HORIZON_KEEP_AUDIT";
    /// How log lines are written: `text` or `json`.
    log_format: LogFormat = r#""text""#, "HORIZON_LOG_FORMAT";
    /// What is logged: a level (`error`, `warn`, `info`, `debug`, `trace`) or directives like `info,horizon_channel=debug`.
    log_level: String = r#""info""#, "HORIZON_LOG_LEVEL";
    /// The largest part of the resources of a kind, in percent, that may vanish from the files at once. A larger part waits
    /// for `confirm-prune`.
    prune_limit_percent: u8 = "20", "HORIZON_PRUNE_LIMIT_PERCENT", value_parser = clap::value_parser!(u8).range(0..=100);
    /// How long the resource files must be quiet before a change is read.
    debounce: TimeSpan = r#""50ms""#, "HORIZON_DEBOUNCE";
    /// How long an appliance may take to answer a challenge.
    challenge_timeout: TimeSpan = r#""10s""#, "HORIZON_CHALLENGE_TIMEOUT";
    /// How long an appliance may take to admit a session before the request fails.
    session_grant_timeout: TimeSpan = r#""10s""#, "HORIZON_SESSION_GRANT_TIMEOUT";
    /// How long a session may have neither a connection nor a client on the control channel before it ends.
    session_idle_timeout: TimeSpan = r#""5m""#, "HORIZON_SESSION_IDLE_TIMEOUT";
    /// How long an appliance must be gone before a session on it can be taken over without its word.
    takeover_grace: TimeSpan = r#""90s""#, "HORIZON_TAKEOVER_GRACE";
    /// The most control channels at once.
    max_connections: u32 = "120000", "HORIZON_MAX_CONNECTIONS", value_parser = clap::value_parser!(u32).range(1..=1_000_000);
    /// The most handshakes in progress at once; further ones wait for their turn.
    max_handshakes: u32 = "256", "HORIZON_MAX_HANDSHAKES", value_parser = clap::value_parser!(u32).range(1..=100_000);
    /// The most messages per second from one appliance or client; twice as many may come at once.
    max_messages_per_second: u32 = "100", "HORIZON_MAX_MESSAGES_PER_SECOND", value_parser = clap::value_parser!(u32).range(1..=100_000);
}

/// How others reach the controller: a host name or address, with the port unless it is that of `listen`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Advertised {
    host: String,
    port: Option<u16>,
}

impl Advertised {
    /// `host:port`, with IPv6 addresses in brackets.
    pub fn with_port(&self, default: u16) -> String {
        format!("{}:{}", self.host, self.port.unwrap_or(default))
    }
}

impl fmt::Display for Advertised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}:{port}", self.host),
            None => f.write_str(&self.host),
        }
    }
}

impl FromStr for Advertised {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || {
            format!(
                "'{text}' is not an address others can reach: write 192.0.2.1, 192.0.2.1:7440, [2001:db8::1]:7440 or \
                 horizon.example.org:7440"
            )
        };
        let unbracketed = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        if let Ok(address) = unbracketed.unwrap_or(text).parse::<std::net::IpAddr>() {
            let host = if address.is_ipv6() { format!("[{address}]") } else { address.to_string() };
            return Ok(Self { host, port: None });
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            let ip = address.ip();
            let host = if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() };
            return (address.port() != 0)
                .then_some(Self { host, port: Some(address.port()) })
                .ok_or_else(wrong);
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse::<u16>().map_err(|_| wrong())?)),
            None => (text, None),
        };
        let label = |l: &str| {
            !l.is_empty() && l.len() <= 63 && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        let name = host.len() <= 253 && host.split('.').all(label);
        // What looks like a damaged IPv4 address is no host name.
        let number = host.rsplit('.').next().is_some_and(|l| l.bytes().all(|b| b.is_ascii_digit()));
        if !name || number || port == Some(0) {
            return Err(wrong());
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl TryFrom<String> for Advertised {
    type Error = String;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Advertised> for String {
    fn from(address: Advertised) -> Self {
        address.to_string()
    }
}

/// A Secret of Kubernetes, `NAMESPACE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SecretName {
    /// Its namespace.
    pub namespace: Name,
    /// Its name.
    pub name: Name,
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl FromStr for SecretName {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text.split_once('/').and_then(|(namespace, name)| {
            Some(Self { namespace: namespace.parse().ok()?, name: name.parse().ok()? })
        });
        parts.ok_or_else(|| format!("'{text}' names no Secret: write NAMESPACE/NAME"))
    }
}

impl TryFrom<String> for SecretName {
    type Error = String;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<SecretName> for String {
    fn from(secret: SecretName) -> Self {
        secret.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commented_example_is_valid_and_complete() {
        let uncommented: String = commented_file()
            .lines()
            .filter_map(|line| line.strip_prefix("# "))
            .filter(|line| Settings::NAMES.iter().any(|name| line.starts_with(&format!("{name} = "))))
            .map(|line| format!("{line}\n"))
            .collect();
        let settings: Settings = toml::from_str(&uncommented).unwrap();
        let json = serde_json::to_value(&settings).unwrap();
        assert_eq!(json.as_object().unwrap().len(), Settings::NAMES.len());
    }

    #[test]
    fn advertised_addresses_are_checked() {
        for (text, full) in [
            ("192.0.2.1", "192.0.2.1:7440"),
            ("192.0.2.1:99", "192.0.2.1:99"),
            ("2001:db8::1", "[2001:db8::1]:7440"),
            ("[2001:db8::1]:99", "[2001:db8::1]:99"),
            ("host.example.org", "host.example.org:7440"),
            ("host:99", "host:99"),
        ] {
            assert_eq!(text.parse::<Advertised>().unwrap().with_port(7440), full, "{text}");
            assert_eq!(text.parse::<Advertised>().unwrap().to_string().parse(), text.parse::<Advertised>());
        }
        for text in
            ["", "a b", "host:", "host:0", "192.0.2.1:0", "192.0.2.300", "a..b", ":7440", "host:70000"]
        {
            assert!(text.parse::<Advertised>().is_err(), "{text}");
        }
    }
}
