//! Programs that the tests give files to.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use horizon_services::{KubeApi, KubeOptions, KubernetesPrograms};
use horizon_tests::products::repository;
use serde_json::Value;

/// A file or folder of manifests/.
pub(crate) fn manifests(path: &str) -> PathBuf {
    repository().join("manifests").join(path)
}

/// As [`manifests`], as an argument.
pub(crate) fn argument(path: &str) -> String {
    manifests(path).display().to_string()
}

/// How everything is applied.
pub(crate) const STRICT: [&str; 4] = ["apply", "--server-side", "--validate=strict", "--warnings-as-errors"];

/// The API server that most tests share. The embedded overlay was applied to it, then the one for production, as by
/// somebody who grew.
pub(crate) fn installed() -> &'static KubeApi {
    static INSTALLED: OnceLock<KubeApi> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        let api = cluster();
        let [a, b, c, d] = STRICT;
        for overlay in ["overlays/embedded", "overlays/production"] {
            api.kubectl([a, b, c, d, "-k", &argument(overlay)]).unwrap();
        }
        api
    })
}

/// An API server that has nothing of Horizon.
pub(crate) fn cluster() -> KubeApi {
    KubeApi::start(KubeOptions { crds: false, ..KubeOptions::default() }).unwrap()
}

/// Runs a program to a successful end and returns what it printed.
pub(crate) fn run(program: &Path, arguments: &[&str], stdin: &str) -> String {
    let (success, stdout, stderr) = output(program, arguments, stdin, &[]);
    assert!(success, "{} {} failed:\n{stdout}{stderr}", program.display(), arguments.join(" "));
    stdout
}

/// Whether a program succeeded, and what it printed.
pub(crate) fn output(
    program: &Path,
    arguments: &[&str],
    stdin: &str,
    environment: &[(&str, &str)],
) -> (bool, String, String) {
    let mut command = Command::new(program);
    command.args(arguments).envs(environment.iter().copied()).env_remove("KUBECONFIG");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    let text = stdin.to_owned();
    // A program that reads and prints at once would otherwise wait for this one, and this one for it.
    let writer = std::thread::spawn(move || pipe.write_all(text.as_bytes()));
    let output = child.wait_with_output().unwrap();
    // A program may end without having read everything.
    let _ = writer.join().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

/// The program with what other projects publish.
pub(crate) fn published(arguments: &[&str], stdin: &str) -> String {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    run(PROGRAM.get_or_init(|| horizon_services::published().unwrap()), arguments, stdin)
}

/// `kubectl kustomize`, which needs no cluster.
pub(crate) fn kustomize(folder: &str) -> String {
    run(&KubernetesPrograms::get().unwrap().program("kubectl"), &["kustomize", &argument(folder)], "")
}

/// `helm template` of the chart under the names the overlays have.
pub(crate) fn template(values: &[&str]) -> String {
    let (success, stdout, stderr) = try_template(values);
    assert!(success, "{stderr}");
    stdout
}

/// The same, which may fail.
pub(crate) fn try_template(values: &[&str]) -> (bool, String, String) {
    let helm = KubernetesPrograms::get().unwrap().program("helm");
    let chart = argument("helm/horizon");
    let mut words = vec!["template", "horizon", &chart, "--namespace", "horizon-system"];
    for value in values {
        words.extend(["--set-json", value]);
    }
    output(&helm, &words, "", &[])
}

/// YAML documents as JSON.
pub(crate) fn objects(yaml: &str) -> Vec<Value> {
    published(&["json"], yaml).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A text inside an object; empty when it is not there.
pub(crate) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}
