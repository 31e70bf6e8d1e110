//! Reading what a TPM 2.0 signed: the structures of "TPM 2.0 Library, part 2", as far as a quote by an ECC key needs them.
//! Everything comes from the network: lengths are checked before anything is looked at, and nothing may be left over.

use thiserror::Error;

/// The longest structure that is read, in bytes.
pub const MAX_STRUCTURE_BYTES: usize = 2048;
/// The registers that a quote must cover: firmware, its options' code, the boot loader, and what secure boot trusts. Bit `n` is
/// register `n`.
pub const REGISTERS: [u8; 3] = [0b1001_0101, 0, 0];

const GENERATED: u32 = 0xff54_4347;
const ST_ATTEST_QUOTE: u16 = 0x8018;
const ALG_NULL: u16 = 0x0010;
const ALG_SHA256: u16 = 0x000b;
const ALG_ECDSA: u16 = 0x0018;
const ALG_ECC: u16 = 0x0023;
const CURVE_P256: u16 = 0x0003;
/// fixedTPM, fixedParent, sensitiveDataOrigin, restricted, sign.
const MUST: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 18;
/// decrypt.
const MUST_NOT: u32 = 1 << 17;

/// Why a structure is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Unreadable {
    /// It ends too early, is too long, or something follows it.
    #[error("its length is wrong")]
    Length,
    /// It was not made by a TPM itself.
    #[error("it does not begin as what a TPM attests")]
    Magic,
    /// It attests something else.
    #[error("it is no quote")]
    Type,
    /// Another kind of key or signature.
    #[error("it is not of ECDSA with P-256 and SHA-256")]
    Algorithm,
    /// The key could leave its TPM, or sign what its TPM did not make.
    #[error("its key may leave the TPM, or sign what the TPM did not make")]
    Attributes,
    /// Other registers.
    #[error("it covers other registers than those asked for")]
    Registers,
}

/// A quote: `TPMS_ATTEST` of the type `TPM_ST_ATTEST_QUOTE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quote<'a> {
    /// The name of the key that signed, with those above it.
    pub qualified_signer: &'a [u8],
    /// What the asker gave.
    pub extra: &'a [u8],
    /// The digest over the registers.
    pub digest: &'a [u8; 32],
}

/// The public half of an attestation key: `TPMT_PUBLIC`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttestationKey {
    /// The point's coordinates, big endian.
    pub x: [u8; 32],
    /// See `x`.
    pub y: [u8; 32],
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self, Unreadable> {
        if bytes.len() > MAX_STRUCTURE_BYTES { Err(Unreadable::Length) } else { Ok(Self(bytes)) }
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], Unreadable> {
        let (taken, rest) = self.0.split_at_checked(n).ok_or(Unreadable::Length)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Unreadable> {
        self.take(N)?.try_into().map_err(|_| Unreadable::Length)
    }

    fn u16(&mut self) -> Result<u16, Unreadable> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, Unreadable> {
        self.array().map(u32::from_be_bytes)
    }

    /// Bytes after their length in two bytes (`TPM2B`).
    fn sized(&mut self) -> Result<&'a [u8], Unreadable> {
        let length = self.u16()?;
        self.take(length.into())
    }

    /// A number of at most 32 bytes, with what was left out at its front.
    fn number(&mut self) -> Result<[u8; 32], Unreadable> {
        let bytes = self.sized()?;
        let mut number = [0; 32];
        let from = number.len().checked_sub(bytes.len()).ok_or(Unreadable::Length)?;
        number.get_mut(from..).ok_or(Unreadable::Length)?.copy_from_slice(bytes);
        Ok(number)
    }

    fn expect(&mut self, value: u16) -> Result<(), Unreadable> {
        if self.u16()? == value { Ok(()) } else { Err(Unreadable::Algorithm) }
    }

    fn end(self) -> Result<(), Unreadable> {
        if self.0.is_empty() { Ok(()) } else { Err(Unreadable::Length) }
    }
}

/// Reads a quote, which must cover [`REGISTERS`] with SHA-256.
///
/// # Errors
/// What is wrong with it.
pub fn read_quote(bytes: &[u8]) -> Result<Quote<'_>, Unreadable> {
    let mut reader = Reader::new(bytes)?;
    if reader.u32()? != GENERATED {
        return Err(Unreadable::Magic);
    }
    if reader.u16()? != ST_ATTEST_QUOTE {
        return Err(Unreadable::Type);
    }
    let qualified_signer = reader.sized()?;
    let extra = reader.sized()?;
    // Clock, resets, restarts, whether the clock is safe, version of the firmware.
    reader.take(8 + 4 + 4 + 1 + 8)?;
    if reader.u32()? != 1 {
        return Err(Unreadable::Registers);
    }
    reader.expect(ALG_SHA256)?;
    if usize::from(reader.array::<1>()?[0]) != REGISTERS.len() || reader.array()? != REGISTERS {
        return Err(Unreadable::Registers);
    }
    let digest = reader.sized()?.try_into().map_err(|_| Unreadable::Length)?;
    reader.end()?;
    Ok(Quote { qualified_signer, extra, digest })
}

/// Reads an attestation key: one that cannot leave its TPM and signs only what the TPM itself made.
///
/// # Errors
/// What is wrong with it.
pub fn read_key(bytes: &[u8]) -> Result<AttestationKey, Unreadable> {
    let mut reader = Reader::new(bytes)?;
    reader.expect(ALG_ECC)?;
    reader.expect(ALG_SHA256)?;
    let attributes = reader.u32()?;
    if attributes & MUST != MUST || attributes & MUST_NOT != 0 {
        return Err(Unreadable::Attributes);
    }
    reader.sized()?;
    for value in [ALG_NULL, ALG_ECDSA, ALG_SHA256, CURVE_P256, ALG_NULL] {
        reader.expect(value)?;
    }
    let (x, y) = (reader.number()?, reader.number()?);
    reader.end()?;
    Ok(AttestationKey { x, y })
}

/// Reads a signature as the two numbers that make it, one after the other.
///
/// # Errors
/// What is wrong with it.
pub fn read_signature(bytes: &[u8]) -> Result<[u8; 64], Unreadable> {
    let mut reader = Reader::new(bytes)?;
    reader.expect(ALG_ECDSA)?;
    reader.expect(ALG_SHA256)?;
    let mut both = [0; 64];
    let (r, s) = both.split_at_mut(32);
    r.copy_from_slice(&reader.number()?);
    s.copy_from_slice(&reader.number()?);
    reader.end()?;
    Ok(both)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sized(bytes: &[u8]) -> Vec<u8> {
        [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
    }

    fn quote(extra: &[u8], registers: &[u8], digest: &[u8]) -> Vec<u8> {
        let mut out = [&GENERATED.to_be_bytes()[..], &ST_ATTEST_QUOTE.to_be_bytes()].concat();
        out.extend(sized(&[7; 34]));
        out.extend(sized(extra));
        out.extend([0; 25]);
        out.extend([0, 0, 0, 1]);
        out.extend(ALG_SHA256.to_be_bytes());
        out.push(u8::try_from(registers.len()).unwrap());
        out.extend(registers);
        out.extend(sized(digest));
        out
    }

    fn key(attributes: u32) -> Vec<u8> {
        let mut out = [ALG_ECC.to_be_bytes(), ALG_SHA256.to_be_bytes()].concat();
        out.extend(attributes.to_be_bytes());
        out.extend(sized(&[]));
        for value in [ALG_NULL, ALG_ECDSA, ALG_SHA256, CURVE_P256, ALG_NULL] {
            out.extend(value.to_be_bytes());
        }
        out.extend(sized(&[1; 31]));
        out.extend(sized(&[2; 32]));
        out
    }

    #[test]
    fn what_a_tpm_gives_is_read() {
        let bytes = quote(b"nonce", &REGISTERS, &[9; 32]);
        let read = read_quote(&bytes).unwrap();
        assert_eq!((read.extra, read.digest, read.qualified_signer), (&b"nonce"[..], &[9; 32], &[7; 34][..]));
        let read = read_key(&key(MUST | 1 << 6)).unwrap();
        assert_eq!((read.x[0], read.x[1], read.y), (0, 1, [2; 32]));
        let mut signature = [ALG_ECDSA.to_be_bytes(), ALG_SHA256.to_be_bytes()].concat();
        signature.extend(sized(&[3; 32]));
        signature.extend(sized(&[4; 30]));
        let read = read_signature(&signature).unwrap();
        assert_eq!((&read[..32], &read[32..35]), (&[3; 32][..], &[0, 0, 4][..]));
    }

    #[test]
    fn what_is_not_as_it_should_be_is_refused() {
        let whole = quote(b"nonce", &REGISTERS, &[9; 32]);
        let mut other = whole.clone();
        other[0] = 0;
        assert_eq!(read_quote(&other), Err(Unreadable::Magic));
        let mut other = whole.clone();
        other[5] = 0x17;
        assert_eq!(read_quote(&other), Err(Unreadable::Type));
        assert_eq!(read_quote(&quote(b"n", &[0, 0, 0], &[9; 32])), Err(Unreadable::Registers));
        assert_eq!(read_quote(&quote(b"n", &REGISTERS, &[9; 20])), Err(Unreadable::Length));
        for length in 0..whole.len() {
            assert!(read_quote(&whole[..length]).is_err(), "{length}");
        }
        assert_eq!(read_quote(&[&whole[..], &[0]].concat()), Err(Unreadable::Length));
        // A key that may be exported, that decrypts, or that signs anything.
        for attributes in [MUST & !(1 << 1), MUST | MUST_NOT, MUST & !(1 << 16)] {
            assert_eq!(read_key(&key(attributes)), Err(Unreadable::Attributes));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..300), at in 0..200_usize, new: u8) {
            let _ = (read_quote(&bytes).is_ok(), read_key(&bytes).is_ok(), read_signature(&bytes).is_ok());
            for mut whole in [quote(b"nonce", &REGISTERS, &[9; 32]), key(MUST)] {
                let at = at % whole.len();
                whole[at] = new;
                let _ = (read_quote(&whole).is_ok(), read_key(&whole).is_ok(), read_signature(&whole).is_ok());
            }
        }
    }
}
