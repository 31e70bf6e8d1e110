//! New keys for devices, over the channel: delivered, confirmed, replayed, withdrawn, handed over.

use horizon_crds::TimeSpan;
use horizon_model::{DeviceId, KeyId, TaggedSecret};
use horizon_tls::hpke::{Sealed, WrappingKey};
use horizon_wire::{
    handing,
    proto::{self, KeyNews, RefusalCode, from_controller::Message as Said, to_controller::Message as Say},
};
use jiff::{SignedDuration, Timestamp};

use super::kit::{Appliance, Controller, Device, refusal, session, soon};
use crate::{
    live::Hint,
    store::{Actor, Scheduled, tests::kit::BASICS},
};

/// A device that can be sealed to.
struct Phone {
    device: Device,
    wrapping: WrappingKey,
    id: DeviceId,
}

impl Phone {
    async fn enrolled(controller: &Controller, key: &(KeyId, TaggedSecret), name: &str) -> Self {
        let device = Device::connect(controller).await;
        let Said::DeviceEnrolled(enrolled) = device.enrol(key, name).await.unwrap() else {
            panic!("not enrolled")
        };
        let wrapping = WrappingKey::of_device(device.key.seed().expose());
        let phone = Self { id: DeviceId::from_slice(&enrolled.device_id).unwrap(), device, wrapping };
        phone.publish().await;
        phone
    }

    async fn publish(&self) {
        let key = self.wrapping.public();
        let signature = handing::sign_wrapping_key(&self.device.key, &key);
        let message = proto::WrappingKey { key: key.to_vec(), signature };
        self.device.requests().notify(Say::WrappingKey(message)).await.unwrap();
        // What is asked after it is answered after it.
        let _ = soon(self.device.requests().request(Say::ListServers(proto::ListServers {}))).await;
    }

    async fn next(&mut self) -> Said {
        soon(self.device.channel.inbox.recv()).await.expect("the controller ended the conversation")
    }

    async fn new_key(&mut self) -> (KeyId, TaggedSecret) {
        let Said::NewKey(new) = self.next().await else { panic!("no key") };
        let id = KeyId::from_slice(&new.key_id).unwrap();
        let sealed = Sealed { encapsulated: new.encapsulated, ciphertext: new.ciphertext };
        let opened = self.wrapping.open(handing::KEY_INFO, &handing::place(self.id, id), &sealed).unwrap();
        (id, TaggedSecret::from_slice(&opened).unwrap())
    }

    fn taken(&self, (id, secret): &(KeyId, TaggedSecret)) -> Say {
        let proof = handing::proof(secret, self.id, *id).to_vec();
        Say::KeyTaken(proto::KeyTaken { key_id: id.as_bytes().to_vec(), proof })
    }
}

const WISH: Scheduled<'static> = Scheduled {
    overlap: TimeSpan::from_days(7),
    expires: None,
    reason: "a test",
    policy: None,
    run: None,
    by: "test",
};

async fn rotate(controller: &Controller, key: KeyId) {
    controller.store.rotate_personal_key(key, &WISH, None, Timestamp::now()).await.unwrap();
    controller.live.publish(Hint::StatusDirty(key.0));
}

fn replaced(kind: &str) -> String {
    format!(
        "apiVersion = 'horizon.dev/v1alpha1'\nkind = 'KeyRotation'\nmetadata.name = '{kind}'\n[spec]\n\
         target = 'personalKeys'\nnames = ['ana-1']\ntype = '{kind}'\nreason = 'left in a train'\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduled_rotation_reaches_every_device_and_touches_no_session() {
    let controller = Controller::start(BASICS).await;
    let old = controller.personal("ana-1").await;
    let mut appliance = Appliance::enrol(&controller).await;
    appliance.take_state().await;
    let mut laptop = Phone::enrolled(&controller, &old, "laptop").await;
    let mut phone = Phone::enrolled(&controller, &old, "phone").await;
    let ticket = session(&laptop.device, &mut appliance, "berlin").await;
    let state = appliance.held.entries.digest();

    rotate(&controller, old.0).await;
    let (a, b) = (laptop.new_key().await, phone.new_key().await);
    assert_eq!((a.0, a.1.expose()), (b.0, b.1.expose()));
    let done = soon(laptop.device.requests().request(laptop.taken(&a))).await.unwrap();
    assert!(matches!(done, Said::Done(_)));
    // Both work until all have confirmed.
    let tablet = Device::enrolled(&controller, &old, "tablet").await;
    soon(phone.device.requests().request(phone.taken(&b))).await.unwrap();
    let refused = refusal(Device::connect(&controller).await.enrol(&old, "late").await);
    assert_eq!(refused.code, RefusalCode::Revoked, "{refused:?}");
    Device::enrolled(&controller, &a, "watch").await;

    // Nobody noticed.
    let live = controller.store.list_sessions(10).await.unwrap();
    assert_eq!((live[0].id, live[0].status.as_str()), (ticket.session, "active"));
    assert_eq!(appliance.held.entries.digest(), state);
    for device in [&laptop.device, &phone.device, &tablet] {
        let requests = device.requests();
        let asked = requests.request(Say::ListServers(proto::ListServers {}));
        assert!(matches!(soon(asked).await.unwrap(), Said::Servers(_)));
    }
    let events = controller.events().await;
    assert!(
        ["key_rotation_begun", "key_rotated"].iter().all(|kind| events.contains(&(*kind).to_owned())),
        "{events:?}"
    );
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replayed_deliveries_and_confirmations_change_nothing() {
    let controller = Controller::start(BASICS).await;
    let old = controller.personal("ana-1").await;
    let mut laptop = Phone::enrolled(&controller, &old, "laptop").await;
    let phone = Phone::enrolled(&controller, &old, "phone").await;
    rotate(&controller, old.0).await;
    let first = laptop.new_key().await;
    // A connection that broke before the confirmation: the same key is delivered again.
    laptop.device.channel = controller.dial(&laptop.device.key, proto::Role::Device).await.unwrap();
    laptop.publish().await;
    let again = laptop.new_key().await;
    assert_eq!((first.0, first.1.expose()), (again.0, again.1.expose()));
    // The laptop's confirmation is nothing in the mouth of the phone, nor is a made up one in its own.
    let stolen = soon(phone.device.requests().request(laptop.taken(&again))).await;
    assert_eq!(refusal(stolen).code, RefusalCode::NotFound);
    let guess = Say::KeyTaken(proto::KeyTaken { key_id: again.0.as_bytes().to_vec(), proof: vec![7; 32] });
    assert_eq!(refusal(soon(laptop.device.requests().request(guess)).await).code, RefusalCode::NotFound);
    for _ in 0..2 {
        let done = soon(laptop.device.requests().request(laptop.taken(&again))).await.unwrap();
        assert!(matches!(done, Said::Done(_)));
    }
    let facts = controller.store.personal_key_facts(old.0.0).await.unwrap();
    assert_eq!(facts.unconfirmed, [phone.id]);
    assert!(controller.events().await.contains(&"key_confirmation_refused".to_owned()));
    // A wrapping key that somebody else signed is refused.
    let foreign = WrappingKey::of_device(&[9; 32]).public();
    let signature = handing::sign_wrapping_key(&phone.device.key, &foreign);
    let message = Say::WrappingKey(proto::WrappingKey { key: foreign.to_vec(), signature });
    assert_eq!(refusal(soon(laptop.device.requests().request(message)).await).code, RefusalCode::Malformed);
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emergency_ends_sessions_and_asks_for_the_new_key() {
    let controller = Controller::start(BASICS).await;
    let old = controller.personal("ana-1").await;
    let mut appliance = Appliance::enrol(&controller).await;
    appliance.take_state().await;
    let mut laptop = Phone::enrolled(&controller, &old, "laptop").await;
    let ticket = session(&laptop.device, &mut appliance, "berlin").await;
    let started = std::time::Instant::now();
    controller.put(&replaced("emergency")).await;
    controller.live.publish(Hint::StatusDirty(old.0.0));
    appliance.lose_session().await;
    assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
    let (mut ended, mut told) = (None, None);
    while ended.is_none() || told.is_none() {
        match laptop.next().await {
            Said::SessionEnded(end) => ended = Some(end),
            Said::KeyNotice(notice) => told = Some(notice),
            other => panic!("unexpected {other:?}"),
        }
    }
    assert_eq!(ended.unwrap().session, ticket.session.as_bytes());
    let told = told.unwrap();
    assert_eq!(told.news(), KeyNews::Replaced);
    assert!(told.message.contains("left in a train"), "{}", told.message);
    let refused = refusal(laptop.device.request("berlin", None).await);
    assert_eq!(refused.code, RefusalCode::Revoked);
    assert!(refused.remedy.contains("horizon key add"), "{}", refused.remedy);
    let refused = refusal(laptop.device.enrol(&old, "laptop").await);
    assert_eq!(refused.code, RefusalCode::Revoked);

    let issued = controller.store.issue_personal_secret(old.0, Timestamp::now()).await.unwrap();
    laptop.device.enrol(&(issued.key, issued.secret), "laptop").await.unwrap();
    controller.live.publish(Hint::StatusDirty(old.0.0));
    let Said::KeyNotice(notice) = laptop.next().await else { panic!("no notice") };
    assert_eq!(notice.news(), KeyNews::Fine);
    session(&laptop.device, &mut appliance, "berlin").await;
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_handed_over_to_who_has_string_and_code() {
    let controller = Controller::start(BASICS).await;
    let key = KeyId(controller.uid("PersonalKey", "ana-1").await);
    let (hour, admin) = (SignedDuration::from_hours(1), Actor::Admin("eve".into()));
    let made = controller.store.hand_over(key, hour, &admin, Timestamp::now()).await.unwrap();
    let device = Device::connect(&controller).await;
    let wrapping = WrappingKey::of_device(device.key.seed().expose());
    let claim = |code: &str| {
        Say::ClaimHandover(proto::ClaimHandover {
            id: made.id.as_bytes().to_vec(),
            secret: made.secret.expose().to_vec(),
            code: code.into(),
            wrapping_key: wrapping.public().to_vec(),
        })
    };
    let refused = refusal(soon(device.requests().request(claim(""))).await);
    assert_eq!(refused.code, RefusalCode::Unauthenticated);
    assert!(refused.message.contains("4 tries"), "{}", refused.message);
    let answer = soon(device.requests().request(claim(&made.code))).await.unwrap();
    let Said::HandedOver(handed) = answer else { panic!("{answer:?}") };
    let id = KeyId::from_slice(&handed.key_id).unwrap();
    let place = [made.id.as_bytes().as_slice(), id.as_bytes()].concat();
    let sealed = Sealed { encapsulated: handed.encapsulated, ciphertext: handed.ciphertext };
    let secret = wrapping.open(handing::HANDOVER_INFO, &place, &sealed).unwrap();
    device.enrol(&(id, TaggedSecret::from_slice(&secret).unwrap()), "laptop").await.unwrap();
    let events = controller.events().await;
    for kind in ["handover_created", "handover_code_wrong", "handover_claimed"] {
        assert!(events.contains(&kind.to_owned()), "{events:?}");
    }
    controller.stop().await;
}
