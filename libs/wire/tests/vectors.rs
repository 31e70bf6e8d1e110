//! Frozen bytes: what another version of Horizon already sends and stores. A change here breaks compatibility, so it
//! needs a new context label, feature or protocol version instead of a new expectation.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use data_encoding::HEXLOWER;
use horizon_model::{
    EntryBody, EntryId, Incarnation, NetworkId, PublicKey, RootId, Secret, ServerId, SessionEntry, SessionId,
    SessionKind, SessionNetwork, SettingsEntry,
};
use horizon_wire::{
    Message, convert,
    envelope::{self, Context},
    heartbeat,
    key::{SigningKey, sha256},
    state::{Entries, Numbered, compose},
    token::RegistrationToken,
};
use uuid::Uuid;

const SERVER: ServerId = ServerId(Uuid::from_u128(0x11));

fn session(n: u128) -> (EntryId, EntryBody) {
    let id = SessionId(Uuid::from_u128(n));
    let body = SessionEntry {
        id,
        kind: SessionKind::Access,
        peer_key: PublicKey([1; 32]),
        secret: Secret::new([2; 32]),
        networks: vec![SessionNetwork {
            network: NetworkId::ACCESS,
            addresses: vec!["100.96.0.2/32".parse().unwrap()],
            inbound: horizon_model::Inbound::AnswersOnly,
        }],
        rules: vec![],
        rate_limit: None,
    };
    (EntryId::session(id), EntryBody::Session(Box::new(body)))
}

fn numbered(generation: u64, sessions: std::ops::Range<u128>) -> Numbered {
    let entries =
        sessions.map(session).map(|(id, body)| (id, convert::encode_entry(&body))).collect::<Entries>();
    Numbered { epoch: 1, generation, entries }
}

#[test]
fn strings_people_hold() {
    let token = RegistrationToken {
        controllers: vec!["192.0.2.1:7440".into()],
        root: RootId([3; 32]),
        key_name: "paris-1".into(),
        secret: Secret::new([4; 32]),
    };
    assert_eq!(token.encode(), TOKEN);
}

#[test]
fn entries_and_digests() {
    let settings = convert::encode_entry(&EntryBody::Settings(SettingsEntry { heartbeat_seconds: 30 }));
    assert_eq!(HEXLOWER.encode(&settings), "0a0b73657474696e67732e76311202081e");
    assert_eq!(HEXLOWER.encode(&convert::encode_entry(&session(7).1)), SESSION);
    assert_eq!(numbered(1, 0..3).entries.digest().to_string(), DIGEST);
    assert_eq!(Entries::default().digest(), sha256(b""));
}

#[test]
fn signatures_and_tags() {
    let key = SigningKey::from_seed(Secret::new([5; 32]));
    let signatures: Vec<_> = [Context::KeySet, Context::State, Context::Ticket]
        .map(|context| sha256(&envelope::seal(context, &key, b"payload".to_vec()).signature).to_string())
        .into();
    assert_eq!(signatures, SIGNATURES);
    let secret = Secret::new([6; 32]);
    let run = Incarnation(Uuid::from_u128(0x22));
    assert_eq!(HEXLOWER.encode(&heartbeat::sign(&secret, b"beat")), BEAT);
    assert_eq!(HEXLOWER.encode(&heartbeat::answer(&secret, &[7; 16], &[8; 32], SERVER, run)), ANSWER);
    assert_eq!(HEXLOWER.encode(heartbeat::ratchet(&secret, &[9; 32]).expose()), RATCHET);
}

#[test]
fn one_session_among_a_thousand_moves_under_two_kilobytes() {
    let key = SigningKey::from_seed(Secret::new([5; 32]));
    for (base, target) in [(0..1000, 0..1001), (0..1000, 1..1000)] {
        let delta = compose(SERVER, &numbered(4, base), &numbered(5, target));
        let sent = envelope::seal(Context::State, &key, delta.encode_to_vec());
        assert!(sent.encoded_len() < 2048, "{} bytes", sent.encoded_len());
    }
}

const TOKEN: &str = "hzn-reg-bihdcojsfyyc4mroge5donbugajcaaydambqgaydambqgaydambqgaydambqgaydambqgaydambqgayddidxaylsnfzs2mjceacaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcajzfhau7a";
const SESSION: &str = "0a0a73657373696f6e2e763132690a100000000000000000000000000000000710011a200101010101010101010101010101010101010101010101010101010101010101222002020202020202020202020202020202020202020202020202020202020202022a0f120d3130302e39362e302e322f3332";
const DIGEST: &str = "697fd6931d51b75af02442095dc9c8590be9ac63fc790dfcba74660bd791200b";
const SIGNATURES: [&str; 3] = [
    "659684b2290fe847f5d6db45b031bc83e6dc4ea37f0a37aaf3d06d55ff228578",
    "b039b620f8e5a14d24586a6673f3248e2656ac78fa0355260fe9689165cacf26",
    "6bb66798149b7a52ff380f6d135f210563fa3ad62ed994c8c35313e3a99577b9",
];
const BEAT: &str = "092929bf2835270c4ba462b5c44724976323ed5daa62ce50c5b28343765caf13";
const ANSWER: &str = "26fc394c3172bb1d74b6e6ffd7988c915bb6adc6e19876320a15262c72ee0af6";
const RATCHET: &str = "76468d9defd223618fe0af0d2b32f0423e668893eccfe3cc8254526d39496285";
