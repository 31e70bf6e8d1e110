//! What a device hears about its personal key: a new version sealed to it, that the key was replaced at once, that it ends soon.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use horizon_controller_core::rotation::warning;
use horizon_crds::SuspiciousDevices;
use horizon_model::{KeyId, Secret};
use horizon_wire::{
    handing,
    proto::{self, KeyNews, RefusalCode, from_controller::Message as Say},
    refusal::Refusal,
};
use jiff::Timestamp;
use tokio::sync::Notify;
use uuid::Uuid;

use super::{Context, accept, opening::Remote, refusals};
use crate::{
    live::{Counted, Hint, Limit},
    store::{Claim, ClaimError, Confirmed, DeviceRecord, KeyNewsFacts, StoreError},
};

/// The conversations that want to hear of each key.
#[derive(Clone, Default)]
pub(super) struct Bells(Arc<Mutex<HashMap<Uuid, Vec<Arc<Notify>>>>>);

impl Bells {
    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Vec<Arc<Notify>>>> {
        // Each change of it is one step, so it is whole whatever thread panics.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something about a key changed, if it is one.
    pub(super) fn ring(&self, key: Uuid) {
        self.lock().get(&key).into_iter().flatten().for_each(|bell| bell.notify_one());
    }

    /// Something may have changed about every key.
    pub(super) fn ring_all(&self) {
        self.lock().values().flatten().for_each(|bell| bell.notify_one());
    }
}

/// What a conversation with a device knows of its key.
pub(super) struct KeyTalk {
    bells: Bells,
    key: Option<Uuid>,
    bell: Arc<Notify>,
    /// Whether the device can be sealed to, and so understands what it hears of keys.
    listens: bool,
    told: Option<proto::KeyNotice>,
    given: Option<KeyId>,
}

impl KeyTalk {
    pub(super) fn new(bells: Bells) -> Self {
        Self { bells, key: None, bell: Arc::default(), listens: false, told: None, given: None }
    }

    /// The key is this one from now on.
    pub(super) fn attend(&mut self, key: Uuid) {
        if self.key != Some(key) {
            self.leave();
            self.key = Some(key);
            self.bells.lock().entry(key).or_default().push(self.bell.clone());
            (self.told, self.given) = (None, None);
            self.bell.notify_one();
        }
    }

    fn leave(&mut self) {
        let Some(key) = self.key.take() else { return };
        let mut bells = self.bells.lock();
        if let Some(hung) = bells.get_mut(&key) {
            hung.retain(|bell| !Arc::ptr_eq(bell, &self.bell));
            if hung.is_empty() {
                bells.remove(&key);
            }
        }
    }

    /// Waits until there may be news. Cancel safe.
    pub(super) async fn rung(&self) {
        self.bell.notified().await;
    }

    /// What the device is to be told now that it was not told before.
    pub(super) async fn news(
        &mut self,
        context: &Context,
        device: &DeviceRecord,
    ) -> Result<Vec<Say>, StoreError> {
        let mut say = Vec::new();
        if !self.listens {
            return Ok(say);
        }
        let now = context.now();
        let notice = notice(&context.store.key_news(device.id, now).await?, now);
        let first_and_fine = self.told.is_none() && notice.news() == KeyNews::Fine;
        if self.told.as_ref() != Some(&notice) && !first_and_fine {
            say.push(Say::KeyNotice(notice.clone()));
        }
        self.told = Some(notice);
        let policy = context.desired.index().security_policy(&device.namespace).devices.suspicious;
        let doubted = policy == SuspiciousDevices::Allowed;
        if let Some((version, sealed, old_end)) = context.store.delivery_for(device.id, doubted, now).await?
            && self.given != Some(version)
        {
            self.given = Some(version);
            context.store.note_delivered(device.id, version, now).await?;
            say.push(Say::NewKey(proto::NewKey {
                key_id: version.as_bytes().to_vec(),
                encapsulated: sealed.encapsulated,
                ciphertext: sealed.ciphertext,
                old_key_ends: old_end.map_or(0, Timestamp::as_millisecond),
            }));
        }
        Ok(say)
    }

    /// The device says what it can be sealed to.
    pub(super) async fn wrapping_key(
        &mut self,
        context: &Context,
        device: &DeviceRecord,
        said: &proto::WrappingKey,
    ) -> Result<(), Refusal> {
        let key: [u8; 32] = said.key[..].try_into().map_err(|_| refusals::malformed("the wrapping key"))?;
        let set = context.store.set_wrapping_key(device.id, device.public_key, &key, &said.signature).await;
        if !set.map_err(|e| refusals::internal(&e))? {
            return Err(refusals::malformed("a wrapping key that the device did not sign"));
        }
        self.listens = true;
        self.bell.notify_one();
        Ok(())
    }
}

impl Drop for KeyTalk {
    fn drop(&mut self) {
        self.leave();
    }
}

fn notice(facts: &KeyNewsFacts, now: Timestamp) -> proto::KeyNotice {
    let because = |reason: &str| if reason.is_empty() { String::new() } else { format!(": {reason}") };
    let (news, message, at) = if let Some(reason) = &facts.ended {
        (KeyNews::Ended, format!("the personal key of this device has ended{}", because(reason)), None)
    } else if let Some(reason) = &facts.replaced {
        let message = format!("the personal key was replaced at once{}; enter the new one", because(reason));
        (KeyNews::Replaced, message, None)
    } else if let Some(end) = facts.expires.filter(|end| warning(*end, now).is_some()) {
        (KeyNews::Expires, format!("the personal key ends at {end}"), Some(end))
    } else if let Some(next) = facts.rotates {
        let message = format!("the personal key is rotated at {next}; nothing has to be done");
        (KeyNews::Rotates, message, Some(next))
    } else {
        (KeyNews::Fine, String::new(), None)
    };
    proto::KeyNotice { news: news.into(), message, at: at.map_or(0, Timestamp::as_millisecond) }
}

impl Context {
    /// A device says that it has kept a version.
    pub(super) async fn key_taken(
        &self,
        remote: Remote,
        device: &DeviceRecord,
        taken: &proto::KeyTaken,
    ) -> Result<Say, Refusal> {
        let version = KeyId::from_slice(&taken.key_id)
            .ok_or_else(|| refusals::malformed("the field 'key_id' has another length"))?;
        let confirmed = self.store.confirm_key(device.id, version, &taken.proof, self.now()).await;
        match confirmed.map_err(|e| refusals::internal(&e))? {
            Confirmed::Now { key, ended } => {
                tracing::info!(device = %device.id, %key, ended, "a device has taken its new key");
                self.live.publish(Hint::StatusDirty(key.0));
                Ok(Say::Done(proto::Done {}))
            }
            Confirmed::Before => Ok(Say::Done(proto::Done {})),
            Confirmed::Refused => {
                let why = "a device confirmed a key that it was not given, or that was withdrawn";
                self.refused_secret(remote, "key_confirmation_refused", why).await;
                Err(Refusal::new(RefusalCode::NotFound, "there is no such key to confirm", ""))
            }
        }
    }

    /// Somebody presents a hand-over and its code.
    pub(super) async fn handed_over(
        &self,
        remote: Remote,
        claim: &proto::ClaimHandover,
    ) -> Result<Say, Refusal> {
        let now = self.now();
        let policy = accept::policy(&self.desired.index());
        let limit = Limit::per_minute(policy.rate_limits.enrolments_per_minute);
        if !self.live.allow(Counted::Enrolment(remote.address.ip()), limit, now) {
            return Err(refusals::too_many_tries("enrolments"));
        }
        self.check_lockout(remote)?;
        let malformed = |field: &str| refusals::malformed(&format!("the field '{field}' has another length"));
        if claim.code.len() > handing::MAX_CODE_BYTES {
            return Err(malformed("code"));
        }
        let claimed = Claim {
            id: Uuid::from_slice(&claim.id).map_err(|_| malformed("id"))?,
            secret: &Secret::from_slice(&claim.secret).ok_or_else(|| malformed("secret"))?,
            code: &claim.code,
            wrapping: claim.wrapping_key[..].try_into().map_err(|_| malformed("wrapping_key"))?,
            device: remote.key,
        };
        match self.store.claim_handover(&claimed, now).await {
            Ok((version, sealed)) => Ok(Say::HandedOver(proto::HandedOver {
                key_id: version.as_bytes().to_vec(),
                encapsulated: sealed.encapsulated,
                ciphertext: sealed.ciphertext,
            })),
            Err(error) => {
                if matches!(error, ClaimError::Unknown | ClaimError::WrongCode { .. } | ClaimError::Exhausted)
                {
                    self.note_failure(remote, "a hand-over").await;
                }
                Err(handover_refusal(&error))
            }
        }
    }

    /// What was said about a key, or about everything.
    pub(super) fn ring(&self, uid: Option<Uuid>) {
        match uid {
            Some(uid) => self.bells.ring(uid),
            None => self.bells.ring_all(),
        }
    }
}

fn handover_refusal(error: &ClaimError) -> Refusal {
    let new = "ask an administrator for a new hand-over";
    let (code, remedy) = match error {
        ClaimError::Store(e) => return refusals::internal(e),
        ClaimError::Unknown => {
            (RefusalCode::Unauthenticated, "check that the whole string was pasted, or ask for a new one")
        }
        ClaimError::WrongCode { .. } => {
            (RefusalCode::Unauthenticated, "type the code that you were told with the string")
        }
        ClaimError::Exhausted => (RefusalCode::Limit, new),
        ClaimError::Ended => (RefusalCode::Expired, new),
        ClaimError::Taken(_) => (RefusalCode::Used, "if it was not you, tell an administrator at once"),
        ClaimError::NoWrapping => (RefusalCode::Malformed, "update the client"),
    };
    Refusal::new(code, error.to_string(), remedy)
}
