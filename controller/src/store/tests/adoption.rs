//! Resources that were removed and come back under their identity, and what does not.

use std::{collections::BTreeMap, sync::Arc};

use horizon_controller_core::{ID_ANNOTATION, Origin, Stored};
use horizon_crds::{KindName, Resource, document::from_json};
use horizon_model::{NetworkId, PublicKey};
use serde_json::json;
use uuid::Uuid;

use super::kit::{BASICS, Kit, at, conformance, device_info, puts, removal, resources};
use crate::store::{Actor, Change, Guard};

const MORE: &str = "[[resource]]\napiVersion = 'horizon.dev/v1alpha1'\nkind = 'VirtualNetwork'\nmetadata.name = 'games'\n\
    spec.addressRanges = ['10.77.0.0/24']\n\
    [[resource]]\napiVersion = 'horizon.dev/v1alpha1'\nkind = 'Server'\nmetadata.name = 'oslo'\n\
    spec.lifecycle = { state = 'decommissioned', reason = 'sold' }\n\
    [[resource]]\napiVersion = 'horizon.dev/v1alpha1'\nkind = 'Server'\nmetadata.name = 'rome'\nspec.location = 'Rome'\n\
    [[resource]]\napiVersion = 'horizon.dev/v1alpha1'\nkind = 'PersonalKey'\nmetadata.name = 'ana-2'\n\
    spec = { userRef = 'ana', revocation = { reason = 'lost' } }\n";
const REVOCATION: &str = "apiVersion = 'horizon.dev/v1alpha1'\nkind = 'Revocation'\nmetadata.name = 'rome-lost'\n\
    spec = { target = { kind = 'Server', name = 'rome' }, reason = 'stolen', compromised = true }\n";

/// The document of a resource that claims an identity.
fn claiming(resource: &Resource, uid: Uuid) -> Resource {
    let mut json = resource.to_json();
    json["metadata"]["annotations"] = json!({ ID_ANNOTATION: uid.to_string() });
    from_json(&json).unwrap()
}

fn put(resource: Resource) -> Change {
    Change::Put { resource: Arc::new(resource), origin: Origin::File("back.toml".into()), actor: None }
}

/// Everything that is known of the resources in force.
async fn known(kit: &Kit, stored: &[Stored]) -> BTreeMap<String, String> {
    let mut known = BTreeMap::new();
    for one in stored {
        let facts = match one.resource.kind() {
            KindName::Server => {
                let record = kit.store.server(one.server_id()).await.unwrap();
                format!("{record:?} {:?}", kit.store.server_facts(one.server_id()).await.unwrap())
            }
            KindName::RegistrationKey => {
                format!("{:?}", kit.store.registration_key_facts(one.uid).await.unwrap())
            }
            KindName::PersonalKey => format!("{:?}", kit.store.personal_key_facts(one.uid).await.unwrap()),
            KindName::User => format!("{:?}", kit.store.user_facts(one.uid).await.unwrap()),
            _ => format!("{:?}", kit.store.decision_facts(one.uid).await.unwrap()),
        };
        let status = kit.store.status_of(one.uid).await.unwrap();
        let (generation, number) = (one.generation, one.number);
        let line = format!("{} {generation} {number:?} {} {facts} {status:?}", one.uid, one.created_at);
        known.insert(one.id().to_string(), line);
    }
    known
}

async fn what_was_removed_comes_back_as_it_was() {
    let kit = Kit::with_basics().await;
    kit.put(MORE).await;
    kit.put(REVOCATION).await;
    let server = kit.register(PublicKey([1; 32])).await.server;
    let (key, secret) = kit.personal_key().await;
    let enrolled =
        kit.store.enrol_device(key, &secret, PublicKey([9; 32]), &device_info("phone"), at(2)).await;
    enrolled.unwrap();
    // Generations other than the first, and a status.
    kit.put("apiVersion = 'horizon.dev/v1alpha1'\nkind = 'Server'\nmetadata.name = 'berlin'\nspec.location = 'B'\n").await;
    kit.store.put_statuses(&[(server.0, json!({ "phase": "active" }))], at(3), None).await.unwrap();

    let mut before = kit.stored().await;
    before.sort_by_key(Stored::id);
    let facts = known(&kit, &before).await;
    assert_eq!(before.len(), 10);
    let removals: Vec<_> = before.iter().map(|s| Change::Remove { id: s.id(), actor: None }).collect();
    kit.commit(&removals, at(4)).await;
    assert!(kit.stored().await.is_empty());
    assert!(kit.store.server(server).await.unwrap().unwrap().decommissioned_at.is_some());

    let back: Vec<_> = before.iter().map(|s| put(claiming(&s.resource, s.uid))).collect();
    let actor = Actor::File("back".into());
    let done = kit.store.commit_resources(&back, &actor, at(5), Guard::NONE).await.unwrap();
    assert_eq!(done.assigned.len(), 10);
    assert!(done.servers.contains(&server), "others are told");
    let mut after = kit.stored().await;
    after.sort_by_key(Stored::id);
    assert_eq!(known(&kit, &after).await, facts);
    assert!(after.iter().all(|s| s.origin == Origin::File("back.toml".into())));
    // What was decided before is among them: it did not come undone.
    let record = async |name: &str| {
        let uid = kit.uid("Server", name).await;
        kit.store.server(horizon_model::ServerId(uid)).await.unwrap().unwrap()
    };
    assert!(record("rome").await.compromised);
    assert_eq!(record("oslo").await.decommission_reason.as_deref(), Some("sold"));
    assert_eq!(record("berlin").await.decommissioned_at, None);

    let log = kit.store.list_audit_of(&server.to_string(), 10).await.unwrap();
    let entry = log.iter().find(|entry| entry.action == "adopt").unwrap();
    assert_eq!((entry.actor.as_str(), entry.target.as_str()), ("back", "default/berlin"));
    assert_eq!(
        entry.new.as_ref().unwrap()["metadata"]["annotations"][ID_ANNOTATION],
        json!(server.to_string())
    );
    // The same again is no change, and a later change is an ordinary one.
    let entries = kit.store.list_audit(100).await.unwrap().len();
    kit.store.commit_resources(&back, &actor, at(6), Guard::NONE).await.unwrap();
    assert_eq!(kit.store.list_audit(100).await.unwrap().len(), entries);
    // Others see it come back, too.
    let news = kit.store.resources_since(crate::store::Revision(done.revision.0 - 1)).await.unwrap();
    assert_eq!((news.put.len(), news.removed.len()), (10, 0));
}

/// A removal can be undone; what was decided while the resource was gone holds.
async fn what_was_decided_meanwhile_holds() {
    let kit = Kit::with_basics().await;
    let server = kit.register(PublicKey([1; 32])).await.server;
    let berlin = claiming(&resources(BASICS)[0], server.0);
    assert_eq!(berlin.kind(), KindName::Server);
    kit.remove("Server", "berlin").await;
    kit.put(&REVOCATION.replace("rome", "berlin")).await;
    let assigned = kit.commit(&[put(berlin)], at(5)).await.assigned;
    assert_eq!(assigned[0].uid, server.0);
    let record = kit.store.server(server).await.unwrap().unwrap();
    assert!(record.compromised && record.revoked_at.is_some() && record.decommissioned_at.is_some());
}

/// Keys that were revoked after they had ended with what they were for stay revoked, however and with whatever words.
async fn a_decision_outlives_the_consequence_it_follows() {
    let revocation = |kind: &str, name: &str, reason: &str| {
        format!(
            "apiVersion = 'horizon.dev/v1alpha1'\nkind = 'Revocation'\nmetadata.name = 'v-{name}'\n\
             spec = {{ target = {{ kind = '{kind}', name = '{name}' }}, reason = '{reason}' }}\n"
        )
    };
    for reason in ["stolen", "its user was removed", "its server was removed", "its resource was removed"] {
        for by_spec in [false, true] {
            let kit = Kit::with_basics().await;
            let (user, server) = (kit.uid("User", "ana").await, kit.server().await.0);
            let (personal, token) =
                (kit.uid("PersonalKey", "ana-1").await, kit.uid("RegistrationKey", "berlin-1").await);
            kit.commit(&[removal("User", "ana"), removal("Server", "berlin")], at(1)).await;
            if by_spec {
                let spec = BASICS
                    .replace(
                        "spec.userRef = \"ana\"",
                        &format!("spec = {{ userRef = 'ana', revocation = {{ reason = '{reason}' }} }}"),
                    )
                    .replace(
                        "spec.serverRef = \"berlin\"",
                        &format!("spec = {{ serverRef = 'berlin', revocation = {{ reason = '{reason}' }} }}"),
                    );
                let keys = [KindName::PersonalKey, KindName::RegistrationKey];
                let keys = resources(&spec).into_iter().filter(|resource| keys.contains(&resource.kind()));
                kit.commit(&keys.map(put).collect::<Vec<_>>(), at(2)).await;
            } else {
                kit.put(&revocation("PersonalKey", "ana-1", reason)).await;
                kit.put(&revocation("RegistrationKey", "berlin-1", reason)).await;
            }
            let all = resources(BASICS);
            let of = |kind: KindName, uid: Uuid| {
                put(claiming(all.iter().find(|r| r.kind() == kind).unwrap(), uid))
            };
            kit.commit(&[of(KindName::User, user), of(KindName::Server, server)], at(3)).await;
            assert!(
                kit.store.personal_key_facts(personal).await.unwrap().deactivated_at.is_some(),
                "{reason} {by_spec}"
            );
            assert!(
                kit.store.registration_key_facts(token).await.unwrap().revoked_at.is_some(),
                "{reason} {by_spec}"
            );
            // Nor when the keys go and come back themselves.
            if !by_spec {
                kit.commit(&[removal("PersonalKey", "ana-1"), removal("RegistrationKey", "berlin-1")], at(4))
                    .await;
                let keys = [of(KindName::PersonalKey, personal), of(KindName::RegistrationKey, token)];
                kit.commit(&keys, at(5)).await;
                assert!(kit.store.personal_key_facts(personal).await.unwrap().deactivated_at.is_some());
                assert!(kit.store.registration_key_facts(token).await.unwrap().revoked_at.is_some());
            }
        }
    }
}

/// A user's key is good again once both are back, whichever comes first.
async fn a_key_waits_for_its_user() {
    for user_first in [true, false] {
        let kit = Kit::with_basics().await;
        let (user, key) = (kit.uid("User", "ana").await, kit.uid("PersonalKey", "ana-1").await);
        let of = |kind: KindName, uid: Uuid| {
            let all = resources(BASICS);
            put(claiming(all.iter().find(|r| r.kind() == kind).unwrap(), uid))
        };
        kit.remove("User", "ana").await;
        kit.remove("PersonalKey", "ana-1").await;
        let ended = async || kit.store.personal_key_facts(key).await.unwrap().deactivated_at.is_some();
        let mut back = [of(KindName::User, user), of(KindName::PersonalKey, key)];
        if !user_first {
            back.reverse();
        }
        for (number, change) in back.into_iter().enumerate() {
            assert!(ended().await, "{user_first} {number}");
            kit.commit(&[change], at(5)).await;
        }
        assert!(!ended().await);
    }
}

async fn only_its_own_name_takes_an_identity_up() {
    let kit = Kit::with_basics().await;
    kit.put(MORE).await;
    let server = kit.server().await;
    kit.remove("Server", "berlin").await;
    kit.remove("VirtualNetwork", "games").await;
    let berlin = resources(BASICS).swap_remove(0);
    // Another name, another kind, an identity that nothing had, and none.
    for (name, kind, claim) in [
        ("paris", "Server", server.to_string()),
        ("berlin", "User", server.to_string()),
        ("lima", "Server", Uuid::now_v7().to_string()),
        ("bern", "Server", "none".to_owned()),
    ] {
        let document = format!(
            "apiVersion = 'horizon.dev/v1alpha1'\nkind = '{kind}'\nmetadata.name = '{name}'\n\
             metadata.annotations = {{ '{ID_ANNOTATION}' = '{claim}' }}\n[spec]\n"
        );
        let assigned = kit.put(&document).await;
        assert_ne!(assigned[0].uid, server.0, "{name}");
        assert_eq!(assigned[0].generation, 1);
    }
    assert!(kit.store.server(server).await.unwrap().unwrap().decommissioned_at.is_some());
    // A name that was made anew is not replaced by its predecessor.
    let fresh = kit.commit(&[put(berlin.clone())], at(5)).await.assigned[0].uid;
    assert_ne!(fresh, server.0);
    assert_eq!(kit.commit(&[put(claiming(&berlin, server.0))], at(6)).await.assigned[0].uid, fresh);
    // Once it is gone, it is.
    kit.remove("Server", "berlin").await;
    assert_eq!(kit.commit(&[put(claiming(&berlin, server.0))], at(7)).await.assigned[0].uid, server.0);
    let found = kit.store.identities(&[server.0, fresh, Uuid::from_u128(1)]).await.unwrap();
    assert_eq!(found.len(), 2);
    assert_eq!(found[&fresh].to_string(), "Server default/berlin");
}

/// A token that was made for a server is good again with that server, and with no other of its name.
async fn a_token_comes_back_with_its_server_alone() {
    let kit = Kit::with_basics().await;
    let (server, key) = (kit.server().await, kit.uid("RegistrationKey", "berlin-1").await);
    let berlin = resources(BASICS).swap_remove(0);
    let revoked = async || kit.store.registration_key_facts(key).await.unwrap().revoked_at.is_some();
    kit.commit(&[removal("Server", "berlin")], at(1)).await;
    assert!(revoked().await);
    // Another of the name, removed and brought back itself.
    let other = kit.commit(&[put(berlin.clone())], at(2)).await.assigned[0].uid;
    kit.commit(&[removal("Server", "berlin")], at(3)).await;
    assert_eq!(kit.commit(&[put(claiming(&berlin, other))], at(4)).await.assigned[0].uid, other);
    assert!(revoked().await);
    kit.commit(&[removal("Server", "berlin")], at(5)).await;
    assert_eq!(kit.commit(&[put(claiming(&berlin, server.0))], at(6)).await.assigned[0].uid, server.0);
    assert!(!revoked().await);
}

/// A network keeps its number, unless it was given to another meanwhile.
async fn a_network_comes_back_with_its_number_if_it_can() {
    let kit = Kit::new().await;
    let all = puts(MORE);
    kit.commit(&all[..1], at(0)).await;
    let games = kit.uid("VirtualNetwork", "games").await;
    let back = put(claiming(&resources(MORE)[0], games));
    kit.remove("VirtualNetwork", "games").await;
    let other = "apiVersion = 'horizon.dev/v1alpha1'\nkind = 'VirtualNetwork'\nmetadata.name = 'x'\nspec.addressRanges = ['10.9.0.0/24']\n";
    // Both in one commit, in either order.
    let done = kit.commit(&[puts(other).remove(0), back.clone()], at(1)).await.assigned;
    assert_eq!((done[0].number, done[1].number), (Some(NetworkId(2)), Some(NetworkId(1))));
    kit.remove("VirtualNetwork", "games").await;
    let mut tx = kit.store.begin().await.unwrap();
    crate::store::dialect::query("UPDATE resources SET number = 1 WHERE name = 'x'")
        .execute(&mut *tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(kit.commit(&[back], at(2)).await.assigned[0].number, Some(NetworkId(2)));
}

async fn keys_of_appliances_are_listed() {
    let kit = Kit::with_basics().await;
    assert!(kit.store.public_keys().await.unwrap().is_empty());
    let server = kit.register(PublicKey([1; 32])).await.server;
    let keys = kit.store.public_keys().await.unwrap();
    assert_eq!(keys.into_iter().collect::<Vec<_>>(), [(server, PublicKey([1; 32]))]);
}

conformance!(
    what_was_removed_comes_back_as_it_was,
    what_was_decided_meanwhile_holds,
    a_decision_outlives_the_consequence_it_follows,
    a_key_waits_for_its_user,
    only_its_own_name_takes_an_identity_up,
    a_token_comes_back_with_its_server_alone,
    a_network_comes_back_with_its_number_if_it_can,
    keys_of_appliances_are_listed,
);
