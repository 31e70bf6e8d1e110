//! TLS 1.3 with Ed25519 raw public keys, for QUIC. Any key is accepted: whose key it is, is the caller's question.

use std::{sync::Arc, time::Duration};

use horizon_model::PublicKey;
use horizon_wire::{
    key::{self, SigningKey},
    version::CONTROL_ALPN,
};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature_with_raw_key},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
    sign::CertifiedKey,
    version::TLS13,
};

/// Silence after which a connection is lost.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// How often the connecting side says that it is there; address translators forget UDP flows after 30 s.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// How much of a state may be under way to an appliance, in bytes.
const RECEIVE_WINDOW: u32 = 1 << 20;
/// How much of an appliance's messages may be under way to the controller. Small, because there are many appliances.
const CONTROLLER_RECEIVE_WINDOW: u32 = 64 << 10;

/// The key the other side proved to hold.
pub fn peer_key(connection: &quinn::Connection) -> Option<PublicKey> {
    let identity = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    key::from_spki(identity.first()?)
}

pub(crate) fn client_config(identity: &SigningKey) -> quinn::ClientConfig {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyRawKey(provider.clone())))
        .with_client_cert_resolver(Arc::new(rustls::client::AlwaysResolvesClientRawPublicKeys::new(
            certified(identity, &provider),
        )));
    tls.alpn_protocols = vec![CONTROL_ALPN.to_vec()];
    tls.enable_sni = false;
    tls.resumption = rustls::client::Resumption::disabled();
    let mut config = quinn::ClientConfig::new(Arc::new(
        QuicClientConfig::try_from(tls).expect("TLS 1.3 has QUIC's cipher suite"),
    ));
    let mut transport = transport(RECEIVE_WINDOW, 0);
    transport.keep_alive_interval(Some(KEEP_ALIVE));
    config.transport_config(Arc::new(transport));
    config
}

pub(crate) fn server_config(identity: &SigningKey) -> quinn::ServerConfig {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has TLS 1.3")
        .with_client_cert_verifier(Arc::new(AnyRawKey(provider.clone())))
        .with_cert_resolver(Arc::new(rustls::server::AlwaysResolvesServerRawPublicKeys::new(certified(
            identity, &provider,
        ))));
    tls.alpn_protocols = vec![CONTROL_ALPN.to_vec()];
    tls.send_tls13_tickets = 0;
    let crypto = QuicServerConfig::try_from(tls).expect("TLS 1.3 has QUIC's cipher suite");
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(Arc::new(transport(CONTROLLER_RECEIVE_WINDOW, 1)));
    config
}

fn transport(window: u32, streams: u32) -> quinn::TransportConfig {
    let mut transport = quinn::TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(streams.into())
        .max_concurrent_uni_streams(0u32.into())
        .stream_receive_window(window.into())
        .receive_window(window.into())
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(IDLE_TIMEOUT.try_into().expect("30 s fit")));
    transport
}

fn certified(identity: &SigningKey, provider: &CryptoProvider) -> Arc<CertifiedKey> {
    let pkcs8 = identity.pkcs8();
    let der = PrivateKeyDer::try_from(&pkcs8[..]).expect("our own PKCS #8").clone_key();
    let signer = provider.key_provider.load_private_key(der).expect("the provider signs with Ed25519");
    let spki = CertificateDer::from(key::to_spki(&identity.public()));
    Arc::new(CertifiedKey::new(vec![spki], signer))
}

/// Accepts every Ed25519 raw public key whose holder signs the handshake.
#[derive(Debug)]
struct AnyRawKey(Arc<CryptoProvider>);

impl AnyRawKey {
    fn check(&self, end_entity: &CertificateDer<'_>) -> Result<(), Error> {
        key::from_spki(end_entity)
            .map(|_| ())
            .ok_or(Error::InvalidCertificate(rustls::CertificateError::BadEncoding))
    }

    fn check_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let spki = SubjectPublicKeyInfoDer::from(key.as_ref());
        verify_tls13_signature_with_raw_key(
            message,
            &spki,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }
}

impl ServerCertVerifier for AnyRawKey {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, key, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for AnyRawKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, key, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
