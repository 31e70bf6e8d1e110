//! Envelope encryption: what a stolen database gives away, values in places that are not theirs, and the rotation of what seals.

use data_encoding::{BASE32_NOPAD, BASE64URL_NOPAD, HEXLOWER};
use horizon_controller_core::account::AccountPolicy;
use horizon_crds::{RotationTarget, RotationType};
use horizon_model::{Incarnation, KeyId, PublicKey, Secret};
use jiff::SignedDuration;
use zeroize::Zeroizing;

use super::{
    admins::{account, settle},
    kit::{Kit, REPLICA, at, attachment, conformance, envelope, request},
    place::Place,
    sessions::Scene,
};
use crate::{
    account::{recovery_digest, sha256},
    keys::Envelope,
    metrics::Metrics,
    store::{
        Actor, Caller, Credentials, EnvelopeKey, EnvelopePhase, EnvelopeRotation, IdempotentRequest,
        NewEnvelopeRotation, Repeated, ReplicaId, ReplicaInfo, ResealCursor, SessionRefused, Store,
        StoreError,
        dialect::query,
        row::Columns as _,
        seal::{self, DataKey, Place as Sealed},
        seal_keys, settings,
    },
};

/// A database that somebody lived in, and what must not be read out of it.
struct Home {
    scene: Scene,
    /// What it is, and its bytes.
    secrets: Vec<(String, Vec<u8>)>,
    token: Secret,
    appliance: PublicKey,
    refresh: (crate::store::AdminSessionId, Secret),
    totp: Secret,
    request: IdempotentRequest,
}

const ANSWER: &[u8] = b"{\"secret\":\"an answer with a token in it\"}";

fn caller() -> Caller {
    Caller::new("192.0.2.1".parse().unwrap(), "test/1", Some("SE".into()))
}

fn text(text: &str) -> Zeroizing<String> {
    Zeroizing::new(text.to_owned())
}

impl Home {
    async fn new() -> Self {
        let scene = Scene::new().await;
        let kit = &scene.kit;
        let store = &kit.store;
        let mut secrets: Vec<(String, Vec<u8>)> = Vec::new();
        let mut keep = |what: &str, bytes: &[u8]| secrets.push((what.to_owned(), bytes.to_vec()));
        // Another server, whose token was not used yet, with the digest that would find it.
        kit.put(
            "[[resource]]\napiVersion = 'horizon.dev/v1alpha1'\nkind = 'Server'\nmetadata.name = 'oslo'\n[resource.spec]\n\
             [[resource]]\napiVersion = 'horizon.dev/v1alpha1'\nkind = 'RegistrationKey'\nmetadata.name = 'oslo-1'\n\
             spec.serverRef = 'oslo'\n[[resource]]\napiVersion = 'horizon.dev/v1alpha1'\nkind = 'PersonalKey'\n\
             metadata.name = 'ana-2'\nspec.userRef = 'ana'\n",
        )
        .await;
        let token =
            store.issue_registration_secret(kit.uid("RegistrationKey", "oslo-1").await, at(0)).await.unwrap();
        keep("registration token", token.expose());
        keep("digest of a registration token", &sha256(token.expose()));
        let attached = kit.attach(scene.server).await;
        keep("verification secret", attached.secret.expose());
        let session = scene.granted(&scene.laptop, 5).await;
        keep("session secret", session.secret.expose());
        account(kit, "ann", "admin").await;
        account(kit, "bob", "admin").await;
        let (begun, totp, recovery) = settle(kit, "ann").await;
        settle(kit, "bob").await;
        keep("one-time codes", totp.expose());
        for code in &recovery {
            keep("recovery code", code.as_bytes());
            keep("digest of a recovery code", &recovery_digest(code));
        }
        keep("refresh token", begun.secret.expose());
        keep("digest of a refresh token", &sha256(begun.secret.expose()));
        let policy = AccountPolicy::default();
        let renewed = store
            .renew_admin_session(begun.who.session, &begun.secret, &caller(), &policy, at(31))
            .await
            .unwrap();
        keep("refresh token", renewed.secret.expose());
        keep("digest of a refresh token", &sha256(renewed.secret.expose()));
        let row = query("SELECT password_salt FROM admins WHERE username = 'ann'")
            .fetch_one(store.readers())
            .await
            .unwrap();
        let password = text("rain tractor velvet");
        let hash = store.hash_password(&password, row.bytes("password_salt").unwrap()).await.unwrap();
        keep("hash of a password", &hash);
        keep("password", password.as_bytes());
        let key = KeyId(kit.uid("PersonalKey", "ana-2").await);
        let hour = SignedDuration::from_hours(1);
        let made = store.hand_over(key, hour, &Actor::Admin("eve".into()), at(0)).await.unwrap();
        keep("string of a hand-over", made.secret.expose());
        keep("digest of a hand-over", &sha256(made.secret.expose()));
        let row = query("SELECT code_salt FROM key_handovers").fetch_one(store.readers()).await.unwrap();
        let code = made.code.replace('-', "");
        let hash = store.hash_text(&code, row.bytes("code_salt").unwrap()).await.unwrap();
        keep("hash of the code of a hand-over", &hash);
        for key in store.token_keys(at(0)).await.unwrap() {
            keep("key of tokens", key.private.unwrap().seed().expose());
        }
        let request =
            IdempotentRequest { owner: "ann".into(), key: "k".into(), digest: sha256(b"a request") };
        assert_eq!(store.claim_idempotency(&request, at(0)).await.unwrap(), Repeated::New);
        store.settle_idempotency(&request, Some((201, ANSWER)), at(1)).await.unwrap();
        keep("answer", ANSWER);
        keep("digest of a request", &request.digest);
        let keyset = super::keysets::bring_in(kit).await;
        keep("private key of a KeySet", keyset.expose());
        keep("envelope key", envelope().0.expose());
        for key in store.sealer().keys() {
            keep("data key", key.secret.expose());
        }
        let refresh = (begun.who.session, renewed.secret);
        Self { scene, secrets, token, appliance: PublicKey([77; 32]), refresh, totp, request }
    }

    fn store(&self) -> &Store {
        &self.scene.kit.store
    }

    /// Everything works that hangs on a sealed value, for a store that has the keys. What is used up is used once.
    async fn works(&self, store: &Store, round: i64) {
        let now = 600 * (round + 1);
        let mut token = request(self.token.clone(), self.appliance);
        token.key_name = "oslo-1".into();
        let registered = store.register_server(&token, at(now)).await.unwrap();
        assert_eq!(registered.fresh, round == 0);
        let sessions = store.sessions_of_server(self.scene.server).await.unwrap();
        assert_eq!(sessions.len(), 1);
        let code = crate::account::totp::code(&self.totp, at(now));
        let given = Credentials {
            username: "ann".into(),
            password: text("rain tractor velvet"),
            code: Some(text(&code)),
        };
        store.sign_in(&given, &caller(), &AccountPolicy::default(), at(now)).await.unwrap();
        let again = store.claim_idempotency(&self.request, at(now)).await.unwrap();
        assert_eq!(again, Repeated::Answered(201, Zeroizing::new(ANSWER.to_vec())));
        assert_eq!(store.keysets_after(0).await.unwrap().iter().filter(|row| row.key.is_some()).count(), 1);
        assert!(store.token_keys(at(0)).await.unwrap()[0].private.is_some());
        let (session, secret) = &self.refresh;
        let wrong = Secret::new([3; 32]);
        let policy = AccountPolicy::default();
        let refused = store.renew_admin_session(*session, &wrong, &caller(), &policy, at(now)).await;
        assert!(matches!(refused, Err(SessionRefused::Wrong)), "{refused:?}");
        assert_eq!(secret.expose().len(), 32);
    }
}

/// Everything that is in a database, as whoever stole it has it: in hexadecimal, since the standard library finds text fast.
fn stolen(place: &Place) -> String {
    let all = match place {
        Place::Sqlite(dir) => {
            let files = std::fs::read_dir(dir.path()).unwrap();
            files.flat_map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect()
        }
        Place::Postgres(name) => {
            super::place::server().tool("pg_dump", ["--data-only", "--inserts", name]).unwrap().into_bytes()
        }
    };
    HEXLOWER.encode(&all)
}

/// Whether bytes occur in what was stolen, in any of the forms that they may take there.
fn occurs(stolen: &str, bytes: &[u8]) -> bool {
    let forms = [
        bytes.to_vec(),
        HEXLOWER.encode(bytes).into_bytes(),
        BASE32_NOPAD.encode(bytes).to_ascii_lowercase().into_bytes(),
        BASE32_NOPAD.encode(bytes).into_bytes(),
        BASE64URL_NOPAD.encode(bytes).into_bytes(),
    ];
    forms.iter().any(|form| stolen.contains(&HEXLOWER.encode(form)))
}

async fn a_stolen_database_without_the_envelope_key_gives_no_secret() {
    let home = Home::new().await;
    let place = &home.scene.kit.place;
    let before = stolen(place);
    assert!(occurs(&before, b"berlin"), "what is no secret is found");
    for (what, secret) in &home.secrets {
        assert!(!occurs(&before, secret), "{what}");
    }
    rotate(home.store(), RotationType::Scheduled).await;
    let after = stolen(place);
    for (what, secret) in &home.secrets {
        assert!(!occurs(&after, secret), "{what}, after a rotation");
    }
    // Whoever has it and no key, or another, opens nothing.
    let other = EnvelopeKey(Secret::new([1; 32]));
    let opened = Store::open(place.database(), &other, Metrics::default()).await;
    assert!(matches!(opened, Err(StoreError::OtherEnvelope { .. })));
}

async fn sealed_values_in_other_places_are_refused() {
    let home = Home::new().await;
    let (place, store) = (&home.scene.kit.place, home.store());
    let sign_in = async |name: &str, now| {
        let given = Credentials { username: name.into(), password: text("rain tractor velvet"), code: None };
        store.sign_in(&given, &caller(), &AccountPolicy::default(), at(now)).await
    };
    // Another row of the same column: bob gets ann's password with its salt.
    place
        .admin(
            "UPDATE admins SET password_hash = (SELECT password_hash FROM admins WHERE username = 'ann'), \
             password_salt = (SELECT password_salt FROM admins WHERE username = 'ann') WHERE username = 'bob'",
        )
        .await;
    let error = sign_in("bob", 1000).await.unwrap_err();
    assert!(error.to_string().contains("does not open"), "{error}");
    // Another column of the same row: the secret before in the place of the one in force.
    place
        .admin("UPDATE servers SET previous_secret = verification_secret, previous_key = verification_key")
        .await;
    let server = home.scene.server;
    let expected = store.channel_of(server).await.unwrap().map(|holder| holder.lease);
    let incarnation = Incarnation(uuid::Uuid::from_u128(7));
    let attachment = attachment(store, server, REPLICA, incarnation, expected).await.unwrap();
    let refused = store.attach(&attachment, at(1000)).await;
    assert!(matches!(refused, Err(StoreError::Seal(_))), "{refused:?}");
    // The token before in the place of the one in force.
    place
        .admin("UPDATE admin_sessions SET session_token = previous_token WHERE previous_token IS NOT NULL")
        .await;
    let (session, secret) = &home.refresh;
    let policy = AccountPolicy::default();
    let refused = store.renew_admin_session(*session, secret, &caller(), &policy, at(1001)).await;
    assert!(matches!(refused, Err(SessionRefused::Store(StoreError::Seal(_)))), "{refused:?}");
    // A value of another table.
    place.admin("UPDATE idempotency_keys SET answer = (SELECT private_key FROM token_keys)").await;
    assert!(matches!(store.claim_idempotency(&home.request, at(60)).await, Err(StoreError::Seal(_))));
}

async fn begin(store: &Store, kind: RotationType, new_envelope: bool) -> EnvelopeRotation {
    let new =
        NewEnvelopeRotation { kind, reason: "a test", by: "ann", run: None, policy: None, new_envelope };
    assert!(store.begin_envelope_rotation(&new, None, at(50)).await.unwrap());
    store.envelope_rotation(None).await.unwrap().unwrap()
}

/// What a replica does of itself: takes the keys that are there, and says so.
async fn follow(store: &Store, replica: ReplicaId) {
    if let Some(next) = store.next_envelope_key().await.unwrap() {
        store.use_envelope(Envelope::from(&next)).await.unwrap();
    }
    store.refresh_data_keys().await.unwrap();
    store.put_envelope_holder(replica).await.unwrap();
}

/// Rotates alone; every step is taken by a store that was opened just then, as after a crash before it.
async fn rotate(store: &Store, kind: RotationType) -> u64 {
    let rotation = begin(store, kind, false).await;
    follow(store, REPLICA).await;
    assert!(store.publish_data_keys(&rotation, None, None, at(51)).await.unwrap());
    assert!(!store.publish_data_keys(&rotation, None, None, at(51)).await.unwrap(), "once");
    follow(store, REPLICA).await;
    assert!(store.use_data_keys(&rotation, None, at(52)).await.unwrap());
    follow(store, REPLICA).await;
    assert!(store.all_seal_anew().await.unwrap());
    let resealed = reseal(store).await;
    assert!(store.retire_data_keys(&rotation, None, at(53)).await.unwrap());
    follow(store, REPLICA).await;
    assert_eq!(store.envelope_rotation(None).await.unwrap(), None);
    resealed
}

async fn reseal(store: &Store) -> u64 {
    let (mut cursor, mut values) = (ResealCursor::default(), 0);
    loop {
        let part = store.reseal(&cursor, 2, None).await.unwrap();
        values += part.values;
        assert_eq!(part.stuck, 0);
        match part.next {
            Some(next) => cursor = next,
            None => return values,
        }
    }
}

async fn every_value_is_sealed_anew_and_the_old_key_is_dropped() {
    let home = Home::new().await;
    let kit = &home.scene.kit;
    home.works(home.store(), 0).await;
    let before = home.store().sealer().sealing();
    let resealed = rotate(home.store(), RotationType::Scheduled).await;
    assert!(resealed > 20, "{resealed}");
    let after = home.store().sealer();
    assert!(after.sealing() > before && after.keys().iter().all(|key| key.current), "the old ones are gone");
    home.works(home.store(), 1).await;
    home.works(&kit.replica().await, 2).await;
    // Who sealed under the key that is gone would be refused by the database.
    let mut tx = kit.store.begin().await.unwrap();
    let error =
        query("UPDATE connections SET secret_key = $1").bind(before).execute(&mut *tx).await.unwrap_err();
    assert!(error.as_database_error().unwrap().is_foreign_key_violation(), "{error}");
    drop(tx);
    let kinds = ["controller_key_published", "controller_key_used", "controller_key_retired"];
    let events = kit
        .store
        .list_security_events(&crate::store::EventFilter { limit: 100, ..Default::default() })
        .await
        .unwrap();
    assert!(kinds.iter().all(|kind| events.iter().any(|event| event.kind == *kind)));
    let history = kit.store.list_rotations(RotationTarget::ControllerKeys, "envelope", 5).await.unwrap();
    assert!(
        matches!(&history[..], [one] if one.completed_at.is_some() && one.reason == "a test"),
        "{history:?}"
    );
}

/// A crash before any step: another process goes on from the rows.
async fn a_rotation_converges_whoever_takes_the_next_step() {
    let home = Home::new().await;
    let kit = &home.scene.kit;
    let opened = async || {
        let store = kit.replica().await;
        follow(&store, REPLICA).await;
        store
    };
    let rotation = begin(home.store(), RotationType::Manual, false).await;
    assert!(opened().await.publish_data_keys(&rotation, None, None, at(51)).await.unwrap());
    assert!(opened().await.use_data_keys(&rotation, None, at(52)).await.unwrap());
    // Half of the work, by two who do not know of each other; then another from the beginning.
    let (one, two) = (opened().await, opened().await);
    let first = one.reseal(&ResealCursor::default(), 1, None).await.unwrap();
    one.reseal(&first.next.unwrap(), 1, None).await.unwrap();
    let start = ResealCursor::default();
    let (a, b) = tokio::join!(two.reseal(&start, 3, None), one.reseal(&start, 3, None));
    a.unwrap();
    b.unwrap();
    assert!(!opened().await.retire_data_keys(&rotation, None, at(53)).await.unwrap(), "values are left");
    reseal(&opened().await).await;
    assert!(opened().await.retire_data_keys(&rotation, None, at(54)).await.unwrap());
    home.works(&opened().await, 0).await;
    // The store that was there all the time, and knows the old keys alone, finds the new ones when it needs them.
    home.works(home.store(), 1).await;
}

async fn the_envelope_key_follows_another_on_every_replica() {
    let home = Home::new().await;
    let kit = &home.scene.kit;
    let (one, two) = (home.store().clone(), kit.replica().await);
    let (first, second) = (REPLICA, ReplicaId(uuid::Uuid::from_u128(2)));
    let info = |name: &str| ReplicaInfo {
        name: name.into(),
        addresses: Vec::new(),
        draining: false,
        version: "1".into(),
    };
    one.replica_beat(first, &info("one")).await.unwrap();
    two.replica_beat(second, &info("two")).await.unwrap();
    follow(&one, first).await;
    let old = one.envelope().id();
    let rotation = begin(&one, RotationType::Compromised, true).await;
    let next = EnvelopeKey(Secret::new([9; 32]));
    assert!(one.publish_data_keys(&rotation, Some(&next), None, at(51)).await.unwrap());
    assert!(!occurs(&stolen(&kit.place), next.0.expose()), "it travels sealed");
    follow(&one, first).await;
    // The other has said nothing yet: nothing goes on without it.
    assert_eq!(one.settle_envelope(None, at(52)).await.unwrap(), None);
    assert!(!one.use_data_keys(&rotation, None, at(52)).await.unwrap());
    // Either key opens the database meanwhile.
    for key in [&envelope(), &next] {
        Store::open(kit.place.database(), key, Metrics::default()).await.unwrap().close().await;
    }
    follow(&two, second).await;
    assert_eq!(two.envelope().id(), Envelope::from(&next).id());
    assert_eq!(one.settle_envelope(None, at(53)).await.unwrap(), Some(Envelope::from(&next).id()));
    assert!(one.use_data_keys(&rotation, None, at(53)).await.unwrap());
    follow(&one, first).await;
    // The other seals under the old data key still: nothing is taken away from it.
    assert!(!one.all_seal_anew().await.unwrap());
    assert!(!one.retire_data_keys(&rotation, None, at(54)).await.unwrap());
    follow(&two, second).await;
    reseal(&one).await;
    assert!(one.retire_data_keys(&rotation, None, at(55)).await.unwrap());
    follow(&one, first).await;
    follow(&two, second).await;
    assert!(one.envelope().id() != old && two.envelope().id() != old);
    let opened = Store::open(kit.place.database(), &envelope(), Metrics::default()).await;
    assert!(matches!(opened, Err(StoreError::OtherEnvelope { .. })), "the old key opens nothing any more");
    home.works(&two, 0).await;
}

async fn who_does_not_lead_rotates_nothing() {
    let kit = Kit::with_basics().await;
    let deposed = kit.store.take_leadership(REPLICA, "one", at(0)).await.unwrap();
    let epoch = kit.store.take_leadership(ReplicaId(uuid::Uuid::from_u128(2)), "two", at(1)).await.unwrap();
    let new = NewEnvelopeRotation {
        kind: RotationType::Scheduled,
        reason: "a test",
        by: "ann",
        run: None,
        policy: None,
        new_envelope: false,
    };
    let refused = kit.store.begin_envelope_rotation(&new, Some(deposed), at(2)).await;
    assert!(matches!(refused, Err(StoreError::Fenced)));
    assert!(kit.store.begin_envelope_rotation(&new, Some(epoch), at(2)).await.unwrap());
    assert!(!kit.store.begin_envelope_rotation(&new, Some(epoch), at(2)).await.unwrap(), "one at a time");
    let rotation = kit.store.envelope_rotation(None).await.unwrap().unwrap();
    assert_eq!(rotation.phase, EnvelopePhase::Requested);
    let fenced = |result: Result<bool, StoreError>| matches!(result, Err(StoreError::Fenced));
    assert!(fenced(kit.store.publish_data_keys(&rotation, None, Some(deposed), at(3)).await));
    assert!(fenced(kit.store.use_data_keys(&rotation, Some(deposed), at(3)).await));
    assert!(fenced(kit.store.retire_data_keys(&rotation, Some(deposed), at(3)).await));
    let part = kit.store.reseal(&ResealCursor::default(), 1, Some(deposed)).await;
    assert!(matches!(part, Err(StoreError::Fenced)));
}

/// A database of before there were data keys: its values stay as they are until it is rotated, and nothing breaks on the way.
async fn what_an_older_version_sealed_is_taken_over() {
    let home = Home::new().await;
    let kit = &home.scene.kit;
    turn_back(&kit.store).await;
    kit.store.close().await;
    // A key that is not that of the database is refused, as before.
    let wrong = EnvelopeKey(Secret::new([1; 32]));
    let opened = Store::open(kit.place.database(), &wrong, Metrics::default()).await;
    assert!(matches!(opened, Err(StoreError::Seal(_))));
    let store = kit.replica().await;
    assert!(store.sealer().is_first() && store.first_format_since().await.unwrap().is_some());
    assert!(occurs(&stolen(&kit.place), &sha256(home.token.expose())), "as it was kept then");
    home.works(&store, 0).await;
    rotate(&store, RotationType::Scheduled).await;
    assert!(!store.sealer().is_first() && store.first_format_since().await.unwrap().is_none());
    home.works(&store, 1).await;
    assert!(!occurs_in_rows(&kit.place, &sha256(home.token.expose())).await);
    home.works(&kit.replica().await, 2).await;
}

/// Has a database look as a version left it that sealed under the envelope key itself.
async fn turn_back(store: &Store) {
    let (key, sealer) = (envelope(), store.sealer());
    let mut tx = store.begin().await.unwrap();
    let rows = query("SELECT key_uid, secret_digest FROM registration_keys WHERE secret_digest IS NOT NULL")
        .fetch_all(&mut *tx)
        .await
        .unwrap();
    for row in &rows {
        let id: uuid::Uuid = row.parsed("key_uid").unwrap();
        let sealed = row.bytes("secret_digest").unwrap();
        let digest = sealer.open_bytes(Sealed::Registration, id.as_bytes(), &sealed).unwrap();
        query(
            "UPDATE registration_keys SET secret_hash = $1, lookup_key = NULL, secret_digest = NULL, digest_key = NULL \
             WHERE key_uid = $2",
        )
        .bind(digest.to_vec())
        .bind(id.to_string())
        .execute(&mut *tx)
        .await
        .unwrap();
    }
    query("UPDATE data_keys SET state = 'previous'").execute(&mut *tx).await.unwrap();
    let [(purpose, secret), ..] = seal::first_keys(&key);
    let first = DataKey { number: 101, purpose, format: seal::FIRST_FORMAT, current: true, secret };
    seal_keys::add_key(&mut tx, &first, &[&store.envelope()], at(40)).await.unwrap();
    tx.commit().await.unwrap();
    store.refresh_data_keys().await.unwrap();
    reseal(store).await;
    let mut tx = store.begin().await.unwrap();
    for sql in [
        "UPDATE servers SET verification_key = NULL, previous_key = NULL",
        "UPDATE connections SET secret_key = NULL",
        "UPDATE keysets SET sealing_key = NULL",
        "UPDATE admins SET password_key = NULL, mfa_key = NULL",
        "UPDATE admin_recovery_codes SET code_key = NULL",
        "UPDATE admin_sessions SET session_token_key = NULL, previous_token_key = NULL",
        "UPDATE token_keys SET sealing_key = NULL",
        "UPDATE idempotency_keys SET digest_key = NULL, answer_key = NULL",
        "UPDATE key_handovers SET digest_key = NULL, code_key = NULL",
        "DELETE FROM data_key_wraps",
        "DELETE FROM data_keys",
        "DELETE FROM envelope_keys",
    ] {
        query(sql).execute(&mut *tx).await.unwrap();
    }
    settings::put(&mut tx, "envelope_check", &seal::first_check(&key), at(41)).await.unwrap();
    tx.commit().await.unwrap();
}

/// Whether bytes occur in what is looked up: a file of SQLite may keep pages that nothing refers to any more.
async fn occurs_in_rows(place: &Place, bytes: &[u8]) -> bool {
    let store = Store::open(place.database(), &envelope(), Metrics::default()).await.unwrap();
    let rows = query("SELECT secret_hash FROM registration_keys WHERE secret_hash IS NOT NULL")
        .fetch_all(store.readers())
        .await
        .unwrap();
    rows.iter().any(|row| row.bytes("secret_hash").unwrap() == bytes)
}

conformance!(
    a_stolen_database_without_the_envelope_key_gives_no_secret,
    sealed_values_in_other_places_are_refused,
    every_value_is_sealed_anew_and_the_old_key_is_dropped,
    a_rotation_converges_whoever_takes_the_next_step,
    the_envelope_key_follows_another_on_every_replica,
    who_does_not_lead_rotates_nothing,
    what_an_older_version_sealed_is_taken_over,
);
