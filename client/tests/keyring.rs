//! The personal key in a real keyring: gnome-keyring on a bus of its own, without a desktop.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking and says what it lacks"
)]

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use horizon_model::{KeyId, RootId, TaggedSecret};
use horizon_wire::token::PersonalKey;
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(30);

/// A process that is ended with this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A bus, a keyring that is unlocked, and a service that enrols whoever asks.
struct Session {
    dir: tempfile::TempDir,
    address: String,
    _bus: Running,
    _keyring: Running,
}

fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).exists())
}

impl Session {
    /// `None` where the machine lacks what it takes; in CI that is a failure.
    fn start() -> Option<Self> {
        if !installed("dbus-daemon") || !installed("gnome-keyring-daemon") {
            assert!(
                std::env::var_os("CI").is_none(),
                "dbus and gnome-keyring are missing: see tests/setup.sh"
            );
            eprintln!("NOT RUN: dbus and gnome-keyring are missing: see tests/setup.sh");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        // A bus that starts no service by itself: the keyring is the one below.
        let config = dir.path().join("bus.conf");
        let text = format!(
            "<busconfig><type>session</type><listen>unix:dir={}</listen><auth>EXTERNAL</auth><policy context='default'>\
             <allow send_destination='*' eavesdrop='true'/><allow eavesdrop='true'/><allow own='*'/></policy></busconfig>",
            dir.path().display()
        );
        std::fs::write(&config, text).unwrap();
        let mut bus = Command::new("dbus-daemon")
            .arg("--config-file")
            .arg(&config)
            .args(["--nofork", "--print-address"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut address = String::new();
        BufReader::new(bus.stdout.take().unwrap()).read_line(&mut address).unwrap();
        let bus = Running(bus);
        let address = address.trim().to_owned();
        let mut keyring = Command::new("gnome-keyring-daemon");
        keyring.args(["--foreground", "--unlock", "--components=secrets"]);
        keyring.env("DBUS_SESSION_BUS_ADDRESS", &address).env("HOME", dir.path());
        keyring.env("XDG_DATA_HOME", dir.path().join("data")).env("XDG_RUNTIME_DIR", dir.path());
        let mut keyring = keyring.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        keyring.stdin.take().unwrap().write_all(b"password of the test").unwrap();
        let session = Self { _keyring: Running(keyring), _bus: bus, address, dir };
        let since = Instant::now();
        while !session
            .bus(&["org.freedesktop.Secret.Service.ReadAlias", "string:default"])
            .contains("collection")
        {
            assert!(since.elapsed() < PATIENCE, "the keyring does not come up");
            std::thread::park_timeout(Duration::from_millis(50));
        }
        Some(session)
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("client.sock")
    }

    /// Calls the Secret Service.
    fn bus(&self, call: &[&str]) -> String {
        let output = Command::new("dbus-send")
            .args([
                "--session",
                "--print-reply",
                "--dest=org.freedesktop.secrets",
                "/org/freedesktop/secrets",
            ])
            .args(call)
            .env("DBUS_SESSION_BUS_ADDRESS", &self.address)
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn horizon(&self, args: &[&str], stdin: &str) -> Output {
        run(&self.socket(), args, stdin, |command| {
            command.env("DBUS_SESSION_BUS_ADDRESS", &self.address);
        })
    }
}

fn run(socket: &Path, args: &[&str], stdin: &str, more: impl FnOnce(&mut Command)) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_horizon"));
    command.arg("--socket").arg(socket).args(args);
    command.env_remove("DBUS_SESSION_BUS_ADDRESS").env("XDG_RUNTIME_DIR", "/nonexistent");
    more(&mut command);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A service that says yes to every key.
fn enrolling_service(socket: &Path) {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut line = String::new();
            BufReader::new(stream.try_clone().unwrap().take(16 << 10)).read_line(&mut line).unwrap();
            assert!(line.contains("addKey"), "{line}");
            let answer = b"{\"done\":{\"reply\":\"enrolled\",\"user\":\"ana\",\"device\":\"laptop\"}}\n";
            stream.write_all(answer).unwrap();
        }
    });
}

fn personal_key() -> PersonalKey {
    PersonalKey {
        controllers: vec!["192.0.2.1:7444".into()],
        root: RootId([3; 32]),
        id: KeyId(Uuid::from_u128(5)),
        secret: TaggedSecret::new(&[7; 32], [7; 4]),
    }
}

#[test]
fn the_personal_key_is_kept_in_the_keyring_and_a_locked_one_is_told_from_an_empty_one() {
    let Some(session) = Session::start() else { return };
    enrolling_service(&session.socket());
    let key = personal_key().encode();
    let empty = session.horizon(&["key", "show"], "");
    assert_eq!(empty.status.code(), Some(2), "{}", text(&empty));
    assert!(text(&empty).contains("no personal key is kept"), "{}", text(&empty));

    let added = session.horizon(&["key", "add"], &key);
    assert!(
        added.status.success() && text(&added).contains("the keyring of your session"),
        "{}",
        text(&added)
    );
    let shown = session.horizon(&["key", "show"], "");
    assert!(text(&shown).contains("192.0.2.1:7444") && !text(&shown).contains(&key), "{}", text(&shown));
    // Nobody at a terminal agreed.
    let refused = session.horizon(&["export-key"], "");
    assert!(!refused.status.success() && !text(&refused).contains(&key), "{}", text(&refused));
    let exported = session.horizon(&["export-key", "--yes"], "");
    assert_eq!(String::from_utf8_lossy(&exported.stdout).trim(), key);
    let file = session.dir.path().join("exported");
    let path = file.to_str().unwrap();
    assert!(session.horizon(&["export-key", "--yes", "--output", path], "").status.success());
    assert_eq!(std::fs::read_to_string(&file).unwrap().trim(), key);
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    assert!(!session.horizon(&["export-key", "--yes", "--output", path], "").status.success(), "it is there");

    let lock = "array:objpath:/org/freedesktop/secrets/collection/login";
    session.bus(&["org.freedesktop.Secret.Service.Lock", lock]);
    for args in [&["export-key", "--yes"][..], &["key", "show"], &["key", "remove", "--yes"]] {
        let locked = session.horizon(args, "");
        assert_eq!(locked.status.code(), Some(3), "{}", text(&locked));
        assert!(text(&locked).contains("unlock your keyring"), "{}", text(&locked));
    }
}

#[test]
fn without_a_keyring_nothing_is_kept_unless_a_file_is_chosen() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("client.sock");
    enrolling_service(&socket);
    let key = personal_key().encode();
    let added = run(&socket, &["key", "add"], &key, |_| {});
    assert!(added.status.success() && text(&added).contains("the key is not kept"), "{}", text(&added));
    assert!(text(&added).contains("--encrypted-file"), "{}", text(&added));

    let (kept, passphrase) = (dir.path().join("key.enc"), dir.path().join("passphrase"));
    std::fs::write(&passphrase, "correct horse\n").unwrap();
    let place =
        ["--encrypted-file", kept.to_str().unwrap(), "--passphrase-file", passphrase.to_str().unwrap()];
    let with = |args: &[&str], stdin: &str| run(&socket, &[args, &place].concat(), stdin, |_| {});
    let added = with(&["key", "add"], &key);
    assert!(added.status.success(), "{}", text(&added));
    assert!(!std::fs::read(&kept).unwrap().windows(8).any(|w| key.as_bytes().starts_with(w)));
    let exported = with(&["export-key", "--yes"], "");
    assert_eq!(String::from_utf8_lossy(&exported.stdout).trim(), key);
    std::fs::write(&passphrase, "wrong\n").unwrap();
    let refused = with(&["export-key", "--yes"], "");
    assert_eq!(refused.status.code(), Some(3), "{}", text(&refused));
    let removed = run(&socket, &["key", "remove", "--yes", "--encrypted-file", place[1]], "", |_| {});
    assert!(removed.status.success() && !kept.exists(), "{}", text(&removed));
}
