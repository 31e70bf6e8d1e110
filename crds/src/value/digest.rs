//! Digests an administrator copies from a status into an approval.

use std::{fmt, str::FromStr};

use horizon_model::Digest;

use super::{InvalidValue, text_value};

/// The digest of a server's identity factors: `sha256:` and 64 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdentityDigest([u8; 32]);

const PREFIX: &str = "sha256:";

impl IdentityDigest {
    /// The digest's 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for IdentityDigest {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl From<Digest> for IdentityDigest {
    fn from(digest: Digest) -> Self {
        Self(*digest.as_bytes())
    }
}

impl fmt::Display for IdentityDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for IdentityDigest {
    type Err = InvalidValue;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || {
            InvalidValue::new(
                "this is not an identity digest",
                "copy status.identity.pendingDigest of the server: sha256: and 64 lower-case hexadecimal digits",
            )
        };
        let digits = text.strip_prefix(PREFIX).ok_or_else(invalid)?.as_bytes();
        let mut bytes = [0; 32];
        if digits.len() != 2 * bytes.len() {
            return Err(invalid());
        }
        let digit = |d: u8| match d {
            b'0'..=b'9' => Ok(d - b'0'),
            b'a'..=b'f' => Ok(d - b'a' + 10),
            _ => Err(invalid()),
        };
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

text_value!(IdentityDigest, "IdentityDigest", {
    "type": "string",
    "maxLength": 71,
    "pattern": "^sha256:[0-9a-f]{64}$",
    "x-horizon-format": "identityDigest",
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_read_and_shown() {
        let digest = IdentityDigest::from([0xa5; 32]);
        assert_eq!(digest.to_string().parse(), Ok(digest));
        for wrong in [
            "",
            "sha256:",
            "a5",
            &format!("sha256:{}", "A5".repeat(32)),
            &format!("sha256:{}", "é".repeat(32)),
        ] {
            assert!(wrong.parse::<IdentityDigest>().is_err(), "{wrong}");
        }
    }
}
