//! `Debug` for messages that hold secrets: the name of the message and nothing of its content.

use std::fmt;

use crate::proto;

macro_rules! redacted {
    ($($name:ident),*) => {
        $(impl fmt::Debug for proto::$name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(..)"))
            }
        })*
    };
}

redacted!(
    Envelope,
    RawEntry,
    Register,
    Registered,
    Session,
    EnrolDevice,
    Ticket,
    RegistrationToken,
    ClaimHandover,
    Handover,
    KeyTaken,
    PersonalKey
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_carries_a_secret_shows_no_byte_of_it() {
        let secret = vec![0xab; 32];
        let session = proto::Session { secret: secret.clone(), ..Default::default() };
        let body =
            proto::EntryBody { body: Some(proto::entry_body::Body::Session(session)), ..Default::default() };
        let entry = proto::RawEntry { id: "session/1".into(), body: secret.clone() };
        let delta = proto::StateDelta { upserts: vec![entry], ..Default::default() };
        let envelope = proto::Envelope { payload: secret.clone(), ..Default::default() };
        let state = proto::from_controller::Message::State(envelope.clone());
        let ticket = proto::FromController {
            request: 1,
            message: Some(proto::from_controller::Message::Ticket(envelope)),
        };
        let enrol =
            proto::to_controller::Message::EnrolDevice(proto::EnrolDevice { secret, ..Default::default() });
        let shown = format!("{body:?} {delta:?} {state:?} {ticket:?} {enrol:?}");
        assert!(!shown.contains("171") && shown.contains("Envelope(..)"), "{shown}");
    }
}
