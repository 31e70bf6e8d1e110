//! The organisation's keys: a directory of files that only the controller's user may read, or the same files in a Kubernetes
//! Secret.
//!
//! `envelope.key` opens what is sealed in the database. `root-N.key`, `tls-N.key`, `state-N.key` and `ticket-N.key` are
//! Ed25519 seeds, N being the version of the KeySet that brought them in. `keysets.bin` is the chain of signed KeySets, each
//! as a frame of the control protocol: a rotation appends one. Every private key is a line of base32.
//!
//! A rotation is decided in the database ([`rotate`]): each step is a row with the new KeySet and its private key, sealed. Every
//! replica takes it from there and writes it where its keys lie ([`Home`]), so that a crash between any two steps leaves
//! nothing but a replica that is behind, and catches up.

mod carry;
mod envelope;
mod enveloping;
mod files;
mod home;
mod ring;
mod rotate;
mod secrets;
mod token;

use std::{
    collections::BTreeMap,
    fmt, io,
    path::{Path, PathBuf},
};

use horizon_model::{PublicKey, RootId, Secret};
use horizon_wire::{
    Message, frame,
    key::{self, SigningKey},
    keyset::{self, Anchor, KeySet, KeySetError, KeySetKey, MAX_CHAIN},
    proto::{KeyPhase, KeyUse, SignedKeySet},
    rotation,
};
use jiff::{SignedDuration, Timestamp};
use thiserror::Error;
use zeroize::Zeroizing;

pub use carry::Placed;
pub use envelope::{Envelope, EnvelopeError};
pub use enveloping::EnvelopeHealth;
pub use home::Home;
pub use ring::{Held, KeyRing, Role};
pub use rotate::{RotateError, Rotator, follow};
pub use token::{Token, TokenError, TokenSettings};

use crate::store::{EnvelopeKey, StoredKeySet};

/// How long the keys of a KeySet are valid.
const VALIDITY: SignedDuration = SignedDuration::from_hours(10 * 365 * 24);
/// How much earlier than now they start to be, for machines whose clocks are slow.
const LENIENCE: SignedDuration = SignedDuration::from_hours(24);
/// The largest chain file.
const MAX_CHAIN_BYTES: usize = 4 * 1024 * 1024;

const CHAIN: &str = "keysets.bin";
const SUFFIX: &str = "key";
const ENVELOPE: &str = "envelope";
const ENVELOPE_FILE: &str = "envelope.key";
const ROOT: &str = "root";
const USES: [(KeyUse, &str); 3] =
    [(KeyUse::Tls, "tls"), (KeyUse::State, "state"), (KeyUse::Ticket, "ticket")];

/// Why the keys cannot be used.
#[derive(Debug, Error)]
pub enum KeysError {
    /// There are keys already.
    #[error("{0} already holds an organisation's keys; they are not overwritten")]
    Exists(PathBuf),
    /// There are none.
    #[error("{0} holds no keys: run `horizon-controller init` first")]
    Missing(PathBuf),
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others than the owner may read it.
    #[error("{0} can be read by others than its owner: run `chmod 600` on it")]
    Open(PathBuf),
    /// It has another content than it should.
    #[error("{0} is damaged: restore it from a backup")]
    Damaged(PathBuf),
    /// The chain of KeySets does not hold.
    #[error("the chain of KeySets does not hold: {0}; restore it from a backup")]
    Chain(#[from] KeySetError),
    /// The database has KeySets that do not follow those that are here.
    #[error(
        "the database has KeySet {found}, which does not follow KeySet {held}: restore the newest backup of the keys"
    )]
    NotNext {
        /// The newest that is here.
        held: u64,
        /// What was found.
        found: u64,
    },
    /// There is no envelope key.
    #[error(
        "there is no envelope.key: restore it from a backup; if the envelope key is in a hardware security module, set \
         pkcs11_module, pkcs11_token and pkcs11_key"
    )]
    NoEnvelope,
    /// There is no PIN for the token.
    #[error(
        "there is no PIN for the PKCS#11 token: write it into a file, name that in pkcs11_pin_file, or set HORIZON_PKCS11_PIN"
    )]
    NoPin,
    /// They are in a Secret that cannot be written.
    #[error(transparent)]
    Secret(#[from] crate::kubernetes::KeysSecretError),
    /// A private key of the newest KeySet is not there.
    #[error("no file {use_name}-*.key in {path} is the key of KeySet {version}: restore it from a backup")]
    NoKey {
        /// The directory.
        path: PathBuf,
        /// For what the key is.
        use_name: &'static str,
        /// The KeySet that lists it.
        version: u64,
    },
}

/// The organisation's keys, loaded.
#[derive(Clone)]
pub struct Keys {
    /// Opens the data keys of the database, unless a key of hardware does.
    pub envelope: Option<EnvelopeKey>,
    /// Signs KeySets.
    pub root: SigningKey,
    /// Proves in TLS who the controller is.
    pub tls: SigningKey,
    /// Signs the states of appliances.
    pub state: SigningKey,
    /// Signs tickets.
    pub ticket: SigningKey,
    /// The newest KeySet.
    pub keyset: KeySet,
    /// All KeySets, from version 1.
    pub chain: Vec<SignedKeySet>,
    /// Every key that ever signed states.
    ever_state: Vec<PublicKey>,
    /// The files that they were read from.
    files: KeyFiles,
}

/// The files that hold an organisation's keys, by name: those of a directory, or of a Kubernetes Secret.
pub type KeyFiles = BTreeMap<String, Zeroizing<Vec<u8>>>;

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("keyset", &self.keyset).finish_non_exhaustive()
    }
}

impl Keys {
    /// The keys of a new organisation, as files that are nowhere yet.
    pub fn fresh(now: Timestamp) -> KeyFiles {
        let mut made = KeyFiles::new();
        let mut add = |name: &str, key: &Secret| made.insert(format!("{name}.{SUFFIX}"), files::encode(key));
        add(ENVELOPE, &fresh());
        let root = SigningKey::from_seed(fresh());
        add(&numbered(ROOT, 1), root.seed());
        let mut keys = Vec::new();
        for (usage, name) in USES {
            let key = SigningKey::from_seed(fresh());
            add(&numbered(name, 1), key.seed());
            let not_before = (now - LENIENCE).as_millisecond();
            let not_after = (now + VALIDITY).as_millisecond();
            keys.push(KeySetKey {
                usage,
                key: key.public(),
                not_before,
                not_after,
                phase: KeyPhase::Current,
            });
        }
        let keyset = KeySet {
            version: 1,
            root: root.public(),
            keys,
            issued: now.as_millisecond(),
            revoked: Vec::new(),
        };
        let signed = keyset.sign(&root, None);
        made.insert(CHAIN.to_owned(), encode_chain([&signed]));
        made
    }

    /// Makes the keys of a new organisation in `directory`, which is made if it is not there. Existing keys are never
    /// overwritten; an attempt that broke off is taken up again.
    pub fn create(directory: &Path, now: Timestamp) -> Result<Self, KeysError> {
        files::make_directory(directory)?;
        if directory.join(CHAIN).exists() {
            return Err(KeysError::Exists(directory.to_owned()));
        }
        let made = Self::fresh(now);
        // The chain is written last: without it there is no organisation yet, and nothing has seen the other keys.
        let (chain, keys): (Vec<_>, Vec<_>) = made.iter().partition(|(name, _)| name.as_str() == CHAIN);
        for (name, content) in keys.into_iter().chain(chain) {
            files::write(&directory.join(name), content)?;
        }
        Self::open(directory, now)
    }

    /// Loads the keys of `directory` and checks that they belong together.
    pub fn open(directory: &Path, now: Timestamp) -> Result<Self, KeysError> {
        let chain = directory.join(CHAIN);
        if !chain.exists() {
            return Err(KeysError::Missing(directory.to_owned()));
        }
        let mut found = files::read_keys(directory)?;
        found.insert(CHAIN.to_owned(), files::read(&chain, MAX_CHAIN_BYTES)?);
        Self::read(&found, directory, now)
    }

    /// Reads keys from their files and checks that they belong together. `place` is where the files are, for what is said
    /// about them.
    pub fn read(found: &KeyFiles, place: &Path, now: Timestamp) -> Result<Self, KeysError> {
        let path = place.join(CHAIN);
        let bytes = found.get(CHAIN).ok_or_else(|| KeysError::Missing(place.to_owned()))?;
        let mut decoder = frame::Decoder::new(MAX_CHAIN_BYTES);
        decoder.push(bytes);
        let mut chain: Vec<SignedKeySet> = Vec::new();
        let mut length = 0;
        while let Some(next) = decoder.poll().map_err(|_| KeysError::Damaged(path.clone()))? {
            length += frame::encode(&next).len();
            chain.push(next);
        }
        if length != bytes.len() {
            return Err(KeysError::Damaged(path));
        }
        let first = chain.first().ok_or_else(|| KeysError::Damaged(path.clone()))?;
        let anchor = Anchor::Root(key::root_id(&keyset::read(first)?.root));
        let keyset = keyset::walk(&anchor, &chain)?;
        let find = |name: &'static str, wanted: &dyn Fn(&PublicKey) -> bool| {
            files::find_key(found, place, name, wanted)?.ok_or(KeysError::NoKey {
                path: place.to_owned(),
                use_name: name,
                version: keyset.version,
            })
        };
        // The clock may be slow: a KeySet is valid when it was issued.
        let now = now.as_millisecond().max(keyset.issued);
        let used = |usage: KeyUse, key: &PublicKey| {
            keyset.current(usage) == Some(*key) && keyset.allows(usage, key, now)
        };
        let of = |usage: KeyUse, name| find(name, &|key| used(usage, key));
        Ok(Self {
            envelope: match found.contains_key(ENVELOPE_FILE) {
                true => Some(EnvelopeKey(files::decode(found, place, ENVELOPE_FILE)?)),
                false => None,
            },
            root: find(ROOT, &|key| *key == keyset.root)?,
            tls: of(KeyUse::Tls, "tls")?,
            state: of(KeyUse::State, "state")?,
            ticket: of(KeyUse::Ticket, "ticket")?,
            keyset,
            ever_state: state_keys(&chain),
            chain,
            files: found.clone(),
        })
    }

    /// These keys with the KeySets that follow, as the database has them. What no KeySet needs any more is left out.
    ///
    /// # Errors
    /// When they do not follow, or a private key that is needed did not come with them.
    pub fn advanced(&self, rows: &[StoredKeySet], now: Timestamp) -> Result<Self, KeysError> {
        let mut chain = self.chain.clone();
        let mut files = self.files.clone();
        for row in rows {
            let held = u64::try_from(chain.len()).unwrap_or(u64::MAX);
            if row.version != held + 1 {
                return Err(KeysError::NotNext { held, found: row.version });
            }
            chain.push(SignedKeySet::decode(&row.signed[..]).map_err(|_| KeySetError::Malformed)?);
            if let Some((name, key)) = &row.key {
                files.insert(format!("{name}.{SUFFIX}"), files::encode(key));
            }
        }
        let keyset = keyset::walk(&Anchor::KeySet(self.keyset.clone()), &chain)?;
        let needed = rotation::needed(&keyset);
        let place = Path::new("the database");
        let over: Vec<String> = files
            .keys()
            .filter(|name| [ROOT, "tls", "state", "ticket"].iter().any(|class| files::is_of(name, class)))
            .filter(|name| {
                let key = files::decode(&files, place, name).map(|seed| SigningKey::from_seed(seed).public());
                key.is_ok_and(|key| !needed.contains(&key))
            })
            .cloned()
            .collect();
        for name in over {
            files.remove(&name);
        }
        files.insert(CHAIN.to_owned(), encode_chain(&chain));
        Self::read(&files, place, now)
    }

    /// The encoded KeySets, from version 1.
    pub fn encoded_chain(&self) -> Vec<Vec<u8>> {
        self.chain.iter().map(Message::encode_to_vec).collect()
    }

    /// The envelope key, where it is a file's or a Secret's.
    ///
    /// # Errors
    /// When it is not there.
    pub fn envelope_key(&self) -> Result<&EnvelopeKey, KeysError> {
        self.envelope.as_ref().ok_or(KeysError::NoEnvelope)
    }

    /// What tokens and personal keys pin.
    pub fn root_id(&self) -> RootId {
        key::root_id(&self.keyset.root)
    }

    /// Whether a key signs states, or ever did.
    pub fn signed_states(&self, key: &PublicKey) -> bool {
        self.ever_state.contains(key)
    }

    /// The KeySets that a peer needs that holds version `held`; 0 for none. The one it holds is the first of them. Of more than
    /// [`MAX_CHAIN`] these are the first for a peer that holds one, which asks again with what it has then, and the newest for a
    /// peer that knows a root alone.
    pub fn chain_from(&self, held: u64) -> Vec<SignedKeySet> {
        let skip = match held {
            0 => self.chain.len().saturating_sub(MAX_CHAIN),
            held => usize::try_from(held - 1).unwrap_or(usize::MAX),
        };
        let rest = self.chain.get(skip..).filter(|rest| !rest.is_empty());
        // Whoever holds a newer one than this controller sees that it fell back.
        let rest = rest.unwrap_or(&self.chain[self.chain.len().saturating_sub(1)..]);
        rest[..rest.len().min(MAX_CHAIN)].to_vec()
    }
}

/// The keys for states that a chain lists, which was walked before.
fn state_keys(chain: &[SignedKeySet]) -> Vec<PublicKey> {
    let mut keys: Vec<PublicKey> = Vec::new();
    for set in chain.iter().filter_map(|signed| keyset::read(signed).ok()) {
        for key in set.keys.iter().filter(|key| key.usage == KeyUse::State) {
            if !keys.contains(&key.key) {
                keys.push(key.key);
            }
        }
    }
    keys
}

fn encode_chain<'a>(chain: impl IntoIterator<Item = &'a SignedKeySet>) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(chain.into_iter().flat_map(|signed| frame::encode(signed).to_vec()).collect())
}

fn numbered(name: &str, version: u64) -> String {
    format!("{name}-{version}")
}

fn fresh() -> Secret {
    let mut seed = Zeroizing::new([0; 32]);
    aws_lc_rs::rand::fill(&mut *seed).expect("the operating system gives random bytes");
    Secret::new(*seed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn keys_are_made_once_and_return() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        let now = Timestamp::now();
        assert!(matches!(Keys::open(&path, now), Err(KeysError::Missing(_))));
        let made = Keys::create(&path, now).unwrap();
        let read = Keys::open(&path, now).unwrap();
        assert_eq!((made.root_id(), made.tls.public()), (read.root_id(), read.tls.public()));
        assert_eq!(read.keyset.version, 1);
        assert!(read.keyset.allows(KeyUse::State, &read.state.public(), now.as_millisecond()));
        assert!(matches!(Keys::create(&path, now), Err(KeysError::Exists(_))));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        for entry in std::fs::read_dir(&path).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.path());
        }
    }

    #[test]
    fn keys_need_no_directory() {
        let now = Timestamp::now();
        let made = Keys::fresh(now);
        let keys = Keys::read(&made, Path::new("horizon/keys"), now).unwrap();
        assert!(keys.keyset.allows(KeyUse::Tls, &keys.tls.public(), now.as_millisecond()));
        let without = |name: &str| {
            let mut files = made.clone();
            files.remove(name);
            Keys::read(&files, Path::new("horizon/keys"), now).unwrap_err().to_string()
        };
        assert!(without(CHAIN).contains("horizon/keys holds no keys"));
        assert!(without("root-1.key").contains("no file root-*.key in horizon/keys"));
        let mut files = made.clone();
        files.remove("envelope.key");
        let without = Keys::read(&files, Path::new("horizon/keys"), now).unwrap();
        assert!(without.envelope_key().unwrap_err().to_string().contains("envelope.key"));
    }

    #[test]
    fn what_was_altered_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let now = Timestamp::now();
        Keys::create(dir.path(), now).unwrap();
        let tls = dir.path().join("tls-1.key");
        std::fs::set_permissions(&tls, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Keys::open(dir.path(), now), Err(KeysError::Open(_))));
        std::fs::remove_file(&tls).unwrap();
        assert!(matches!(Keys::open(dir.path(), now), Err(KeysError::NoKey { use_name: "tls", .. })));
        let chain = dir.path().join(CHAIN);
        let mut bytes = std::fs::read(&chain).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&chain, &bytes).unwrap();
        assert!(matches!(Keys::open(dir.path(), now), Err(KeysError::Chain(_))));
        std::fs::write(&chain, &bytes[..last]).unwrap();
        assert!(matches!(Keys::open(dir.path(), now), Err(KeysError::Damaged(_))));
    }

    #[test]
    fn peers_get_the_chain_from_what_they_hold() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::create(dir.path(), Timestamp::now()).unwrap();
        for held in [0, 1, 7, u64::MAX] {
            assert_eq!(keys.chain_from(held).len(), 1, "{held}");
        }
        assert!(keyset::walk(&Anchor::Root(keys.root_id()), &keys.chain_from(0)).is_ok());
    }
}
