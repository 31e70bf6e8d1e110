//! The command's side: the documents, as files.

use std::{
    convert::Infallible,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    str::FromStr,
};

use clap::ValueEnum;
use horizon_crds::{
    Resource,
    document::{MAX_FILE_BYTES, MAX_RESOURCES_PER_FILE, from_json, to_toml, to_yaml},
};
use serde_json::Value;
use thiserror::Error;

use super::PATH;
use crate::api::{
    client::{Client, ClientError},
    model::List,
};

/// The language of the documents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// TOML, for a directory that a controller reads.
    #[default]
    Toml,
    /// YAML, for Kubernetes.
    Yaml,
}

/// Where the documents go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// All of them to the standard output.
    Output,
    /// One file each, below a directory.
    Directory(PathBuf),
}

impl FromStr for Place {
    type Err = Infallible;
    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(if text == "-" { Self::Output } else { Self::Directory(text.into()) })
    }
}

/// Why nothing, or not everything, was exported.
#[derive(Debug, Error)]
pub enum ExportError {
    /// The controller did not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// What it answered is no document.
    #[error(
        "the controller sent a document that cannot be read ({0}): check that both are of the same version"
    )]
    Document(String),
    /// There is something already.
    #[error("{0} is not empty: name another directory, so that nothing of before is mixed in")]
    NotEmpty(PathBuf),
    /// The system refused.
    #[error("{path}: {error}")]
    Write {
        /// What was to be written.
        path: PathBuf,
        /// Why it was not.
        error: io::Error,
    },
    /// The output is closed.
    #[error(transparent)]
    Output(#[from] io::Error),
    /// A document cannot be written in this language.
    #[error("a document cannot be written as YAML: {0}")]
    Yaml(String),
}

/// Writes out everything that is declared. Returns how many documents there are.
///
/// # Errors
/// Those of [`ExportError`].
pub async fn export(
    client: &Client,
    format: Format,
    place: &Place,
    out: &mut dyn Write,
    hints: &mut dyn Write,
) -> Result<usize, ExportError> {
    if let Place::Directory(directory) = place {
        check_empty(directory)?;
    }
    let list: List<Value> = client.get(PATH).await?;
    let read = |json: &Value| {
        from_json(json).map_err(|issues| {
            let issues: Vec<_> = issues.iter().map(ToString::to_string).collect();
            ExportError::Document(issues.join("; "))
        })
    };
    let resources: Vec<Resource> = list.items.iter().map(read).collect::<Result<_, _>>()?;
    match place {
        Place::Output => {
            let text = write(&resources, format)?;
            out.write_all(text.as_bytes())?;
            let too_large = text.len() > MAX_FILE_BYTES || resources.len() > MAX_RESOURCES_PER_FILE;
            if too_large && format == Format::Toml {
                writeln!(
                    hints,
                    "This is more than one file may hold: write one file each with --output DIR."
                )?;
            }
        }
        Place::Directory(directory) => {
            for resource in &resources {
                write_file(directory, resource, format)?;
            }
            writeln!(hints, "{} documents are in {}", resources.len(), directory.display())?;
        }
    }
    Ok(resources.len())
}

fn check_empty(directory: &Path) -> Result<(), ExportError> {
    match fs::read_dir(directory) {
        Ok(mut entries) => match entries.next() {
            Some(_) => Err(ExportError::NotEmpty(directory.to_owned())),
            None => Ok(()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(ExportError::Write { path: directory.to_owned(), error }),
    }
}

fn write(resources: &[Resource], format: Format) -> Result<String, ExportError> {
    match format {
        Format::Toml => Ok(to_toml(resources)),
        Format::Yaml => to_yaml(resources).map_err(|error| ExportError::Yaml(error.to_string())),
    }
}

/// Writes `DIRECTORY/NAMESPACE/KINDS/NAME.toml`.
fn write_file(directory: &Path, resource: &Resource, format: Format) -> Result<(), ExportError> {
    let text = write(std::slice::from_ref(resource), format)?;
    let folder = directory.join(resource.namespace().as_str()).join(resource.kind().plural());
    let extension = match format {
        Format::Toml => "toml",
        Format::Yaml => "yaml",
    };
    let path = folder.join(format!("{}.{extension}", resource.name()));
    let written = fs::create_dir_all(&folder).and_then(|()| {
        let mut file = fs::File::create_new(&path)?;
        file.write_all(text.as_bytes())
    });
    written.map_err(|error| ExportError::Write { path, error })
}

#[cfg(test)]
mod tests {
    use horizon_crds::parse;

    use super::*;

    const DOCUMENTS: &str = "[[resource]]\napiVersion = 'horizon.dev/v1alpha1'\nkind = 'User'\n\
        metadata = { name = 'ana', annotations = { 'horizon.dev/id' = '7' } }\nspec.groups = ['staff']\n\
        [[resource]]\napiVersion = 'horizon.dev/v1alpha1'\nkind = 'Server'\n\
        metadata = { name = 'berlin', namespace = 'lab' }\nspec.location = 'Berlin: \"Mitte\"'\n";

    fn resources() -> Vec<Resource> {
        let parsed = parse("a.toml", DOCUMENTS.as_bytes());
        assert_eq!(parsed.problems, []);
        parsed.resources.into_iter().map(|(resource, _)| resource).collect()
    }

    #[test]
    fn files_hold_what_was_written() {
        for (format, extension) in [(Format::Toml, "toml"), (Format::Yaml, "yaml")] {
            let directory = tempfile::tempdir().unwrap();
            for resource in &resources() {
                write_file(directory.path(), resource, format).unwrap();
            }
            for (name, resource) in ["default/users/ana", "lab/servers/berlin"].iter().zip(resources()) {
                let name = format!("{name}.{extension}");
                let parsed = parse(&name, &fs::read(directory.path().join(&name)).unwrap());
                assert_eq!(parsed.problems, []);
                assert_eq!(parsed.resources[0].0, resource);
            }
            assert!(matches!(check_empty(directory.path()), Err(ExportError::NotEmpty(_))));
            let again = write_file(directory.path(), &resources()[0], format);
            assert!(matches!(again, Err(ExportError::Write { .. })), "nothing is overwritten");
        }
    }
}
