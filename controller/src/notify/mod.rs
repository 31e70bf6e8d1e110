//! Notifications to administrators. Events become notifications in the database first, many events one of them; then they
//! are sent, by the leader, until they arrive or are given up. What is sent twice has the same number.

mod address;
mod digest;
mod settings;
mod smtp;
#[cfg(test)]
mod tests;
mod tls;
mod webhook;

pub use settings::{NotifyError, NotifySettings};

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::{
    replica::Leadership,
    stop::Stop,
    store::{Channel, Delivery, NewNotification, ServiceNote, ServiceState, Store, StoreError, Urgency, Way},
};
use smtp::Smtp;
use webhook::Webhook;

/// How often it is looked for events and deliveries: events of that time are one look, and become one digest if many.
const LOOK: Duration = Duration::from_secs(3);
/// How many deliveries of a channel are sent at a look, one after the other.
const AT_ONCE: u32 = 20;
/// How long one delivery may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// Notifications of the same thing within this time are one, while nobody read it.
const SAME_FOR: SignedDuration = SignedDuration::from_hours(1);

/// The ways to administrators. A clone is the same; the default one only stores.
#[derive(Clone, Default)]
pub struct Notify(Arc<Ways>);

#[derive(Default)]
struct Ways {
    /// From which urgency on events are told at all.
    minimum: Option<Urgency>,
    webhook: Option<Webhook>,
    smtp: Option<Smtp>,
}

impl Notify {
    /// The ways that settings name. Secrets are read from their files now, and again when a delivery was refused.
    ///
    /// # Errors
    /// The first of the settings that cannot be used.
    pub fn new(settings: NotifySettings) -> Result<Self, NotifyError> {
        let webhook = settings.webhook.map(Webhook::new).transpose()?;
        let smtp = settings.smtp.map(Smtp::new).transpose()?;
        Ok(Self(Arc::new(Ways { minimum: Some(settings.minimum_urgency), webhook, smtp })))
    }

    fn ways(&self) -> Vec<Way> {
        let webhook = self.0.webhook.as_ref().map(|webhook| (Channel::Webhook, webhook.minimum));
        let smtp = self.0.smtp.as_ref().map(|smtp| (Channel::Smtp, smtp.minimum));
        webhook.into_iter().chain(smtp).collect()
    }

    /// Stores a notification and has it sent.
    pub async fn store(
        &self,
        store: &Store,
        notification: &NewNotification,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        store.notify_admins(notification, &self.ways(), SAME_FOR, now).await
    }

    /// How deliveries do.
    pub async fn health(&self, store: &Store) -> Result<Vec<ServiceNote>, StoreError> {
        let mut notes = Vec::new();
        for (channel, _) in self.ways() {
            let counts = store.delivery_counts(channel).await?;
            let (state, detail) = match (counts.waiting, counts.failed) {
                (0..10, _) => (ServiceState::Operational, String::new()),
                (waiting, failed) => {
                    (ServiceState::Degraded, format!("{waiting} notifications wait, {failed} were given up"))
                }
            };
            notes.push(ServiceNote { name: format!("notifications/{}", channel.as_str()), state, detail });
        }
        Ok(notes)
    }

    /// Makes notifications of events and sends them while this replica leads, until it is to stop.
    pub async fn run(self, store: Store, leadership: Leadership, mut stop: Stop) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.requested() => return,
                _ = look.tick() => {}
            }
            let Some(epoch) = leadership.leads() else { continue };
            let minimum = self.0.minimum.unwrap_or(Urgency::Normal);
            let compose = |events: &[_], recent| digest::compose(events, recent, minimum);
            let taken = store.take_notice(epoch, &self.ways(), SAME_FOR, compose, Timestamp::now()).await;
            match taken {
                Ok(_) | Err(StoreError::Fenced) => {}
                Err(error) => {
                    tracing::warn!(%error, "no notifications could be made of events; trying again")
                }
            }
            for (channel, _) in self.ways() {
                tokio::select! {
                    () = stop.requested() => return,
                    sent = self.send(&store, &leadership, channel) => if let Err(error) = sent {
                        tracing::warn!(%error, "notifications could not be sent; trying again");
                    }
                }
            }
        }
    }

    async fn send(&self, store: &Store, leadership: &Leadership, channel: Channel) -> Result<(), StoreError> {
        for delivery in store.due_deliveries(channel, AT_ONCE, Timestamp::now()).await? {
            if leadership.leads().is_none() {
                return Ok(());
            }
            let id = delivery.notification.id;
            let outcome = match timeout(PATIENCE, self.deliver(channel, &delivery)).await {
                Ok(outcome) => outcome,
                Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
            };
            if let Err(why) = &outcome {
                tracing::warn!(
                    notification = id,
                    channel = channel.as_str(),
                    why,
                    "a notification did not arrive"
                );
            }
            let failed = outcome.is_err();
            store
                .note_delivery(
                    id,
                    channel,
                    outcome.as_ref().copied().map_err(String::as_str),
                    Timestamp::now(),
                )
                .await?;
            if failed {
                // The others would meet the same: they have their turn at the next look.
                return Ok(());
            }
        }
        Ok(())
    }

    async fn deliver(&self, channel: Channel, delivery: &Delivery) -> Result<(), String> {
        match (channel, &self.0.webhook, &self.0.smtp) {
            (Channel::Webhook, Some(webhook), _) => webhook.deliver(delivery, Timestamp::now()).await,
            (Channel::Smtp, _, Some(smtp)) => smtp.deliver(delivery).await,
            // It is configured no more.
            _ => Err("this way is not configured".to_owned()),
        }
    }
}
