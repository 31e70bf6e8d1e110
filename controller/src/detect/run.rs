//! The task that takes facts in.

use std::{
    net::IpAddr,
    sync::{Arc, PoisonError},
    time::Duration,
};

use horizon_controller_core::detect::{
    Detector, Finding, capability, country, force,
    session::{self, Baseline as Sessions},
    travel,
};
use horizon_controller_core::payload::Hit;
use horizon_crds::{DEFAULT_NAMESPACE, DetectionSpec};
use jiff::Timestamp;
use tokio::{
    sync::broadcast::error::RecvError,
    time::{MissedTickBehavior, interval},
};

use super::{Blocks, Door, Fact, Facts, facts::Attached, failures::Failed};
use crate::{
    channel::Desired,
    geo::Geo,
    live::{Hint, Live},
    stop::Stop,
    store::{Look, NewEvent, Noted, Severity, Source, Store, StoreError, Subject},
};

/// How often wrong secrets are taken in.
const LOOK: Duration = Duration::from_secs(1);
/// How often it is looked for blocks of which no hint came, and hits are written down.
const SWEEP: Duration = Duration::from_secs(10);
/// The part of the failures that block from which on they are told.
const TOLD: u32 = 3;

/// What detection works with.
pub struct DetectOptions {
    /// The database.
    pub store: Store,
    /// The live layer, for hints.
    pub live: Arc<dyn Live>,
    /// The resources in force, for policies.
    pub desired: Arc<dyn Desired>,
    /// Where addresses are.
    pub geo: Geo,
    /// The blocked addresses, which this task keeps up to date.
    pub blocks: Blocks,
}

/// Takes facts in until it is to stop.
pub async fn run(options: DetectOptions, mut facts: Facts, mut stop: Stop) {
    let mut hints = options.live.subscribe();
    let (mut look, mut sweep) = (interval(LOOK), interval(SWEEP));
    for ticks in [&mut look, &mut sweep] {
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    loop {
        let done = tokio::select! {
            () = stop.requested() => break,
            _ = sweep.tick() => options.sweep().await,
            heard = hints.recv() => match heard {
                Ok(Hint::BlocksChanged | Hint::Everything) | Err(RecvError::Lagged(_)) => options.load_blocks().await,
                Ok(_) => Ok(()),
                Err(RecvError::Closed) => break,
            },
            _ = look.tick() => options.failures(&facts).await,
            fact = facts.queue.recv() => match fact {
                Some(fact) => options.fact(fact).await,
                None => break,
            },
        };
        if let Err(error) = done {
            tracing::warn!(%error, "what happened could not be looked at");
        }
    }
    if let Err(error) = options.blocks.write_hits(&options.store).await {
        tracing::debug!(%error, "how often blocked addresses were turned away could not be written down");
    }
}

impl DetectOptions {
    async fn load_blocks(&self) -> Result<(), StoreError> {
        self.blocks.load(&self.store, Timestamp::now()).await
    }

    async fn sweep(&self) -> Result<(), StoreError> {
        self.blocks.write_hits(&self.store).await?;
        self.load_blocks().await
    }

    fn policy(&self, namespace: &str) -> DetectionSpec {
        self.desired.index().security_policy(namespace).detection
    }

    async fn fact(&self, fact: Fact) -> Result<(), StoreError> {
        let now = Timestamp::now();
        match fact {
            Fact::Attached(attached) => self.attached(&attached, now).await,
            Fact::Arrived(arrived) => {
                let subject = Subject::user(arrived.user.id, arrived.user.name.as_str());
                let policy = self.policy(&arrived.user.namespace);
                self.seen_at(&subject, arrived.address, &policy, now).await
            }
            Fact::SessionBegan(user) => {
                let subject = Subject::user(user.id, user.name.as_str());
                let policy = self.policy(&user.namespace);
                let about = look(Detector::SessionPattern, &subject, None, &policy);
                let began = |baseline: &mut Sessions| session::began(baseline, now);
                self.store.take_in(about, began, now).await.map(|noted| self.told(noted))
            }
            Fact::SessionEnded(id) => {
                let Some(ended) = self.store.session_length(id).await? else { return Ok(()) };
                let subject = Subject::user(ended.user, ended.user_name.as_str());
                let policy = self.policy(&ended.namespace);
                let about = look(Detector::SessionPattern, &subject, None, &policy);
                let over = |baseline: &mut Sessions| session::ended(baseline, ended.seconds);
                self.store.take_in(about, over, now).await.map(|noted| self.told(noted))
            }
            Fact::Found(found) => {
                let (server, address, finding) = *found;
                let subject = Subject::server(server.id, server.name.as_str());
                let policy = self.policy(&server.namespace);
                let about = look(finding.detector, &subject, Some(address), &policy);
                self.store.note_finding(about, &finding, now).await.map(|noted| self.told(noted))
            }
        }
    }

    async fn attached(&self, attached: &Attached, now: Timestamp) -> Result<(), StoreError> {
        let subject = Subject::server(attached.server.id, attached.server.name.as_str());
        let policy = self.policy(&attached.server.namespace);
        let report = capability::Report {
            capabilities: attached.capabilities.clone(),
            declared: attached.declared.clone(),
            version: attached.version.clone(),
        };
        let about = look(Detector::CapabilityChange, &subject, Some(attached.address), &policy);
        let changed = |baseline: &mut capability::Baseline| capability::observe(baseline, &report, now);
        self.store.take_in(about, changed, now).await.map(|noted| self.told(noted))?;
        self.seen_at(&subject, attached.address, &policy, now).await
    }

    /// A subject connected from an address. Of one whose place nobody knows nothing is said.
    async fn seen_at(
        &self,
        subject: &Subject,
        address: IpAddr,
        policy: &DetectionSpec,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let Some(place) = self.geo.lookup(address) else { return Ok(()) };
        if let Some(country) = &place.country {
            let about = look(Detector::NewCountry, subject, Some(address), policy);
            let new = |baseline: &mut country::Baseline| country::observe(baseline, country, now);
            self.store.take_in(about, new, now).await.map(|noted| self.told(noted))?;
        }
        if let (Some(latitude), Some(longitude)) = (place.lat, place.lon) {
            let name = place.city.clone().or(place.country.clone()).unwrap_or_else(|| "another place".into());
            let here = travel::Place { latitude, longitude, accuracy_km: None, name };
            let about = look(Detector::ImpossibleTravel, subject, Some(address), policy);
            let moved = |baseline: &mut travel::Baseline| travel::observe(baseline, &here, now);
            self.store.take_in(about, moved, now).await.map(|noted| self.told(noted))?;
        }
        Ok(())
    }

    async fn failures(&self, facts: &Facts) -> Result<(), StoreError> {
        let taken = facts.inner.failures.lock().unwrap_or_else(PoisonError::into_inner).take();
        if taken.is_empty() {
            return Ok(());
        }
        // Nobody has said who they are: the policy of the default namespace holds, as for rates and lockouts.
        let held = self.desired.index().security_policy(DEFAULT_NAMESPACE);
        let policy = held.detection;
        let window = i64::try_from(policy.blocking.window.get().as_millis()).unwrap_or(i64::MAX);
        let threshold = force::Threshold { failures: policy.blocking.failures.div_ceil(TOLD), window };
        for failed in taken {
            let now = Timestamp::now();
            let (subject, of, address, tries) = match failed {
                Failed::At(address, count) => {
                    (Subject::address(address), "address", Some(address), force::Tries { count, other: None })
                }
                Failed::Of(key, count, from) => {
                    let other = from.map(|from| from.to_string());
                    (Subject::key(key), "key", from, force::Tries { count, other })
                }
                Failed::Payload(address, count, why) => {
                    let after = held.payload.block_after;
                    self.refused_payloads(address, count, why, after, &policy).await?;
                    continue;
                }
            };
            let about = look(Detector::BruteForce, &subject, address, &policy);
            let tried = |baseline: &mut force::Baseline| -> Option<Finding> {
                force::observe(baseline, of, &tries, threshold, now)
            };
            let noted = self.store.take_in(about, tried, now).await?;
            if noted.as_ref().is_some_and(|noted| noted.blocked.is_some()) {
                self.load_blocks().await?;
                self.live.publish(Hint::BlocksChanged);
            }
            self.told(noted);
        }
        Ok(())
    }

    /// Tells of what the payload rules refused, and blocks where it comes from when it is too much.
    async fn refused_payloads(
        &self,
        address: IpAddr,
        count: u32,
        why: Option<(Door, Hit)>,
        block_after: u32,
        policy: &DetectionSpec,
    ) -> Result<(), StoreError> {
        let now = Timestamp::now();
        if let Some((door, hit)) = why {
            let event = NewEvent {
                kind: "payload_refused",
                severity: Severity::Low,
                source: Source::Unknown,
                address: Some(address),
                description: format!("{count} bodies or texts were refused; of the last, {hit}"),
                data: serde_json::json!({
                    "count": count, "door": door.as_str(), "reason": hit.as_str(), "pattern": hit.pattern(),
                }),
            };
            self.store.record_event(&event, now).await?;
        }
        let mut policy = policy.clone();
        policy.blocking.failures = block_after;
        let window = i64::try_from(policy.blocking.window.get().as_millis()).unwrap_or(i64::MAX);
        let threshold = force::Threshold { failures: block_after.div_ceil(TOLD), window };
        let subject = Subject::address(address);
        let about = look(Detector::MaliciousPayload, &subject, Some(address), &policy);
        let sent = |baseline: &mut force::Baseline| force::observe_payloads(baseline, count, threshold, now);
        let noted = self.store.take_in(about, sent, now).await?;
        if noted.as_ref().is_some_and(|noted| noted.blocked.is_some()) {
            self.load_blocks().await?;
            self.live.publish(Hint::BlocksChanged);
        }
        self.told(noted);
        Ok(())
    }

    fn told(&self, noted: Option<Noted>) {
        let Some(noted) = noted else { return };
        let Finding { detector, confidence, words, .. } = &noted.finding;
        tracing::warn!(anomaly = noted.id, %detector, confidence, blocked = noted.blocked.is_some(), "{words}");
    }
}

fn look<'a>(
    detector: Detector,
    subject: &'a Subject,
    address: Option<IpAddr>,
    policy: &'a DetectionSpec,
) -> Look<'a> {
    Look { detector, subject, address, policy }
}
