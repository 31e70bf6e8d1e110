//! Settings that follow the user. They are sealed under a random key that only the user's devices have: each device that has it
//! wraps it for those that lack it, to the key that they signed. The controller keeps bytes that it cannot read.

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    rand,
};
use horizon_client_core::{failure::Failure, settings::Settings};
use horizon_model::{DeviceId, PublicKey};
use horizon_tls::hpke::{self, Sealed, WrappingKey};
use horizon_wire::{
    handing,
    key::SigningKey,
    proto::{self, from_controller, to_controller},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::{answers::unreadable, link::Link, store::Store};

/// What the key is wrapped for (`info` of RFC 9180).
const KEY_INFO: &[u8] = b"horizon settings key v1";
const NONCE: usize = 12;
/// For how many devices the key is wrapped at once, so that the message is not too large; the others follow.
const MAX_KEYS: usize = 50;
/// How often a change is tried again that another device was faster with.
const TRIES: usize = 4;

/// The settings as this device keeps them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Kept {
    /// The version they are of; 0 when they were never shared.
    pub(super) version: u64,
    /// Whether they were changed here since.
    pub(super) changed: bool,
    /// What the user chose.
    pub(super) settings: Settings,
}

/// The settings' key.
#[derive(Clone, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub(super) struct SettingsKey {
    id: [u8; 16],
    key: [u8; 32],
}

/// Where the settings stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shared {
    /// They are the same on every device that was there since.
    Yes,
    /// None of the user's devices that has the key has wrapped it for this one yet.
    Waiting,
}

#[derive(Debug, Error)]
#[error("the shared settings cannot be read: {0}")]
struct Unreadable(&'static str);

impl SettingsKey {
    fn new() -> Option<Self> {
        let mut new = Self { id: [0; 16], key: [0; 32] };
        rand::fill(&mut new.id).ok()?;
        rand::fill(&mut new.key).ok()?;
        Some(new)
    }

    fn cipher(&self) -> Option<LessSafeKey> {
        Some(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &self.key).ok()?))
    }

    /// What binds sealed settings to their key and their version.
    fn place(&self, version: u64) -> Vec<u8> {
        [b"horizon settings v1".as_slice(), &self.id, &version.to_be_bytes()].concat()
    }

    fn seal(&self, settings: &Settings, version: u64) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE];
        rand::fill(&mut nonce).ok()?;
        let mut text = serde_json::to_vec(settings).ok()?;
        let place = Aad::from(self.place(version));
        let tag =
            self.cipher()?.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), place, &mut text);
        Some([&nonce[..], &text, tag.ok()?.as_ref()].concat())
    }

    fn open(&self, content: &[u8], version: u64) -> Result<Settings, Unreadable> {
        let damaged =
            Unreadable("they were changed by somebody without their key, or are of another version");
        let opened = || {
            let (nonce, sealed) = content.split_at_checked(NONCE)?;
            let mut text = Zeroizing::new(sealed.to_vec());
            let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
            let plain =
                self.cipher()?.open_in_place(nonce, Aad::from(self.place(version)), &mut text).ok()?;
            serde_json::from_slice::<Settings>(plain).ok()
        };
        opened().filter(Settings::is_sound).ok_or(damaged)
    }

    /// Wraps the key for a device, if it signed what is wrapped to.
    fn wrap(&self, device: &proto::SettingsDevice) -> Option<proto::WrappedKey> {
        let (id, key) = (DeviceId::from_slice(&device.device)?, PublicKey::from_slice(&device.device_key)?);
        let wrapping: [u8; 32] = device.wrapping_key.as_slice().try_into().ok()?;
        if !handing::verify_wrapping_key(&key, &wrapping, &device.wrapping_signature) {
            return None;
        }
        let sealed = hpke::seal(&wrapping, KEY_INFO, &bound(id, &self.id), &self.key).ok()?;
        Some(proto::WrappedKey {
            device: device.device.clone(),
            key_id: self.id.to_vec(),
            encapsulated: sealed.encapsulated,
            ciphertext: sealed.ciphertext,
        })
    }

    fn unwrap(own: &WrappingKey, device: DeviceId, wrapped: &proto::WrappedKey) -> Option<Self> {
        let id: [u8; 16] = wrapped.key_id.as_slice().try_into().ok()?;
        let sealed =
            Sealed { encapsulated: wrapped.encapsulated.clone(), ciphertext: wrapped.ciphertext.clone() };
        let key = own.open(KEY_INFO, &bound(device, &id), &sealed)?;
        Some(Self { id, key: key.as_slice().try_into().ok()? })
    }
}

fn bound(device: DeviceId, key: &[u8; 16]) -> Vec<u8> {
    [device.as_bytes().as_slice(), key].concat()
}

/// Brings the settings of this device and those that the user's devices share together.
pub(super) async fn share(
    link: &Link,
    store: &Store,
    own: &SigningKey,
    device: DeviceId,
    start_over: bool,
) -> Result<Shared, Failure> {
    let failed = |e: &dyn std::fmt::Display| Failure::failed(e.to_string(), "");
    let mut view = ask(link, to_controller::Message::GetSettings(proto::GetSettings {})).await?;
    for _ in 0..TRIES {
        let mut kept = store.settings().map_err(|e| failed(&e))?;
        let wrapping = WrappingKey::of_device(own.seed().expose());
        let theirs = view.key.as_ref().and_then(|wrapped| SettingsKey::unwrap(&wrapping, device, wrapped));
        let wrapped = theirs.is_some();
        let known = theirs.or(store.settings_key().map_err(|e| failed(&e))?);
        let key = match known {
            Some(key) if !start_over => key,
            _ if view.version == 0 || start_over => {
                SettingsKey::new().ok_or_else(|| failed(&"the system has no randomness"))?
            }
            _ => return Ok(Shared::Waiting),
        };
        let shared = if view.version == 0 || start_over {
            None
        } else {
            match key.open(&view.content, view.version) {
                Ok(settings) => Some(settings),
                Err(error) if wrapped => return Err(failed(&error)),
                // They are under another key since, which nobody has wrapped for this device yet.
                Err(_) => return Ok(Shared::Waiting),
            }
        };
        store.set_settings_key(&key).map_err(|e| failed(&e))?;
        if view.version < kept.version && !start_over {
            let why = "the controller shows older settings than this device has seen";
            let remedy = "if the organisation restored a backup: horizon settings start-over";
            return Err(Failure::failed(why, remedy));
        }
        if let Some(settings) = shared.filter(|_| view.version > kept.version && !kept.changed) {
            kept = Kept { version: view.version, changed: false, settings };
            store.set_settings(&kept).map_err(|e| failed(&e))?;
        }
        if !(kept.changed || start_over) {
            share_key(link, &key, &view).await;
            return Ok(Shared::Yes);
        }
        // The last to write wins, over a version that it knows of.
        let version = view.version + 1;
        let content =
            key.seal(&kept.settings, version).ok_or_else(|| failed(&"the settings cannot be sealed"))?;
        let put = proto::PutSettings {
            base_version: view.version,
            content: content.clone(),
            keys: view.devices.iter().filter_map(|device| key.wrap(device)).take(MAX_KEYS).collect(),
        };
        view = ask(link, to_controller::Message::PutSettings(put)).await?;
        if view.version == version && view.content == content {
            let kept = Kept { version, changed: false, ..kept };
            store.set_settings(&kept).map_err(|e| failed(&e))?;
            return Ok(Shared::Yes);
        }
    }
    Err(Failure::failed("other devices change the settings at the same time", "try again"))
}

/// Wraps the key for the devices that lack it.
async fn share_key(link: &Link, key: &SettingsKey, view: &proto::UserSettings) {
    if view.version == 0 {
        return;
    }
    let lacking = view.devices.iter().filter(|device| device.key_id != key.id);
    let keys: Vec<_> = lacking.filter_map(|device| key.wrap(device)).take(MAX_KEYS).collect();
    if !keys.is_empty() {
        link.mention(to_controller::Message::WrapSettingsKey(proto::WrapSettingsKey { keys })).await;
    }
}

async fn ask(link: &Link, message: to_controller::Message) -> Result<proto::UserSettings, Failure> {
    match link.ask(message).await? {
        (from_controller::Message::UserSettings(view), _) => Ok(view),
        _ => Err(unreadable()),
    }
}

#[cfg(test)]
mod tests {
    use horizon_model::Secret;
    use uuid::Uuid;

    use super::*;

    fn device(n: u8) -> (SigningKey, proto::SettingsDevice) {
        let key = SigningKey::from_seed(Secret::new([n; 32]));
        let wrapping = WrappingKey::of_device(key.seed().expose()).public();
        let listed = proto::SettingsDevice {
            device: DeviceId(Uuid::from_u128(n.into())).as_bytes().to_vec(),
            name: "device".into(),
            device_key: key.public().0.to_vec(),
            wrapping_key: wrapping.to_vec(),
            wrapping_signature: handing::sign_wrapping_key(&key, &wrapping),
            key_id: Vec::new(),
        };
        (key, listed)
    }

    #[test]
    fn only_the_devices_that_the_key_is_wrapped_for_read_the_settings() {
        let settings = Settings { failover: true, ..Settings::default() };
        let key = SettingsKey::new().unwrap();
        let content = key.seal(&settings, 3).unwrap();
        let (phone, listed) = device(2);
        let wrapped = key.wrap(&listed).unwrap();
        let own = |key: &SigningKey| WrappingKey::of_device(key.seed().expose());
        let id = DeviceId(Uuid::from_u128(2));
        let theirs = SettingsKey::unwrap(&own(&phone), id, &wrapped).unwrap();
        assert_eq!(theirs.open(&content, 3).unwrap(), settings);
        assert!(theirs.open(&content, 2).is_err(), "an older version under a newer number");
        assert!(!content.windows(8).any(|w| w == b"failover"));
        let (other, _) = device(3);
        assert!(SettingsKey::unwrap(&own(&other), id, &wrapped).is_none());
        assert!(SettingsKey::unwrap(&own(&phone), DeviceId(Uuid::from_u128(9)), &wrapped).is_none());
    }

    #[test]
    fn nothing_is_wrapped_to_a_key_that_the_device_did_not_sign() {
        let key = SettingsKey::new().unwrap();
        let (_, mut listed) = device(2);
        let (_, stranger) = device(3);
        listed.wrapping_key = stranger.wrapping_key;
        assert!(key.wrap(&listed).is_none());
    }
}
