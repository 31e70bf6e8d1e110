//! The envelope key in a hardware security module: SoftHSM, by its PKCS#11 module.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Output, Stdio},
};

use horizon_services::until;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

const PIN: &str = "4321-secret-pin";

/// An organisation, and a token beside it.
struct Place {
    dir: tempfile::TempDir,
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// SoftHSM's module, wherever the distribution puts it.
fn module() -> PathBuf {
    let known = [
        "/usr/lib/softhsm",
        "/usr/lib/x86_64-linux-gnu/softhsm",
        "/usr/lib/aarch64-linux-gnu/softhsm",
        "/usr/lib64",
    ];
    let found = known.iter().map(|dir| Path::new(dir).join("libsofthsm2.so")).find(|path| path.exists());
    found.expect("SoftHSM is installed: tests/setup.sh services")
}

impl Place {
    fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::create_dir(place.path("tokens")).unwrap();
        let conf = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\n",
            place.path("tokens").display()
        );
        std::fs::write(place.path("softhsm2.conf"), conf).unwrap();
        place.util(&["--init-token", "--free", "--label", "horizon", "--pin", PIN, "--so-pin", "8765-other"]);
        place.key("horizon-envelope", "01");
        let made = place.run(&["init", place.path("org").to_str().unwrap(), "--advertise", "192.0.2.1"]);
        assert!(made.status.success(), "{}", text(&made.stderr));
        std::fs::write(place.path("pin"), format!("{PIN}\n")).unwrap();
        std::fs::set_permissions(place.path("pin"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn util(&self, arguments: &[&str]) {
        let done = Command::new("softhsm2-util")
            .args(arguments)
            .env("SOFTHSM2_CONF", self.path("softhsm2.conf"))
            .output()
            .expect("SoftHSM is installed: tests/setup.sh services");
        assert!(done.status.success(), "{}", text(&done.stderr));
    }

    /// Makes a key on the token.
    fn key(&self, label: &str, id: &str) {
        let file = self.path("aes");
        std::fs::write(&file, uuid::Uuid::new_v4().simple().to_string()).unwrap();
        let file = file.to_str().unwrap();
        self.util(&[
            "--import", file, "--aes", "--token", "horizon", "--label", label, "--id", id, "--pin", PIN,
        ]);
    }

    fn program(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_horizon-controller"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("HORIZON_")) {
            command.env_remove(name);
        }
        command.env("SOFTHSM2_CONF", self.path("softhsm2.conf"));
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.program().args(arguments).output().expect("the program starts")
    }

    fn config(&self) -> String {
        self.path("org/config.toml").to_str().unwrap().to_owned()
    }

    /// The settings of the token, with one of them as a test has it.
    fn settings(&self, other: &str, value: &str) -> Vec<String> {
        let (module, pin) = (module(), self.path("pin"));
        let all = [
            ("--pkcs11-module", module.to_str().unwrap()),
            ("--pkcs11-token", "horizon"),
            ("--pkcs11-key", "horizon-envelope"),
            ("--pkcs11-pin-file", pin.to_str().unwrap()),
        ];
        let of = |(name, right): (&str, &str)| {
            [name.to_owned(), if name == other { value } else { right }.to_owned()]
        };
        all.into_iter().flat_map(of).collect()
    }

    fn rewrap(&self, to: &str, more: &[&str]) -> String {
        let done = self
            .program()
            .args(["envelope", "rewrap", "--to", to, "--config", &self.config()])
            .args(self.settings("", ""))
            .args(more)
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", text(&done.stderr));
        text(&done.stdout)
    }

    fn controller(&self, settings: &[String]) -> Command {
        let mut command = self.program();
        command.args(["run", "--config", &self.config()]);
        command.args(["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]).args(settings);
        command
    }

    fn start(&self, settings: &[String]) -> Controller<'_> {
        let mut child = self.controller(settings).stderr(Stdio::piped()).spawn().expect("the program starts");
        let mut log = BufReader::new(child.stderr.take().expect("it is piped"));
        let mut said = String::new();
        while !said.contains("the controller runs") {
            assert_ne!(
                log.read_line(&mut said).expect("log lines are UTF-8"),
                0,
                "the controller ended:\n{said}"
            );
        }
        Controller { place: self, child, log: Some(log), said }
    }

    /// Why a controller does not start.
    fn refused(&self, settings: &[String]) -> String {
        let tried = self.controller(settings).output().unwrap();
        assert_eq!(tried.status.code(), Some(1), "{}", text(&tried.stderr));
        text(&tried.stderr)
    }
}

struct Controller<'a> {
    place: &'a Place,
    child: Child,
    log: Option<BufReader<ChildStderr>>,
    said: String,
}

impl Controller<'_> {
    fn cli(&self, arguments: &[&str]) -> String {
        let done =
            self.place.program().args(arguments).args(["--config", &self.place.config()]).output().unwrap();
        assert!(done.status.success(), "{arguments:?}: {}", text(&done.stderr));
        text(&done.stdout)
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.cli(&["status", "-o", "json"])).unwrap()
    }

    #[track_caller]
    fn soon(&self, what: &str, check: impl Fn(&Value) -> bool) {
        let holds = until(what, || check(&self.status()).then_some(()));
        holds.unwrap_or_else(|error| panic!("{error:#}: {:#}", self.status()));
    }

    /// Stops it, and gives all that it logged.
    fn stop(mut self) -> String {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM).unwrap();
        assert!(self.child.wait().unwrap().success());
        let mut said = std::mem::take(&mut self.said);
        let mut log = self.log.take().expect("it is read once");
        while log.read_line(&mut said).expect("log lines are UTF-8") > 0 {}
        said
    }
}

impl Drop for Controller<'_> {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn under(status: &Value, id: &str) -> bool {
    status["envelope"].as_str().is_some_and(|line| line.ends_with(&format!("under {id}")))
}

#[test]
fn the_envelope_key_moves_into_a_module_and_back() {
    let place = Place::new();
    let controller = place.start(&[]);
    controller
        .soon("it says what seals", |status| status["envelope"].as_str().unwrap().contains("under file/"));
    let token = controller.cli(&["token", "home"]);
    // While it runs: it goes on with the key that it has.
    let said = place.rewrap("pkcs11", &[]);
    assert!(said.contains("wrapped under pkcs11/horizon/horizon-envelope too"), "{said}");
    assert!(place.rewrap("pkcs11", &[]).contains("already"));
    controller.soon("what is to come is said", |status| {
        status["envelope"].as_str().unwrap().contains("soon under pkcs11/horizon/horizon-envelope")
    });
    controller.stop();

    let settings = place.settings("", "");
    let controller = place.start(&settings);
    controller
        .soon("the file opens nothing any more", |status| under(status, "pkcs11/horizon/horizon-envelope"));
    let refused =
        controller.place.program().args(["token", "home", "--config", &place.config()]).output().unwrap();
    drop(refused);
    // It rotates under the module too.
    let before = controller.status()["envelope"].clone();
    controller.cli(&["rotate", "keys", "--class", "envelope", "--reason", "a test"]);
    controller.soon("the data keys are others", |status| {
        status["envelope"] != before && under(status, "pkcs11/horizon/horizon-envelope")
    });
    let log = controller.stop();
    assert!(!log.contains(PIN), "the PIN is in no log");
    std::fs::remove_file(place.path("org/data/keys/envelope.key")).unwrap();
    let controller = place.start(&settings);
    controller.stop();
    // Without the module the database is of no use.
    let refused = place.refused(&[]);
    assert!(refused.contains("there is no envelope.key"), "{refused}");

    // Another key of the module.
    place.key("horizon-2027", "02");
    let other = place.settings("--pkcs11-key", "horizon-2027");
    let done = place
        .program()
        .args([
            "envelope",
            "rewrap",
            "--to",
            "pkcs11",
            "--from-key",
            "horizon-envelope",
            "--config",
            &place.config(),
        ])
        .args(&other)
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
    let controller = place.start(&other);
    controller.soon("it is under the other key", |status| under(status, "pkcs11/horizon/horizon-2027"));
    controller.stop();
    let refused = place.refused(&settings);
    assert!(
        refused.contains("not wrapped under the envelope key pkcs11/horizon/horizon-envelope"),
        "{refused}"
    );

    // And back into a file.
    let done = place
        .program()
        .args(["envelope", "rewrap", "--to", "file", "--config", &place.config()])
        .args(&other)
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
    let controller = place.start(&[]);
    controller
        .soon("it is under a file", |status| status["envelope"].as_str().unwrap().contains(", under file/"));
    assert!(controller.cli(&["get", "registrationkeys"]).contains("home"), "{token}");
    controller.stop();
    assert!(place.path("org/data/keys/envelope.key").exists());
}

#[test]
fn what_is_wrong_with_a_module_is_said() {
    let place = Place::new();
    place.start(&[]).stop();
    place.rewrap("pkcs11", &[]);
    let module = place.refused(&place.settings("--pkcs11-module", "/nowhere/libnone.so"));
    assert!(module.contains("cannot load the PKCS#11 module /nowhere/libnone.so"), "{module}");
    let token = place.refused(&place.settings("--pkcs11-token", "orizon"));
    assert!(token.contains("no PKCS#11 token is called 'orizon' (there are: horizon)"), "{token}");
    let key = place.refused(&place.settings("--pkcs11-key", "none"));
    assert!(key.contains("the PKCS#11 token 'horizon' has 0 AES keys called 'none'"), "{key}");
    let wrong = place.path("wrong-pin");
    std::fs::write(&wrong, "0000\n").unwrap();
    std::fs::set_permissions(&wrong, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let pin = place.refused(&place.settings("--pkcs11-pin-file", wrong.to_str().unwrap()));
    assert!(
        pin.contains("the PIN of the PKCS#11 token 'horizon' is wrong") && !pin.contains("0000"),
        "{pin}"
    );
    std::fs::set_permissions(&wrong, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let open = place.refused(&place.settings("--pkcs11-pin-file", wrong.to_str().unwrap()));
    assert!(open.contains("can be read by others"), "{open}");
    let half = place.refused(&["--pkcs11-token".to_owned(), "horizon".to_owned()]);
    assert!(half.contains("set all three"), "{half}");
    // The PIN may come from the environment.
    let mut settings = place.settings("", "");
    settings.truncate(6);
    let missing = place.refused(&settings);
    assert!(missing.contains("HORIZON_PKCS11_PIN"), "{missing}");
}

#[test]
fn a_module_that_goes_away_stops_nothing_that_runs() {
    let place = Place::new();
    place.start(&[]).stop();
    place.rewrap("pkcs11", &[]);
    let controller = place.start(&place.settings("", ""));
    controller.soon("it is used", |status| under(status, "pkcs11/horizon/horizon-envelope"));
    std::fs::rename(place.path("tokens"), place.path("away")).unwrap();
    let troubled = |status: &Value| {
        let troubles = status["troubles"].as_array().unwrap();
        troubles.iter().any(|line| line.as_str().unwrap().contains("envelope_key is degraded"))
    };
    controller.soon("it is said", troubled);
    // What is sealed is still opened, and what is new is sealed.
    assert!(controller.cli(&["token", "home"]).contains("hzn-"), "a token is made");
    let said = controller.cli(&["get", "events", "-o", "json"]);
    assert!(said.contains("envelope_key"), "{said}");
    std::fs::rename(place.path("away"), place.path("tokens")).unwrap();
    controller.soon("it is there again", |status| !troubled(status));
    controller.stop();
}
