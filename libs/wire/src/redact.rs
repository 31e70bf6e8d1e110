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

redacted!(Register, Registered, Session, EnrolDevice, Ticket, RegistrationToken, PersonalKey);
