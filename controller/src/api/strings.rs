//! The strings people paste, put together from what the controller is and a secret.

use horizon_model::{KeyId, RootId, Secret, TaggedSecret};
use horizon_wire::token::{PersonalKey, RegistrationToken};

use crate::keys::KeyRing;

/// What every such string says of the controller.
#[derive(Clone, Debug)]
pub struct Strings {
    /// How others reach it, as `host:port`, best first.
    pub advertise: Vec<String>,
    /// The organisation's keys.
    pub keys: KeyRing,
}

impl Strings {
    /// The organisation's root, which such strings pin.
    pub fn root(&self) -> RootId {
        self.keys.now().root_id()
    }

    /// The token of a registration key.
    pub fn registration_token(&self, key_name: &str, secret: Secret) -> String {
        let controllers = self.advertise.clone();
        RegistrationToken { controllers, root: self.root(), key_name: key_name.to_owned(), secret }.encode()
    }

    /// A personal key as its user pastes it.
    pub fn personal_key(&self, id: KeyId, secret: TaggedSecret) -> String {
        PersonalKey { controllers: self.advertise.clone(), root: self.root(), id, secret }.encode()
    }
}
