//! Reading the file of settings.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use thiserror::Error;

use super::Settings;

/// The largest file of settings, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Why a file of settings was refused.
#[derive(Debug, Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot read the settings in {path}: {error}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is far too large.
    #[error("{0} is larger than 1 MiB, so it is no file of settings: name another with --config")]
    TooLarge(PathBuf),
    /// It is not what it should be.
    #[error("{path}{}: {message}", line.map(|l| format!(":{l}")).unwrap_or_default())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: Option<usize>,
        /// What is wrong and what to do.
        message: String,
    },
}

/// Reads the settings of a file. Its relative paths are relative to the file, also where they are the defaults.
pub fn read_file(path: &Path) -> Result<Settings, FileError> {
    let unreadable = |error| FileError::Unreadable { path: path.to_owned(), error };
    if fs::metadata(path).map_err(unreadable)?.len() > MAX_FILE_BYTES {
        return Err(FileError::TooLarge(path.to_owned()));
    }
    let text = fs::read_to_string(path).map_err(unreadable)?;
    let mut settings = parse(path, &text)?;
    let base = path.parent().unwrap_or(Path::new(""));
    settings.resources.get_or_insert_with(|| "resources".into());
    settings.data.get_or_insert_with(|| "data".into());
    let paths = [
        &mut settings.resources,
        &mut settings.data,
        &mut settings.socket,
        &mut settings.kubeconfig,
        &mut settings.database_url_file,
        &mut settings.migration_url_file,
        &mut settings.redis_url_file,
        &mut settings.rest_certificate,
        &mut settings.rest_key,
        &mut settings.notifications_file,
        &mut settings.geoip_database,
        &mut settings.geoip_asn_database,
        &mut settings.pkcs11_module,
        &mut settings.pkcs11_pin_file,
    ];
    for setting in paths {
        *setting = setting.take().map(|relative| base.join(relative));
    }
    Ok(settings)
}

fn parse(path: &Path, text: &str) -> Result<Settings, FileError> {
    toml::from_str(text).map_err(|error| {
        let line = error.span().map(|span| text[..span.start.min(text.len())].lines().count().max(1));
        // A span that starts a line has not counted that line yet.
        let starts_line = error.span().is_some_and(|s| s.start > 0 && text[..s.start].ends_with('\n'));
        let line = line.map(|l| if starts_line { l + 1 } else { l });
        FileError::Invalid { path: path.to_owned(), line, message: explain(error.message()) }
    })
}

/// Replaces the list of all settings after an unknown name with the one most like it.
fn explain(message: &str) -> String {
    let Some(given) = message.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next()) else {
        return message.trim_end().replace('\n', "; ");
    };
    match nearest(given) {
        Some(name) => format!("there is no setting '{given}': did you mean '{name}'?"),
        None => format!(
            "there is no setting '{given}': remove it; `horizon-controller run --help` lists all settings"
        ),
    }
}

fn nearest(given: &str) -> Option<&'static str> {
    let given = given.to_lowercase().replace('-', "_");
    Settings::NAMES
        .iter()
        .map(|name| (distance(&given, name), *name))
        .filter(|(distance, name)| *distance <= 1 + name.len() / 4)
        .min()
        .map(|(_, name)| name)
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> String {
        parse(Path::new("config.toml"), text).unwrap_err().to_string()
    }

    #[test]
    fn an_unknown_setting_is_named_with_its_line_and_the_likely_one() {
        assert_eq!(
            message("listen = \"[::]:1\"\n\nmetrics-listen = \"127.0.0.1:1\"\n"),
            "config.toml:3: there is no setting 'metrics-listen': did you mean 'metrics_listen'?"
        );
        assert!(message("colour = 3").contains("there is no setting 'colour': remove it"));
    }

    #[test]
    fn wrong_values_are_explained() {
        let text = message("# first\nlisten = 7440\n");
        assert!(text.starts_with("config.toml:2: "), "{text}");
        let text = message("advertise = [\"a b\"]\n");
        assert!(text.contains("write 192.0.2.1"), "{text}");
        let text = message("debounce = \"soon\"\n");
        assert!(text.contains("is not a duration"), "{text}");
        assert!(message("listen = ").starts_with("config.toml:1: "));
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        fs::write(&path, "resources = \"r\"\ndata = \"/var/lib/h\"\n").unwrap();
        let settings = read_file(&path).unwrap();
        assert_eq!(settings.resources, Some(dir.path().join("r")));
        assert_eq!(settings.data, Some("/var/lib/h".into()));
    }

    #[test]
    fn a_file_that_cannot_be_read_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("none.toml");
        assert!(read_file(&path).unwrap_err().to_string().contains("cannot read the settings in"));
        fs::write(&path, vec![b'#'; 2 << 20]).unwrap();
        assert!(matches!(read_file(&path), Err(FileError::TooLarge(_))));
    }
}
