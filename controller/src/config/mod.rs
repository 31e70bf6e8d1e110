//! The settings of a controller: flags over environment variables over the file over defaults.

mod file;
mod resolve;
mod settings;
mod url_file;

pub use file::{FileError, read_file};
pub use resolve::{Config, ConfigError, Limits, Pkcs11Config, RestConfig, Timeouts};
pub use settings::{
    Advertised, DEFAULT_FILE, LogFormat, SecretName, Settings, SourceKind, commented_file, defaults,
};
pub use url_file::{UrlFileError, read_url};
