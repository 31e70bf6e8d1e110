//! How a conversation with an appliance begins: it registers or attaches, and it is made sure that it is the only one.

use std::{collections::HashSet, sync::Arc, time::Duration};

use horizon_model::{Digest, Incarnation, PublicKey, Secret, ServerId};
use horizon_wire::{
    convert,
    proto::{self, from_controller::Message as Say},
};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};

use super::{
    Context, accept,
    appliance::{Appliance, internal, invalid},
    clones::{self, Arrival, Verdict},
    opening::Remote,
    refusals,
    registry::{Command, Presence, Speaker},
    wire::{End, Wire},
};
use crate::{
    live::{Counted, Hint, Limit},
    store::{AppliedState, NewEvent, RegisterError, RegisterRequest, ServerRecord, Severity, Source, random},
};

/// The longest host name and version that are taken.
const MAX_SHORT_TEXT: usize = 64;
/// How far the state of an appliance may be ahead of the newest that is known, as it is after a backup was restored.
const MAX_AHEAD: u64 = 1 << 32;

impl Context {
    pub(super) async fn register(
        self: &Arc<Self>,
        remote: Remote,
        wire: &mut Wire,
        request: u64,
        register: proto::Register,
    ) -> Result<(), End> {
        let (now, address) = (self.now(), remote.address.ip());
        let policy = accept::policy(&self.desired.index());
        let limit = Limit::per_minute(policy.rate_limits.registrations_per_minute);
        if !self.live.allow(Counted::Registration(address), limit, now) {
            return Err(End::refuse(request, refusals::too_many_tries("registrations")));
        }
        self.check_lockout(remote).map_err(|refusal| End::refuse(request, refusal))?;
        let short = |text: String, field| {
            convert::text(text, field)
                .map(|t| t.chars().take(MAX_SHORT_TEXT).collect::<String>())
                .map_err(invalid(request))
        };
        let asked = RegisterRequest {
            key_name: short(register.key_name, "key_name")?,
            secret: Secret::from_slice(&register.secret)
                .ok_or_else(|| End::refuse(request, refusals::malformed("the secret has another length")))?,
            public_key: remote.key,
            hostname: short(register.hostname, "hostname")?,
            version: short(register.version, "version")?,
            capabilities: convert::decode_capabilities(&register.capabilities).map_err(invalid(request))?,
            factors: convert::decode_factors(register.factors).map_err(invalid(request))?,
            address,
        };
        let registered = match self.store.register_server(&asked, now).await {
            Ok(registered) => registered,
            Err(error) => {
                if matches!(error, RegisterError::Unknown) {
                    self.note_failure(remote, "a registration").await;
                }
                // One that was used has its event already.
                if !matches!(error, RegisterError::Used(_) | RegisterError::Store(_)) {
                    self.refused_secret(remote, "registration_refused", &error.to_string()).await;
                }
                return Err(End::refuse(request, refusals::registration(&error)));
            }
        };
        if registered.fresh {
            tracing::info!(server = %registered.server, name = %registered.name, "an appliance registered");
            // Whoever spoke for the server until now does no longer.
            self.registry.evict_others(registered.server, remote.key);
            self.live.publish(Hint::StatusDirty(registered.server.0));
            if let Ok(Some(key)) = self.store.registration_key_of(registered.server).await {
                self.live.publish(Hint::StatusDirty(key));
            }
        }
        let answer = proto::Registered {
            server_id: registered.server.as_bytes().to_vec(),
            server_name: registered.name.to_string(),
            verification_secret: registered.secret.expose().to_vec(),
        };
        wire.send(request, Say::Registered(answer)).await?;
        Ok(())
    }
}

impl<'a> Appliance<'a> {
    /// Decides whether an appliance may speak for its server, and challenges it.
    pub(super) async fn attach(
        context: &'a Arc<Context>,
        remote: Remote,
        wire: &mut Wire,
        request: u64,
        attach: &proto::Attach,
    ) -> Result<Self, End> {
        let field = |name: &'static str| {
            End::refuse(request, refusals::malformed(&convert::Invalid(name).to_string()))
        };
        let server = ServerId::from_slice(&attach.server_id).ok_or_else(|| field("server_id"))?;
        let incarnation = Incarnation::from_slice(&attach.incarnation).ok_or_else(|| field("incarnation"))?;
        let digest = if attach.digest.is_empty() {
            None
        } else {
            Some(Digest::from_slice(&attach.digest).ok_or_else(|| field("digest"))?)
        };
        let version = convert::text(attach.version.clone(), "version").map_err(invalid(request))?;
        let capabilities = convert::decode_capabilities(&attach.capabilities).map_err(invalid(request))?;
        let addresses = convert::parse_all(&attach.addresses, "addresses").map_err(invalid(request))?;

        let record = context.store.server(server).await.map_err(internal(request))?;
        let Some(record) = record.filter(|r| r.public_key == Some(remote.key)) else {
            context.check_lockout(remote).map_err(|refusal| End::refuse(request, refusal))?;
            context.note_failure(remote, "an attachment").await;
            return Err(End::refuse(request, refusals::unknown_appliance()));
        };
        if record.decommissioned_at.is_some() || record.revoked_at.is_some() {
            let reason = record.decommission_reason.clone().unwrap_or_else(|| "it was revoked".into());
            return Err(End::refuse(request, refusals::ended_server(&record.name, &reason)));
        }
        if attach.generation > record.state_generation.saturating_add(MAX_AHEAD) {
            return Err(field("generation"));
        }
        let seat = context.seat(server, &record, incarnation, remote.key, request).await?;
        let now = context.now();
        let address = remote.address.ip();
        let short: String = version.chars().take(MAX_SHORT_TEXT).collect();
        context
            .store
            .note_attached(server, address, &short, incarnation, now)
            .await
            .map_err(internal(request))?;
        context.store.note_capabilities(server, &capabilities, now).await.map_err(internal(request))?;
        let held = AppliedState {
            epoch: attach.epoch,
            generation: attach.generation,
            digest,
            problems: record.problems.clone(),
            addresses,
        };
        context.store.note_applied(server, &held).await.map_err(internal(request))?;
        let reissued = context.store.reissue_secret(server).await.map_err(internal(request))?;
        if let Some(secret) = &reissued {
            let fresh = proto::Registered {
                server_id: server.as_bytes().to_vec(),
                server_name: record.name.to_string(),
                verification_secret: secret.expose().to_vec(),
            };
            wire.send(0, Say::Registered(fresh)).await?;
        }
        let secrets = context.store.server_secrets(server).await.map_err(internal(request))?;
        let (secret, previous) =
            secrets.ok_or_else(|| End::refuse(request, refusals::unknown_appliance()))?;
        let factors = context.store.current_factors(server).await.map_err(internal(request))?;
        let attached = proto::Attached {
            heartbeat_seconds: context.heartbeat_seconds(&record),
            server_name: record.name.to_string(),
            public_address: address.to_string(),
        };
        wire.send(request, Say::Attached(attached)).await?;
        let mut appliance = Self {
            context,
            remote,
            server,
            record,
            incarnation,
            seat,
            secret,
            previous,
            counter: 0,
            last_beat: Instant::now(),
            missed_noted: false,
            factors,
            asked: None,
            verified: false,
            reissued: reissued.is_some(),
            next_challenge: Instant::now(),
            held: (attach.epoch, attach.generation, digest),
            sent: None,
            sent_sessions: HashSet::new(),
            sent_at: Instant::now(),
            probe: None,
            violations: Default::default(),
            beat_rate: None,
            factor_rate: None,
        };
        appliance.challenge(wire, None).await?;
        Ok(appliance)
    }
}

impl Context {
    /// The seat of a server, once it is clear that the newcomer is not a clone.
    async fn seat(
        self: &Arc<Self>,
        server: ServerId,
        record: &ServerRecord,
        incarnation: Incarnation,
        key: PublicKey,
        request: u64,
    ) -> Result<Presence, End> {
        loop {
            let connected = self.registry.server(server);
            let there = connected.as_ref().map(|speaker| (speaker.incarnation, speaker.key));
            if clones::arrival(there, incarnation, key) == Arrival::AskTheOther
                && let Some(Speaker { commands, .. }) = connected
            {
                let (reply, answer) = oneshot::channel();
                let proved = async {
                    // An error on the way means that the other is just going.
                    commands.send(Command::ProveAlive(reply)).await.is_ok() && answer.await.unwrap_or(false)
                };
                let proved = timeout(self.settings.clone_patience, proved).await.unwrap_or(false);
                if clones::verdict(proved) == Verdict::RefuseNewcomer {
                    let event = NewEvent {
                        kind: "clone",
                        severity: Severity::Critical,
                        source: Source::Server(server),
                        address: None,
                        description: format!(
                            "server {}/{}: a second running copy of its appliance connected and was refused",
                            record.namespace, record.name
                        ),
                        data: serde_json::json!({ "incarnation": incarnation }),
                    };
                    self.record(&event).await;
                    return Err(End::refuse(request, refusals::clone_of(&record.name)));
                }
            }
            let there = there.map(|(incarnation, _)| incarnation);
            if let Some(seat) = self.registry.take_seat(server, incarnation, key, there) {
                return Ok(Presence::new(seat, self.live.clone()));
            }
        }
    }

    fn heartbeat_seconds(&self, record: &ServerRecord) -> u32 {
        let interval = self.desired.index().security_policy(&record.namespace).heartbeat_interval.get();
        u32::try_from(interval.as_secs()).unwrap_or(u32::MAX).clamp(1, 3600)
    }

    /// A random time between half and one and a half of the interval between challenges.
    pub(super) fn challenge_interval(&self, record: &ServerRecord) -> Duration {
        let interval = self.desired.index().security_policy(&record.namespace).challenge_interval.get();
        let part = f64::from(u32::from_be_bytes(random())) / f64::from(u32::MAX);
        interval.mul_f64(0.5 + part)
    }
}
