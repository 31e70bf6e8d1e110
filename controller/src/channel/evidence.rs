//! What an appliance gives in answer to a challenge, and whether it proves what was asked.

use horizon_model::{Factor, PublicKey, Secret};
use horizon_wire::{
    Message as _,
    challenge::{Asked, MAX_EVIDENCE_BYTES},
    convert, key,
    proto::{ChallengeEvidence, ChallengeKind, ChallengeResponse},
};

use crate::attestation;

/// What an answer proved besides that the verification secret is held.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Proved {
    /// What the machine is like now.
    pub(super) factors: Vec<Factor>,
    /// What its TPM signed; `None` when it was not asked, empty when it has none.
    pub(super) attested: Option<Vec<Factor>>,
    /// What there is to say about it.
    pub(super) detail: String,
}

/// Why an answer proves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Wrong {
    /// Nothing vouches for the evidence.
    #[error("the verification secret does not vouch for it")]
    Tag,
    /// It cannot be read.
    #[error("the evidence cannot be read")]
    Malformed,
    /// The server's key did not sign, or not over this connection.
    #[error("the server's key did not sign it over this connection")]
    Signature,
    /// The quote of the TPM is wrong.
    #[error("the quote of the TPM is wrong: {0}")]
    Quote(attestation::QuoteError),
}

/// Who answers, and over which connection.
pub(super) struct Answerer<'a> {
    /// The secrets that may vouch.
    pub(super) secrets: [Option<&'a Secret>; 2],
    /// The server's key.
    pub(super) key: PublicKey,
    /// What binds a statement to the connection.
    pub(super) binding: &'a [u8; 32],
}

/// Checks an answer. The tag comes first: nothing is looked at that its sender did not vouch for.
pub(super) fn check(
    asked: Asked<'_>,
    by: &Answerer<'_>,
    answer: &ChallengeResponse,
) -> Result<Proved, Wrong> {
    if answer.payload.len() > MAX_EVIDENCE_BYTES {
        return Err(Wrong::Malformed);
    }
    if !by.secrets.into_iter().flatten().any(|secret| asked.check(secret, &answer.payload, &answer.tag)) {
        return Err(Wrong::Tag);
    }
    let evidence = ChallengeEvidence::decode(&answer.payload[..]).map_err(|_| Wrong::Malformed)?;
    if !key::verify(&by.key, &asked.statement(by.binding), &evidence.signature) {
        return Err(Wrong::Signature);
    }
    if asked.kind != ChallengeKind::Identity {
        return Ok(Proved::default());
    }
    let factors = convert::decode_factors(evidence.factors).map_err(|_| Wrong::Malformed)?;
    if factors.is_empty() {
        return Err(Wrong::Malformed);
    }
    let (attested, detail) = match evidence.quote {
        Some(quote) => {
            let found = attestation::verify(&quote, &asked.quoted(by.binding)).map_err(Wrong::Quote)?;
            (found.factors(), "with a quote of its TPM".to_owned())
        }
        None => (Vec::new(), evidence.problem.chars().filter(|c| !c.is_control()).take(200).collect()),
    };
    Ok(Proved { factors, attested: Some(attested), detail })
}

#[cfg(test)]
mod tests {
    use horizon_model::{FactorKind, Incarnation, ServerId};
    use horizon_wire::{key::SigningKey, proto};
    use uuid::Uuid;

    use super::*;

    const ID: [u8; 16] = [1; 16];
    const NONCE: [u8; 32] = [2; 32];
    const HERE: [u8; 32] = [3; 32];

    fn asked(kind: ChallengeKind) -> Asked<'static> {
        let (server, incarnation) = (ServerId(Uuid::from_u128(4)), Incarnation(Uuid::from_u128(5)));
        Asked { id: &ID, nonce: &NONCE, kind, server, incarnation }
    }

    fn answer(asked: Asked<'_>, key: &SigningKey, secret: &Secret, binding: &[u8; 32]) -> ChallengeResponse {
        let factor =
            Factor { kind: FactorKind::RuntimeEnvironment, name: "kernel".into(), value: "6".into() };
        let evidence = ChallengeEvidence {
            signature: key.sign(&asked.statement(binding)),
            factors: convert::encode_factors(&[factor]),
            ..Default::default()
        };
        let payload = evidence.encode_to_vec();
        proto::ChallengeResponse { id: asked.id.to_vec(), tag: asked.tag(secret, &payload), payload }
    }

    #[test]
    fn only_the_whole_proof_over_this_connection_counts() {
        let (key, other) =
            (SigningKey::from_seed(Secret::new([6; 32])), SigningKey::from_seed(Secret::new([7; 32])));
        let (secret, wrong) = (Secret::new([8; 32]), Secret::new([9; 32]));
        let by = Answerer { secrets: [Some(&secret), None], key: key.public(), binding: &HERE };
        for kind in [ChallengeKind::PublicKey, ChallengeKind::Identity] {
            let asked = asked(kind);
            let right = answer(asked, &key, &secret, &HERE);
            let proved = check(asked, &by, &right).unwrap();
            assert_eq!(proved.factors.len(), usize::from(kind == ChallengeKind::Identity));
            assert_eq!(check(asked, &by, &answer(asked, &key, &wrong, &HERE)), Err(Wrong::Tag));
            assert_eq!(check(asked, &by, &answer(asked, &other, &secret, &HERE)), Err(Wrong::Signature));
            // What was proved over another connection, as through somebody in the middle, proves nothing here.
            assert_eq!(check(asked, &by, &answer(asked, &key, &secret, &[0; 32])), Err(Wrong::Signature));
            let mut cut = right.clone();
            cut.payload.pop();
            assert_eq!(check(asked, &by, &cut), Err(Wrong::Tag));
        }
        // The answer to one kind is none to another: evidence that leaves the machine out does not pass for one with it.
        let easy = answer(asked(ChallengeKind::PublicKey), &key, &secret, &HERE);
        assert_eq!(check(asked(ChallengeKind::Identity), &by, &easy), Err(Wrong::Tag));
    }
}
