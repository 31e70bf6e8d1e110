//! The documents a new folder starts with.

use crate::config;

/// The name of the starter server.
pub(super) const SERVER: &str = "home";
/// The name of the starter user.
pub(super) const USER: &str = "ann";

/// The documents, by file name.
pub(super) const DOCUMENTS: [(&str, &str); 3] = [
    ("server-home.toml", SERVER_DOCUMENT),
    ("user-ann.toml", USER_DOCUMENT),
    ("policy-family.toml", POLICY_DOCUMENT),
];

const SERVER_DOCUMENT: &str = r#"# A server: the machine whose connection people use. Declare it, then let a machine become it:
#   horizon-controller token home
apiVersion = "horizon.dev/v1alpha1"
kind = "Server"
metadata.name = "home"

[spec]
# What it may be used for: vpn sends people's traffic out through it.
capabilities = ["vpn"]
location = "at home"

# How clients reach its tunnel from outside, where it cannot find out by itself:
# [spec.tunnel]
# advertise = ["203.0.113.7:7443"]
"#;

const USER_DOCUMENT: &str = r#"# A person. Give her one string to paste into her client:
#   horizon-controller invite ann
apiVersion = "horizon.dev/v1alpha1"
kind = "User"
metadata.name = "ann"

[spec]
displayName = "Ann"
groups = ["family"]
"#;

const POLICY_DOCUMENT: &str = r#"# Who may use what. What no policy grants is refused.
apiVersion = "horizon.dev/v1alpha1"
kind = "AccessPolicy"
metadata.name = "family"

[spec]
subjects.groups = ["family"]
servers = ["home"]
capabilities = ["vpn"]

# Everything. For less, list other addresses, and ports: { cidr = "192.168.1.10/32", protocol = "tcp", ports = ["443"] }
destinations = [{ cidr = "0.0.0.0/0" }, { cidr = "::/0" }]
"#;

/// What keeps the database and the keys out of a Git repository.
pub(super) const GITIGNORE: &str = "/data/\n";

/// The file of settings: what is advertised is written down, everything else shows its default.
pub(super) fn settings(advertise: &[String]) -> String {
    let list = advertise.iter().map(|a| format!("{a:?}")).collect::<Vec<_>>().join(", ");
    let mut text = String::from(
        "# Settings of the controller. Lines that start with '# ' show defaults; remove it to change them.\n\
         # Each can also be a flag (--metrics-listen) or an environment variable (HORIZON_METRICS_LISTEN).\n\
         # Relative paths are relative to this file.\n\n",
    );
    for line in config::commented_file().lines() {
        if line.starts_with("# advertise = ") {
            text.push_str(&format!("advertise = [{list}]\n"));
        } else {
            text.push_str(line);
            text.push('\n');
        }
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_starter_documents_are_valid_together() {
        let parsed: Vec<_> =
            DOCUMENTS.iter().map(|(name, text)| horizon_crds::parse(name, text.as_bytes())).collect();
        for file in &parsed {
            assert_eq!(file.problems, []);
            assert_eq!(file.resources.len(), 1);
        }
        let set: Vec<_> = parsed.iter().flat_map(|file| file.resources.iter().map(|(r, o)| (r, o))).collect();
        assert_eq!(horizon_crds::check_set(&set), []);
        assert_eq!(set[0].0.name().as_str(), SERVER);
        assert_eq!(set[1].0.name().as_str(), USER);
    }

    #[test]
    fn the_settings_can_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(&path, settings(&["192.0.2.1".into(), "[2001:db8::1]:99".into()])).unwrap();
        let settings = config::read_file(&path).unwrap();
        assert_eq!(settings.advertise.as_ref().map(Vec::len), Some(2));
        assert_eq!(settings.data, Some(dir.path().join("data")));
        let resolved = config::Config::resolve(settings).unwrap();
        let default = config::Config::resolve(config::Settings::default()).unwrap();
        assert_eq!((resolved.listen, resolved.timeouts), (default.listen, default.timeouts));
    }
}
