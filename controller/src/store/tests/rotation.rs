//! Rotation of personal keys: overlap, confirmation, replacement at once, hand-over, warnings; and what attackers try.

use horizon_controller_core::DeviceStanding;
use horizon_crds::{RotationTarget, TimeSpan};
use horizon_model::{DeviceId, KeyId, PublicKey, Secret, TaggedSecret};
use horizon_tls::hpke::WrappingKey;
use horizon_wire::{handing, key::SigningKey};
use jiff::SignedDuration;
use uuid::Uuid;

use super::{
    kit::{Kit, at, conformance, device_info, puts},
    sessions::Scene,
};
use crate::store::{
    Actor, Claim, ClaimError, Confirmed, EnrolError, EventFilter, HandoverError, NewSession, PolicyFigures,
    RotateError, Scheduled, SessionError, Store, dialect::query, row::Columns as _,
};

/// A device with the keys that it alone has.
struct Phone {
    signing: SigningKey,
    wrapping: WrappingKey,
    id: DeviceId,
}

impl Phone {
    async fn enrol(kit: &Kit, n: u8, key: KeyId, secret: &TaggedSecret) -> Self {
        let signing = SigningKey::from_seed(Secret::new([n; 32]));
        let wrapping = WrappingKey::of_device(&[n; 32]);
        let enrolled = kit
            .store
            .enrol_device(key, secret, signing.public(), &device_info("phone"), at(1))
            .await
            .unwrap();
        let public = wrapping.public();
        let signature = handing::sign_wrapping_key(&signing, &public);
        let set =
            kit.store.set_wrapping_key(enrolled.device, signing.public(), &public, &signature).await.unwrap();
        assert!(set);
        Self { signing, wrapping, id: enrolled.device }
    }

    /// Takes what waits for it.
    async fn take(&self, store: &Store, now: i64) -> Option<(KeyId, TaggedSecret)> {
        let (version, sealed, _) = store.delivery_for(self.id, false, at(now)).await.unwrap()?;
        let place = handing::place(self.id, version);
        let secret = self.wrapping.open(handing::KEY_INFO, &place, &sealed).unwrap();
        Some((version, TaggedSecret::from_slice(&secret).unwrap()))
    }

    async fn confirm(&self, store: &Store, version: KeyId, secret: &TaggedSecret, now: i64) -> Confirmed {
        let proof = handing::proof(secret, self.id, version);
        store.confirm_key(self.id, version, &proof, at(now)).await.unwrap()
    }

    async fn standing(&self, store: &Store, now: i64) -> DeviceStanding {
        let record = store.device_by_key(self.signing.public()).await.unwrap().unwrap();
        record.standing(at(now))
    }
}

fn wish(overlap: u32) -> Scheduled<'static> {
    Scheduled {
        overlap: TimeSpan::from_secs(overlap),
        expires: None,
        reason: "a test",
        policy: None,
        run: None,
        by: "test",
    }
}

/// Whether a secret enrols a device that nobody knows yet.
async fn enrols(store: &Store, key: KeyId, secret: &TaggedSecret, n: u8, now: i64) -> Result<(), EnrolError> {
    let info = device_info("another");
    store.enrol_device(key, secret, PublicKey([n; 32]), &info, at(now)).await.map(|_| ())
}

fn rotation(kind: &str, name: &str) -> String {
    format!(
        "apiVersion = 'horizon.dev/v1alpha1'\nkind = 'KeyRotation'\nmetadata.name = '{name}'\n[spec]\n\
         target = 'personalKeys'\nnames = ['ana-1']\ntype = '{kind}'\nreason = 'lost'\n"
    )
}

async fn both_keys_work_until_every_device_has_the_new_one() {
    let kit = Kit::with_basics().await;
    let (key, old) = kit.personal_key().await;
    let (a, b) = (Phone::enrol(&kit, 1, key, &old).await, Phone::enrol(&kit, 2, key, &old).await);
    let begun = kit.store.rotate_personal_key(key, &wish(100), None, at(10)).await.unwrap();
    assert_eq!((begun.devices.len(), begun.overlap_end), (2, at(110)));
    let again = kit.store.rotate_personal_key(key, &wish(100), None, at(11)).await;
    assert!(matches!(again, Err(RotateError::Life(_))), "{again:?}");

    let (version, new) = a.take(&kit.store, 12).await.unwrap();
    assert_eq!(version, begun.version);
    assert_ne!(new.expose(), old.expose());
    // Both enrol, and nothing else changed for anybody.
    enrols(&kit.store, key, &old, 21, 13).await.unwrap();
    enrols(&kit.store, version, &new, 22, 13).await.unwrap();
    assert_eq!(a.standing(&kit.store, 13).await, DeviceStanding::Good);

    assert_eq!(a.confirm(&kit.store, version, &new, 14).await, Confirmed::Now { key, ended: false });
    let facts = kit.store.personal_key_facts(key.0).await.unwrap();
    assert_eq!((facts.rotations, facts.overlap_end, facts.unconfirmed), (1, Some(at(110)), vec![b.id]));
    assert!(a.take(&kit.store, 14).await.is_none(), "it is wiped when it has arrived");
    let (_, same) = b.take(&kit.store, 15).await.unwrap();
    assert_eq!(same.expose(), new.expose(), "all devices of a user have the same key");
    assert_eq!(b.confirm(&kit.store, version, &new, 16).await, Confirmed::Now { key, ended: true });

    assert!(matches!(enrols(&kit.store, key, &old, 23, 17).await, Err(EnrolError::KeyReplaced(_))));
    enrols(&kit.store, version, &new, 24, 17).await.unwrap();
    for phone in [&a, &b] {
        assert_eq!(phone.standing(&kit.store, 17).await, DeviceStanding::Good, "no device notices");
    }
    let history = kit.store.list_rotations(RotationTarget::PersonalKeys, &key.to_string(), 10).await.unwrap();
    assert_eq!(history.len(), 1);
    assert_eq!((history[0].kind.as_str(), history[0].completed_at), ("scheduled", Some(at(16))));
    assert_eq!(history[0].new, Some(version.to_string()));
    let last = kit.store.last_rotations(RotationTarget::PersonalKeys).await.unwrap();
    assert_eq!(last[&key.to_string()], at(10));
    // And it goes on from there.
    kit.store.rotate_personal_key(key, &wish(100), None, at(20)).await.unwrap();
    enrols(&kit.store, version, &new, 24, 21).await.unwrap();
}

async fn an_old_key_never_outlives_its_overlap() {
    let kit = Kit::with_basics().await;
    let (key, old) = kit.personal_key().await;
    let phone = Phone::enrol(&kit, 1, key, &old).await;
    let begun = kit.store.rotate_personal_key(key, &wish(100), None, at(10)).await.unwrap();
    enrols(&kit.store, key, &old, 21, 109).await.unwrap();
    // Whether or not anybody has looked since.
    assert!(matches!(enrols(&kit.store, key, &old, 22, 110).await, Err(EnrolError::KeyReplaced(_))));
    let other = kit.replica().await;
    assert_eq!(other.settle_rotations(None, at(50)).await.unwrap(), []);
    assert_eq!(other.settle_rotations(None, at(110)).await.unwrap(), [key]);
    assert_eq!(kit.store.settle_rotations(None, at(111)).await.unwrap(), [], "once");
    // A machine that slept through the overlap is not cut off: it gets the new key when it comes.
    assert_eq!(phone.standing(&kit.store, 200).await, DeviceStanding::Good);
    let (version, new) = phone.take(&kit.store, 200).await.unwrap();
    assert_eq!(version, begun.version);
    assert_eq!(phone.confirm(&kit.store, version, &new, 201).await, Confirmed::Now { key, ended: false });
    enrols(&kit.store, version, &new, 23, 202).await.unwrap();
    let history = kit.store.list_rotations(RotationTarget::PersonalKeys, &key.to_string(), 10).await.unwrap();
    assert_eq!((history[0].completed_at, history[0].unconfirmed), (Some(at(110)), 1));
}

async fn confirmations_are_of_one_device_and_count_once() {
    let kit = Kit::with_basics().await;
    let (key, old) = kit.personal_key().await;
    let (a, b) = (Phone::enrol(&kit, 1, key, &old).await, Phone::enrol(&kit, 2, key, &old).await);
    let begun = kit.store.rotate_personal_key(key, &wish(100), None, at(10)).await.unwrap();
    let (version, new) = a.take(&kit.store, 11).await.unwrap();
    // Another's sealed key is of no use, and neither is its proof.
    let (_, sealed, _) = kit.store.delivery_for(b.id, false, at(11)).await.unwrap().unwrap();
    assert!(a.wrapping.open(handing::KEY_INFO, &handing::place(b.id, version), &sealed).is_none());
    let proof = handing::proof(&new, a.id, version);
    assert_eq!(kit.store.confirm_key(b.id, version, &proof, at(12)).await.unwrap(), Confirmed::Refused);
    assert_eq!(kit.store.confirm_key(a.id, version, &[0; 32], at(12)).await.unwrap(), Confirmed::Refused);
    let unknown = KeyId(Uuid::from_u128(5));
    assert_eq!(kit.store.confirm_key(a.id, unknown, &proof, at(12)).await.unwrap(), Confirmed::Refused);
    assert!(matches!(a.confirm(&kit.store, version, &new, 13).await, Confirmed::Now { ended: false, .. }));
    for now in [14, 15] {
        assert_eq!(a.confirm(&kit.store, version, &new, now).await, Confirmed::Before);
    }
    assert_eq!(begun.version, version);
    // What was withdrawn since cannot be confirmed any more.
    kit.put(&rotation("manual", "r")).await;
    let (_, late) = (version, new);
    assert_eq!(b.confirm(&kit.store, version, &late, 16).await, Confirmed::Refused);
}

async fn a_device_that_was_blocked_in_between_gets_nothing() {
    let kit = Kit::with_basics().await;
    let (key, old) = kit.personal_key().await;
    let (a, b) = (Phone::enrol(&kit, 1, key, &old).await, Phone::enrol(&kit, 2, key, &old).await);
    kit.store.rotate_personal_key(key, &wish(100), None, at(10)).await.unwrap();
    let (version, new) = a.take(&kit.store, 11).await.unwrap();
    kit.put(&format!(
        "apiVersion = 'horizon.dev/v1alpha1'\nkind = 'Revocation'\nmetadata.name = 'lost'\n[spec]\nreason = 'lost'\n\
         target.kind = 'Device'\ntarget.name = '{}'\n",
        b.id
    ))
    .await;
    assert!(b.take(&kit.store, 12).await.is_none());
    assert_eq!(b.confirm(&kit.store, version, &new, 12).await, Confirmed::Refused);
    // And nobody waits for it.
    assert_eq!(a.confirm(&kit.store, version, &new, 13).await, Confirmed::Now { key, ended: true });
}

/// Who copied a device's key has no session, and is not given the key by which they would have one.
async fn a_doubted_device_gets_no_new_key_until_it_is_allowed() {
    let kit = Kit::with_basics().await;
    let (key, old) = kit.personal_key().await;
    let (a, b) = (Phone::enrol(&kit, 1, key, &old).await, Phone::enrol(&kit, 2, key, &old).await);
    kit.store.rotate_personal_key(key, &wish(100), None, at(10)).await.unwrap();
    let decide = async |name: &str, decision: &str| {
        kit.put(&format!(
            "apiVersion = 'horizon.dev/v1alpha1'\nkind = 'DeviceDecision'\nmetadata.name = '{name}'\n[spec]\n\
             reason = 'a test'\ndecision = '{decision}'\ndevice = '{}'\n",
            b.id
        ))
        .await
    };
    decide("doubt", "suspect").await;
    assert!(a.take(&kit.store, 11).await.is_some());
    assert!(b.take(&kit.store, 11).await.is_none());
    // Unless the policy lets such devices connect as well.
    assert!(kit.store.delivery_for(b.id, true, at(11)).await.unwrap().is_some());
    decide("fine", "allow").await;
    let (version, new) = b.take(&kit.store, 12).await.unwrap();
    assert!(matches!(b.confirm(&kit.store, version, &new, 12).await, Confirmed::Now { .. }));
}

async fn a_key_that_is_replaced_is_dead_at_once() {
    let kit = Kit::with_basics().await;
    let (key, old) = kit.personal_key().await;
    let phone = Phone::enrol(&kit, 1, key, &old).await;
    kit.store.rotate_personal_key(key, &wish(100), None, at(5)).await.unwrap();
    let (version, new) = phone.take(&kit.store, 6).await.unwrap();
    let run = kit.put(&rotation("compromised", "now")).await[0].uid;
    for (id, secret) in [(key, &old), (version, &new)] {
        assert!(matches!(enrols(&kit.store, id, secret, 21, 7).await, Err(EnrolError::KeyReplaced(_))));
    }
    assert_eq!(phone.standing(&kit.store, 7).await, DeviceStanding::KeyReplaced);
    assert!(phone.take(&kit.store, 7).await.is_none());
    let facts = kit.store.personal_key_facts(key.0).await.unwrap();
    assert!(facts.manual_rotation_required && !facts.compromised, "the key lives on with another secret");
    let news = kit.store.key_news(phone.id, at(7)).await.unwrap();
    assert_eq!(news.replaced.as_deref(), Some("lost"));
    let done = kit.store.run_facts(run).await.unwrap();
    assert_eq!((done.total, done.done, done.completed_at), (1, 1, Some(at(0))));

    // The user enters the new one, once.
    let issued = kit.store.issue_personal_secret(key, at(8)).await.unwrap();
    assert!(kit.store.issue_personal_secret(key, at(8)).await.is_err(), "it is shown once");
    assert_ne!(issued.key, key);
    let (public, info) = (phone.signing.public(), device_info("phone"));
    let enrolled = kit.store.enrol_device(issued.key, &issued.secret, public, &info, at(9)).await.unwrap();
    assert_eq!((enrolled.device, enrolled.fresh), (phone.id, false), "it is the same device again");
    assert_eq!(phone.standing(&kit.store, 9).await, DeviceStanding::Good);
    assert!(!kit.store.personal_key_facts(key.0).await.unwrap().manual_rotation_required);
    assert!(kit.store.issue_personal_secret(key, at(10)).await.is_err());
    // And it is rotated on schedule from then on.
    kit.store.rotate_personal_key(key, &wish(100), None, at(11)).await.unwrap();
    assert!(phone.take(&kit.store, 12).await.is_some());
    let events = kit.store.list_security_events(&EventFilter::default()).await.unwrap();
    assert!(events.iter().any(|e| e.kind == "key_replaced" && e.severity == "critical"), "{events:?}");
}

async fn a_key_that_nobody_can_take_is_not_rotated() {
    let kit = Kit::with_basics().await;
    let (key, secret) = kit.personal_key().await;
    let nobody = kit.store.rotate_personal_key(key, &wish(100), None, at(1)).await;
    assert!(matches!(nobody, Err(RotateError::NoReceiver)));
    enrols(&kit.store, key, &secret, 9, 2).await.unwrap();
    let old_client = kit.store.rotate_personal_key(key, &wish(100), None, at(3)).await;
    assert!(matches!(old_client, Err(RotateError::NoReceiver)));
    let gone = kit.store.rotate_personal_key(KeyId(Uuid::from_u128(4)), &wish(100), None, at(3)).await;
    assert!(matches!(gone, Err(RotateError::NoReceiver | RotateError::Ended)));
}

/// A thief with the whole database finds no secret in it, and who can write to it gets none sealed to themselves.
async fn stolen_database_rows_give_no_key() {
    let kit = Kit::with_basics().await;
    let (key, old) = kit.personal_key().await;
    let phone = Phone::enrol(&kit, 1, key, &old).await;
    kit.store.rotate_personal_key(key, &wish(100), None, at(10)).await.unwrap();
    let (_, new) = phone.take(&kit.store, 11).await.unwrap();
    let rows = query(
        "SELECT version_id AS id, key_hash AS a, key_salt AS b FROM personal_key_versions UNION ALL \
         SELECT device_id, ciphertext, encapsulated FROM key_deliveries UNION ALL SELECT device_id, proof_digest, wrapping_key \
         FROM key_deliveries JOIN devices USING (device_id) UNION ALL SELECT key_id, key_hash, key_salt FROM personal_keys",
    )
    .fetch_all(kit.store.readers())
    .await
    .unwrap();
    assert!(rows.len() >= 4);
    for row in &rows {
        for column in ["a", "b"] {
            let bytes = row.maybe_bytes(column).unwrap().unwrap_or_default();
            for secret in [&old, &new] {
                let random = secret.split().0;
                assert!(!bytes.windows(random.len()).any(|part| part == random));
            }
        }
    }
    // A wrapping key that its device did not sign gets nothing.
    let thief = WrappingKey::of_device(&[66; 32]);
    let mut tx = kit.store.begin().await.unwrap();
    query("UPDATE devices SET wrapping_key = $1").bind(&thief.public()[..]).execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
    kit.store.settle_rotations(None, at(200)).await.unwrap();
    let sealed = kit.store.rotate_personal_key(key, &wish(100), None, at(201)).await;
    assert!(matches!(sealed, Err(RotateError::NoReceiver)), "{sealed:?}");
    let signed = handing::sign_wrapping_key(&SigningKey::from_seed(Secret::new([66; 32])), &thief.public());
    let set = kit.store.set_wrapping_key(phone.id, phone.signing.public(), &thief.public(), &signed).await;
    assert!(!set.unwrap());
}

/// A session that is asked for while its key is replaced is either refused, or seen by what ends sessions.
async fn a_revoked_key_racing_a_connect_leaves_no_session() {
    for round in 0..8_u64 {
        let scene = Scene::new().await;
        let grant = scene.grant().await;
        let other = scene.kit.replica().await;
        let client = "198.51.100.9".parse().unwrap();
        let asked = NewSession { device: &scene.laptop, grant: &grant, client };
        let connect = async {
            tokio::time::sleep(std::time::Duration::from_micros(round * 700)).await;
            other.request_session(&asked, at(10)).await
        };
        let changes = puts(&rotation("emergency", "now"));
        let replace = scene.kit.commit(&changes, at(10));
        let (connected, committed) = tokio::join!(connect, replace);
        match connected {
            Ok(_) => {
                assert_eq!(committed.servers, [scene.server], "the server is told to look at its sessions");
                let sessions = scene.kit.store.sessions_of_server(scene.server).await.unwrap();
                assert_eq!(sessions.len(), 1);
                assert_eq!(sessions[0].standing(at(11)), DeviceStanding::KeyReplaced, "and ends it");
            }
            Err(SessionError::Device(standing)) => {
                assert_eq!(standing, DeviceStanding::KeyReplaced);
                assert_eq!(scene.kit.store.sessions_of_server(scene.server).await.unwrap().len(), 0);
            }
            Err(other) => panic!("{other}"),
        }
        let late = other.request_session(&asked, at(12)).await;
        assert!(matches!(late, Err(SessionError::Device(DeviceStanding::KeyReplaced))));
    }
}

struct Hand {
    kit: Kit,
    key: KeyId,
}

impl Hand {
    async fn claim(
        &self,
        id: Uuid,
        secret: &Secret,
        code: &str,
        n: u8,
        now: i64,
    ) -> Result<(KeyId, TaggedSecret), ClaimError> {
        let wrapping = WrappingKey::of_device(&[n; 32]);
        let claim = Claim { id, secret, code, wrapping: &wrapping.public(), device: PublicKey([n; 32]) };
        let (version, sealed) = self.kit.store.claim_handover(&claim, at(now)).await?;
        let place = [id.as_bytes().as_slice(), version.as_bytes()].concat();
        let secret = wrapping.open(handing::HANDOVER_INFO, &place, &sealed).unwrap();
        Ok((version, TaggedSecret::from_slice(&secret).unwrap()))
    }
}

async fn a_hand_over_needs_string_and_code() {
    let kit = Kit::with_basics().await;
    let key = KeyId(kit.uid("PersonalKey", "ana-1").await);
    let actor = Actor::Admin("eve".into());
    let hour = SignedDuration::from_hours(1);
    let made = kit.store.hand_over(key, hour, &actor, at(0)).await.unwrap();
    let hand = Hand { kit, key };
    let store = &hand.kit.store;
    let (id, secret) = (made.id, &made.secret);
    // Without the string the code is nothing, and tries without it do not count.
    for _ in 0..9 {
        let guess = hand.claim(id, &Secret::new([1; 32]), &made.code, 1, 1).await;
        assert!(matches!(guess, Err(ClaimError::Unknown)));
    }
    assert!(matches!(
        hand.claim(Uuid::from_u128(3), secret, &made.code, 1, 1).await,
        Err(ClaimError::Unknown)
    ));
    assert!(matches!(
        hand.claim(id, secret, "AAAA-AAAA", 1, 1).await,
        Err(ClaimError::WrongCode { left: 4 })
    ));
    let (version, given) = hand.claim(id, secret, &made.code.to_lowercase(), 1, 2).await.unwrap();
    assert_eq!(version, hand.key);
    // Its reply may be lost; another device has come too late.
    let (_, again) = hand.claim(id, secret, &made.code, 1, 3).await.unwrap();
    assert!(matches!(hand.claim(id, secret, &made.code, 2, 3).await, Err(ClaimError::Taken(_))));
    assert!(
        matches!(enrols(store, hand.key, &given, 9, 4).await, Err(EnrolError::Unknown)),
        "the later holds"
    );
    enrols(store, hand.key, &again, 9, 4).await.unwrap();
    assert!(matches!(hand.claim(id, secret, &made.code, 1, 5).await, Err(ClaimError::Ended)), "it was used");
    assert!(matches!(store.hand_over(hand.key, hour, &actor, at(6)).await, Err(HandoverError::InUse)));
    // A key that was replaced can be handed over again, and only for a while.
    hand.kit.put(&rotation("manual", "r")).await;
    let made = store.hand_over(hand.key, hour, &actor, at(10)).await.unwrap();
    let late = hand.claim(made.id, &made.secret, &made.code, 1, 10 + 3600).await;
    assert!(matches!(late, Err(ClaimError::Ended)));
    let newer = store.hand_over(hand.key, hour, &actor, at(11)).await.unwrap();
    assert!(matches!(hand.claim(made.id, &made.secret, &made.code, 1, 12).await, Err(ClaimError::Ended)));
    let (version, secret) = hand.claim(newer.id, &newer.secret, &newer.code, 1, 12).await.unwrap();
    assert_ne!(version, hand.key);
    enrols(store, version, &secret, 9, 13).await.unwrap();
}

/// Whoever intercepted a hand-over does not get the key that takes the place of the compromised one.
async fn a_hand_over_of_before_gives_no_key_that_replaced_another() {
    let kit = Kit::with_basics().await;
    let key = KeyId(kit.uid("PersonalKey", "ana-1").await);
    let actor = Actor::Admin("eve".into());
    let made = kit.store.hand_over(key, SignedDuration::from_hours(24), &actor, at(0)).await.unwrap();
    let hand = Hand { kit, key };
    let store = &hand.kit.store;
    let (version, stolen) = hand.claim(made.id, &made.secret, &made.code, 1, 1).await.unwrap();
    enrols(store, version, &stolen, 1, 2).await.unwrap();
    hand.kit.put(&rotation("compromised", "now")).await;
    // Not the device that it was claimed by, and nobody else.
    for device in [1, 2] {
        let again = hand.claim(made.id, &made.secret, &made.code, device, 3).await;
        assert!(matches!(again, Err(ClaimError::Ended)), "{again:?}");
    }
    let issued = store.issue_personal_secret(key, at(4)).await.unwrap();
    assert!(matches!(enrols(store, version, &stolen, 3, 5).await, Err(EnrolError::KeyReplaced(_))));
    enrols(store, issued.key, &issued.secret, 3, 5).await.unwrap();
}

async fn guesses_of_a_code_are_bounded_however_many_come_at_once() {
    let kit = Kit::with_basics().await;
    let key = KeyId(kit.uid("PersonalKey", "ana-1").await);
    let actor = Actor::Admin("eve".into());
    let made = kit.store.hand_over(key, SignedDuration::from_hours(1), &actor, at(0)).await.unwrap();
    let hand = Hand { kit, key };
    let tries = (0..16).map(|_| hand.claim(made.id, &made.secret, "ZZZZ-ZZZZ", 1, 1));
    let answers = futures_util::future::join_all(tries).await;
    let looked = answers.iter().filter(|a| {
        matches!(a, Err(ClaimError::WrongCode { .. })) || matches!(a, Err(ClaimError::Exhausted))
    });
    assert_eq!(looked.count() + answers.iter().filter(|a| matches!(a, Err(ClaimError::Ended))).count(), 16);
    let wrong = answers.iter().filter(|a| matches!(a, Err(ClaimError::WrongCode { .. }))).count();
    assert!(wrong <= 5, "{wrong} guesses were looked at");
    let right = hand.claim(made.id, &made.secret, &made.code, 1, 2).await;
    assert!(matches!(right, Err(ClaimError::Exhausted | ClaimError::Ended)), "{right:?}");
}

async fn the_end_of_a_key_is_warned_of_once_per_span() {
    let kit = Kit::with_basics().await;
    kit.put(
        "apiVersion = 'horizon.dev/v1alpha1'\nkind = 'PersonalKey'\nmetadata.name = 'ana-1'\nspec.userRef = 'ana'\n\
         spec.lifetime = '90d'\n",
    )
    .await;
    let key = kit.uid("PersonalKey", "ana-1").await;
    let day = 24 * 3600;
    let warned = async |days: i64| kit.store.warn_of_expiry(None, at(days * day)).await.unwrap();
    assert!(!warned(59).await.contains(&key));
    for days in [60, 83, 89] {
        assert!(warned(days).await.contains(&key), "on day {days}");
        assert!(!warned(days).await.contains(&key), "once");
    }
    assert!(!warned(91).await.contains(&key));
    let events = kit.store.list_security_events(&EventFilter::default()).await.unwrap();
    assert_eq!(events.iter().filter(|e| e.kind == "key_expires_soon").count(), 3);
}

async fn policies_and_runs_show_what_became_of_them() {
    let kit = Kit::with_basics().await;
    let policy = "apiVersion = 'horizon.dev/v1alpha1'\nkind = 'RotationPolicy'\nmetadata.name = 'p'\n[spec]\n\
                  target = 'personalKeys'\nevery = '90d'\n";
    let policy = kit.put(policy).await[0].uid;
    let figures = PolicyFigures { keys: 3, rotating: 1, next_run: Some(at(500)) };
    assert!(kit.store.note_policy(policy, figures, None).await.unwrap());
    assert!(!kit.store.note_policy(policy, figures, None).await.unwrap(), "no news");
    let (key, secret) = kit.personal_key().await;
    let phone = Phone::enrol(&kit, 1, key, &secret).await;
    let run = kit.put(&rotation("scheduled", "r")).await[0].uid;
    let waiting = kit.store.waiting_runs(RotationTarget::PersonalKeys).await.unwrap();
    assert_eq!(waiting.len(), 1);
    let keys = kit.store.keys_of_run(&waiting[0]).await.unwrap();
    assert_eq!(keys, [(key, "ana-1".to_owned())]);
    let scheduled = Scheduled { policy: Some(policy), run: Some(run), ..wish(100) };
    kit.store.rotate_personal_key(key, &scheduled, None, at(10)).await.unwrap();
    let (begun, progress) = kit.store.begun_by_run(run).await.unwrap();
    assert!(begun.contains(&key));
    assert_eq!((progress.done, progress.receivers, progress.confirmed), (0, 1, 0));
    let (version, new) = phone.take(&kit.store, 11).await.unwrap();
    phone.confirm(&kit.store, version, &new, 12).await;
    let (_, mut progress) = kit.store.begun_by_run(run).await.unwrap();
    assert_eq!((progress.done, progress.receivers, progress.confirmed), (1, 1, 1));
    (progress.total, progress.completed) = (1, true);
    kit.store.note_run(run, &progress, None, at(13)).await.unwrap();
    assert!(kit.store.waiting_runs(RotationTarget::PersonalKeys).await.unwrap().is_empty());
    let facts = kit.store.policy_facts(policy).await.unwrap();
    assert_eq!((facts.keys, facts.rotations, facts.last_run), (3, 1, Some(at(10))));
    let dates = kit.store.key_dates(at(20)).await.unwrap()[&key.0];
    assert_eq!((dates.last_rotation, dates.rotating), (Some(at(10)), false));
    kit.store.note_next_rotation(key, at(900), true, None, at(20)).await.unwrap();
    assert_eq!(kit.store.key_news(phone.id, at(21)).await.unwrap().rotates, Some(at(900)));
}

conformance!(
    both_keys_work_until_every_device_has_the_new_one,
    an_old_key_never_outlives_its_overlap,
    confirmations_are_of_one_device_and_count_once,
    a_device_that_was_blocked_in_between_gets_nothing,
    a_doubted_device_gets_no_new_key_until_it_is_allowed,
    a_key_that_is_replaced_is_dead_at_once,
    a_key_that_nobody_can_take_is_not_rotated,
    stolen_database_rows_give_no_key,
    a_revoked_key_racing_a_connect_leaves_no_session,
    a_hand_over_needs_string_and_code,
    a_hand_over_of_before_gives_no_key_that_replaced_another,
    guesses_of_a_code_are_bounded_however_many_come_at_once,
    the_end_of_a_key_is_warned_of_once_per_span,
    policies_and_runs_show_what_became_of_them,
);
