//! What an unprivileged program may write to the client's service.
#![no_main]

use horizon_client_core::ipc::{Lines, MAX_REQUEST_LINE, Message, Request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&cut, bytes)) = data.split_first() else { return };
    let mut requests = Lines::new(MAX_REQUEST_LINE);
    let mut answers = Lines::new(MAX_REQUEST_LINE);
    for piece in bytes.chunks(usize::from(cut) + 1) {
        requests.push(piece);
        answers.push(piece);
        while let Ok(Some(_)) = requests.read::<Request>() {}
        while let Ok(Some(_)) = answers.read::<Message>() {}
    }
});
