//! A whole controller in one folder: backed up while it runs, and back in another one.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use clap::Parser as _;

use crate::{
    api::client::Client,
    app::App,
    cli::{Cli, execute},
    config::{Config, Settings},
    init::init,
};

const PASSPHRASE: &str = "a passphrase for tests";

struct Org {
    dir: tempfile::TempDir,
    app: App,
}

fn settings() -> Settings {
    Settings {
        listen: Some("127.0.0.1:0".parse().unwrap()),
        metrics_listen: Some("127.0.0.1:0".parse().unwrap()),
        ..Settings::default()
    }
}

async fn start(folder: &Path) -> App {
    App::start(Config::load(Some(&folder.join("config.toml")), settings()).unwrap()).await.unwrap()
}

impl Org {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("org");
        init(&folder, &["192.0.2.1".parse().unwrap()], false, &mut Vec::new()).unwrap();
        fs::write(dir.path().join("pass"), format!("{PASSPHRASE}\n")).unwrap();
        let app = start(&folder).await;
        Self { dir, app }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A command about the folder `folder`, in which `@NAME` stands for a path beside it.
    async fn cli(&self, folder: &str, args: &[&str]) -> Result<String, String> {
        let config = self.path(folder).join("config.toml");
        let args = args.iter().map(|arg| match arg.strip_prefix('@') {
            Some(name) => self.path(name).display().to_string(),
            None => (*arg).to_owned(),
        });
        let all = ["x".to_owned(), "--config".to_owned(), config.display().to_string()];
        let cli = Cli::try_parse_from(all.into_iter().chain(args)).map_err(|error| error.to_string())?;
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let done = execute(cli, &mut out, &mut err).await.map_err(|error| format!("{error:#}"));
        done.map(|_| String::from_utf8(out).unwrap())
    }

    async fn back_up(&self) {
        self.cli("org", &["backup", "--to", "@backup", "--passphrase-file", "@pass"]).await.unwrap();
    }
}

/// Every file below a directory, with its content.
fn tree(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let Ok(entries) = fs::read_dir(root) else { return found };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.insert(path.clone(), Vec::new());
            found.extend(tree(&path));
        } else {
            found.insert(path.clone(), fs::read(&path).unwrap_or_default());
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_is_backed_up_while_its_controller_runs_and_comes_back_elsewhere() {
    let mut org = Org::start().await;
    let client = Client::new(org.app.socket.clone());
    let uid = |answer: &serde_json::Value| {
        let detail = answer.get("object").unwrap_or(answer);
        detail["metadata"]["uid"].as_str().unwrap().to_owned()
    };
    let server: serde_json::Value = client.get("/v1/servers/home").await.unwrap();
    let said = org.cli("org", &["backup", "--to", "@backup", "--passphrase-file", "@pass"]).await.unwrap();
    assert!(said.contains("is a backup of"), "{said}");
    let again =
        org.cli("org", &["backup", "--to", "@backup", "--passphrase-file", "@pass"]).await.unwrap_err();
    assert!(again.contains("exists already"), "{again}");
    org.cli("org", &["backup", "--to", "@backup", "--passphrase-file", "@pass", "--force"]).await.unwrap();
    // Nothing that anybody could use is in it.
    let bytes = fs::read(org.path("backup")).unwrap();
    for secret in ["horizon.dev/v1alpha1", "CREATE TABLE", "keysets"] {
        assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()), "{secret}");
    }
    let told = org
        .cli("org", &["backup", "verify", "--from", "@backup", "--passphrase-file", "@pass"])
        .await
        .unwrap();
    assert!(told.contains("The backup is whole") && told.contains("Resources:  3 files"), "{told}");

    let root = told.lines().find_map(|line| line.strip_prefix("Root:")).unwrap().trim().to_owned();
    let restore = ["restore", "--from", "@backup", "--passphrase-file", "@pass"];
    // Whoever runs still has its folder.
    let running = org.cli("org", &restore).await.unwrap_err();
    assert!(running.contains("another controller uses"), "{running}");
    let other_root = [&restore[..], &["--root", "other"]].concat();
    fs::create_dir(org.path("new")).unwrap();
    let refused = org.cli("new", &other_root).await.unwrap_err();
    assert!(refused.contains("not of other"), "{refused}");
    assert!(tree(&org.path("new")).is_empty());
    let said = org.cli("new", &[&restore[..], &["--root", &root]].concat()).await.unwrap();
    assert!(said.contains("is restored") && said.contains(&root), "{said}");
    let (was, is) = (tree(&org.path("org/resources")), tree(&org.path("new/resources")));
    assert_eq!(was.values().collect::<Vec<_>>(), is.values().collect::<Vec<_>>());
    let (was, is) = (tree(&org.path("org/data/keys")), tree(&org.path("new/data/keys")));
    assert_eq!(was.values().collect::<Vec<_>>(), is.values().collect::<Vec<_>>());
    org.app.stop().await;

    let mut restored = start(&org.path("new")).await;
    let client = Client::new(restored.socket.clone());
    let back: serde_json::Value = client.get("/v1/servers/home").await.unwrap();
    assert_eq!(uid(&back), uid(&server));
    restored.stop().await;
    drop(restored);
    // It is not empty any more.
    let again = org.cli("new", &restore).await.unwrap_err();
    assert!(again.contains("the database is not empty"), "{again}");
}

/// A file that is damaged anywhere is refused before anything is made, and nothing is left of the attempt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_damaged_or_not_ours_is_refused_and_leaves_nothing_behind() {
    let mut org = Org::start().await;
    org.back_up().await;
    org.app.stop().await;
    let whole = fs::read(org.path("backup")).unwrap();
    fs::write(org.path("wrong"), "another passphrase\n").unwrap();
    fs::create_dir(org.path("new")).unwrap();
    let attempt = async |bytes: &[u8], pass: &str| {
        fs::write(org.path("bad"), bytes).unwrap();
        let refused = org.cli("new", &["restore", "--from", "@bad", "--passphrase-file", pass]).await;
        assert!(tree(&org.path("new")).is_empty(), "{:?}", tree(&org.path("new")).keys());
        refused.unwrap_err()
    };
    let wrong = attempt(&whole, "@wrong").await;
    assert!(wrong.contains("the passphrase is not the one of this backup"), "{wrong}");
    let mut flipped = whole.clone();
    let last = flipped.len() - 1;
    flipped[last] ^= 1;
    let damaged = attempt(&flipped, "@pass").await;
    assert!(damaged.contains("is not what was written there"), "{damaged}");
    let cut = attempt(&whole[..last], "@pass").await;
    assert!(cut.contains("is not what was written there"), "{cut}");
    let foreign = attempt(b"something else entirely, and long enough to be a head", "@pass").await;
    assert!(foreign.contains("this is no backup"), "{foreign}");

    // Documents that are not the backup's are in the way.
    fs::create_dir(org.path("new/resources")).unwrap();
    fs::write(org.path("new/resources/mine.toml"), "").unwrap();
    let before = tree(&org.path("new"));
    let taken =
        org.cli("new", &["restore", "--from", "@backup", "--passphrase-file", "@pass"]).await.unwrap_err();
    assert!(taken.contains("mine.toml is not in the backup"), "{taken}");
    assert_eq!(tree(&org.path("new")), before);
    fs::remove_file(org.path("new/resources/mine.toml")).unwrap();

    // So are another organisation's keys, which are seen last of all.
    let other = org.path("other");
    init(&other, &["192.0.2.1".parse().unwrap()], false, &mut Vec::new()).unwrap();
    fs::create_dir(org.path("new/data")).unwrap();
    fs::rename(other.join("data/keys"), org.path("new/data/keys")).unwrap();
    let before = tree(&org.path("new"));
    let keys =
        org.cli("new", &["restore", "--from", "@backup", "--passphrase-file", "@pass"]).await.unwrap_err();
    assert!(keys.contains("already holds an organisation's keys"), "{keys}");
    assert_eq!(tree(&org.path("new")), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_for_a_key_needs_no_secret_to_be_made() {
    let mut org = Org::start().await;
    let public = org.cli("org", &["backup", "key", "--to", "@key"]).await.unwrap();
    assert!(org.cli("org", &["backup", "key", "--to", "@key"]).await.is_err(), "none is replaced");
    let public = public.trim();
    org.cli("org", &["backup", "--to", "@backup", "--recipient", public]).await.unwrap();
    org.app.stop().await;
    let told =
        org.cli("org", &["backup", "verify", "--from", "@backup", "--key-file", "@key"]).await.unwrap();
    assert!(told.contains("The backup is whole"), "{told}");
    let private = fs::read_to_string(org.path("key")).unwrap();
    let mixed = org.cli("org", &["backup", "--to", "@two", "--recipient", private.trim()]).await.unwrap_err();
    assert!(mixed.contains("the private half"), "{mixed}");
    let missing = org.cli("org", &["backup"]).await.unwrap_err();
    assert!(missing.contains("--to"), "{missing}");
    fs::write(org.path("short"), "short\n").unwrap();
    let short = org.cli("org", &["backup", "--to", "@two", "--passphrase-file", "@short"]).await.unwrap_err();
    assert!(short.contains("too short"), "{short}");
    fs::create_dir(org.path("new")).unwrap();
    org.cli("new", &["restore", "--from", "@backup", "--key-file", "@key"]).await.unwrap();
    start(&org.path("new")).await.stop().await;
}
