//! What administrators prove themselves with, as far as it is cryptography: one-time codes and what else is hashed.

pub mod totp;

use aws_lc_rs::digest;
use data_encoding::BASE32_NOPAD;
use zeroize::Zeroizing;

use crate::store::random;

/// How many recovery codes there are.
pub const RECOVERY_CODES: usize = 10;
/// The random bytes of a recovery code: 80 bits, so that a plain digest of it is enough.
const RECOVERY_BYTES: usize = 10;

/// New recovery codes: four groups of four characters each.
pub fn recovery_codes() -> Vec<Zeroizing<String>> {
    let code = || {
        let random: Zeroizing<[u8; RECOVERY_BYTES]> = Zeroizing::new(random());
        let text = Zeroizing::new(BASE32_NOPAD.encode(&*random).to_ascii_lowercase());
        let groups: Vec<&str> =
            text.as_bytes().chunks(4).filter_map(|c| std::str::from_utf8(c).ok()).collect();
        Zeroizing::new(groups.join("-"))
    };
    (0..RECOVERY_CODES).map(|_| code()).collect()
}

/// The digest by which a recovery code is known; case, spaces and hyphens do not matter.
pub fn recovery_digest(code: &str) -> [u8; 32] {
    let plain: Zeroizing<String> = Zeroizing::new(
        code.chars().take(64).filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect(),
    );
    sha256(plain.as_bytes())
}

/// A one-time password that a person can type: 100 random bits in groups.
pub fn one_time_password() -> Zeroizing<String> {
    let random: Zeroizing<[u8; 15]> = Zeroizing::new(random());
    let text = Zeroizing::new(BASE32_NOPAD.encode(&*random).to_ascii_lowercase());
    let groups: Vec<&str> =
        text[..20].as_bytes().chunks(5).filter_map(|c| std::str::from_utf8(c).ok()).collect();
    Zeroizing::new(groups.join("-"))
}

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recovery_codes_are_known_however_they_are_typed() {
        let codes = recovery_codes();
        assert_eq!(codes.len(), RECOVERY_CODES);
        let code = &codes[0];
        assert_eq!(code.len(), 19);
        assert_eq!(recovery_digest(code), recovery_digest(&code.to_uppercase().replace('-', " ")));
        assert_ne!(recovery_digest(code), recovery_digest(&codes[1]));
    }

    #[test]
    fn one_time_passwords_pass_the_rules_of_passwords() {
        for _ in 0..100 {
            let password = one_time_password();
            assert_eq!(password.len(), 23);
            assert_eq!(horizon_controller_core::account::check_password(&password, "admin"), Ok(()));
        }
    }
}
