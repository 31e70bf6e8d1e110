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

    /// RFC 9106, section 5.3: what hashes passwords and personal keys is Argon2id, of the version in force.
    #[test]
    fn rfc_9106_vector() {
        use argon2::{Algorithm, Argon2, AssociatedData, ParamsBuilder, Version};
        let mut params = ParamsBuilder::new();
        params.m_cost(32).t_cost(3).p_cost(4).output_len(32);
        params.data(AssociatedData::new(&[4; 12]).unwrap());
        let argon =
            Argon2::new_with_secret(&[3; 8], Algorithm::Argon2id, Version::V0x13, params.build().unwrap());
        let mut tag = [0; 32];
        argon.unwrap().hash_password_into(&[1; 32], &[2; 16], &mut tag).unwrap();
        let wanted = "0d640df58d78766c08c037a34a8b53c9d01ef0452d75b65eb52520e96b01e659";
        assert_eq!(data_encoding::HEXLOWER.encode(&tag), wanted);
    }

    /// RFC 5869, appendix A.1 and A.3: what derives keys from keys.
    #[test]
    fn rfc_5869_vectors() {
        use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
        struct Length(usize);
        impl KeyType for Length {
            fn len(&self) -> usize {
                self.0
            }
        }
        let derived = |salt: &[u8], info: &[u8]| {
            let key = Salt::new(HKDF_SHA256, salt).extract(&[0x0b; 22]);
            let mut out = [0; 42];
            key.expand(&[info], Length(42)).unwrap().fill(&mut out).unwrap();
            data_encoding::HEXLOWER.encode(&out)
        };
        let (salt, info): (Vec<u8>, Vec<u8>) = ((0x00..=0x0c).collect(), (0xf0..=0xf9).collect());
        assert_eq!(
            derived(&salt, &info),
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
        );
        assert_eq!(
            derived(&[], &[]),
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
        );
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
