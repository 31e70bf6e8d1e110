//! One-time codes by time: TOTP (RFC 6238) over HOTP (RFC 4226), with HMAC-SHA-1 as every authenticator knows it.

use aws_lc_rs::hmac;
use data_encoding::BASE32_NOPAD;
use horizon_model::Secret;
use jiff::Timestamp;
use zeroize::Zeroizing;

/// How long a code is shown, in seconds.
const STEP: i64 = 30;
/// How many digits a code has.
const DIGITS: u32 = 6;
/// How many steps a clock may be early or late.
const DRIFT: i64 = 1;
/// How many bytes of a secret are the key: 160 bits (RFC 4226, section 4), which all authenticators take.
const KEY_BYTES: usize = 20;

/// HOTP: the code of a counter.
fn hotp(key: &hmac::Key, counter: u64, digits: u32) -> u32 {
    let tag = hmac::sign(key, &counter.to_be_bytes());
    let tag = tag.as_ref();
    let at = usize::from(tag[tag.len() - 1] & 0x0f);
    let word = u32::from_be_bytes([tag[at], tag[at + 1], tag[at + 2], tag[at + 3]]);
    (word & 0x7fff_ffff) % 10_u32.pow(digits)
}

fn key(secret: &Secret) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &secret.expose()[..KEY_BYTES])
}

/// The step that `now` is in.
pub fn step(now: Timestamp) -> i64 {
    now.as_second().div_euclid(STEP)
}

/// The code of a secret at a time, for tests and programs that hold the secret.
pub fn code(secret: &Secret, now: Timestamp) -> String {
    let counter = u64::try_from(step(now)).unwrap_or(0);
    format!("{:0width$}", hotp(&key(secret), counter, DIGITS), width = DIGITS as usize)
}

/// The step that a code is of, if it is one of `secret` around `now` and of a later step than `last`: no code is taken
/// twice (RFC 6238, section 5.2).
pub fn check(secret: &Secret, given: &str, last: i64, now: Timestamp) -> Verdict {
    let digits = given.bytes().filter(|b| !matches!(b, b' ' | b'-'));
    let plain: Zeroizing<Vec<u8>> = Zeroizing::new(digits.take(DIGITS as usize + 1).collect());
    if plain.len() != DIGITS as usize || !plain.iter().all(u8::is_ascii_digit) {
        return Verdict::Wrong;
    }
    let (key, current) = (key(secret), step(now));
    let mut verdict = Verdict::Wrong;
    for step in current - DRIFT..=current + DRIFT {
        let Ok(counter) = u64::try_from(step) else { continue };
        let code = format!("{:0width$}", hotp(&key, counter, DIGITS), width = DIGITS as usize);
        // Every step is compared, whichever is right.
        if horizon_wire::heartbeat::equal(code.as_bytes(), &plain) {
            verdict = if step > last { Verdict::Right(step) } else { Verdict::Replayed };
        }
    }
    verdict
}

/// What a code is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Right, and of this step, which is to be remembered.
    Right(i64),
    /// It was right, but it or a later one was used before.
    Replayed,
    /// Not a code of the secret now.
    Wrong,
}

/// The secret as it is typed into an authenticator: base32 (RFC 4648).
pub fn typed(secret: &Secret) -> Zeroizing<String> {
    Zeroizing::new(BASE32_NOPAD.encode(&secret.expose()[..KEY_BYTES]))
}

/// The secret as a QR code carries it. `account` is made of letters, digits and `.-_@`.
pub fn uri(secret: &Secret, account: &str) -> Zeroizing<String> {
    let account: String = account
        .bytes()
        .filter(|b| b.is_ascii_alphanumeric() || b".-_@".contains(b))
        .map(char::from)
        .collect();
    Zeroizing::new(format!(
        "otpauth://totp/Horizon:{account}?secret={}&issuer=Horizon&algorithm=SHA1&digits={DIGITS}&period={STEP}",
        *typed(secret)
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 4226, appendix D.
    #[test]
    fn rfc_4226_vectors() {
        let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, b"12345678901234567890");
        let codes: Vec<u32> = (0..10).map(|counter| hotp(&key, counter, 6)).collect();
        let wanted = [755224, 287082, 359152, 969429, 338314, 254676, 287922, 162583, 399871, 520489];
        assert_eq!(codes, wanted);
    }

    /// RFC 6238, appendix B, with the seeds of its erratum 2866.
    #[test]
    fn rfc_6238_vectors() {
        let seed = b"1234567890".repeat(7);
        let sha1 = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &seed[..20]);
        let sha256 = hmac::Key::new(hmac::HMAC_SHA256, &seed[..32]);
        for (time, with_sha1, with_sha256) in [
            (59, 94_287_082, 46_119_246),
            (1_111_111_109, 7_081_804, 68_084_774),
            (1_111_111_111, 14_050_471, 67_062_674),
            (1_234_567_890, 89_005_924, 91_819_424),
            (2_000_000_000, 69_279_037, 90_698_825),
            (20_000_000_000, 65_353_130, 77_737_706),
        ] {
            let counter = u64::try_from(step(Timestamp::from_second(time).unwrap())).unwrap();
            assert_eq!(hotp(&sha1, counter, 8), with_sha1, "{time}");
            assert_eq!(hotp(&sha256, counter, 8), with_sha256, "{time}");
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    #[test]
    fn a_code_is_taken_once_and_around_its_time() {
        let secret = Secret::new([7; 32]);
        let now = code(&secret, at(0));
        let Verdict::Right(used) = check(&secret, &now, 0, at(0)) else { panic!() };
        assert_eq!(check(&secret, &now, used, at(0)), Verdict::Replayed);
        assert_eq!(check(&secret, &now, used, at(29)), Verdict::Replayed);
        assert_eq!(check(&secret, &now, 0, at(30)), Verdict::Right(used));
        assert_eq!(check(&secret, &now, 0, at(60)), Verdict::Wrong);
        let spaced = format!("{} {}", &now[..3], &now[3..]);
        assert_eq!(check(&secret, &spaced, 0, at(0)), Verdict::Right(used));
        // The one before is not taken once a later one was.
        let next = code(&secret, at(30));
        let Verdict::Right(later) = check(&secret, &next, used, at(30)) else { panic!() };
        assert_eq!(check(&secret, &now, later, at(30)), Verdict::Replayed);
        assert!(uri(&secret, "ann<b>").starts_with("otpauth://totp/Horizon:annb?secret="));
    }

    proptest! {
        #[test]
        fn what_is_no_code_is_wrong(text in "\\PC{0,40}") {
            let secret = Secret::new([7; 32]);
            let right = [-30, 0, 30].map(|t| code(&secret, at(t)));
            prop_assume!(!right.iter().any(|code| text.contains(code.as_str())));
            prop_assert_eq!(check(&secret, "", 0, at(0)), Verdict::Wrong);
            let plain: String = text.chars().filter(|c| !matches!(c, ' ' | '-')).collect();
            if !right.contains(&plain) {
                prop_assert_eq!(check(&secret, &text, 0, at(0)), Verdict::Wrong);
            }
        }
    }
}
