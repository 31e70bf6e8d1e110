//! Where the built programs are.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

/// The programs under test.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `horizon-controller`.
    pub controller: PathBuf,
    /// `horizon-appliance`.
    pub appliance: PathBuf,
    /// `horizon`.
    pub client: PathBuf,
}

impl Programs {
    /// The programs beside the running one: for the demo and the benchmarks, which are built together with them.
    pub fn beside_this() -> Result<Self> {
        let own = std::env::current_exe()?;
        Self::in_folder(own.parent().context("a program is in a folder")?)
    }

    /// The programs of a test run: those in the folder `HORIZON_PROGRAMS` names, or else those of the repository,
    /// brought up to date once per process.
    pub fn for_tests() -> Result<&'static Self> {
        static PROGRAMS: OnceLock<Result<Programs, String>> = OnceLock::new();
        let programs = PROGRAMS.get_or_init(|| Self::build().map_err(|error| format!("{error:#}")));
        programs.as_ref().map_err(|error| anyhow::anyhow!("{error}"))
    }

    fn build() -> Result<Self> {
        if let Some(folder) = std::env::var_os("HORIZON_PROGRAMS") {
            return Self::in_folder(Path::new(&folder));
        }
        // .../target/PROFILE/deps/TEST
        let own = std::env::current_exe()?;
        let folder = own.ancestors().nth(2).context("a test is in target/PROFILE/deps")?;
        if let Some(cargo) = std::env::var_os("CARGO") {
            let root = repository();
            let manifest = root.join("Cargo.toml");
            let target = folder.parent().context("a profile is in the target folder")?;
            let built = Command::new(cargo)
                .args(["build", "--quiet", "--locked", "--workspace", "--bins", "--manifest-path"])
                .arg(manifest)
                .env("CARGO_TARGET_DIR", target)
                .output()?;
            if !built.status.success() {
                bail!("the programs do not build:\n{}", String::from_utf8_lossy(&built.stderr));
            }
        }
        Self::in_folder(folder)
    }

    fn in_folder(folder: &Path) -> Result<Self> {
        let find = |name: &str| {
            let path = folder.join(name);
            if path.exists() { Ok(path) } else { bail!("{} is missing: run `make build`", path.display()) }
        };
        Ok(Self {
            controller: find("horizon-controller")?,
            appliance: find("horizon-appliance")?,
            client: find("horizon")?,
        })
    }
}

/// The folder of the repository this was built from.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned).unwrap_or_default()
}
