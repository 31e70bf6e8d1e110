//! Personal keys and devices.

use horizon_controller_core::DeviceStanding;
use horizon_model::{KeyId, PublicKey, TaggedSecret};

use super::kit::{Kit, at, conformance, device_info};
use crate::store::{EnrolError, IssueError};

fn key(n: u8) -> PublicKey {
    PublicKey([n; 32])
}

async fn a_key_enrols_devices_up_to_the_limit() {
    let kit = Kit::with_basics().await;
    kit.put(
        "apiVersion = 'horizon.dev/v1alpha1'\nkind = 'User'\nmetadata.name = 'ana'\nspec.deviceLimit = 2\n",
    )
    .await;
    let (id, secret) = kit.personal_key().await;
    let again = kit.store.issue_personal_secret(id, at(0)).await;
    assert!(matches!(again, Err(IssueError::AlreadyIssued)));
    let enrol =
        async |n: u8| kit.store.enrol_device(id, &secret, key(n), &device_info("laptop"), at(1)).await;
    let first = enrol(1).await.unwrap();
    assert!(first.fresh);
    let same = enrol(1).await.unwrap();
    assert_eq!((same.device, same.fresh), (first.device, false));
    enrol(2).await.unwrap();
    assert!(matches!(enrol(3).await, Err(EnrolError::TooMany { limit: 2, .. })));
    let facts = kit.store.personal_key_facts(id.0).await.unwrap();
    assert_eq!((facts.devices.len(), facts.activated_at), (2, Some(at(1))));
    let user = kit.uid("User", "ana").await;
    assert_eq!(kit.store.user_facts(user).await.unwrap().devices.len(), 2);
    let found = kit.store.device_by_key(key(1)).await.unwrap().unwrap();
    assert_eq!((found.id, found.user, found.user_name.as_str()), (first.device, user, "ana"));
    assert_eq!(found.standing(at(2)), DeviceStanding::Good);
    assert!(kit.store.device_by_key(key(9)).await.unwrap().is_none());
    kit.store.touch_device(first.device, at(50)).await.unwrap();
    let listed = kit.store.list_devices(10).await.unwrap();
    assert!(listed.iter().any(|d| d.id == first.device && d.last_seen == at(50) && d.key == "ana-1"));
}

async fn enrolments_are_refused_for_the_right_reason() {
    let kit = Kit::with_basics().await;
    let (id, secret) = kit.personal_key().await;
    let enrol = async |id: KeyId, secret: &TaggedSecret, now: i64| {
        kit.store.enrol_device(id, secret, key(1), &device_info("laptop"), at(now)).await
    };
    // Garbage, and what only looks right.
    assert!(matches!(enrol(id, &TaggedSecret::new(&[1; 32], [1; 4]), 1).await, Err(EnrolError::Unknown)));
    let forged = kit.store.sealer().tagged(id, &[7; 32]);
    assert!(matches!(enrol(id, &forged, 1).await, Err(EnrolError::Unknown)));
    let nobody = KeyId(uuid::Uuid::from_u128(1));
    let forged = kit.store.sealer().tagged(nobody, &[7; 32]);
    assert!(matches!(enrol(nobody, &forged, 1).await, Err(EnrolError::Unknown)));

    let suspended =
        "apiVersion = 'horizon.dev/v1alpha1'\nkind = 'User'\nmetadata.name = 'ana'\nspec.suspended = true\n";
    kit.put(suspended).await;
    assert!(matches!(enrol(id, &secret, 1).await, Err(EnrolError::Suspended { .. })));
    kit.put("apiVersion = 'horizon.dev/v1alpha1'\nkind = 'User'\nmetadata.name = 'ana'\n[spec]\n").await;
    let expiring = "apiVersion = 'horizon.dev/v1alpha1'\nkind = 'PersonalKey'\nmetadata.name = 'ana-1'\n\
                    spec.userRef = 'ana'\nspec.lifetime = '1h'\n";
    kit.put(expiring).await;
    enrol(id, &secret, 3599).await.unwrap();
    assert!(matches!(enrol(id, &secret, 3600).await, Err(EnrolError::KeyExpired(_))));
    let device = kit.store.device_by_key(key(1)).await.unwrap().unwrap();
    assert_eq!(device.standing(at(3600)), DeviceStanding::KeyExpired);
    kit.remove("PersonalKey", "ana-1").await;
    assert!(matches!(enrol(id, &secret, 1).await, Err(EnrolError::KeyRevoked(_))));
    let device = kit.store.device_by_key(key(1)).await.unwrap().unwrap();
    assert_eq!(device.standing(at(1)), DeviceStanding::KeyRevoked);
}

async fn a_revoked_device_stays_so() {
    let kit = Kit::with_basics().await;
    let (id, secret) = kit.personal_key().await;
    let device =
        kit.store.enrol_device(id, &secret, key(1), &device_info("laptop"), at(1)).await.unwrap().device;
    kit.put(&format!(
        "apiVersion = 'horizon.dev/v1alpha1'\nkind = 'Revocation'\nmetadata.name = 'lost'\n[spec]\nreason = 'lost'\n\
         target.kind = 'Device'\ntarget.name = '{device}'\n"
    ))
    .await;
    kit.remove("Revocation", "lost").await;
    let again = kit.store.enrol_device(id, &secret, key(1), &device_info("laptop"), at(2)).await;
    assert!(matches!(again, Err(EnrolError::DeviceRevoked(why)) if why == "lost"));
    let record = kit.store.device_by_key(key(1)).await.unwrap().unwrap();
    assert_eq!(record.standing(at(2)), DeviceStanding::Revoked);
    assert_eq!(kit.store.list_devices(1).await.unwrap()[0].status, "blocked");
}

async fn a_device_may_pass_to_another_user() {
    let kit = Kit::with_basics().await;
    let (id, secret) = kit.personal_key().await;
    let first = kit.store.enrol_device(id, &secret, key(1), &device_info("laptop"), at(1)).await.unwrap();
    kit.put(
        "[[resource]]\napiVersion = 'horizon.dev/v1alpha1'\nkind = 'User'\nmetadata.name = 'ben'\n[resource.spec]\n\
         [[resource]]\napiVersion = 'horizon.dev/v1alpha1'\nkind = 'PersonalKey'\nmetadata.name = 'ben-1'\n\
         spec.userRef = 'ben'\n",
    )
    .await;
    let other = KeyId(kit.uid("PersonalKey", "ben-1").await);
    let secret = kit.store.issue_personal_secret(other, at(1)).await.unwrap().secret;
    let second = kit.store.enrol_device(other, &secret, key(1), &device_info("laptop"), at(2)).await.unwrap();
    assert_ne!(second.device, first.device);
    assert_eq!(kit.store.device_by_key(key(1)).await.unwrap().unwrap().user_name.as_str(), "ben");
    assert_eq!(kit.store.user_facts(first.user).await.unwrap().devices, []);
}

conformance!(
    a_key_enrols_devices_up_to_the_limit,
    enrolments_are_refused_for_the_right_reason,
    a_revoked_device_stays_so,
    a_device_may_pass_to_another_user,
);
