//! Kernel settings under `/proc/sys`, changed with a memory of what they were.

use std::{collections::BTreeMap, io, path::PathBuf};

use thiserror::Error;

/// A kernel setting that could not be read or written.
#[derive(Debug, Error)]
#[error("cannot {action} the kernel setting {name}: {cause}{}", remedy(cause))]
pub struct SysctlError {
    action: &'static str,
    name: String,
    cause: io::Error,
}

impl SysctlError {
    /// Whether the kernel does not have the setting (a module is not loaded, a link is gone, IPv6 is off).
    pub fn is_absent(&self) -> bool {
        self.cause.kind() == io::ErrorKind::NotFound
    }
}

fn remedy(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::PermissionDenied => "; run it as root, or give it CAP_NET_ADMIN",
        io::ErrorKind::ReadOnlyFilesystem => "; /proc/sys is mounted read-only: set it on the host",
        io::ErrorKind::NotFound => "; the kernel lacks it, or IPv6 is switched off",
        _ => "",
    }
}

/// Access to settings by path-like names: `net/ipv4/ip_forward`, `net/ipv6/conf/eth0.5/accept_ra`.
///
/// The slash form is used because link names may hold dots.
#[derive(Clone, Debug)]
pub struct Sysctls {
    root: PathBuf,
}

impl Default for Sysctls {
    fn default() -> Self {
        Self { root: "/proc/sys".into() }
    }
}

impl Sysctls {
    /// Settings under another root than `/proc/sys`.
    pub fn under(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The value of a setting, without the line's end.
    pub fn read(&self, name: &str) -> Result<String, SysctlError> {
        let text = self.path(name).and_then(std::fs::read_to_string);
        text.map(|t| t.trim_end().to_owned()).map_err(|e| failed("read", name, e))
    }

    /// Writes a setting.
    pub fn write(&self, name: &str, value: &str) -> Result<(), SysctlError> {
        self.path(name).and_then(|p| std::fs::write(p, value)).map_err(|e| failed("write", name, e))
    }

    /// Writes a setting unless it has the value already; returns what it was if it had another.
    pub fn ensure(&self, name: &str, value: &str) -> Result<Option<String>, SysctlError> {
        let former = self.read(name)?;
        if former == value {
            return Ok(None);
        }
        self.write(name, value)?;
        Ok(Some(former))
    }

    /// The links that have settings of the given family (`ipv4` or `ipv6`), without `all` and `default`, with the value
    /// that each has for `setting`.
    pub fn per_link(&self, family: &str, setting: &str) -> Result<BTreeMap<String, String>, SysctlError> {
        let parent = format!("net/{family}/conf");
        let entries = self.path(&parent).and_then(std::fs::read_dir);
        let mut found = BTreeMap::new();
        for entry in entries.map_err(|e| failed("list", &parent, e))?.flatten() {
            let Ok(link) = entry.file_name().into_string() else { continue };
            if link == "all" || link == "default" {
                continue;
            }
            // A link may go while the directory is read.
            if let Ok(value) = self.read(&format!("{parent}/{link}/{setting}")) {
                found.insert(link, value);
            }
        }
        Ok(found)
    }

    fn path(&self, name: &str) -> io::Result<PathBuf> {
        let inside = name.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
        if inside {
            Ok(self.root.join(name))
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "this names no setting"))
        }
    }
}

fn failed(action: &'static str, name: &str, cause: io::Error) -> SysctlError {
    SysctlError { action, name: name.replace('/', "."), cause }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let forward = dir.path().join("net/ipv4");
        std::fs::create_dir_all(&forward).unwrap();
        std::fs::write(forward.join("ip_forward"), "0\n").unwrap();
        let sysctls = Sysctls::under(dir.path());
        assert_eq!(sysctls.ensure("net/ipv4/ip_forward", "1").unwrap(), Some("0".into()));
        assert_eq!(sysctls.ensure("net/ipv4/ip_forward", "1").unwrap(), None);
        assert!(sysctls.read("net/ipv4/none").unwrap_err().is_absent());
        assert!(sysctls.read("../etc/passwd").unwrap_err().to_string().contains("names no setting"));
    }

    #[test]
    fn links_are_listed_with_their_values() {
        let dir = tempfile::tempdir().unwrap();
        for (link, value) in [("all", "0"), ("default", "1"), ("eth0", "1"), ("eth0.5", "2")] {
            let path = dir.path().join("net/ipv6/conf").join(link);
            std::fs::create_dir_all(&path).unwrap();
            std::fs::write(path.join("accept_ra"), value).unwrap();
        }
        let found = Sysctls::under(dir.path()).per_link("ipv6", "accept_ra").unwrap();
        let found: Vec<_> = found.iter().map(|(l, v)| (l.as_str(), v.as_str())).collect();
        assert_eq!(found, [("eth0", "1"), ("eth0.5", "2")]);
    }
}
