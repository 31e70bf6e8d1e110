//! Export, delete every document, apply: the same resources, with a real controller.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use clap::Parser;
use horizon_crds::{KindName, parse};
use serde_json::{Value, json};

use crate::{
    api::{
        client::Client,
        model::{List, Object, Status},
    },
    app::App,
    cli::{Cli, execute},
    config::{Config, Settings},
    init::init,
};

/// How long anything may take. Generous: tests share the machine with compilers.
const PATIENCE: Duration = Duration::from_secs(60);

struct Running {
    dir: tempfile::TempDir,
    app: App,
    client: Client,
}

impl Running {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let org = dir.path().join("org");
        init(&org, &["192.0.2.1".parse().unwrap()], false, &mut Vec::new()).unwrap();
        let settings = Settings {
            listen: Some("127.0.0.1:0".parse().unwrap()),
            metrics_listen: Some("127.0.0.1:0".parse().unwrap()),
            debounce: Some("10ms".parse().unwrap()),
            ..Settings::default()
        };
        let app = App::start(Config::load(Some(&org.join("config.toml")), settings).unwrap()).await.unwrap();
        let client = Client::new(app.socket.clone());
        Self { dir, app, client }
    }

    fn resources(&self) -> std::path::PathBuf {
        self.dir.path().join("org/resources")
    }

    async fn cli(&self, args: &[&str]) -> Result<String, String> {
        let socket = self.app.socket.to_str().unwrap();
        let cli = Cli::try_parse_from([&["x"], args, &["--socket", socket]].concat()).unwrap();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let done = execute(cli, &mut out, &mut err).await.map_err(|error| format!("{error:#}"));
        done.map(|_| String::from_utf8(out).unwrap())
    }

    /// Every resource in force, by kind and name, with what does not depend on when it was last looked at.
    async fn all(&self) -> BTreeMap<String, Value> {
        let mut all = BTreeMap::new();
        for kind in KindName::ALL {
            let list: List<Object> = self.client.get(&format!("/v1/{kind}")).await.unwrap();
            for mut object in list.items {
                strip(&mut object.status);
                let meta = &object.metadata;
                let shown =
                    json!([meta.uid, meta.generation, meta.creation_timestamp, object.spec, object.status]);
                all.insert(format!("{kind} {}/{}", meta.namespace, meta.name), shown);
            }
        }
        all
    }

    /// Waits until everything is as wanted.
    async fn until(&self, what: impl Fn(&BTreeMap<String, Value>) -> bool) -> BTreeMap<String, Value> {
        let end = Instant::now() + PATIENCE;
        loop {
            let all = self.all().await;
            if what(&all) {
                return all;
            }
            assert!(Instant::now() < end, "waited in vain: {all:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until the controller says so.
    async fn until_status(&self, what: impl Fn(&Status) -> bool) {
        let end = Instant::now() + PATIENCE;
        loop {
            let status: Status = self.client.get("/v1/status").await.unwrap();
            if what(&status) {
                return;
            }
            assert!(Instant::now() < end, "waited in vain: {status:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn strip(status: &mut Value) {
    match status {
        Value::Object(fields) => {
            fields.remove("lastTransitionTime");
            fields.values_mut().for_each(strip);
        }
        Value::Array(items) => items.iter_mut().for_each(strip),
        _ => {}
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// All of it has been looked at, since it was as it is.
fn settled(all: &BTreeMap<String, Value>) -> bool {
    all.values().all(|shown| shown[4]["observedGeneration"] == shown[1])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_exported_is_the_same_when_it_is_applied() {
    let running = Running::start().await;
    running.until(|all| all.len() >= 3 && settled(all)).await;
    // Records that no file declares: a token, an invitation that is revoked.
    running.cli(&["token", "home"]).await.unwrap();
    running.cli(&["invite", "ann"]).await.unwrap();
    let all = running.until(|all| all.len() >= 5).await;
    let key = all.keys().find_map(|id| id.strip_prefix("PersonalKey default/")).unwrap().to_owned();
    running.cli(&["revoke", "personalkey", &key, "--reason", "lost"]).await.unwrap();
    let before = running
        .until(|all| {
            all.len() == 6
                && settled(all)
                && all[&format!("PersonalKey default/{key}")][4]["phase"] == "deactivated"
        })
        .await;

    let exported = running.dir.path().join("exported");
    running.cli(&["export", "--output", exported.to_str().unwrap()]).await.unwrap();
    let again = running.cli(&["export", "--output", exported.to_str().unwrap()]).await.unwrap_err();
    assert!(again.contains("is not empty"), "{again}");
    for (format, name) in [("toml", "all.toml"), ("yaml", "all.yaml")] {
        let text = running.cli(&["export", "-o", format]).await.unwrap();
        let parsed = parse(name, text.as_bytes());
        assert_eq!((parsed.problems.len(), parsed.resources.len()), (0, before.len()), "{text}");
        let uid = before["Server default/home"][0].as_str().unwrap();
        assert!(text.contains("horizon.dev/id") && text.contains(uid));
    }

    // Every document is deleted. That is asked about, and carried out.
    for entry in fs::read_dir(running.resources()).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    running.until_status(|status| status.prune_pending.len() == 3).await;
    running.cli(&["confirm-prune"]).await.unwrap();
    running.until(|all| all.len() == 3).await;

    // A newcomer that claims an identity gets none, and a name alone inherits nothing.
    let uid = before["Server default/home"][0].as_str().unwrap();
    let paris = format!(
        "apiVersion = 'horizon.dev/v1alpha1'\nkind = 'Server'\nmetadata.name = 'paris'\n\
         metadata.annotations = {{ 'horizon.dev/id' = '{uid}' }}\n[spec]\n"
    );
    fs::write(running.resources().join("paris.toml"), paris).unwrap();
    let claims = "it claims the identity of Server default/home, which keeps it";
    let told = |problem: &String| problem.starts_with("paris.toml:4:") && problem.contains(claims);
    running.until_status(|status| status.problems.iter().any(told)).await;

    copy(&exported, &running.resources());
    let wanted = before.clone();
    let after = running.until(|all| *all == wanted).await;
    assert_eq!(after, before);
    // The one that claims in vain is the only problem.
    running.until_status(|status| status.problems.len() == 1).await;
    fs::remove_file(running.resources().join("paris.toml")).unwrap();
    running.until_status(|status| status.problems.is_empty()).await;
    // What was a record of the controller's own is now what its document says.
    let audit = running.cli(&["get", "audit", "-o", "json"]).await.unwrap();
    assert!(audit.contains("\"adopt\""), "{audit}");
}
