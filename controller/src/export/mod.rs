//! Everything that is declared, written out as documents: for a backup of what an organisation wants, or to move it to
//! another kind of source. Each document names the identity of its resource in an annotation, so that a controller with the
//! same database takes it for that resource and not for a new one of its name.

mod command;
mod handler;
#[cfg(test)]
mod tests;

pub use command::{ExportError, Format, Place, export};
pub(crate) use handler::handle;

/// The annotation with the public key of a server's appliance, for people: nothing reads it.
pub const PUBLIC_KEY: &str = "horizon.dev/public-key";

/// The path of the API where the documents are.
pub const PATH: &str = "/v1/export";
