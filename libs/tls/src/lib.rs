//! TLS 1.3 with Ed25519 raw public keys both ways (RFC 7250), the same for the control channel and the data plane. No
//! certificates, no resumption, no early data: a key is all there is to prove.

pub mod hpke;
mod identity;
mod verifier;

use std::sync::Arc;

use rustls::{
    CipherSuite, ClientConfig, Error, ServerConfig,
    client::{AlwaysResolvesClientRawPublicKeys, Resumption},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage},
    sign::CertifiedKey,
    version::TLS13,
};

pub use identity::{Identity, IdentityError};
pub use verifier::Trust;
use verifier::Verifier;

/// The DER front of a SubjectPublicKeyInfo that holds an Ed25519 key (RFC 8410, section 4); the 32 key bytes follow.
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0];

/// An identity ready for handshakes.
#[derive(Clone, Debug)]
pub struct Credentials {
    provider: Arc<CryptoProvider>,
    key: Arc<CertifiedKey>,
}

impl Credentials {
    /// Prepares an identity. Fails only if the crypto library cannot sign with it.
    pub fn new(identity: &Identity) -> Result<Self, Error> {
        let mut provider = aws_lc_rs::default_provider();
        let first = preferred_suite();
        provider.cipher_suites.sort_by_key(|suite| suite.suite() != first);
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(identity.pkcs8()));
        let signer = provider.key_provider.load_private_key(private.clone_key())?;
        let public = CertificateDer::from(to_spki(&identity.public_key()));
        Ok(Self { provider: Arc::new(provider), key: Arc::new(CertifiedKey::new(vec![public], signer)) })
    }

    /// The accepting side of a protocol.
    pub fn server(&self, alpn: &[u8], trust: Trust) -> Result<ServerConfig, Error> {
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(self.verifier(trust))
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(self.key.clone())));
        config.alpn_protocols = vec![alpn.to_vec()];
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(config)
    }

    /// The dialling side of a protocol.
    pub fn client(&self, alpn: &[u8], trust: Trust) -> Result<ClientConfig, Error> {
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(self.verifier(trust))
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(self.key.clone())));
        config.alpn_protocols = vec![alpn.to_vec()];
        config.enable_sni = false;
        config.resumption = Resumption::disabled();
        Ok(config)
    }

    fn verifier(&self, trust: Trust) -> Arc<Verifier> {
        Arc::new(Verifier { algorithms: self.provider.signature_verification_algorithms, trust })
    }
}

/// The key that a peer proved, from what it presented in the handshake.
pub fn presented_key(presented: &[CertificateDer<'_>]) -> Option<[u8; 32]> {
    from_spki(presented.first()?)
}

fn to_spki(key: &[u8; 32]) -> Vec<u8> {
    [&SPKI_PREFIX[..], key].concat()
}

fn from_spki(der: &[u8]) -> Option<[u8; 32]> {
    der.strip_prefix(&SPKI_PREFIX)?.try_into().ok()
}

/// AES where the processor computes it, else ChaCha20, which is several times faster than AES in software.
fn preferred_suite() -> CipherSuite {
    #[cfg(target_arch = "x86_64")]
    let aes = std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    let aes = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let aes = false;
    if aes { CipherSuite::TLS13_AES_128_GCM_SHA256 } else { CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    fn identity(n: u8) -> Identity {
        Identity::from_seed(&[n; 32]).unwrap()
    }

    /// The key a side saw of the other.
    type Seen = Option<[u8; 32]>;

    /// Runs a handshake in memory; gives what the client and the server saw.
    fn handshake(client: ClientConfig, server: ServerConfig) -> Result<(Seen, Seen), Error> {
        let name = "peer".try_into().unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(client), name).unwrap();
        let mut server = rustls::ServerConnection::new(Arc::new(server)).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut bytes = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut bytes).unwrap();
            }
            server.read_tls(&mut &bytes[..]).unwrap();
            server.process_new_packets()?;
            bytes.clear();
            while server.wants_write() {
                server.write_tls(&mut bytes).unwrap();
            }
            client.read_tls(&mut &bytes[..]).unwrap();
            client.process_new_packets()?;
        }
        client.writer().write_all(b"hello").unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        server.read_tls(&mut &bytes[..]).unwrap();
        server.process_new_packets()?;
        let mut heard = [0; 5];
        server.reader().read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"hello");
        let key = |presented: Option<&[CertificateDer<'_>]>| presented.and_then(presented_key);
        Ok((key(client.peer_certificates()), key(server.peer_certificates())))
    }

    #[test]
    fn both_sides_prove_their_keys() {
        let (a, b) = (identity(1), identity(2));
        let (client, server) = (Credentials::new(&a).unwrap(), Credentials::new(&b).unwrap());
        for (to_server, to_client) in
            [(Trust::AnyKey, Trust::AnyKey), (Trust::Key(b.public_key()), Trust::Key(a.public_key()))]
        {
            let seen = handshake(
                client.client(b"test", to_server).unwrap(),
                server.server(b"test", to_client).unwrap(),
            );
            assert_eq!(seen.unwrap(), (Some(b.public_key()), Some(a.public_key())));
        }
    }

    #[test]
    fn other_keys_and_protocols_are_refused() {
        let (a, b, c) = (identity(1), identity(2), identity(3));
        let (client, server) = (Credentials::new(&a).unwrap(), Credentials::new(&b).unwrap());
        let cases = [
            (Trust::Key(c.public_key()), Trust::AnyKey, b"test"),
            (Trust::AnyKey, Trust::Key(c.public_key()), b"test"),
            (Trust::AnyKey, Trust::AnyKey, b"else"),
        ];
        for (to_server, to_client, alpn) in cases {
            let seen = handshake(
                client.client(alpn, to_server).unwrap(),
                server.server(b"test", to_client).unwrap(),
            );
            assert!(seen.is_err(), "{to_server:?} {to_client:?} {alpn:?}");
        }
    }

    #[test]
    fn keys_of_another_form_are_none() {
        assert_eq!(from_spki(&to_spki(&[7; 32])), Some([7; 32]));
        assert_eq!(from_spki(&to_spki(&[7; 32])[..43]), None);
        assert_eq!(from_spki(&[0; 44]), None);
        assert_eq!(presented_key(&[]), None);
    }
}
