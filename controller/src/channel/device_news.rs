//! What a device says of itself: its machine, what it counted of its session, and the settings that follow its user.

use horizon_model::{DeviceId, DeviceInfo, SessionId};
use horizon_wire::{
    convert,
    proto::{self, from_controller::Message as Say},
    refusal::Refusal,
};

use super::{Context, opening::Remote, refusals};
use crate::{
    live::Hint,
    store::{ClientReport, DeviceRecord, WrappedKey},
};

/// The longest sealed settings, in bytes.
const MAX_SETTINGS: usize = 8 * 1024;
/// The most devices that a key is wrapped for at once: more than a user may have.
const MAX_KEYS: usize = 100;
/// An X25519 public key, and a key of 32 bytes with its tag.
const ENCAPSULATED: usize = 32;
const WRAPPED: usize = 32 + 16;

fn malformed(field: &str) -> Refusal {
    refusals::malformed(&format!("the field '{field}' has another length"))
}

/// Holds what a device says of itself against the payload rules.
pub(super) fn check_info(context: &Context, remote: Remote, info: &DeviceInfo) -> Result<(), Refusal> {
    let texts = [
        ("name", info.name.as_str()),
        ("platform", info.platform.as_str()),
        ("os_version", info.os_version.as_str()),
        ("app_version", info.app_version.as_str()),
        ("hardware_fingerprint", info.hardware_fingerprint.as_str()),
    ];
    context.check_texts(remote, &texts)
}

impl Context {
    /// A device says which machine it runs on.
    pub(super) async fn device_hello(
        &self,
        remote: Remote,
        device: &DeviceRecord,
        hello: proto::DeviceHello,
    ) -> Result<(), Refusal> {
        let text =
            |value, field| convert::text(value, field).map_err(|e| refusals::malformed(&e.to_string()));
        let info = DeviceInfo {
            name: device.name.clone(),
            platform: device.traits.platform.clone(),
            os_version: text(hello.os_version, "os_version")?,
            app_version: text(hello.app_version, "app_version")?,
            hardware_fingerprint: text(hello.hardware_fingerprint, "hardware_fingerprint")?,
        };
        check_info(self, remote, &info)?;
        let policy = self.desired.index().security_policy(&device.namespace).devices.fingerprint_change;
        let address = remote.address.ip();
        let noted = self.store.note_machine(device.id, &info, address, policy, self.now()).await;
        if noted.map_err(|e| refusals::internal(&e))? {
            tracing::warn!(device = %device.id, "a device's key is used on another machine");
            self.live.publish(Hint::StatusDirty(device.user));
        }
        Ok(())
    }

    /// A device says what it counted of its session.
    pub(super) async fn session_report(
        &self,
        device: &DeviceRecord,
        report: &proto::SessionReport,
    ) -> Result<(), Refusal> {
        let session = SessionId::from_slice(&report.session).ok_or_else(|| malformed("session"))?;
        if !report.connected {
            let noted = self.store.note_client_absent(device.id, session, self.now()).await;
            return noted.map_err(|e| refusals::internal(&e));
        }
        let counted = ClientReport { session, sent: report.bytes_sent, received: report.bytes_received };
        let noted = self.store.note_client_report(device.id, &counted, self.now()).await;
        if let Some(difference) = noted.map_err(|e| refusals::internal(&e))? {
            tracing::warn!(%session, "{}", difference.words());
        }
        Ok(())
    }

    /// The settings of a device's user, after a change of them if there is one.
    pub(super) async fn user_settings(
        &self,
        device: &DeviceRecord,
        put: Option<proto::PutSettings>,
    ) -> Result<Say, Refusal> {
        if let Some(put) = put {
            if put.content.is_empty() || put.content.len() > MAX_SETTINGS {
                return Err(malformed("content"));
            }
            let keys = wrapped_keys(put.keys)?;
            let (user, base) = (device.user, put.base_version);
            let stored =
                self.store.put_user_settings(user, device.id, base, &put.content, &keys, self.now()).await;
            // Whether it was the newest or not, the answer is what holds now.
            stored.map_err(|e| refusals::internal(&e))?;
        }
        let view = self.store.user_settings(device.user, device.id).await;
        let view = view.map_err(|e| refusals::internal(&e))?;
        Ok(Say::UserSettings(proto::UserSettings {
            version: view.version,
            content: view.content,
            key: view.key.map(|key| {
                let (encapsulated, ciphertext) = key.wrapped.split_at(ENCAPSULATED.min(key.wrapped.len()));
                proto::WrappedKey {
                    device: key.device.as_bytes().to_vec(),
                    key_id: key.key_id.to_vec(),
                    encapsulated: encapsulated.to_vec(),
                    ciphertext: ciphertext.to_vec(),
                }
            }),
            devices: view
                .devices
                .into_iter()
                .map(|device| {
                    let (wrapping_key, wrapping_signature) = device.wrapping.unwrap_or_default();
                    proto::SettingsDevice {
                        device: device.id.as_bytes().to_vec(),
                        name: device.name,
                        device_key: device.key.0.to_vec(),
                        wrapping_key,
                        wrapping_signature,
                        key_id: device.key_id.unwrap_or_default(),
                    }
                })
                .collect(),
        }))
    }

    /// A device wraps the settings' key for others.
    pub(super) async fn wrap_settings_key(
        &self,
        device: &DeviceRecord,
        keys: Vec<proto::WrappedKey>,
    ) -> Result<(), Refusal> {
        let keys = wrapped_keys(keys)?;
        let stored = self.store.wrap_settings_keys(device.user, device.id, &keys, self.now()).await;
        stored.map_err(|e| refusals::internal(&e))
    }
}

fn wrapped_keys(keys: Vec<proto::WrappedKey>) -> Result<Vec<WrappedKey>, Refusal> {
    if keys.len() > MAX_KEYS {
        return Err(malformed("keys"));
    }
    keys.into_iter()
        .map(|key| {
            if key.encapsulated.len() != ENCAPSULATED || key.ciphertext.len() != WRAPPED {
                return Err(malformed("keys"));
            }
            Ok(WrappedKey {
                device: DeviceId::from_slice(&key.device).ok_or_else(|| malformed("device"))?,
                key_id: key.key_id.try_into().map_err(|_| malformed("key_id"))?,
                wrapped: [key.encapsulated, key.ciphertext].concat(),
            })
        })
        .collect()
}
