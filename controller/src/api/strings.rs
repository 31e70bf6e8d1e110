//! The strings people paste, put together from what the controller is and a secret.

use horizon_model::{KeyId, RootId, Secret, TaggedSecret};
use horizon_wire::token::{PersonalKey, RegistrationToken};

/// What every such string says of the controller.
#[derive(Clone, Debug)]
pub struct Strings {
    /// How others reach it, as `host:port`, best first.
    pub advertise: Vec<String>,
    /// The organisation's root.
    pub root: RootId,
}

impl Strings {
    /// The token of a registration key.
    pub fn registration_token(&self, key_name: &str, secret: Secret) -> String {
        let controllers = self.advertise.clone();
        RegistrationToken { controllers, root: self.root, key_name: key_name.to_owned(), secret }.encode()
    }

    /// A personal key as its user pastes it.
    pub fn personal_key(&self, id: KeyId, secret: TaggedSecret) -> String {
        PersonalKey { controllers: self.advertise.clone(), root: self.root, id, secret }.encode()
    }
}
