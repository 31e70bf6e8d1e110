//! The few words of TPM 2.0 that a quote takes ("TPM 2.0 Library, part 3"): an attestation key is made from the TPM's own seed
//! by a fixed template, which gives the same key each time; it signs the state of the boot registers with the asker's bytes;
//! and it is put away again. Commands and responses are bytes here; a device or a socket carries them.

use thiserror::Error;

/// The longest response that is read, in bytes.
pub const MAX_RESPONSE_BYTES: usize = 4096;
/// The bytes of a response's header: tag, size, code.
pub const HEADER_BYTES: usize = 10;

const ST_NO_SESSIONS: u16 = 0x8001;
const ST_SESSIONS: u16 = 0x8002;
const CC_CREATE_PRIMARY: u32 = 0x0131;
const CC_QUOTE: u32 = 0x0158;
const CC_FLUSH_CONTEXT: u32 = 0x0165;
const RH_ENDORSEMENT: u32 = 0x4000_000b;
/// An empty password.
const RS_PW: u32 = 0x4000_0009;
const ALG_SHA256: u16 = 0x000b;
const ALG_NULL: u16 = 0x0010;
const ALG_ECDSA: u16 = 0x0018;
const ALG_ECC: u16 = 0x0023;
const CURVE_P256: u16 = 0x0003;
/// fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, restricted, sign.
const ATTRIBUTES: u32 = 0x0005_0072;
/// Registers 0, 2, 4 and 7: firmware, its options' code, the boot loader, secure boot.
const REGISTERS: [u8; 3] = [0b1001_0101, 0, 0];

/// Why a response is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ResponseError {
    /// The TPM refused.
    #[error("the TPM refused with code {0:#x}")]
    Refused(u32),
    /// It cannot be read.
    #[error("the TPM's response cannot be read")]
    Malformed,
}

/// A key in the TPM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrimaryKey {
    /// Its handle, until it is flushed.
    pub handle: u32,
    /// Its public area (`TPMT_PUBLIC`).
    pub public: Vec<u8>,
}

/// What a key signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quoted {
    /// What was attested (`TPMS_ATTEST`).
    pub attested: Vec<u8>,
    /// The signature (`TPMT_SIGNATURE`).
    pub signature: Vec<u8>,
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    [&length.to_be_bytes()[..], bytes].concat()
}

fn command(tag: u16, code: u32, parts: &[&[u8]]) -> Vec<u8> {
    let rest = parts.concat();
    let size = u32::try_from(HEADER_BYTES + rest.len()).unwrap_or(u32::MAX);
    [&tag.to_be_bytes()[..], &size.to_be_bytes(), &code.to_be_bytes(), &rest].concat()
}

/// The authorisation by an empty password.
fn password() -> Vec<u8> {
    let session = [&RS_PW.to_be_bytes()[..], &[0, 0], &[0], &[0, 0]].concat();
    let size = u32::try_from(session.len()).unwrap_or(u32::MAX);
    [&size.to_be_bytes()[..], &session].concat()
}

/// Makes the attestation key: ECDSA with P-256 and SHA-256, in the hierarchy of endorsement, whose seed outlives a cleared TPM.
pub fn create_primary() -> Vec<u8> {
    let mut template = [ALG_ECC.to_be_bytes(), ALG_SHA256.to_be_bytes()].concat();
    template.extend(ATTRIBUTES.to_be_bytes());
    template.extend(sized(&[]));
    for value in [ALG_NULL, ALG_ECDSA, ALG_SHA256, CURVE_P256, ALG_NULL] {
        template.extend(value.to_be_bytes());
    }
    // Both coordinates are the TPM's to find.
    template.extend([0; 4]);
    // Neither a password nor data of ours; no outside information; no registers.
    let (sensitive, outside, registers) = (sized(&[0; 4]), [0; 2], [0; 4]);
    let parts: [&[u8]; 6] =
        [&RH_ENDORSEMENT.to_be_bytes(), &password(), &sensitive, &sized(&template), &outside, &registers];
    command(ST_SESSIONS, CC_CREATE_PRIMARY, &parts)
}

/// Has a key sign the state of the boot registers with the asker's bytes.
pub fn quote(key: u32, asked: &[u8; 32]) -> Vec<u8> {
    let mut selection = 1u32.to_be_bytes().to_vec();
    selection.extend(ALG_SHA256.to_be_bytes());
    selection.push(3);
    selection.extend(REGISTERS);
    let parts: [&[u8]; 5] =
        [&key.to_be_bytes(), &password(), &sized(asked), &ALG_NULL.to_be_bytes(), &selection];
    command(ST_SESSIONS, CC_QUOTE, &parts)
}

/// Puts a key away.
pub fn flush(key: u32) -> Vec<u8> {
    command(ST_NO_SESSIONS, CC_FLUSH_CONTEXT, &[&key.to_be_bytes()])
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], ResponseError> {
        let (taken, rest) = self.0.split_at_checked(n).ok_or(ResponseError::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u16(&mut self) -> Result<u16, ResponseError> {
        self.take(2)?.try_into().map(u16::from_be_bytes).map_err(|_| ResponseError::Malformed)
    }

    fn u32(&mut self) -> Result<u32, ResponseError> {
        self.take(4)?.try_into().map(u32::from_be_bytes).map_err(|_| ResponseError::Malformed)
    }

    fn sized(&mut self) -> Result<&'a [u8], ResponseError> {
        let length = self.u16()?;
        self.take(length.into())
    }
}

/// How long a response is that begins with these bytes.
///
/// # Errors
/// When that cannot be.
pub fn response_length(header: &[u8; HEADER_BYTES]) -> Result<usize, ResponseError> {
    let mut reader = Reader(header);
    reader.u16()?;
    let size = usize::try_from(reader.u32()?).map_err(|_| ResponseError::Malformed)?;
    if (HEADER_BYTES..=MAX_RESPONSE_BYTES).contains(&size) { Ok(size) } else { Err(ResponseError::Malformed) }
}

/// Whether the TPM asks for the same command again: it was busy, or is testing itself.
pub fn asks_again(response: &[u8]) -> bool {
    /// `TPM_RC_YIELDED`, `TPM_RC_TESTING`, `TPM_RC_RETRY`.
    const CODES: [u32; 3] = [0x908, 0x90a, 0x922];
    matches!(body(response), Err(ResponseError::Refused(code)) if CODES.contains(&code))
}

/// What follows the header of a response that says that all went well.
fn body(response: &[u8]) -> Result<Reader<'_>, ResponseError> {
    let mut reader = Reader(response);
    reader.u16()?;
    if usize::try_from(reader.u32()?) != Ok(response.len()) || response.len() > MAX_RESPONSE_BYTES {
        return Err(ResponseError::Malformed);
    }
    match reader.u32()? {
        0 => Ok(reader),
        code => Err(ResponseError::Refused(code)),
    }
}

/// The parameters of a response to a command with a password.
fn parameters<'a>(reader: &mut Reader<'a>) -> Result<Reader<'a>, ResponseError> {
    let size = usize::try_from(reader.u32()?).map_err(|_| ResponseError::Malformed)?;
    reader.take(size).map(Reader)
}

/// Reads the response to [`create_primary`].
///
/// # Errors
/// What is wrong with it.
pub fn read_primary(response: &[u8]) -> Result<PrimaryKey, ResponseError> {
    let mut reader = body(response)?;
    let handle = reader.u32()?;
    let public = parameters(&mut reader)?.sized()?.to_vec();
    Ok(PrimaryKey { handle, public })
}

/// Reads the response to [`quote`].
///
/// # Errors
/// What is wrong with it.
pub fn read_quote(response: &[u8]) -> Result<Quoted, ResponseError> {
    let mut parameters = parameters(&mut body(response)?)?;
    let attested = parameters.sized()?.to_vec();
    Ok(Quoted { attested, signature: parameters.0.to_vec() })
}

/// Reads the response to [`flush`].
///
/// # Errors
/// What is wrong with it.
pub fn read_flush(response: &[u8]) -> Result<(), ResponseError> {
    body(response).map(drop)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn commands_say_their_own_length() {
        for bytes in [create_primary(), quote(0x8000_0000, &[7; 32]), flush(0x8000_0000)] {
            let size = u32::from_be_bytes(bytes[2..6].try_into().unwrap());
            assert_eq!(usize::try_from(size).unwrap(), bytes.len());
        }
        assert_eq!(flush(0x8000_0001), [0x80, 1, 0, 0, 0, 14, 0, 0, 1, 0x65, 0x80, 0, 0, 1]);
    }

    #[test]
    fn responses_are_read() {
        let parameters = [sized(b"attested"), b"signature".to_vec()].concat();
        let rest =
            [&u32::try_from(parameters.len()).unwrap().to_be_bytes()[..], &parameters, &[0; 5]].concat();
        let response = command(ST_SESSIONS, 0, &[&rest]);
        let read = read_quote(&response).unwrap();
        assert_eq!((&read.attested[..], &read.signature[..]), (&b"attested"[..], &b"signature"[..]));
        assert_eq!(response_length(response[..10].try_into().unwrap()), Ok(response.len()));
        assert_eq!(read_flush(&command(ST_NO_SESSIONS, 0x922, &[])), Err(ResponseError::Refused(0x922)));
        assert_eq!(read_flush(&[]), Err(ResponseError::Malformed));
        assert!(asks_again(&command(ST_NO_SESSIONS, 0x922, &[])));
        assert!(!asks_again(&command(ST_NO_SESSIONS, 0x101, &[])) && !asks_again(&response));
    }

    proptest! {
        #[test]
        fn no_response_does_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let whole = command(ST_SESSIONS, 0, &[&bytes]);
            for bytes in [&bytes, &whole] {
                let _ = (read_primary(bytes).is_ok(), read_quote(bytes).is_ok(), read_flush(bytes).is_ok());
            }
        }
    }
}
