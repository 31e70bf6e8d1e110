//! What a controller and its peers read from one another, cut anywhere.
#![no_main]

use horizon_wire::proto::{FromController, ToController, from_controller, to_controller};
use horizon_wire::{convert, frame};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&cut, bytes)) = data.split_first() else { return };
    let mut upward = frame::Decoder::new(64 << 10);
    let mut downward = frame::Decoder::new(64 << 10);
    for piece in bytes.chunks(usize::from(cut) + 1) {
        upward.push(piece);
        downward.push(piece);
        while let Ok(Some(message)) = upward.poll::<ToController>() {
            match message.message {
                Some(to_controller::Message::Report(report)) => {
                    if let Ok(report) = convert::decode_report(report) {
                        let again = convert::decode_report(convert::encode_report(&report));
                        assert_eq!(again.as_ref(), Ok(&report), "a report that was read can be written");
                    }
                }
                Some(to_controller::Message::EnrolDevice(device)) => drop(convert::decode_device(&device)),
                Some(to_controller::Message::Register(register)) => drop(convert::decode_factors(register.factors)),
                _ => {}
            }
        }
        while let Ok(Some(message)) = downward.poll::<FromController>() {
            if let Some(from_controller::Message::Conflict(conflict)) = message.message {
                let _ = convert::decode_conflict(conflict);
            }
        }
    }
});
