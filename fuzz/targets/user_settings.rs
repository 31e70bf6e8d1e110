//! Settings that follow a user, as another of their devices wrote them, and words that people set them by.
#![no_main]

use horizon_client_core::settings::Settings;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(settings) = serde_json::from_slice::<Settings>(data)
        && settings.is_sound()
    {
        let _ = settings.text();
        let again = serde_json::to_vec(&settings).expect("settings can be written");
        assert_eq!(serde_json::from_slice::<Settings>(&again).expect("and read"), settings);
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut settings = Settings::default();
    for line in text.lines() {
        let (name, value) = line.split_once('=').unwrap_or((line, ""));
        let _ = settings.set(name, value);
        assert!(settings.is_sound(), "what was set is sound");
        let _ = settings.server(value);
    }
});
