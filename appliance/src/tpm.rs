//! Speaking with a TPM 2.0: through the kernel's resource manager (`/dev/tpmrm0`), or through a socket that takes the same
//! bytes, as that of a TPM in software or of a virtual machine's host.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::{fs::FileTypeExt as _, net::UnixStream},
    path::{Path, PathBuf},
    time::Duration,
};

use horizon_appliance_core::tpm::{self, HEADER_BYTES, MAX_RESPONSE_BYTES, ResponseError};
use horizon_wire::proto;
use thiserror::Error;

/// Where the kernel has the TPM.
pub(crate) const DEVICE: &str = "/dev/tpmrm0";
/// How long a socket may take for one answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a TPM that is busy is asked again, and after which pause.
const TRIES: usize = 20;
/// See [`TRIES`].
const PAUSE: Duration = Duration::from_millis(50);

/// Why there is no quote.
#[derive(Debug, Error)]
pub(crate) enum TpmError {
    /// There is no TPM.
    #[error("there is no TPM at {}", .0.display())]
    None(PathBuf),
    /// It cannot be spoken with.
    #[error("cannot speak with the TPM at {}: {error}", .path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It says no.
    #[error(transparent)]
    Response(#[from] ResponseError),
}

enum Transport {
    /// Takes a command with one write and gives its response with one read.
    Device(File),
    Socket(UnixStream),
}

impl Transport {
    fn open(path: &Path) -> io::Result<Self> {
        if fs::metadata(path)?.file_type().is_socket() {
            let socket = UnixStream::connect(path)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.set_write_timeout(Some(PATIENCE))?;
            return Ok(Self::Socket(socket));
        }
        Ok(Self::Device(OpenOptions::new().read(true).write(true).open(path)?))
    }

    /// The response to a command, which is given again while the TPM asks for that.
    fn exchange(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        let mut response = self.exchange_once(command)?;
        for _ in 0..TRIES {
            if !tpm::asks_again(&response) {
                break;
            }
            // This thread does nothing else, and nobody wakes it: the TPM says nothing when it is ready.
            std::thread::park_timeout(PAUSE);
            response = self.exchange_once(command)?;
        }
        Ok(response)
    }

    fn exchange_once(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Self::Device(file) => {
                file.write_all(command)?;
                let mut response = vec![0; MAX_RESPONSE_BYTES];
                let length = file.read(&mut response)?;
                response.truncate(length);
                Ok(response)
            }
            Self::Socket(socket) => {
                socket.write_all(command)?;
                let mut header = [0; HEADER_BYTES];
                socket.read_exact(&mut header)?;
                let length = tpm::response_length(&header).map_err(io::Error::other)?;
                let mut response = header.to_vec();
                response.resize(length, 0);
                socket.read_exact(response.get_mut(HEADER_BYTES..).unwrap_or_default())?;
                Ok(response)
            }
        }
    }
}

/// Has the TPM sign 32 bytes with the state of its boot registers. Blocks for as long as the TPM takes.
///
/// # Errors
/// Why there is no quote.
pub(crate) fn quote(path: &Path, asked: &[u8; 32]) -> Result<proto::Quote, TpmError> {
    let failed = |error| TpmError::Io { path: path.to_owned(), error };
    let mut transport = match Transport::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(TpmError::None(path.to_owned())),
        other => other.map_err(failed)?,
    };
    let key = tpm::read_primary(&transport.exchange(&tpm::create_primary()).map_err(failed)?)?;
    let quoted = transport.exchange(&tpm::quote(key.handle, asked)).map_err(failed);
    // Without a resource manager what is not put away stays.
    let flushed = transport.exchange(&tpm::flush(key.handle)).map_err(failed);
    let quoted = tpm::read_quote(&quoted?)?;
    tpm::read_flush(&flushed?)?;
    Ok(proto::Quote { key: key.public, attested: quoted.attested, signature: quoted.signature })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `swtpm`, ended when dropped.
    struct Software(std::process::Child);

    impl Software {
        fn start(state: &Path, socket: &Path) -> Self {
            let state = format!("dir={}", state.display());
            let server = format!("type=unixio,path={}", socket.display());
            let child = std::process::Command::new("swtpm")
                .args(["socket", "--tpm2", "--tpmstate", &state, "--server", &server])
                .args(["--flags", "not-need-init,startup-clear"])
                .spawn()
                .expect("swtpm is there: tests/setup.sh installs it");
            while !socket.exists() {
                std::thread::park_timeout(Duration::from_millis(5));
            }
            Self(child)
        }
    }

    impl Drop for Software {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_tpm_signs_what_it_is_asked_with_the_same_key_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("tpm.sock");
        let software = Software::start(dir.path(), &socket);
        let first = quote(&socket, &[1; 32]).unwrap();
        let second = quote(&socket, &[2; 32]).unwrap();
        assert_eq!(first.key, second.key);
        let holds = |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).any(|w| w == part);
        assert!(holds(&first.attested, &[1; 32]) && holds(&second.attested, &[2; 32]));
        // The template's public area ends with the point; the signature with its two numbers.
        let point = [&[4][..], &first.key[22..54], &first.key[56..88]].concat();
        let signature = [&first.signature[6..38], &first.signature[40..72]].concat();
        aws_lc_rs::signature::UnparsedPublicKey::new(&aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED, point)
            .verify(&first.attested, &signature)
            .unwrap();
        drop(software);
        assert!(quote(&socket, &[3; 32]).is_err());
    }

    #[test]
    fn no_tpm_is_said_to_be_none() {
        let dir = tempfile::tempdir().unwrap();
        let error = quote(&dir.path().join("tpm"), &[1; 32]).unwrap_err();
        assert!(matches!(error, TpmError::None(_)), "{error}");
        // What is no TPM does not hang or harm.
        let file = dir.path().join("file");
        fs::write(&file, b"").unwrap();
        assert!(quote(&file, &[1; 32]).is_err());
    }
}
