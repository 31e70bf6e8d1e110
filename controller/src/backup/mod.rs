//! Backups: one encrypted file with the database, the keys, the settings and what is declared in files, made while the
//! controller runs; and the way back into an empty system.
//!
//! The file is a head ([`head`]) that says how it is opened, and a stream of sealed chunks ([`stream`]) of records
//! ([`records`]). Nothing of it is ever on a disk in the clear, but what is restored.

mod create;
mod draft;
mod error;
mod head;
mod recipient;
mod records;
mod restore;
mod stream;
#[cfg(test)]
mod tests;
mod verify;

pub use create::{Made, Order, create, create_file};
pub use error::BackupError;
pub use head::{HeadError, Lock, MIN_PASSPHRASE, Opener, open, seal};
pub use recipient::{Identity, InvalidBackupKey, Recipient};
pub use records::{Manifest, Part, Reader, RecordError, Section, Totals, Writer};
pub use restore::{Restoration, Restored, restore};
pub use stream::{Broken, Opening, Sealing};
pub use verify::{Contents, TableSize, verify, verify_audit};
