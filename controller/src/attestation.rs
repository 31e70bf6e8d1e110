//! Quotes of TPMs: whether the key that is shown signed, in its TPM, what was asked for now.
//!
//! The key is known by its public area: the first that a server shows is part of its identity from then on, and another one is
//! a change that waits for an approval. Whether a maker vouches for the TPM is not looked at
//! (docs/decisions/0014-attestation-keys-are-pinned.md).

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use horizon_controller_core::identity::quote::{self, Unreadable};
use horizon_model::{Digest, Factor, FactorKind};
use horizon_wire::{heartbeat::equal, key::sha256, proto};
use thiserror::Error;

/// The algorithm of names, as they begin with it.
const SHA256: [u8; 2] = [0x00, 0x0b];
/// Where an attestation key may be rooted: the hierarchies of endorsement and of the owner.
const HIERARCHIES: [[u8; 4]; 2] = [[0x40, 0, 0, 0x0b], [0x40, 0, 0, 0x01]];

/// Why a quote is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum QuoteError {
    /// What was attested cannot be read.
    #[error("what it attests: {0}")]
    Attested(Unreadable),
    /// The key cannot be used.
    #[error("its key: {0}")]
    Key(Unreadable),
    /// The signature cannot be read.
    #[error("its signature: {0}")]
    Signature(Unreadable),
    /// It answers another question.
    #[error("it answers another question")]
    Nonce,
    /// Another key signed.
    #[error("another key signed it than the one that is shown")]
    Signer,
    /// The signature is wrong.
    #[error("its signature does not fit")]
    Forged,
}

/// What a TPM proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attested {
    /// The digest of the key's public area.
    pub key: Digest,
    /// The digest over the registers.
    pub registers: Digest,
}

impl Attested {
    /// What of it is part of an identity.
    pub fn factors(&self) -> Vec<Factor> {
        let factor = |name: &str, digest: Digest| Factor {
            kind: FactorKind::CryptographicAttestation,
            name: name.to_owned(),
            value: format!("sha256:{digest}"),
        };
        vec![factor("tpm/key", self.key), factor("tpm/pcrs", self.registers)]
    }
}

/// Checks a quote over 32 bytes that name the challenge.
///
/// # Errors
/// Why it is not believed.
pub fn verify(quote: &proto::Quote, asked: &[u8; 32]) -> Result<Attested, QuoteError> {
    let key = quote::read_key(&quote.key).map_err(QuoteError::Key)?;
    let attested = quote::read_quote(&quote.attested).map_err(QuoteError::Attested)?;
    let signature = quote::read_signature(&quote.signature).map_err(QuoteError::Signature)?;
    if !equal(attested.extra, asked) {
        return Err(QuoteError::Nonce);
    }
    let public = sha256(&quote.key);
    let name = [&SHA256[..], &public.0].concat();
    let qualified = |root: &[u8; 4]| [&SHA256[..], &sha256(&[&root[..], &name].concat()).0].concat();
    if !HIERARCHIES.iter().any(|root| equal(&qualified(root), attested.qualified_signer)) {
        return Err(QuoteError::Signer);
    }
    let point = [&[4][..], &key.x, &key.y].concat();
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
        .verify(&quote.attested, &signature)
        .map_err(|_| QuoteError::Forged)?;
    Ok(Attested { key: public, registers: Digest(*attested.digest) })
}

#[cfg(test)]
pub(crate) mod testing;

#[cfg(test)]
mod tests {
    use super::{testing::SoftTpm, *};

    #[test]
    fn only_the_shown_key_over_the_asked_bytes_is_believed() {
        let (tpm, other) = (SoftTpm::new(), SoftTpm::new());
        let right = tpm.quote(&[1; 32]);
        let found = verify(&right, &[1; 32]).unwrap();
        assert_eq!(found.factors().len(), 2);
        assert_eq!(verify(&tpm.quote(&[2; 32]), &[2; 32]).unwrap().key, found.key);
        assert_eq!(verify(&right, &[2; 32]), Err(QuoteError::Nonce), "a quote that is replayed");
        let theirs = other.quote(&[1; 32]);
        assert_ne!(verify(&theirs, &[1; 32]).unwrap().key, found.key);
        let swapped = proto::Quote { key: theirs.key.clone(), ..right.clone() };
        assert_eq!(verify(&swapped, &[1; 32]), Err(QuoteError::Signer));
        let forged = proto::Quote { signature: theirs.signature, ..right.clone() };
        assert_eq!(verify(&forged, &[1; 32]), Err(QuoteError::Forged));
        let mut edited = right;
        let last = edited.attested.len() - 1;
        edited.attested[last] ^= 1;
        assert_eq!(verify(&edited, &[1; 32]), Err(QuoteError::Forged));
    }
}
