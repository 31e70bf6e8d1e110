//! What this device says of itself when it is enrolled.

use horizon_model::DeviceInfo;
use horizon_wire::key::sha256;

/// The longest value, in characters.
const MAX_TEXT: usize = 120;

/// The device's description; `name` instead of the host name if given.
pub(super) fn describe(name: Option<&str>) -> DeviceInfo {
    let system = rustix::system::uname();
    let host = system.nodename().to_string_lossy();
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let pretty = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let os = pretty.map(|p| p.trim_matches('"').to_owned());
    DeviceInfo {
        name: clean(name.filter(|n| !n.trim().is_empty()).unwrap_or(&host)),
        platform: "linux".into(),
        os_version: clean(&os.unwrap_or_else(|| system.release().to_string_lossy().into_owned())),
        app_version: env!("CARGO_PKG_VERSION").into(),
        hardware_fingerprint: fingerprint(),
    }
}

/// A digest of the machine's identifier: the identifier itself is nobody's business (machine-id(5)).
fn fingerprint() -> String {
    let id = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    match id.trim() {
        "" => String::new(),
        id => sha256(format!("horizon device {id}").as_bytes()).to_string(),
    }
}

fn clean(text: &str) -> String {
    text.trim().chars().filter(|c| !c.is_control()).take(MAX_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_is_bounded_and_has_a_name() {
        assert!(!describe(None).name.is_empty());
        assert_eq!(describe(Some(" my\n laptop ")).name, "my laptop");
        assert_eq!(describe(Some(&"x".repeat(500))).name.len(), MAX_TEXT);
        assert_eq!(describe(Some("  ")).name, describe(None).name);
    }
}
