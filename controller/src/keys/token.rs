//! The envelope key in a hardware security module, over PKCS#11 (OASIS PKCS #11 v2.40 and later): an AES-256 key, found by its
//! label, that never leaves the token. A session is opened for each use, which is at start, in rotations, and when it is looked
//! whether the token is there: what unwrapped data keys seal goes on without it.

use std::{
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    error::{Error, RvError},
    mechanism::{Mechanism, aead::GcmParams},
    object::{Attribute, KeyType, ObjectClass, ObjectHandle},
    session::{Session, UserType},
    slot::Slot,
    types::AuthPin,
};
use thiserror::Error;
use zeroize::Zeroizing;

use super::{KeysError, files};
use crate::{config::Pkcs11Config, store::random};

const NONCE: usize = 12;
const TAG_BITS: u64 = 128;

/// How a key of a token is found.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenSettings {
    /// The module of the token's vendor, a shared library.
    pub module: PathBuf,
    /// The token's label.
    pub token: String,
    /// The key's label.
    pub key: String,
    /// The PIN of the token's user.
    pub pin: Zeroizing<String>,
}

/// The variable that has the PIN where no file has it.
const PIN: &str = "HORIZON_PKCS11_PIN";
/// The longest PIN, in bytes.
const MAX_PIN_BYTES: usize = 256;

impl TokenSettings {
    /// Those of the settings of a controller, with the PIN from its file, which only its owner may read, or from the environment.
    ///
    /// # Errors
    /// When there is no PIN.
    pub fn read(at: &Pkcs11Config) -> Result<Self, KeysError> {
        let pin = match &at.pin_file {
            Some(path) => {
                let bytes = files::read(path, MAX_PIN_BYTES)?;
                let text = std::str::from_utf8(bytes.trim_ascii()).map_err(|_| KeysError::NoPin)?;
                Zeroizing::new(text.to_owned())
            }
            None => Zeroizing::new(std::env::var(PIN).map_err(|_| KeysError::NoPin)?),
        };
        if pin.is_empty() {
            return Err(KeysError::NoPin);
        }
        Ok(Self { module: at.module.clone(), token: at.token.clone(), key: at.key.clone(), pin })
    }
}

impl std::fmt::Debug for TokenSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("TokenSettings");
        shown.field("module", &self.module).field("token", &self.token).field("key", &self.key);
        shown.finish_non_exhaustive()
    }
}

/// Why a token does not do what it is asked.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TokenError {
    /// The module is not there, or is none.
    #[error("cannot load the PKCS#11 module {module}: {why}; install it, or correct pkcs11_module")]
    Module {
        /// Its path.
        module: PathBuf,
        /// Why.
        why: String,
    },
    /// There is no such token.
    #[error("no PKCS#11 token is called '{token}' (there are: {there}): connect it, or correct pkcs11_token")]
    NoToken {
        /// What it should be called.
        token: String,
        /// Those that are there.
        there: String,
    },
    /// The PIN is wrong. It is not tried again: too many tries lock a token.
    #[error(
        "the PIN of the PKCS#11 token '{0}' is wrong, or locked: correct pkcs11_pin_file or HORIZON_PKCS11_PIN and start again; \
         it is not tried a second time, since tokens lock themselves"
    )]
    Pin(String),
    /// There is no such key, or several.
    #[error(
        "the PKCS#11 token '{token}' has {count} AES keys called '{key}', and must have one: make it with the token's tools \
         (docs/configure.md), or correct pkcs11_key"
    )]
    NoKey {
        /// The token.
        token: String,
        /// The key's label.
        key: String,
        /// How many there are.
        count: usize,
    },
    /// What was to be opened does not.
    #[error("the PKCS#11 token does not open what was wrapped: it was wrapped by another key, or altered")]
    Closed,
    /// Anything else.
    #[error("the PKCS#11 token '{token}' cannot be used: {why}")]
    Failed {
        /// The token.
        token: String,
        /// Why.
        why: String,
    },
}

/// A key of a token.
pub struct Token {
    settings: TokenSettings,
    /// The module, once it was loaded. One use at a time.
    module: Mutex<Option<Pkcs11>>,
    /// The PIN was refused.
    refused: AtomicBool,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.settings.fmt(f)
    }
}

impl Token {
    /// A key that is looked for when it is first used.
    pub fn new(settings: TokenSettings) -> Self {
        Self { settings, module: Mutex::new(None), refused: AtomicBool::new(false) }
    }

    /// The name by which the database knows it.
    pub fn id(&self) -> String {
        format!("pkcs11/{}/{}", self.settings.token, self.settings.key)
    }

    /// Nonce, ciphertext and tag of AES-GCM.
    ///
    /// # Errors
    /// When the token does not do it.
    pub fn wrap(&self, what: &[u8], key: &[u8]) -> Result<Vec<u8>, TokenError> {
        self.with_key(|session, handle| {
            let mut nonce: [u8; NONCE] = random();
            let params = GcmParams::new(&mut nonce, what, TAG_BITS.into())?;
            let text = session.encrypt(&Mechanism::AesGcm(params), handle, key)?;
            Ok([&nonce[..], &text].concat())
        })
    }

    /// What was wrapped.
    ///
    /// # Errors
    /// When it was wrapped otherwise, or the token does not do it.
    pub fn unwrap(&self, what: &[u8], wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, TokenError> {
        let (nonce, text) = wrapped.split_first_chunk::<NONCE>().ok_or(TokenError::Closed)?;
        self.with_key(|session, handle| {
            let mut nonce = *nonce;
            let params = GcmParams::new(&mut nonce, what, TAG_BITS.into())?;
            Ok(Zeroizing::new(session.decrypt(&Mechanism::AesGcm(params), handle, text)?))
        })
    }

    /// Whether the key can be used now.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn check(&self) -> Result<(), TokenError> {
        let text = self.wrap(b"check", &[0; 32])?;
        self.unwrap(b"check", &text).map(drop)
    }

    fn with_key<T>(
        &self,
        work: impl FnOnce(&Session, ObjectHandle) -> Result<T, Error>,
    ) -> Result<T, TokenError> {
        if self.refused.load(Ordering::Relaxed) {
            return Err(TokenError::Pin(self.settings.token.clone()));
        }
        let mut held = self.lock();
        let module = match &*held {
            Some(module) => module.clone(),
            None => held.insert(load(&self.settings.module)?).clone(),
        };
        let done = self.in_session(&module, work);
        if matches!(done, Err(TokenError::NoToken { .. } | TokenError::Failed { .. })) {
            // A module may not see by itself that a token came back: the next use starts it anew.
            *held = None;
            if let Err(error) = module.finalize() {
                tracing::debug!(%error, "the PKCS#11 module did not end");
            }
        }
        done
    }

    fn in_session<T>(
        &self,
        module: &Pkcs11,
        work: impl FnOnce(&Session, ObjectHandle) -> Result<T, Error>,
    ) -> Result<T, TokenError> {
        let session = self.log_in(module)?;
        let key = self.find_key(&session)?;
        work(&session, key).map_err(|error| match error {
            Error::Pkcs11(RvError::EncryptedDataInvalid | RvError::EncryptedDataLenRange, _) => {
                TokenError::Closed
            }
            // What SoftHSM says of a tag that does not fit.
            Error::Pkcs11(RvError::GeneralError, cryptoki::context::Function::Decrypt) => TokenError::Closed,
            error => self.failed(&error),
        })
    }

    fn log_in(&self, module: &Pkcs11) -> Result<Session, TokenError> {
        let slot = self.find_slot(module)?;
        let session = module.open_ro_session(slot).map_err(|error| self.failed(&error))?;
        let pin = AuthPin::from(self.settings.pin.as_str());
        match session.login(UserType::User, Some(&pin)) {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(session),
            Err(Error::Pkcs11(
                RvError::PinIncorrect
                | RvError::PinInvalid
                | RvError::PinLenRange
                | RvError::PinLocked
                | RvError::PinExpired,
                _,
            )) => {
                self.refused.store(true, Ordering::Relaxed);
                Err(TokenError::Pin(self.settings.token.clone()))
            }
            Err(error) => Err(self.failed(&error)),
        }
    }

    fn find_slot(&self, module: &Pkcs11) -> Result<Slot, TokenError> {
        let mut there = Vec::new();
        for slot in module.get_slots_with_token().map_err(|error| self.failed(&error))? {
            // A token that is pulled out meanwhile is not there.
            let Ok(info) = module.get_token_info(slot) else { continue };
            let label = info.label().trim_end();
            if label == self.settings.token {
                return Ok(slot);
            }
            if info.token_initialized() {
                there.push(label.to_owned());
            }
        }
        let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
        Err(TokenError::NoToken { token: self.settings.token.clone(), there })
    }

    fn find_key(&self, session: &Session) -> Result<ObjectHandle, TokenError> {
        let template = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Label(self.settings.key.clone().into_bytes()),
        ];
        let found = session.find_objects(&template).map_err(|error| self.failed(&error))?;
        match found[..] {
            [key] => Ok(key),
            _ => Err(TokenError::NoKey {
                token: self.settings.token.clone(),
                key: self.settings.key.clone(),
                count: found.len(),
            }),
        }
    }

    fn failed(&self, error: &Error) -> TokenError {
        TokenError::Failed { token: self.settings.token.clone(), why: error.to_string() }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Pkcs11>> {
        // It is either loaded or not, whatever thread panics.
        self.module.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Loads a module. One that this process loaded before is the same.
fn load(path: &Path) -> Result<Pkcs11, TokenError> {
    let refused = |error: Error| TokenError::Module { module: path.to_owned(), why: error.to_string() };
    let module = Pkcs11::new(path).map_err(refused)?;
    match module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(module),
        Err(error) => Err(refused(error)),
    }
}
