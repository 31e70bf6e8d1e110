//! A person's terminal.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use horizon_services::KubernetesPrograms;
use horizon_tests::lab::Host;
use horizon_tests::production::{Cluster, Pod};
use horizon_tests::products::Programs;

/// A shell on a host, with Horizon's programs, and with the admin's `kubectl` when there is a cluster.
pub(crate) struct Terminal<'h> {
    host: &'h Host,
    pod: Option<&'h Pod>,
    folder: PathBuf,
    environment: Vec<(String, String)>,
}

/// What a node would do is done by the test: a rollout is over when it has seen the pods ready, and what is to be executed
/// in a pod is executed here, since this terminal is in that pod's place.
const KUBECTL: &str = r#"#!/bin/bash
case $1 in
rollout) exit 0 ;;
exec) while [ "$1" != -- ]; do shift; done; shift; exec "$@" ;;
esac
exec "$REAL_KUBECTL" "$@"
"#;

impl<'h> Terminal<'h> {
    /// A terminal of a host, in `folder`.
    pub(crate) fn new(host: &'h Host, programs: &Programs, folder: &Path) -> Self {
        let own = programs.controller.parent().unwrap().display().to_string();
        let path = format!("{own}:{}", std::env::var("PATH").unwrap());
        let environment = vec![("PATH".to_owned(), path)];
        Self { host, pod: None, folder: folder.to_owned(), environment }
    }

    /// An admin's terminal, on a host of the lab.
    pub(crate) fn of_admin(host: &'h Host, cluster: &Cluster, programs: &Programs, folder: &Path) -> Self {
        let mut terminal = Self::new(host, programs, folder);
        let tools = host.dir().join("tools");
        fs::create_dir_all(&tools).unwrap();
        let kubectl = tools.join("kubectl");
        fs::write(&kubectl, KUBECTL).unwrap();
        fs::set_permissions(&kubectl, fs::Permissions::from_mode(0o755)).unwrap();
        terminal.environment[0].1.insert_str(0, &format!("{}:", tools.display()));
        let real = KubernetesPrograms::get().unwrap().program("kubectl");
        terminal.set("REAL_KUBECTL", &real.display().to_string());
        terminal.set("KUBECONFIG", &cluster.kube.kubeconfig().display().to_string());
        terminal
    }

    /// An admin's terminal whose `kubectl exec` leads to this pod.
    pub(crate) fn beside(pod: &'h Pod, cluster: &Cluster, programs: &Programs, folder: &Path) -> Self {
        Self { pod: Some(pod), ..Self::of_admin(pod.host(), cluster, programs, folder) }
    }

    /// Sets a variable.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Types a block of commands; the first that fails is a panic with all that was said.
    #[track_caller]
    pub(crate) fn types(&self, commands: &str) -> String {
        let script = format!("cd '{}'\n{commands}", self.folder.display());
        let words = ["-euo", "pipefail", "-c", &script];
        let mut command = self.pod.map_or_else(|| self.host.cmd("bash", words), |pod| pod.cmd("bash", words));
        for (name, value) in &self.environment {
            command = command.env(name, value);
        }
        command.ok().unwrap_or_else(|error| panic!("{error:#}"))
    }
}

/// The parts of a block between the commands that begin with `start`, each of which is a part of its own: what a terminal
/// cannot do alone, because somebody else must act on it.
pub(crate) fn parts(block: &str, start: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    for line in block.lines() {
        if line.starts_with(start) {
            parts.extend([line.to_owned(), String::new()]);
        } else {
            let part = parts.last_mut().unwrap();
            part.push_str(line);
            part.push('\n');
        }
    }
    parts.retain(|part| !part.trim().is_empty());
    parts
}
