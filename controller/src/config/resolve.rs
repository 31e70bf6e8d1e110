//! From settings to a configuration in which nothing is missing.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use horizon_crds::{Name, TimeSpan};
use jiff::SignedDuration;
use thiserror::Error;

use super::{DEFAULT_FILE, FileError, LogFormat, SecretName, Settings, SourceKind, read_file};
use crate::store::Retention;

/// Bounds on what peers may use of a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most control channels at once.
    pub connections: u32,
    /// The most handshakes in progress at once.
    pub handshakes: u32,
    /// The most messages per second from one peer.
    pub messages_per_second: u32,
}

/// How long things of the control channel may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// An appliance's answer to a challenge.
    pub challenge: Duration,
    /// An appliance's admission of a session.
    pub session_grant: Duration,
    /// A session without any connection.
    pub session_idle: Duration,
    /// An appliance's absence before a session on it can be taken over without its word.
    pub takeover_grace: Duration,
}

/// Where the REST API is served, and with what certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RestConfig {
    /// Where; `None` for nowhere.
    pub listen: Option<SocketAddr>,
    /// The file with the certificate and its chain.
    pub certificate: Option<PathBuf>,
    /// The file with its private key.
    pub key: Option<PathBuf>,
}

/// Where an envelope key in hardware is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pkcs11Config {
    /// The module.
    pub module: PathBuf,
    /// The token's label.
    pub token: String,
    /// The key's label.
    pub key: String,
    /// The file with the PIN; `None` for the environment.
    pub pin_file: Option<PathBuf>,
}

/// All that a controller is told when it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where resources are declared.
    pub source: SourceKind,
    /// The directory of the resource files.
    pub resources: PathBuf,
    /// The namespaces that are read from Kubernetes; empty for all.
    pub kubernetes_namespaces: Vec<Name>,
    /// The way to the API server; `None` for that of the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// The file with the address of Postgres; `None` for SQLite.
    pub database_url_file: Option<PathBuf>,
    /// The database of places, as far as one is set.
    pub geoip_database: Option<PathBuf>,
    /// The database of autonomous systems, as far as one is set.
    pub geoip_asn_database: Option<PathBuf>,
    /// The same for migrations, where another user makes them.
    pub migration_url_file: Option<PathBuf>,
    /// The file with the address of Redis.
    pub redis_url_file: Option<PathBuf>,
    /// The Secret with the organisation's keys; `None` for `keys` in the data directory.
    pub keys_secret: Option<SecretName>,
    /// The envelope key in hardware; `None` for one that lies with the organisation's keys.
    pub pkcs11: Option<Pkcs11Config>,
    /// The name of this replica.
    pub replica: String,
    /// For how long a leader leads without renewing.
    pub lease_duration: Duration,
    /// The directory of the database, the keys and the socket.
    pub data: PathBuf,
    /// The Unix socket of the API.
    pub socket: PathBuf,
    /// Where appliances and clients connect.
    pub listen: SocketAddr,
    /// How they reach it, as `host:port`; empty when the machine's own addresses are to be used.
    pub advertise: Vec<String>,
    /// Where metrics and health are served.
    pub metrics_listen: SocketAddr,
    /// The REST API.
    pub rest: RestConfig,
    /// The file that says how administrators are notified.
    pub notifications_file: Option<PathBuf>,
    /// For how long things are kept.
    pub retention: Retention,
    /// How log lines are written.
    pub log_format: LogFormat,
    /// What is logged.
    pub log_level: String,
    /// The largest part of a kind that may vanish at once, in percent.
    pub prune_limit_percent: u8,
    /// How long the files must be quiet.
    pub debounce: Duration,
    /// How long things of the control channel may take.
    pub timeouts: Timeouts,
    /// Bounds on what peers may use.
    pub limits: Limits,
}

/// Why no configuration came about.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file is at fault.
    #[error(transparent)]
    File(#[from] FileError),
    /// A value is outside its range.
    #[error("the setting {setting} is {value}, which is out of range: write {range}")]
    OutOfRange {
        /// Which setting.
        setting: &'static str,
        /// What it is.
        value: String,
        /// What it may be.
        range: &'static str,
    },
    /// Settings that do not go together.
    #[error("{0}")]
    Contradiction(String),
}

impl Config {
    /// The effective configuration: `given` (flags and environment) over the file over the defaults. The file is `file`, or
    /// else `config.toml` in the current directory if there is one.
    pub fn load(file: Option<&Path>, given: Settings) -> Result<Self, ConfigError> {
        let settings = match file {
            Some(path) => given.over(read_file(path)?),
            None if Path::new(DEFAULT_FILE).is_file() => given.over(read_file(Path::new(DEFAULT_FILE))?),
            None => given,
        };
        Self::resolve(settings)
    }

    /// Fills in the defaults and checks ranges.
    pub fn resolve(settings: Settings) -> Result<Self, ConfigError> {
        // An empty path stays as it is, and is refused when it is opened.
        let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
        let data = absolute(settings.data.unwrap_or_else(|| "data".into()));
        let listen = settings.listen.unwrap_or(SocketAddr::from(([0; 16], 7440)));
        let span = |value: Option<TimeSpan>, default| value.map_or(default, Duration::from);
        let ms = Duration::from_millis;
        let secs = Duration::from_secs;
        let default = Retention::default();
        let kept = |value: Option<TimeSpan>, default: SignedDuration| {
            value.map_or(default, |span| SignedDuration::try_from(span.get()).unwrap_or(SignedDuration::MAX))
        };
        let config = Self {
            source: settings.source.unwrap_or_default(),
            kubernetes_namespaces: settings.kubernetes_namespaces.unwrap_or_default(),
            kubeconfig: settings.kubeconfig.map(absolute),
            database_url_file: settings.database_url_file.map(absolute),
            geoip_database: settings.geoip_database.map(absolute),
            geoip_asn_database: settings.geoip_asn_database.map(absolute),
            migration_url_file: settings.migration_url_file.map(absolute),
            redis_url_file: settings.redis_url_file.map(absolute),
            keys_secret: settings.keys_secret,
            pkcs11: pkcs11(
                settings.pkcs11_module,
                settings.pkcs11_token,
                settings.pkcs11_key,
                settings.pkcs11_pin_file,
            )?,
            replica: settings.replica.unwrap_or_else(host_name),
            lease_duration: span(settings.lease_duration, secs(3)),
            resources: absolute(settings.resources.unwrap_or_else(|| "resources".into())),
            socket: settings.socket.map_or_else(|| data.join("horizon.sock"), absolute),
            data,
            listen,
            advertise: settings
                .advertise
                .unwrap_or_default()
                .iter()
                .map(|a| a.with_port(listen.port()))
                .collect(),
            metrics_listen: settings.metrics_listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 7441))),
            notifications_file: settings.notifications_file.map(absolute),
            rest: RestConfig {
                listen: settings.rest_listen,
                certificate: settings.rest_certificate.map(absolute),
                key: settings.rest_key.map(absolute),
            },
            retention: Retention {
                beats: kept(settings.keep_heartbeats, default.beats),
                metrics: kept(settings.keep_traffic, default.metrics),
                challenges: kept(settings.keep_challenges, default.challenges),
                addresses: kept(settings.keep_addresses, default.addresses),
                events: kept(settings.keep_events, default.events),
                sessions: kept(settings.keep_sessions, default.sessions),
                audit: kept(settings.keep_audit, default.audit),
                replicas: default.replicas,
            },
            log_format: settings.log_format.unwrap_or_default(),
            log_level: settings.log_level.unwrap_or_else(|| "info".into()),
            prune_limit_percent: settings.prune_limit_percent.unwrap_or(20),
            debounce: span(settings.debounce, ms(50)),
            timeouts: Timeouts {
                challenge: span(settings.challenge_timeout, secs(10)),
                session_grant: span(settings.session_grant_timeout, secs(10)),
                session_idle: span(settings.session_idle_timeout, secs(300)),
                takeover_grace: span(settings.takeover_grace, secs(90)),
            },
            limits: Limits {
                connections: settings.max_connections.unwrap_or(120_000),
                handshakes: settings.max_handshakes.unwrap_or(256),
                messages_per_second: settings.max_messages_per_second.unwrap_or(100),
            },
        };
        let timeouts = config.timeouts;
        let spans = [
            ("lease_duration", config.lease_duration, secs(1)..=secs(60), "1s to 1m"),
            ("debounce", config.debounce, ms(1)..=secs(60), "1ms to 1m"),
            ("challenge_timeout", timeouts.challenge, secs(1)..=secs(120), "1s to 2m"),
            ("session_grant_timeout", timeouts.session_grant, secs(1)..=secs(120), "1s to 2m"),
            ("session_idle_timeout", timeouts.session_idle, secs(10)..=secs(86_400), "10s to 24h"),
            ("takeover_grace", timeouts.takeover_grace, secs(10)..=secs(3600), "10s to 1h"),
        ];
        for (setting, value, allowed, range) in spans {
            if !allowed.contains(&value) {
                return Err(ConfigError::OutOfRange { setting, value: format!("{value:?}"), range });
            }
        }
        let day = SignedDuration::from_hours(24);
        let retention = config.retention;
        let kept = [
            ("keep_heartbeats", retention.beats, SignedDuration::from_hours(1), "1h to 3650d"),
            ("keep_traffic", retention.metrics, day, "1d to 3650d"),
            ("keep_challenges", retention.challenges, day, "1d to 3650d"),
            ("keep_addresses", retention.addresses, SignedDuration::from_hours(1), "1h to 3650d"),
            ("keep_events", retention.events, day, "1d to 3650d"),
            ("keep_sessions", retention.sessions, day, "1d to 3650d"),
            ("keep_audit", retention.audit, day * 90, "90d to 3650d"),
        ];
        for (setting, value, least, range) in kept {
            if value < least || value > day * 3650 {
                return Err(ConfigError::OutOfRange { setting, value: format!("{value:#}"), range });
            }
        }
        let numbers = [
            ("prune_limit_percent", u32::from(config.prune_limit_percent), 0..=100, "0 to 100"),
            ("max_connections", config.limits.connections, 1..=1_000_000, "1 to 1000000"),
            ("max_handshakes", config.limits.handshakes, 1..=100_000, "1 to 100000"),
            ("max_messages_per_second", config.limits.messages_per_second, 1..=100_000, "1 to 100000"),
        ];
        for (setting, value, allowed, range) in numbers {
            if !allowed.contains(&value) {
                return Err(ConfigError::OutOfRange { setting, value: value.to_string(), range });
            }
        }
        if config.advertise.len() > horizon_wire::token::MAX_CONTROLLERS {
            let value = format!("a list of {}", config.advertise.len());
            return Err(ConfigError::OutOfRange {
                setting: "advertise",
                value,
                range: "at most 16 addresses",
            });
        }
        match config.contradiction() {
            Some(why) => Err(ConfigError::Contradiction(why)),
            None => Ok(config),
        }
    }

    /// Settings that do not go together, and what to do.
    fn contradiction(&self) -> Option<String> {
        let kubernetes = self.source == SourceKind::Kubernetes;
        let name_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        let why = if self.redis_url_file.is_some() && self.database_url_file.is_none() {
            "redis_url_file is set without database_url_file: Redis joins several controllers, and those need Postgres; set \
             database_url_file too, or unset redis_url_file"
        } else if self.migration_url_file.is_some() && self.database_url_file.is_none() {
            "migration_url_file is set without database_url_file: SQLite migrates itself; set database_url_file too, or unset \
             migration_url_file"
        } else if self.keys_secret.is_some() && !kubernetes && self.kubeconfig.is_none() {
            "keys_secret is set, but nothing leads to Kubernetes: set source to \"kubernetes\" or kubeconfig, or unset \
             keys_secret and keep the keys in the data directory"
        } else if self.kubeconfig.is_some() && !kubernetes && self.keys_secret.is_none() {
            "kubeconfig is set and nothing would use it: set source to \"kubernetes\", or unset kubeconfig"
        } else if !self.kubernetes_namespaces.is_empty() && !kubernetes {
            "kubernetes_namespaces is set, but resources are read from files: set source to \"kubernetes\", or unset \
             kubernetes_namespaces"
        } else if self.rest.certificate.is_some() != self.rest.key.is_some() {
            "only one of rest_certificate and rest_key is set: set both, or neither"
        } else if self.rest.certificate.is_some() && self.rest.listen.is_none() {
            "rest_certificate is set and nothing would use it: set rest_listen, or unset rest_certificate and rest_key"
        } else if self.rest.certificate.is_none() && self.rest.listen.is_some_and(|at| !at.ip().is_loopback())
        {
            "rest_listen is an address that others can reach, and the REST API has no certificate: set rest_certificate and \
             rest_key, or set rest_listen to a loopback address such as 127.0.0.1:7443"
        } else if self.replica.is_empty() || self.replica.len() > 253 || !self.replica.chars().all(name_char)
        {
            "the setting replica is no name: write up to 253 letters, digits, '-', '.' and '_'"
        } else {
            return None;
        };
        Some(why.to_owned())
    }

    /// The settings that give this configuration, for `config print`. No setting is secret: keys are files of their own.
    pub fn to_toml(&self) -> String {
        let span = |d: Duration| format!("{}ms", d.as_millis()).parse::<TimeSpan>().ok();
        let whole = |d: SignedDuration| format!("{}s", d.as_secs()).parse::<TimeSpan>().ok();
        let some = |names: &[Name]| (!names.is_empty()).then(|| names.to_vec());
        let settings = Settings {
            source: Some(self.source),
            resources: Some(self.resources.clone()),
            kubernetes_namespaces: some(&self.kubernetes_namespaces),
            kubeconfig: self.kubeconfig.clone(),
            database_url_file: self.database_url_file.clone(),
            geoip_database: self.geoip_database.clone(),
            geoip_asn_database: self.geoip_asn_database.clone(),
            migration_url_file: self.migration_url_file.clone(),
            redis_url_file: self.redis_url_file.clone(),
            keys_secret: self.keys_secret.clone(),
            pkcs11_module: self.pkcs11.as_ref().map(|at| at.module.clone()),
            pkcs11_token: self.pkcs11.as_ref().map(|at| at.token.clone()),
            pkcs11_key: self.pkcs11.as_ref().map(|at| at.key.clone()),
            pkcs11_pin_file: self.pkcs11.as_ref().and_then(|at| at.pin_file.clone()),
            replica: Some(self.replica.clone()),
            lease_duration: span(self.lease_duration),
            data: Some(self.data.clone()),
            socket: Some(self.socket.clone()),
            listen: Some(self.listen),
            advertise: Some(self.advertise.iter().filter_map(|a| a.parse().ok()).collect()),
            metrics_listen: Some(self.metrics_listen),
            notifications_file: self.notifications_file.clone(),
            rest_listen: self.rest.listen,
            rest_certificate: self.rest.certificate.clone(),
            rest_key: self.rest.key.clone(),
            keep_heartbeats: whole(self.retention.beats),
            keep_traffic: whole(self.retention.metrics),
            keep_challenges: whole(self.retention.challenges),
            keep_addresses: whole(self.retention.addresses),
            keep_events: whole(self.retention.events),
            keep_sessions: whole(self.retention.sessions),
            keep_audit: whole(self.retention.audit),
            log_format: Some(self.log_format),
            log_level: Some(self.log_level.clone()),
            prune_limit_percent: Some(self.prune_limit_percent),
            debounce: span(self.debounce),
            challenge_timeout: span(self.timeouts.challenge),
            session_grant_timeout: span(self.timeouts.session_grant),
            session_idle_timeout: span(self.timeouts.session_idle),
            takeover_grace: span(self.timeouts.takeover_grace),
            max_connections: Some(self.limits.connections),
            max_handshakes: Some(self.limits.handshakes),
            max_messages_per_second: Some(self.limits.messages_per_second),
        };
        // Strings, numbers and a list: nothing that TOML lacks.
        toml::to_string(&settings).unwrap_or_default()
    }

    /// The effective socket of the API for a command that talks to a running controller: the one given, else the file's, else
    /// that of the folder the command runs in.
    pub fn socket(file: Option<&Path>, given: Option<PathBuf>) -> Result<PathBuf, ConfigError> {
        let settings = Settings { socket: given, ..Settings::default() };
        if settings.socket.is_some() {
            return Ok(Self::resolve(settings)?.socket);
        }
        Ok(Self::load(file, settings)?.socket)
    }
}

fn pkcs11(
    module: Option<PathBuf>,
    token: Option<String>,
    key: Option<String>,
    pin_file: Option<PathBuf>,
) -> Result<Option<Pkcs11Config>, ConfigError> {
    let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
    match (module, token, key) {
        (None, None, None) if pin_file.is_none() => Ok(None),
        (Some(module), Some(token), Some(key)) => {
            Ok(Some(Pkcs11Config { module: absolute(module), token, key, pin_file: pin_file.map(absolute) }))
        }
        _ => Err(ConfigError::Contradiction(
            "only some of pkcs11_module, pkcs11_token and pkcs11_key are set: set all three, or none"
                .to_owned(),
        )),
    }
}

/// The name of this host, as a replica is called by default.
fn host_name() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| "controller".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Settings {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn what_does_not_go_together_is_refused_with_a_sentence() {
        let file = || Some("url".into());
        let refused = |settings: Settings| Config::resolve(settings).unwrap_err().to_string();
        let half = refused(Settings { pkcs11_token: Some("t".into()), ..Settings::default() });
        assert!(half.contains("set all three"), "{half}");
        let redis = refused(Settings { redis_url_file: file(), ..Settings::default() });
        assert!(redis.contains("those need Postgres"), "{redis}");
        let migration = refused(Settings { migration_url_file: file(), ..Settings::default() });
        assert!(migration.contains("SQLite migrates itself"), "{migration}");
        let secret: SecretName = "horizon/keys".parse().unwrap();
        let keys = refused(Settings { keys_secret: Some(secret.clone()), ..Settings::default() });
        assert!(keys.contains("nothing leads to Kubernetes"), "{keys}");
        let unused = refused(Settings { kubeconfig: file(), ..Settings::default() });
        assert!(unused.contains("nothing would use it"), "{unused}");
        let namespaces = Some(vec!["lab".parse().unwrap()]);
        let refusal = refused(Settings { kubernetes_namespaces: namespaces.clone(), ..Settings::default() });
        assert!(refusal.contains("resources are read from files"), "{refusal}");
        let open =
            refused(Settings { rest_listen: Some("0.0.0.0:7443".parse().unwrap()), ..Settings::default() });
        assert!(open.contains("has no certificate"), "{open}");
        let half = refused(Settings { rest_certificate: file(), ..Settings::default() });
        assert!(half.contains("set both, or neither"), "{half}");
        let name = refused(Settings { replica: Some("a b".into()), ..Settings::default() });
        assert!(name.contains("no name"), "{name}");
        let production = Settings {
            source: Some(SourceKind::Kubernetes),
            kubernetes_namespaces: namespaces,
            keys_secret: Some(secret),
            database_url_file: file(),
            migration_url_file: file(),
            redis_url_file: file(),
            ..Settings::default()
        };
        assert!(Config::resolve(production).is_ok());
    }

    #[test]
    fn the_defaults_are_those_the_example_shows() {
        let example: String = super::super::commented_file()
            .lines()
            .filter_map(|line| line.strip_prefix("# "))
            .filter(|line| Settings::NAMES.iter().any(|n| line.starts_with(&format!("{n} = "))))
            .filter(|line| !super::super::settings::UNSET.iter().any(|n| line.starts_with(n)))
            .map(|line| format!("{line}\n"))
            .collect();
        assert_eq!(
            Config::resolve(settings(&example)).unwrap(),
            Config::resolve(Settings::default()).unwrap()
        );
    }

    #[test]
    fn what_is_given_goes_over_the_file_over_the_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("h.toml");
        std::fs::write(
            &file,
            "takeover_grace = \"50s\"\ndebounce = \"9ms\"\ndata = \"d\"\nadvertise = [\"a.example\"]\n",
        )
        .unwrap();
        let given = settings("takeover_grace = \"70s\"\nlisten = \"127.0.0.1:99\"");
        let config = Config::load(Some(&file), given).unwrap();
        assert_eq!(config.timeouts.takeover_grace, Duration::from_secs(70));
        assert_eq!(config.debounce, Duration::from_millis(9));
        assert_eq!(config.socket, dir.path().join("d/horizon.sock"));
        assert_eq!(config.advertise, ["a.example:99"]);
        assert_eq!(config.prune_limit_percent, 20);
        assert_eq!(Config::socket(Some(&file), None).unwrap(), dir.path().join("d/horizon.sock"));
        assert_eq!(Config::socket(Some(&file), Some("/x.sock".into())).unwrap(), Path::new("/x.sock"));
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for text in [
            "takeover_grace = \"0s\"",
            "debounce = \"1h\"",
            "prune_limit_percent = 101",
            "max_connections = 0",
        ] {
            let error = Config::resolve(settings(text)).unwrap_err().to_string();
            assert!(error.contains("out of range: write"), "{error}");
        }
    }

    #[test]
    fn what_is_printed_reads_back() {
        let config =
            Config::resolve(settings("advertise = [\"2001:db8::1\"]\nlog_format = \"json\"")).unwrap();
        assert_eq!(Config::resolve(settings(&config.to_toml())).unwrap(), config);
    }
}
