//! The services, and Horizon's manifests applied to them.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use data_encoding::BASE64;
use horizon_services::{KubeApi, KubeOptions, Postgres, PostgresOptions, Redis, RedisOptions, Site};
use serde_json::{Value, json};

use crate::lab::{Host, eventually};
use crate::products::repository;

/// The namespace of the controllers.
pub const SYSTEM: &str = "horizon-system";

/// The namespace whose objects they serve.
pub const NAMESPACE: &str = "horizon";

/// What Redis wants to hear.
const REDIS_PASSWORD: &str = "a-password-of-redis";

/// What the database wants to hear from its two roles.
const RUN_PASSWORD: &str = "a-password-to-run";
const MIGRATE_PASSWORD: &str = "a-password-to-migrate";

/// Where the pods of the manifests have the certificates of the authorities.
const DATABASE_CA: &str = "/etc/horizon-secrets/database-ca/ca.crt";
const REDIS_CA: &str = "/etc/horizon-secrets/redis-ca/ca.crt";

/// How a [`Cluster`] begins.
#[derive(Clone, Debug, Default)]
pub struct ClusterOptions {
    /// More lines for the ConfigMap `horizon-settings`, e.g. `HORIZON_LEASE_DURATION=3s`.
    pub settings: Vec<String>,
    /// How Redis differs.
    pub redis: RedisOptions,
    /// How PostgreSQL differs.
    pub postgres: PostgresOptions,
    /// More arguments for `kube-apiserver`.
    pub apiserver: Vec<String>,
}

/// A cluster in which Horizon's production overlay is installed; its pods are [`crate::production::Pod`]s.
pub struct Cluster {
    /// The API server, with the admin's kubectl.
    pub kube: KubeApi,
    /// The database.
    pub postgres: Postgres,
    /// Redis.
    pub redis: Redis,
    host: Host,
}

impl Cluster {
    /// Starts the three services on a host, side by side.
    pub fn start(host: Host, options: ClusterOptions) -> Result<Self> {
        let site = Site::in_network(host.netns(), host.v4(), host.dir());
        let kube = KubeOptions { site: site.clone(), apiserver: options.apiserver, ..KubeOptions::default() };
        let postgres = PostgresOptions { site: site.clone(), tls: true, ..options.postgres };
        let redis = RedisOptions { site, tls: true, password: Some(REDIS_PASSWORD.into()), ..options.redis };
        let (kube, postgres, redis) = std::thread::scope(|scope| {
            let postgres = scope.spawn(|| Postgres::start(&postgres));
            let redis = scope.spawn(|| Redis::start(&redis));
            (KubeApi::start(kube), postgres.join(), redis.join())
        });
        let started = |_| anyhow::anyhow!("the thread that started it panicked");
        let (postgres, redis) = (postgres.map_err(started)??, redis.map_err(started)??);
        Ok(Self { kube: kube?, postgres, redis, host })
    }

    /// Does what docs/kubernetes.md says: the database's roles, the Secrets with addresses, and the production overlay, of
    /// which `settings` changes the ConfigMap `horizon-settings` (`NAME=VALUE`).
    pub fn install(&self, settings: &[String]) -> Result<()> {
        self.prepare()?;
        let overlay = self.overlay(settings)?;
        let apply = ["apply", "--server-side", "--validate=strict", "-k", &overlay.display().to_string()];
        self.kube.kubectl(apply).map(drop)
    }

    /// What comes before the overlay: the database's roles, and the Secrets with addresses.
    pub fn prepare(&self) -> Result<()> {
        let passwords =
            [("HORIZON_RUN_PASSWORD", RUN_PASSWORD), ("HORIZON_MIGRATE_PASSWORD", MIGRATE_PASSWORD)];
        self.postgres.script(&repository().join("manifests/compose/roles.sh"), &passwords)?;
        let system = repository().join("manifests/base/namespaces.yaml");
        self.kube.kubectl(["apply", "--server-side", "-f", &system.display().to_string()])?;

        let address = self.postgres.address();
        let database = |role: &str, password: &str| {
            format!(
                "postgres://{role}:{password}@{address}/horizon?sslmode=verify-full&sslrootcert={DATABASE_CA}"
            )
        };
        let hosts: Vec<_> = self.redis.addresses()?.iter().map(ToString::to_string).collect();
        let redis = format!("rediss://:{REDIS_PASSWORD}@{}?ca={REDIS_CA}", hosts.join(","));
        self.secret(
            "horizon-database",
            &[
                ("url", &database("horizon_run", RUN_PASSWORD)),
                ("migration-url", &database("horizon_migrate", MIGRATE_PASSWORD)),
            ],
        )?;
        self.secret("horizon-redis", &[("url", &redis)])?;
        let authority = |path: Option<&Path>| -> Result<String> {
            Ok(std::fs::read_to_string(path.context("the service has no TLS")?)?)
        };
        self.secret("horizon-database-ca", &[("ca.crt", &authority(self.postgres.authority())?)])?;
        self.secret("horizon-redis-ca", &[("ca.crt", &authority(self.redis.authority())?)])
    }

    /// The database's address for a controller outside the cluster, as the role that it runs as, and as the owner of the
    /// tables.
    pub fn database_urls(&self) -> [String; 2] {
        [("horizon_run", RUN_PASSWORD), ("horizon_migrate", MIGRATE_PASSWORD)]
            .map(|(role, password)| self.postgres.url(role, password, "horizon", self.postgres.address()))
    }

    /// An overlay over the production overlay, as an administrator has one.
    fn overlay(&self, settings: &[String]) -> Result<PathBuf> {
        let folder = self.host.dir().join("overlay");
        std::fs::create_dir_all(&folder)?;
        let folder = folder.canonicalize()?;
        // Kustomize wants relative paths.
        let up = "../".repeat(folder.components().count() - 1);
        let base = repository().canonicalize()?.join("manifests/overlays/production");
        let base = format!("{up}{}", base.display().to_string().trim_start_matches('/'));
        let kustomization = json!({
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [base],
            "replicas": [{ "name": "horizon-controller", "count": 2 }],
            "configMapGenerator": [{
                "name": "horizon-settings", "namespace": SYSTEM, "behavior": "merge", "literals": settings,
            }],
        });
        std::fs::write(folder.join("kustomization.yaml"), kustomization.to_string())?;
        Ok(folder)
    }

    fn secret(&self, name: &str, data: &[(&str, &str)]) -> Result<()> {
        let data: serde_json::Map<_, _> =
            data.iter().map(|(key, value)| ((*key).to_owned(), Value::from(*value))).collect();
        let secret =
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data});
        self.kube.apply(SYSTEM, &secret.to_string()).map(drop)
    }

    /// Applies every document of a folder of TOML files to Horizon's namespace, as YAML.
    pub fn declare(&self, folder: &Path) -> Result<()> {
        let mut files: Vec<_> =
            std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        files.retain(|file| file.extension().is_some_and(|extension| extension == "toml"));
        files.sort();
        for file in files {
            let table: toml::Table = toml::from_str(&std::fs::read_to_string(&file)?)?;
            let one = || vec![toml::Value::Table(table.clone())];
            for document in table.get("resource").and_then(toml::Value::as_array).cloned().unwrap_or_else(one)
            {
                self.apply(&serde_json::to_value(&document)?)?;
            }
        }
        Ok(())
    }

    /// Applies an object to Horizon's namespace.
    pub fn apply(&self, object: &Value) -> Result<String> {
        self.kube.apply(NAMESPACE, &object.to_string())
    }

    /// Merges a change into an object: `patch("user", "ada", &json!({"spec": {"groups": []}}))`.
    pub fn patch(&self, kind: &str, name: &str, change: &Value) -> Result<String> {
        self.kube.kubectl(["patch", kind, name, "-n", NAMESPACE, "--type=merge", "-p", &change.to_string()])
    }

    /// One of Horizon's objects as JSON.
    pub fn object(&self, kind: &str, name: &str) -> Result<Value> {
        self.kube.get([&format!("{kind}.horizon.dev"), name, "-n", NAMESPACE])
    }

    /// `kubectl wait --for=CONDITION KIND/NAME`, a minute long.
    pub fn wait(&self, condition: &str, object: &str) -> Result<String> {
        self.kube.kubectl(["wait", &format!("--for={condition}"), object, "-n", NAMESPACE, "--timeout=60s"])
    }

    /// Declares a registration key for a server and reads the token from the Secret it gets.
    pub fn registration_token(&self, server: &str) -> Result<String> {
        self.delivered("RegistrationKey", &format!("{server}-first"), &json!({"serverRef": server}))
    }

    /// Declares a personal key for a user and reads it from the Secret it gets.
    pub fn personal_key(&self, user: &str) -> Result<String> {
        self.delivered("PersonalKey", &format!("{user}-first"), &json!({"userRef": user}))
    }

    fn delivered(&self, kind: &str, name: &str, spec: &Value) -> Result<String> {
        let key = json!({
            "apiVersion": "horizon.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec,
        });
        self.apply(&key)?;
        let secret = eventually("the key's status names a Secret", || {
            Some(self.object(kind, name).ok()?.pointer("/status/secretRef/name")?.as_str()?.to_owned())
        })?;
        let secret = self.kube.get(["secret", &secret, "-n", NAMESPACE])?;
        let data = secret["data"].as_object().context("the Secret is empty")?;
        let Some(Value::String(text)) = data.values().find(|_| data.len() == 1) else {
            bail!("the Secret has not one entry but these: {:?}", data.keys().collect::<Vec<_>>());
        };
        Ok(String::from_utf8(BASE64.decode(text.as_bytes())?)?.trim().to_owned())
    }

    /// The name of the pod that leads, by the Lease.
    pub fn leader(&self) -> Option<String> {
        let lease = self.kube.get(["lease", "horizon-controller", "-n", SYSTEM]).ok()?;
        Some(lease.pointer("/spec/holderIdentity")?.as_str()?.to_owned())
    }

    /// The host of the services.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Where pods find the API server.
    pub(super) fn api(&self) -> (IpAddr, u16) {
        (self.kube.address().ip(), self.kube.address().port())
    }
}
