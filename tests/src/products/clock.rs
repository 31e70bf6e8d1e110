//! A clock of its own for a program, as if somebody had set that of its machine. Time since boot goes on as ever.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The clock of one or several programs.
#[derive(Clone, Debug)]
pub struct Clock {
    file: PathBuf,
}

impl Clock {
    /// A clock that is kept in a file, e.g. `+3600` or `-365d` from the machine's.
    pub fn new(file: impl Into<PathBuf>, offset: &str) -> Result<Self> {
        let clock = Self { file: file.into() };
        clock.set(offset)?;
        Ok(clock)
    }

    /// Sets it, also while programs run by it.
    pub fn set(&self, offset: &str) -> Result<()> {
        let new = self.file.with_extension("new");
        std::fs::write(&new, offset)?;
        std::fs::rename(new, &self.file).context("cannot set the clock")
    }

    /// What has a program run by it.
    pub fn variables(&self) -> Result<[(&'static str, PathBuf); 5]> {
        let library = std::fs::read_dir("/usr/lib")?
            .filter_map(|entry| Some(entry.ok()?.path().join("faketime/libfaketimeMT.so.1")))
            .find(|path| path.exists())
            .context("libfaketime is not installed: run `make setup-services`")?;
        Ok([
            ("LD_PRELOAD", library),
            ("FAKETIME_TIMESTAMP_FILE", self.file.clone()),
            ("FAKETIME_NO_CACHE", "1".into()),
            ("FAKETIME_DISABLE_SHM", "1".into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
        ])
    }

    /// A script that is the program, running by this clock.
    pub fn on(&self, program: &Path) -> Result<PathBuf> {
        let name = program.file_name().context("a program has a name")?;
        let folder = self.file.with_extension("programs");
        std::fs::create_dir_all(&folder)?;
        let mut text = "#!/bin/sh\n".to_owned();
        for (name, value) in self.variables()? {
            text.push_str(&format!("export {name}='{}'\n", value.display()));
        }
        text.push_str(&format!("exec '{}' \"$@\"\n", program.display()));
        let script = folder.join(name);
        std::fs::write(&script, text)?;
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
        Ok(script)
    }
}
