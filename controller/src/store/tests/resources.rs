//! Resources: identities, generations, numbers, history, audit.

use horizon_controller_core::Origin;
use horizon_model::NetworkId;
use serde_json::json;

use super::kit::{BASICS, Kit, at, conformance, puts, removal, resources};
use crate::store::{Actor, Guard, dialect::query};

fn network(name: &str, range: &str) -> String {
    format!(
        "apiVersion = 'horizon.dev/v1alpha1'\nkind = 'VirtualNetwork'\nmetadata.name = '{name}'\n\
         spec.addressRanges = ['{range}']\n"
    )
}

async fn resources_return_as_they_were_committed() {
    let kit = Kit::new().await;
    let assigned = kit.put(BASICS).await;
    assert_eq!(assigned.len(), 5);
    let stored = kit.stored().await;
    for resource in resources(BASICS) {
        let row = stored.iter().find(|s| s.id() == resource.id()).unwrap();
        assert_eq!(*row.resource, resource);
        assert_eq!((row.generation, &row.origin), (1, &Origin::File("test.toml".into())));
        let given = assigned.iter().find(|a| a.id == resource.id()).unwrap();
        assert_eq!((given.uid, given.created_at), (row.uid, row.created_at));
    }
}

async fn only_a_changed_spec_moves_the_generation() {
    let kit = Kit::with_basics().await;
    let server = |extra: &str| {
        format!("apiVersion = 'horizon.dev/v1alpha1'\nkind = 'Server'\nmetadata.name = 'berlin'\n{extra}\n")
    };
    let before = kit.uid("Server", "berlin").await;
    for (document, generation) in [
        ("[spec]", 1),
        ("metadata.labels.site = 'a'\n[spec]", 1),
        ("[spec]\nlocation = 'Berlin'", 2),
        ("[spec]\nlocation = 'Berlin'", 2),
        ("[spec]", 3),
    ] {
        let assigned = kit.put(&server(document)).await;
        assert_eq!((assigned[0].uid, assigned[0].generation), (before, generation), "{document}");
    }
}

async fn a_recreated_name_inherits_nothing() {
    let kit = Kit::with_basics().await;
    let server = kit.server().await;
    kit.remove("Server", "berlin").await;
    assert!(kit.index().await.server_by_id(server).is_none());
    assert_eq!(kit.remove("Server", "berlin").await.assigned, []);
    kit.put("apiVersion = 'horizon.dev/v1alpha1'\nkind = 'Server'\nmetadata.name = 'berlin'\n[spec]\n").await;
    let again = kit.server().await;
    assert_ne!(again, server);
    let record = kit.store.server(server).await.unwrap().unwrap();
    assert!(record.decommissioned_at.is_some(), "the first one's history stays");
    assert!(kit.store.server(again).await.unwrap().unwrap().decommissioned_at.is_none());
    // The registration key of the old one is of no use for the new one.
    let key = kit.uid("RegistrationKey", "berlin-1").await;
    assert!(kit.store.registration_key_facts(key).await.unwrap().revoked_at.is_some());
    // A removed user's key does not come back with the name.
    let key = kit.uid("PersonalKey", "ana-1").await;
    kit.remove("User", "ana").await;
    kit.put("apiVersion = 'horizon.dev/v1alpha1'\nkind = 'User'\nmetadata.name = 'ana'\n[spec]\n").await;
    let facts = kit.store.personal_key_facts(key).await.unwrap();
    assert!(facts.deactivated_at.is_some());
    let user = kit.uid("User", "ana").await;
    assert_eq!(kit.store.user_facts(user).await.unwrap().keys, []);
}

async fn a_key_finds_its_user_whenever_that_comes() {
    let kit = Kit::new().await;
    let key = "apiVersion = 'horizon.dev/v1alpha1'\nkind = 'PersonalKey'\nmetadata.name = 'ana-1'\nspec.userRef = 'ana'\n";
    kit.put(key).await;
    kit.put("apiVersion = 'horizon.dev/v1alpha1'\nkind = 'User'\nmetadata.name = 'ana'\n[spec]\n").await;
    let user = kit.uid("User", "ana").await;
    assert_eq!(kit.store.user_facts(user).await.unwrap().keys.len(), 1);
}

async fn networks_have_numbers_that_are_not_reused() {
    let kit = Kit::new().await;
    let number = async |name: &str, range: &str| kit.put(&network(name, range)).await[0].number.unwrap();
    assert_eq!(number("a", "10.1.0.0/24").await, NetworkId(1));
    assert_eq!(number("b", "10.2.0.0/24").await, NetworkId(2));
    assert_eq!(number("a", "10.1.0.0/24").await, NetworkId(1));
    kit.remove("VirtualNetwork", "b").await;
    assert_eq!(number("b", "10.2.0.0/24").await, NetworkId(3));
    // The last number was given: only what is free is given again.
    let mut tx = kit.store.begin().await.unwrap();
    query("UPDATE resources SET number = 65535 WHERE name = 'b' AND deleted_at IS NULL")
        .execute(&mut *tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(number("c", "10.3.0.0/24").await, NetworkId(2));
    let stored = kit.stored().await;
    assert_eq!(stored.iter().filter(|s| s.number.is_some()).count(), 3);
}

async fn many_changes_are_one_transaction_and_the_last_of_a_name_holds() {
    let kit = Kit::new().await;
    let mut toml = String::new();
    for i in 0..300 {
        toml.push_str(&format!(
            "[[resource]]\napiVersion = 'horizon.dev/v1alpha1'\nkind = 'User'\nmetadata.name = 'u{i}'\n[resource.spec]\n"
        ));
    }
    assert_eq!(kit.put(&toml).await.len(), 300);
    let mut changes = puts(&toml);
    changes.push(removal("User", "u7"));
    let done = kit.commit(&changes, at(5)).await;
    assert_eq!(done.assigned.len(), 299);
    assert_eq!(kit.stored().await.len(), 299);
}

async fn every_change_is_audited_with_it() {
    let kit = Kit::with_basics().await;
    let uid = kit.uid("User", "ana").await;
    kit.put(
        "apiVersion = 'horizon.dev/v1alpha1'\nkind = 'User'\nmetadata.name = 'ana'\nspec.suspended = true\n",
    )
    .await;
    kit.remove("User", "ana").await;
    let log = kit.store.list_audit_of(&uid.to_string(), 10).await.unwrap();
    let actions: Vec<_> = log.iter().map(|entry| entry.action.as_str()).collect();
    assert_eq!(actions, ["delete", "update", "create"]);
    let update = &log[1];
    assert_eq!((update.actor_type.as_str(), update.actor.as_str()), ("file", "test"));
    assert_eq!(update.target, "default/ana");
    assert_eq!(update.new.as_ref().unwrap()["spec"]["suspended"], true);
    assert_eq!(update.previous.as_ref().unwrap()["spec"]["suspended"], false);
    // A document that says the same again is no change.
    let entries = kit.store.list_audit(100).await.unwrap().len();
    kit.commit(&puts(BASICS)[..1], at(9)).await;
    assert_eq!(kit.store.list_audit(100).await.unwrap().len(), entries);
}

async fn statuses_are_kept_for_what_exists() {
    let kit = Kit::with_basics().await;
    let (user, server) = (kit.uid("User", "ana").await, kit.uid("Server", "berlin").await);
    let gone = uuid::Uuid::from_u128(1);
    let write = [(user, json!({ "deviceCount": 1 })), (server, json!({})), (gone, json!({}))];
    kit.store.put_statuses(&write, at(0), None).await.unwrap();
    kit.store.put_statuses(&[(user, json!({ "deviceCount": 2 }))], at(1), None).await.unwrap();
    assert_eq!(kit.store.status_of(user).await.unwrap(), Some(json!({ "deviceCount": 2 })));
    assert_eq!(kit.store.statuses().await.unwrap().len(), 2);
    let some = kit.store.statuses_of(&[user, gone]).await.unwrap();
    let some: Vec<_> = some.into_iter().map(|(uid, status)| (uid, status.unwrap())).collect();
    assert_eq!(some, [(user, json!({ "deviceCount": 2 }))]);
    // The last of several about one resource counts.
    let twice = [(server, json!({ "a": 1 })), (server, json!({ "a": 2 }))];
    kit.store.put_statuses(&twice, at(2), None).await.unwrap();
    assert_eq!(kit.store.status_of(server).await.unwrap(), Some(json!({ "a": 2 })));
    kit.remove("User", "ana").await;
    assert!(kit.store.statuses_of(&[user]).await.unwrap().is_empty());
    assert_eq!(kit.store.status_of(user).await.unwrap(), None);
    assert_eq!(kit.store.statuses().await.unwrap().len(), 1);
}

async fn a_revocation_may_come_before_what_it_names() {
    let kit = Kit::new().await;
    let revocation = "apiVersion = 'horizon.dev/v1alpha1'\nkind = 'Revocation'\nmetadata.name = 'no'\n\
                      [spec]\nreason = 'stolen'\ncompromised = true\ntarget.kind = 'Server'\ntarget.name = 'berlin'\n";
    kit.put(revocation).await;
    kit.put(BASICS).await;
    let server = kit.server().await;
    let record = kit.store.server(server).await.unwrap().unwrap();
    assert!(record.compromised && record.revoked_at.is_some());
    // Removing the revocation undoes nothing, and a later server of the name is not concerned.
    kit.remove("Revocation", "no").await;
    kit.put(BASICS).await;
    assert!(kit.store.server(server).await.unwrap().unwrap().compromised);
    let events = kit.store.list_security_events(&Default::default()).await.unwrap();
    assert_eq!(events[0].kind, "compromised");
    let actor = Actor::Admin("eva".into());
    let revoked = kit.store.commit_resources(&puts(revocation), &actor, at(3), Guard::NONE).await.unwrap();
    assert_eq!(revoked.servers, [server]);
    let facts = kit.store.decision_facts(revoked.assigned[0].uid).await.unwrap();
    assert_eq!((facts.effective_at, facts.applied_servers.len()), (Some(at(3)), 1));
    kit.remove("Server", "berlin").await;
    kit.put(BASICS).await;
    assert!(!kit.store.server(kit.server().await).await.unwrap().unwrap().compromised);
}

conformance!(
    resources_return_as_they_were_committed,
    only_a_changed_spec_moves_the_generation,
    a_recreated_name_inherits_nothing,
    a_key_finds_its_user_whenever_that_comes,
    networks_have_numbers_that_are_not_reused,
    many_changes_are_one_transaction_and_the_last_of_a_name_holds,
    every_change_is_audited_with_it,
    statuses_are_kept_for_what_exists,
    a_revocation_may_come_before_what_it_names,
);
