//! Challenges of every kind: what an appliance that has the feature [`FEATURE`] proves over a nonce of the controller.
//!
//! The evidence is bytes under a tag of the verification secret, like a heartbeat. The statement, which the server's key signs
//! and which a quote of a TPM names, is bound to the one TLS connection (RFC 8446, section 7.5): what was proved over another
//! one proves nothing here.

use aws_lc_rs::hmac;
use horizon_model::{Incarnation, Secret, ServerId};

use crate::{heartbeat::equal, key::sha256, proto::ChallengeKind};

/// The feature of an appliance that answers every kind of challenge.
pub const FEATURE: &str = "challenge.v2";
/// The label under which both ends of a connection derive what binds a statement to it.
pub const BINDING_LABEL: &[u8] = b"EXPORTER-horizon-challenge-v2";
/// The longest evidence, in bytes.
pub const MAX_EVIDENCE_BYTES: usize = 64 << 10;

const TAG: &[u8] = b"horizon challenge v2\0";
const STATEMENT: &[u8] = b"horizon challenge statement v2\0";

/// What a challenge is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked<'a> {
    /// The challenge.
    pub id: &'a [u8; 16],
    /// Its nonce.
    pub nonce: &'a [u8; 32],
    /// What is to be proved.
    pub kind: ChallengeKind,
    /// Whose appliance is asked.
    pub server: ServerId,
    /// Which start of it.
    pub incarnation: Incarnation,
}

impl Asked<'_> {
    /// The tag of evidence (RFC 2104, SHA-256).
    pub fn tag(&self, secret: &Secret, evidence: &[u8]) -> Vec<u8> {
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, secret.expose()));
        let kind = (self.kind as i32).to_be_bytes();
        let parts: [&[u8]; 7] =
            [TAG, self.id, self.nonce, &kind, self.server.as_bytes(), self.incarnation.as_bytes(), evidence];
        for part in parts {
            context.update(part);
        }
        context.sign().as_ref().to_vec()
    }

    /// Whether a tag is right, in constant time.
    pub fn check(&self, secret: &Secret, evidence: &[u8], tag: &[u8]) -> bool {
        equal(&self.tag(secret, evidence), tag)
    }

    /// What the server's key signs, over the connection with this binding.
    pub fn statement(&self, binding: &[u8; 32]) -> Vec<u8> {
        let kind = (self.kind as i32).to_be_bytes();
        let parts: [&[u8]; 7] = [
            STATEMENT,
            self.id,
            self.nonce,
            &kind,
            self.server.as_bytes(),
            self.incarnation.as_bytes(),
            binding,
        ];
        parts.concat()
    }

    /// What a quote of a TPM names as its extra data: 32 bytes.
    pub fn quoted(&self, binding: &[u8; 32]) -> [u8; 32] {
        sha256(&self.statement(binding)).0
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn tags_and_statements_bind_everything() {
        let asked = Asked {
            id: &[1; 16],
            nonce: &[2; 32],
            kind: ChallengeKind::PublicKey,
            server: ServerId(Uuid::from_u128(3)),
            incarnation: Incarnation(Uuid::from_u128(4)),
        };
        let others = [
            Asked { id: &[9; 16], ..asked },
            Asked { nonce: &[9; 32], ..asked },
            Asked { kind: ChallengeKind::Identity, ..asked },
            Asked { server: ServerId(Uuid::from_u128(9)), ..asked },
            Asked { incarnation: Incarnation(Uuid::from_u128(9)), ..asked },
        ];
        let secret = Secret::new([5; 32]);
        let tag = asked.tag(&secret, b"evidence");
        assert!(asked.check(&secret, b"evidence", &tag));
        assert!(!asked.check(&secret, b"evidenca", &tag));
        assert!(!asked.check(&Secret::new([6; 32]), b"evidence", &tag));
        for other in others {
            assert!(!other.check(&secret, b"evidence", &tag), "{other:?}");
            assert_ne!(other.statement(&[7; 32]), asked.statement(&[7; 32]));
        }
        assert_ne!(asked.quoted(&[7; 32]), asked.quoted(&[8; 32]), "another connection is another statement");
    }
}
