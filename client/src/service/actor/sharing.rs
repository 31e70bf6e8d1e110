//! Settings: changed here, and shared with the user's other devices.

use horizon_client_core::{
    failure::{Failure, FailureKind},
    ipc::{Message, Reply},
    settings::Settings,
};
use tokio::sync::mpsc;

use super::{Actor, send};
use crate::service::settings::{self, Kept, Shared};

impl Actor {
    /// Changes the settings here, and then wherever the user has devices.
    pub(super) fn set_settings(&self, chosen: Settings, to: mpsc::Sender<Message>) {
        let kept = if chosen.is_sound() {
            self.out.store.settings().and_then(|kept| {
                self.out.store.set_settings(&Kept { changed: true, settings: chosen, ..kept })
            })
        } else {
            let failure =
                Failure::new(FailureKind::Usage, "these settings break the rules of their names", "");
            return send(&to, Message::Failed(failure));
        };
        match kept {
            Ok(()) => self.settings(false, to),
            Err(error) => send(&to, Message::Failed(Failure::failed(error.to_string(), ""))),
        }
    }

    /// Brings the settings together with those of the user's other devices, and tells them.
    pub(super) fn settings(&self, start_over: bool, to: mpsc::Sender<Message>) {
        let (link, store, key) = (self.out.link.clone(), self.out.store.clone(), self.out.key.clone());
        let device = self.enrolment.as_ref().map(|e| e.device);
        tokio::spawn(async move {
            let note = match device {
                None => "this device is not enrolled: they are its own".to_owned(),
                Some(device) => match settings::share(&link, &store, &key, device, start_over).await {
                    Ok(Shared::Yes) => String::new(),
                    Ok(Shared::Waiting) => {
                        "they wait for another of your devices, which shares their key when its \
                                            settings are next looked at there"
                            .to_owned()
                    }
                    Err(failure) => format!("they are not shared now: {}", failure.message),
                },
            };
            let message = match store.settings() {
                Ok(kept) => Message::Done(Reply::Settings { settings: kept.settings, note }),
                Err(error) => Message::Failed(Failure::failed(error.to_string(), "")),
            };
            send(&to, message);
        });
    }

    pub(super) fn kept_settings(&self) -> Message {
        match self.out.store.settings() {
            Ok(kept) => Message::Done(Reply::Settings { settings: kept.settings, note: String::new() }),
            Err(error) => Message::Failed(Failure::failed(error.to_string(), "")),
        }
    }

    /// Brings the settings together without anybody waiting for it.
    pub(super) fn share_settings(&self) {
        let (to, _) = mpsc::channel(1);
        if self.enrolment.is_some() {
            self.settings(false, to);
        }
    }
}
