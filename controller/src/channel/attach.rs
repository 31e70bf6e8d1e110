//! How a conversation with an appliance begins: it registers or attaches, and it is made sure that it is the only one.

use std::{collections::HashSet, sync::Arc, time::Duration};

use horizon_controller_core::live_check::next_look;
use horizon_crds::{Name, SecurityPolicySpec};
use horizon_model::{Digest, FactorKind, Incarnation, Secret, ServerId};
use horizon_wire::{
    convert,
    proto::{self, from_controller::Message as Say},
};
use tokio::time::Instant;

use super::{
    Context, accept,
    appliance::{Appliance, internal, invalid},
    arrivals::Turn,
    look::Looks,
    opening::Remote,
    proof::{self, Wanted},
    refusals,
    wire::{End, Wire},
};
use crate::{
    detect::{Attached, Fact, Who},
    live::{Counted, Hint, Limit},
    store::{AppliedState, Attachment, RegisterError, RegisterRequest, is_own, random},
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
            factors: {
                let mut factors = convert::decode_factors(register.factors).map_err(invalid(request))?;
                factors.retain(is_own);
                factors.extend(self.place(address));
                factors
            },
            address,
        };
        let mut texts = vec![("hostname", asked.hostname.as_str()), ("version", asked.version.as_str())];
        texts.extend(
            asked.factors.iter().flat_map(|f| [("factors", f.name.as_str()), ("factors", f.value.as_str())]),
        );
        self.check_texts(remote, &texts).map_err(|refusal| End::refuse(request, refusal))?;
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
            // Whoever spoke for the server until now does no longer, here or elsewhere.
            if let Some(lease) = registered.ended {
                self.live.publish(Hint::MakeWay { server: registered.server, lease });
            }
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
        turn: Option<Turn<'_>>,
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

        let known = context.store.arrival(server).await.map_err(internal(request))?;
        let Some((record, holder)) = known.filter(|(r, _)| r.public_key == Some(remote.key)) else {
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
        let address = remote.address.ip();
        let attachment = Attachment {
            server,
            replica: context.replica,
            incarnation,
            expected: None,
            key: remote.key,
            address,
            version: version.chars().take(MAX_SHORT_TEXT).collect(),
            capabilities,
            held: AppliedState {
                epoch: attach.epoch,
                generation: attach.generation,
                digest,
                problems: record.problems.clone(),
                addresses,
            },
        };
        let said = attachment.capabilities.iter().map(|c| c.as_str().to_owned()).collect();
        let software = attachment.version.clone();
        let (seat, known) = context.hold(&record, holder, attachment, turn, request).await?;
        if known.reissued {
            let fresh = proto::Registered {
                server_id: server.as_bytes().to_vec(),
                server_name: record.name.to_string(),
                verification_secret: known.secret.expose().to_vec(),
            };
            wire.send(0, Say::Registered(fresh)).await?;
        }
        wire.witnessed = context.hear_witnesses(server, &record.name, &attach.witnesses).await;
        let index = context.desired.index();
        let declared = index.server_by_id(server).map(|(_, spec)| &spec.capabilities[..]).unwrap_or_default();
        let who = Who { id: server, namespace: record.namespace.clone(), name: record.name.clone() };
        context.detect.note(Fact::Attached(Box::new(Attached {
            server: who,
            address,
            capabilities: said,
            declared: declared.iter().map(|c| c.as_str().to_owned()).collect(),
            version: software,
        })));
        let policy = index.security_policy(&record.namespace);
        let attached = proto::Attached {
            heartbeat_seconds: heartbeat_seconds(&policy),
            server_name: record.name.to_string(),
            public_address: address.to_string(),
            ping_seconds: ping_seconds(context.listener.connections()),
        };
        wire.send(request, Say::Attached(attached)).await?;
        let mut appliance = Self {
            context,
            remote,
            server,
            namespace: record.namespace,
            name: record.name,
            incarnation,
            seat,
            secret: known.secret,
            previous: known.previous,
            counter: 0,
            missed_at: context.missed_at(&policy),
            seen_at: Instant::now(),
            missed_noted: false,
            attested: known
                .factors
                .iter()
                .filter(|f| f.kind == FactorKind::CryptographicAttestation)
                .cloned()
                .collect(),
            place: context.place(address),
            factors: proof::fingerprint(known.factors),
            behavior: Default::default(),
            looks: Looks::new(context.settings.look_pace.unwrap_or_else(|| policy.challenge_interval.get())),
            told: [0; 32],
            asked: None,
            verified: false,
            reissued: known.reissued,
            secret_due: false,
            next_challenge: Instant::now(),
            held: (attach.epoch, attach.generation, digest),
            newest: known.state,
            sent: None,
            sent_sessions: HashSet::new(),
            confirmed: false,
            sent_at: Instant::now(),
            probe: None,
            violations: Default::default(),
            unsaved: None,
            again: None,
            rhythm: Default::default(),
            beat_rate: None,
            factor_rate: None,
        };
        appliance.settle_challenges(known.challenges_v2).await.map_err(internal(request))?;
        appliance.challenge(wire, Wanted::Everything).await?;
        Ok(appliance)
    }
}

impl Context {
    /// When an appliance that was heard now and sends no heartbeat from then on becomes an event.
    pub(super) fn missed_at(&self, policy: &SecurityPolicySpec) -> Instant {
        let missed = u32::from(policy.anomaly_thresholds.missed_heartbeats.max(1));
        Instant::now() + policy.heartbeat_interval.get() * missed + self.settings.challenge_patience
    }

    /// A random time between half and one and a half of the interval between challenges.
    pub(super) fn challenge_interval(&self, namespace: &Name) -> Duration {
        let declared = || self.desired.index().security_policy(namespace).challenge_interval.get();
        let interval = self.settings.challenge_pace.unwrap_or_else(declared);
        next_look(interval, u32::from_be_bytes(random()))
    }
}

fn heartbeat_seconds(policy: &SecurityPolicySpec) -> u32 {
    u32::try_from(policy.heartbeat_interval.get().as_secs()).unwrap_or(u32::MAX).clamp(1, 3600)
}

/// After how long a silence an appliance asks whether this replica is there. The more there are, the longer: so many ask in a
/// second at most.
fn ping_seconds(connections: usize) -> u32 {
    const A_SECOND: usize = 5_000;
    u32::try_from(connections / A_SECOND).unwrap_or(u32::MAX).clamp(2, 20)
}
