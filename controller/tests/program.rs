//! The program as a person runs it: exit statuses, what goes where, settings from all origins, signals.

use std::{
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_horizon-controller"));
    // The environment of whoever runs the tests says nothing here.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("HORIZON_")) {
        command.env_remove(name);
    }
    command
}

fn run(arguments: &[&str]) -> Output {
    program().args(arguments).output().expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A fresh organisation.
fn organisation(dir: &Path) -> String {
    let org = dir.join("org");
    let made = run(&["init", org.to_str().expect("UTF-8"), "--advertise", "192.0.2.1"]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    org.join("config.toml").to_str().expect("UTF-8").to_owned()
}

/// Starts a controller and waits for the line that says that it runs.
fn start(config: &str, format: &str) -> (Child, BufReader<impl Read>) {
    let mut child = program()
        .args(["run", "--config", config, "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"])
        .args(["--log-format", format])
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut log = BufReader::new(child.stderr.take().expect("it is piped"));
    let mut line = String::new();
    while !line.contains("the controller runs") {
        line.clear();
        assert_ne!(log.read_line(&mut line).expect("log lines are UTF-8"), 0, "the controller ended");
    }
    if format == "json" {
        assert!(line.starts_with('{') && line.contains("\"level\":\"INFO\""), "{line}");
    }
    (child, log)
}

#[test]
fn flags_go_over_the_environment_over_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    std::fs::write(&file, "debounce = \"1ms\"\ntakeover_grace = \"11s\"\nmax_connections = 1\n").unwrap();
    let printed = program()
        .args(["config", "print", "--config", file.to_str().unwrap(), "--debounce", "3ms"])
        .env("HORIZON_DEBOUNCE", "2ms")
        .env("HORIZON_TAKEOVER_GRACE", "22s")
        .output()
        .unwrap();
    let printed = text(&printed.stdout);
    for line in
        ["debounce = \"3ms\"", "takeover_grace = \"22s\"", "max_connections = 1", "prune_limit_percent = 20"]
    {
        assert!(printed.contains(line), "{line} is missing in\n{printed}");
    }
}

#[test]
fn mistakes_end_with_a_status_and_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    std::fs::write(&file, "metrics_lisen = \"127.0.0.1:1\"\n").unwrap();
    let path = file.to_str().unwrap();

    let unknown = run(&["run", "--config", path]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(
        text(&unknown.stderr)
            .contains("c.toml:1: there is no setting 'metrics_lisen': did you mean 'metrics_listen'?")
    );

    std::fs::write(&file, "").unwrap();
    let nothing = run(&["run", "--config", path]);
    assert!(text(&nothing.stderr).contains("run `horizon-controller init DIR`"), "{}", text(&nothing.stderr));

    let away = run(&["status", "--config", path]);
    assert_eq!(away.status.code(), Some(1));
    assert!(text(&away.stderr).contains("the controller is not running"), "{}", text(&away.stderr));

    let usage = run(&["get", "severs"]);
    assert_eq!(usage.status.code(), Some(2));
    assert!(text(&usage.stderr).contains("did you mean \"servers\"?"), "{}", text(&usage.stderr));

    let help = text(&run(&["--help"]).stdout);
    assert!(help.contains("Getting started:") && help.contains("horizon-controller token home"), "{help}");
}

#[test]
fn a_controller_runs_and_ends_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let config = organisation(dir.path());
    let (mut child, mut log) = start(&config, "json");

    let token = run(&["token", "home", "--config", &config]);
    let (out, err) = (text(&token.stdout), text(&token.stderr));
    assert!(out.starts_with("hzn-reg-") && out.trim_end().lines().count() == 1, "{out}");
    assert!(err.contains("horizon-appliance enroll TOKEN"), "{err}");
    assert!(!err.contains(out.trim_end()), "the token is on standard output alone");

    let validated = run(&["validate", dir.path().join("org/resources").to_str().unwrap()]);
    assert!(validated.status.success());

    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());
    let mut rest = String::new();
    log.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("stopped"), "{rest}");
    assert!(!rest.contains("hzn-reg-") && !dir.path().join("org/data/horizon.sock").exists());
}

#[test]
fn what_was_issued_survives_a_violent_end() {
    let dir = tempfile::tempdir().unwrap();
    let config = organisation(dir.path());
    let (mut child, _log) = start(&config, "text");
    assert!(run(&["invite", "ann", "--config", &config]).status.success());
    child.kill().unwrap();
    child.wait().unwrap();

    let (mut child, _log) = start(&config, "text");
    let keys = text(&run(&["get", "personalkeys", "--config", &config]).stdout);
    assert!(keys.contains("ann-"), "{keys}");
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_running_controller_is_hardened() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = organisation(dir.path());
    let (mut child, _log) = start(&config, "text");
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{}/{file}", child.id())).expect("it runs");
    let status = read("status");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.trim_start_matches(':').trim().to_owned()
    };
    assert_eq!(field("NoNewPrivs"), "1");
    // chown, dac_override, fowner, net_bind_service, as far as it had them.
    let kept = 1 | 1 << 1 | 1 << 3 | 1 << 10;
    for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
        assert_eq!(u64::from_str_radix(&field(set), 16).expect("a mask") & !kept, 0, "{set} of {status}");
    }
    let limits = read("limits");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a limit");
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    // Every thread has the same.
    for thread in std::fs::read_dir(format!("/proc/{}/task", child.id())).expect("threads") {
        let status =
            std::fs::read_to_string(thread.expect("a thread").path().join("status")).unwrap_or_default();
        assert!(status.is_empty() || status.contains("NoNewPrivs:\t1"), "{status}");
    }
    kill(Pid::from_raw(child.id().try_into().expect("a small number")), Signal::SIGTERM).expect("it runs");
    assert!(child.wait().expect("it ends").success());
}

#[test]
fn an_address_is_blocked_and_unblocked_from_the_command_line() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = organisation(dir.path());
    let (mut child, _log) = start(&config, "text");
    let ask = |arguments: &[&str]| {
        let done = run(&[arguments, &["--config", &config]].concat());
        (done.status.success(), text(&done.stdout) + &text(&done.stderr))
    };
    let (done, said) = ask(&["block", "198.51.100.0/24", "--reason", "tries keys", "--for", "1h"]);
    assert!(done && said.contains("198.51.100.0/24 is blocked until"), "{said}");
    let (done, said) = ask(&["get", "blocks"]);
    assert!(done && said.contains("198.51.100.0/24") && said.contains("manual"), "{said}");
    let (done, said) = ask(&["block", "0.0.0.0/0", "--reason", "a slip"]);
    assert!(!done && said.contains("wider than /8"), "{said}");
    let (done, said) = ask(&["unblock", "198.51.100.0/24"]);
    assert!(done && said.contains("not blocked any more"), "{said}");
    let (done, said) = ask(&["unblock", "198.51.100.0/24"]);
    assert!(!done && said.contains("is not blocked"), "{said}");
    for what in ["anomalies", "notifications", "flags", "tasks", "services", "reports"] {
        let (done, said) = ask(&["get", what]);
        assert!(done, "{what}: {said}");
    }
    let (_, audit) = ask(&["get", "audit"]);
    assert!(audit.contains("unblock") && audit.contains("198.51.100.0/24"), "{audit}");
    kill(Pid::from_raw(child.id().try_into().expect("a small number")), Signal::SIGTERM).expect("it runs");
    assert!(child.wait().expect("it ends").success());
}
