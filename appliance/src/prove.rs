//! What an appliance gives in answer to a challenge beyond the verification secret.

use std::path::PathBuf;

use horizon_appliance_core::describe;
use horizon_hostnet::Net;
use horizon_model::{Incarnation, ServerId};
use horizon_wire::{
    Message as _,
    challenge::Asked,
    convert,
    key::SigningKey,
    proto::{self, ChallengeKind},
};

use crate::{
    facts::{self, HostFacts},
    tpm,
};

/// What makes evidence.
#[derive(Clone)]
pub(crate) struct Prover {
    /// The server's key.
    pub(crate) identity: SigningKey,
    /// Where facts about the host are found.
    pub(crate) host: HostFacts,
    /// Where the TPM is, if there is one.
    pub(crate) tpm: PathBuf,
}

/// A challenge that waits for evidence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question {
    pub(crate) id: [u8; 16],
    pub(crate) nonce: [u8; 32],
    pub(crate) kind: ChallengeKind,
    pub(crate) server: ServerId,
    pub(crate) incarnation: Incarnation,
}

impl Question {
    pub(crate) fn asked(&self) -> Asked<'_> {
        Asked {
            id: &self.id,
            nonce: &self.nonce,
            kind: self.kind,
            server: self.server,
            incarnation: self.incarnation,
        }
    }
}

impl Prover {
    /// The evidence, found out now, over the connection with this binding.
    pub(crate) async fn evidence(self, question: Question, binding: [u8; 32]) -> Vec<u8> {
        let asked = question.asked();
        let mut evidence = proto::ChallengeEvidence {
            signature: self.identity.sign(&asked.statement(&binding)),
            ..Default::default()
        };
        if question.kind == ChallengeKind::Identity {
            evidence.factors = match Net::open() {
                Ok(net) => convert::encode_factors(&describe(&facts::collect(&net, &self.host).await)),
                Err(error) => {
                    tracing::warn!(%error, "cannot look at the host for a challenge");
                    Vec::new()
                }
            };
            let (path, extra) = (self.tpm, asked.quoted(&binding));
            // A TPM takes its time.
            match tokio::task::spawn_blocking(move || tpm::quote(&path, &extra)).await {
                Ok(Ok(quote)) => evidence.quote = Some(quote),
                Ok(Err(error)) => evidence.problem = error.to_string(),
                Err(_) => evidence.problem = "asking the TPM broke down".to_owned(),
            }
        }
        evidence.encode_to_vec()
    }
}
