//! Where the programs of the services are.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail};

/// The folder with Kubernetes' programs.
#[derive(Clone, Debug)]
pub struct KubernetesPrograms {
    folder: PathBuf,
}

impl KubernetesPrograms {
    /// The programs that `tests/kubernetes/build.sh` finds, or builds: the first time it takes minutes.
    pub fn get() -> Result<&'static Self> {
        static PROGRAMS: OnceLock<Result<KubernetesPrograms, String>> = OnceLock::new();
        let programs = PROGRAMS.get_or_init(|| Self::build().map_err(|error| format!("{error:#}")));
        programs.as_ref().map_err(|error| anyhow!("{error}"))
    }

    fn build() -> Result<Self> {
        Ok(Self { folder: built(&[])? })
    }

    /// The path of `etcd`, `kube-apiserver`, `kube-controller-manager`, `kubectl` or `helm`.
    pub fn program(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The folder with all of them, for a `PATH`.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

/// The program that holds what others publish (tests/kubernetes/published), built as [`KubernetesPrograms::get`] does.
pub fn published() -> Result<PathBuf> {
    Ok(built(&["published"])?.join("published"))
}

/// What `tests/kubernetes/build.sh` prints.
fn built(what: &[&str]) -> Result<PathBuf> {
    let script = repository().join("tests/kubernetes/build.sh");
    let output = Command::new("sh")
        .arg(&script)
        .args(what)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {}", script.display()))?;
    if !output.status.success() {
        bail!("{} failed: what it says above is the reason", script.display());
    }
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim_end()))
}

/// The folder of the repository this was built from.
pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).map(Path::to_owned).unwrap_or_default()
}

/// The newest PostgreSQL's folder of programs; Debian keeps them out of the `PATH`.
pub(crate) fn postgres_folder() -> Result<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions
        .filter_map(|entry| {
            Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path().join("bin")))
        })
        .filter(|(_, bin)| bin.join("initdb").exists())
        .max();
    let in_path =
        || std::env::split_paths(&std::env::var_os("PATH")?).find(|folder| folder.join("initdb").exists());
    newest.map(|(_, bin)| bin).or_else(in_path).context("PostgreSQL is not installed: run `make setup`")
}
