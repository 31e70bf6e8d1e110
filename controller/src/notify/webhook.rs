//! Webhooks: an HTTP POST with a JSON body, signed so that its receiver knows who sent it and when.
//!
//! `Horizon-Signature: t=SECONDS,v1=HEX`: SECONDS since the Unix epoch, and HMAC-SHA256 under the secret over
//! `SECONDS.BODY`. `Horizon-Delivery`: the number of the notification, the same if it is sent again.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use aws_lc_rs::hmac;
use bytes::Bytes;
use data_encoding::HEXLOWER;
use http::{Request, Uri, header};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use jiff::Timestamp;
use rustls::{ClientConfig, pki_types::ServerName};
use serde_json::json;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{
    NotifyError, address,
    settings::{FileSecret, WebhookSettings},
    tls,
};
use crate::store::{Delivery, Urgency};

/// Where requests go.
pub(super) struct Webhook {
    url: Uri,
    host: String,
    port: u16,
    tls: Option<Arc<ClientConfig>>,
    secret_file: PathBuf,
    /// From which urgency on it is used.
    pub(super) minimum: Urgency,
    allow: Vec<IpNet>,
}

impl Webhook {
    pub(super) fn new(settings: WebhookSettings) -> Result<Self, NotifyError> {
        let unusable = |why: &str| NotifyError::Unusable(format!("webhook.url {}: {why}", settings.url));
        let url: Uri = settings.url.parse().map_err(|_| unusable("it is no URL"))?;
        let host = url.host().ok_or_else(|| unusable("it names no host"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let here = host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        let secure = match url.scheme_str() {
            Some("https") => true,
            Some("http") if here => false,
            Some("http") => return Err(unusable("anybody on the way could read it: write https")),
            _ => return Err(unusable("write https://HOST/PATH")),
        };
        if url.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(unusable("it holds a password: receivers check the signature instead"));
        }
        let port = url.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let tls = if secure { Some(tls::config(settings.ca_file.as_deref())?) } else { None };
        // It is read anew for each request; one that is missing should be known now.
        FileSecret::read(&settings.secret_file)?;
        Ok(Self {
            url,
            host,
            port,
            tls,
            secret_file: settings.secret_file,
            minimum: settings.minimum_urgency.unwrap_or(Urgency::Low),
            allow: settings.allow,
        })
    }

    /// Sends a notification. What the receiver answers but a success is a failure; it is not followed elsewhere.
    pub(super) async fn deliver(&self, delivery: &Delivery, now: Timestamp) -> Result<(), String> {
        let notification = &delivery.notification;
        let body = json!({
            "id": notification.id,
            "time": notification.time,
            "type": notification.kind,
            "urgency": notification.urgency,
            "subject": notification.subject,
            "content": notification.content,
            "occurrences": notification.occurrences,
            "actionRequired": notification.action_required,
            "attempt": delivery.attempts + 1,
        })
        .to_string();
        let secret = FileSecret::read(&self.secret_file).map_err(|error| error.to_string())?;
        let path = self.url.path_and_query().map_or("/", |path| path.as_str());
        let authority = self.url.authority().map_or("", |authority| authority.as_str());
        let request = Request::post(path)
            .header(header::HOST, authority)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, concat!("horizon-controller/", env!("CARGO_PKG_VERSION")))
            .header("Horizon-Delivery", notification.id)
            .header("Horizon-Signature", signature(secret.expose(), now.as_second(), &body))
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| error.to_string())?;
        let stream = self.connect().await?;
        match &self.tls {
            None => exchange(TokioIo::new(stream), request).await,
            Some(config) => {
                let name = ServerName::try_from(self.host.clone()).map_err(|error| error.to_string())?;
                let stream = TlsConnector::from(config.clone()).connect(name, stream).await;
                let stream = stream.map_err(|error| format!("{}: TLS failed: {error}", self.host))?;
                exchange(TokioIo::new(stream), request).await
            }
        }
    }

    /// Connects to an address that was looked at: a name is not resolved a second time.
    async fn connect(&self) -> Result<TcpStream, String> {
        let addresses = tokio::net::lookup_host((self.host.as_str(), self.port)).await;
        let addresses: Vec<SocketAddr> =
            addresses.map_err(|error| format!("{} cannot be resolved: {error}", self.host))?.collect();
        // Who wrote an address of this machine into the settings meant it.
        let written = self.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        let may = |address: &&SocketAddr| written || address::may_reach(address.ip(), &self.allow);
        let Some(first) = addresses.iter().find(may) else {
            return Err(format!(
                "{} leads to an address that others cannot reach: write its range into webhook.allow if that is meant",
                self.host
            ));
        };
        TcpStream::connect(first).await.map_err(|error| format!("{first} cannot be reached: {error}"))
    }
}

/// What stands in the header of a request.
fn signature(secret: &str, second: i64, body: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let tag = hmac::sign(&key, format!("{second}.{body}").as_bytes());
    format!("t={second},v1={}", HEXLOWER.encode(tag.as_ref()))
}

async fn exchange(
    io: impl hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<(), String> {
    let failed = |error: hyper::Error| format!("the request failed: {error}");
    let (mut sender, connection) = http1::handshake(io).await.map_err(failed)?;
    let answered = async { sender.send_request(request).await.map_err(failed) };
    tokio::pin!(connection);
    tokio::pin!(answered);
    // Its body says nothing that is needed.
    let answer = tokio::select! {
        answer = &mut answered => answer?,
        ended = &mut connection => {
            ended.map_err(failed)?;
            answered.await?
        }
    };
    if answer.status().is_success() {
        Ok(())
    } else {
        Err(format!("the receiver answered {}", answer.status()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_as_documented() {
        // RFC 4231, test case 2 has the key "Jefe"; the text is ours, the value from `openssl dgst -sha256 -hmac Jefe`.
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, b"Jefe"), b"what do ya want for nothing?");
        assert_eq!(
            HEXLOWER.encode(tag.as_ref()),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        assert!(signature("s", 7, "{}").starts_with("t=7,v1="));
        assert_ne!(signature("s", 7, "{}"), signature("s", 8, "{}"));
    }

    #[test]
    fn what_others_could_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let secret_file = dir.path().join("secret");
        std::fs::write(&secret_file, "s").unwrap();
        let new = |url: &str| {
            let settings = WebhookSettings {
                url: url.into(),
                secret_file: secret_file.clone(),
                minimum_urgency: None,
                ca_file: None,
                allow: Vec::new(),
            };
            Webhook::new(settings).map(|_| ()).map_err(|error| error.to_string())
        };
        assert_eq!(new("https://example.org/hook"), Ok(()));
        assert_eq!(new("http://127.0.0.1:8080/"), Ok(()));
        assert!(new("http://example.org/").unwrap_err().contains("write https"));
        assert!(new("ftp://example.org/").unwrap_err().contains("https://HOST"));
        assert!(new("https://user:password@example.org/").unwrap_err().contains("signature instead"));
    }
}
