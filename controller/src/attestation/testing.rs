//! A TPM in software that makes what a real one makes, for tests.

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use horizon_controller_core::identity::quote::REGISTERS;
use horizon_wire::{key::sha256, proto};

pub(crate) struct SoftTpm {
    pair: EcdsaKeyPair,
    pub(crate) registers: [u8; 32],
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

impl SoftTpm {
    pub(crate) fn new() -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        Self { pair, registers: [3; 32] }
    }

    fn public(&self) -> Vec<u8> {
        let point = self.pair.public_key().as_ref();
        let mut out = vec![0x00, 0x23, 0x00, 0x0b, 0x00, 0x05, 0x00, 0x72, 0, 0];
        out.extend([0x00, 0x10, 0x00, 0x18, 0x00, 0x0b, 0x00, 0x03, 0x00, 0x10]);
        out.extend(sized(&point[1..33]));
        out.extend(sized(&point[33..]));
        out
    }

    pub(crate) fn quote(&self, extra: &[u8; 32]) -> proto::Quote {
        let key = self.public();
        let name = [&[0, 0x0b][..], &sha256(&key).0].concat();
        let qualified = [&[0, 0x0b][..], &sha256(&[&[0x40, 0, 0, 0x0b][..], &name].concat()).0].concat();
        let mut attested = vec![0xff, 0x54, 0x43, 0x47, 0x80, 0x18];
        attested.extend(sized(&qualified));
        attested.extend(sized(extra));
        attested.extend([0; 25]);
        attested.extend([0, 0, 0, 1, 0x00, 0x0b, 3]);
        attested.extend(REGISTERS);
        attested.extend(sized(&self.registers));
        let signed = self.pair.sign(&SystemRandom::new(), &attested).unwrap();
        let mut signature = vec![0x00, 0x18, 0x00, 0x0b];
        signature.extend(sized(&signed.as_ref()[..32]));
        signature.extend(sized(&signed.as_ref()[32..]));
        proto::Quote { key, attested, signature }
    }
}
