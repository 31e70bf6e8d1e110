//! Which names in the directory count.

/// Whether a file declares resources by its name: `*.toml`, unless an editor left it behind.
pub(super) fn is_document(name: &str) -> bool {
    name.ends_with(".toml") && !is_hidden(name) && !(name.starts_with('#') || name.starts_with('~'))
}

/// Whether a file or directory is hidden: dotfiles, which include editors' swap files and the `..data` directories behind
/// mounted ConfigMaps, whose visible names are symbolic links into them.
pub(super) fn is_hidden(name: &str) -> bool {
    name.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn editors_leave_things_behind() {
        for name in ["a.toml", "policies.toml", "x.y.toml"] {
            assert!(is_document(name), "{name}");
        }
        for name in [
            "a.toml~",
            ".a.toml.swp",
            ".#a.toml",
            "#a.toml#",
            "a.toml.tmp",
            "a.toml.bak",
            ".a.toml.XYZ",
            "~a.toml",
            "4913",
            ".goutputstream-X.toml",
            "..data",
            "a.yaml",
            "README.md",
            "toml",
            "a.toml.orig",
        ] {
            assert!(!is_document(name), "{name}");
        }
    }
}
