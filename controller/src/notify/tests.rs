//! Notifications against a real HTTP server and a real mail server, both over TLS.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use axum::{Router, body::Bytes, http::HeaderMap, http::StatusCode, routing::post};
use data_encoding::{BASE64, HEXLOWER};
use jiff::Timestamp;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::{
    Notify, NotifySettings,
    settings::{SmtpSettings, SmtpTls, WebhookSettings},
    smtp::Smtp,
    webhook::Webhook,
};
use crate::{
    metrics::Metrics,
    replica::Leadership,
    stop,
    store::{Delivery, EnvelopeKey, NewEvent, Notification, ReplicaId, Severity, Source, Store, Urgency},
};

const PATIENCE: Duration = Duration::from_secs(30);

async fn soon<F: Future>(what: F) -> F::Output {
    timeout(PATIENCE, what).await.expect("it took too long")
}

/// A certificate for this machine, which is its own authority.
struct Certificate {
    dir: tempfile::TempDir,
}

impl Certificate {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let made = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "2",
            ])
            .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .arg("-keyout")
            .arg(dir.path().join("key.pem"))
            .arg("-out")
            .arg(dir.path().join("cert.pem"))
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Self { dir }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("cert.pem")
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn acceptor(&self) -> TlsAcceptor {
        let certificate = CertificateDer::from_pem_file(self.path()).unwrap();
        let key = PrivateKeyDer::from_pem_file(self.dir.path().join("key.pem")).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

fn delivery() -> Delivery {
    Delivery {
        notification: Notification {
            id: 7,
            time: Timestamp::UNIX_EPOCH,
            kind: "security".into(),
            urgency: "high".into(),
            subject: "Horizon: clone".into(),
            content: "a copied disk\n.\nwith a dot".into(),
            occurrences: 1,
            read_at: None,
            read_by: None,
            action_required: true,
            action: None,
            action_at: None,
            action_by: None,
        },
        attempts: 0,
    }
}

type Received = (HeaderMap, Bytes);

/// Answers each request with the next status, and tells of it.
fn receiver(statuses: Vec<StatusCode>) -> (Router, mpsc::UnboundedReceiver<Received>) {
    let (sender, received) = mpsc::unbounded_channel();
    let statuses = Arc::new(std::sync::Mutex::new(statuses.into_iter()));
    let handle = move |headers: HeaderMap, body: Bytes| {
        let (sender, statuses) = (sender.clone(), statuses.clone());
        async move {
            let _ = sender.send((headers, body));
            statuses.lock().unwrap().next().unwrap_or(StatusCode::NO_CONTENT)
        }
    };
    (Router::new().route("/hook", post(handle)), received)
}

async fn serve_tls(listener: TcpListener, acceptor: TlsAcceptor, router: Router) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let Ok(stream) = acceptor.accept(stream).await else { continue };
        let service = hyper_util::service::TowerToHyperService::new(router.clone());
        let _ = hyper::server::conn::http1::Builder::new()
            .serve_connection(hyper_util::rt::TokioIo::new(stream), service)
            .await;
    }
}

/// What a receiver does that follows the documentation.
fn verify(headers: &HeaderMap, body: &[u8], secret: &[u8]) {
    let text = headers["Horizon-Signature"].to_str().unwrap();
    let parts: HashMap<_, _> = text.split(',').filter_map(|part| part.split_once('=')).collect();
    let signed = [parts["t"].as_bytes(), b".", body].concat();
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret);
    aws_lc_rs::hmac::verify(&key, &signed, &HEXLOWER.decode(parts["v1"].as_bytes()).unwrap()).unwrap();
    assert!((Timestamp::now().as_second() - parts["t"].parse::<i64>().unwrap()).abs() < 300);
}

#[tokio::test]
async fn a_webhook_is_signed_and_goes_to_who_proves_the_name() {
    let certificate = Certificate::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (router, mut received) = receiver(vec![]);
    let server = tokio::spawn(serve_tls(listener, certificate.acceptor(), router));
    let settings = |ca_file: Option<PathBuf>, allow: &[&str]| WebhookSettings {
        url: format!("https://localhost:{port}/hook"),
        secret_file: certificate.file("secret", "the secret\n"),
        minimum_urgency: Some(Urgency::Normal),
        ca_file,
        allow: allow.iter().map(|range| range.parse().unwrap()).collect(),
    };
    let here = ["127.0.0.0/8", "::1/128"];
    let webhook = Webhook::new(settings(Some(certificate.path()), &here)).unwrap();
    soon(webhook.deliver(&delivery(), Timestamp::now())).await.unwrap();
    let (headers, body) = received.recv().await.unwrap();
    verify(&headers, &body, b"the secret");
    assert_eq!(headers["Horizon-Delivery"], "7");
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((&body["subject"], &body["urgency"]), (&"Horizon: clone".into(), &"high".into()));

    // Nobody else is believed, and nothing inside is reached that nobody allowed.
    let stranger = Webhook::new(settings(None, &here)).unwrap();
    let refused = soon(stranger.deliver(&delivery(), Timestamp::now())).await.unwrap_err();
    assert!(refused.contains("TLS failed"), "{refused}");
    let inside = Webhook::new(settings(Some(certificate.path()), &[])).unwrap();
    let refused = soon(inside.deliver(&delivery(), Timestamp::now())).await.unwrap_err();
    assert!(refused.contains("webhook.allow"), "{refused}");
    server.abort();
}

/// A mail server for one message: what it was told. `tls` is when the conversation is protected.
async fn mail_server(listener: TcpListener, acceptor: TlsAcceptor, tls: SmtpTls) -> Vec<String> {
    let (stream, _) = listener.accept().await.unwrap();
    let mut told = Vec::new();
    match tls {
        SmtpTls::Implicit => {
            let stream = acceptor.accept(stream).await.unwrap();
            greet_and_talk(stream, &mut told).await;
        }
        SmtpTls::Starttls => {
            let stream = change_over(stream, &mut told).await;
            let stream = acceptor.accept(stream).await.unwrap();
            talk(stream, &mut told).await;
        }
    }
    told
}

async fn change_over(stream: TcpStream, told: &mut Vec<String>) -> TcpStream {
    let mut stream = BufReader::new(stream);
    stream.write_all(b"220 test\r\n").await.unwrap();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        told.push(line.trim_end().to_owned());
        match line.to_uppercase() {
            line if line.starts_with("EHLO") => {
                stream.write_all(b"250-test\r\n250 STARTTLS\r\n").await.unwrap();
            }
            line if line.starts_with("STARTTLS") => {
                stream.write_all(b"220 go\r\n").await.unwrap();
                return stream.into_inner();
            }
            other => panic!("in the clear: {other}"),
        }
    }
}

async fn greet_and_talk(stream: impl AsyncRead + AsyncWrite + Unpin, told: &mut Vec<String>) {
    let mut stream = stream;
    stream.write_all(b"220 test\r\n").await.unwrap();
    talk(stream, told).await;
}

async fn talk(stream: impl AsyncRead + AsyncWrite + Unpin, told: &mut Vec<String>) {
    let mut stream = BufReader::new(stream);
    let mut data = false;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
            return;
        }
        let line = line.trim_end_matches(['\r', '\n']).to_owned();
        told.push(line.clone());
        let answer: &[u8] = match line.split_whitespace().next().unwrap_or_default() {
            _ if data && line != "." => continue,
            "." => {
                data = false;
                b"250 taken\r\n"
            }
            "EHLO" => b"250-test\r\n250 AUTH PLAIN\r\n",
            "AUTH" => b"235 welcome\r\n",
            "DATA" => {
                data = true;
                b"354 go\r\n"
            }
            "QUIT" => {
                let _ = stream.write_all(b"221 bye\r\n").await;
                return;
            }
            _ => b"250 fine\r\n",
        };
        stream.write_all(answer).await.unwrap();
    }
}

async fn mail(tls: SmtpTls) {
    let certificate = Certificate::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let settings = SmtpSettings {
        host: "localhost".into(),
        port: Some(listener.local_addr().unwrap().port()),
        tls,
        username: Some("horizon".into()),
        password_file: Some(certificate.file("password", "open sesame\n")),
        minimum_urgency: None,
        ca_file: Some(certificate.path()),
        from: "Horizon <horizon@example.org>".into(),
        to: vec!["ann@example.org".into(), "bob@example.org".into()],
    };
    let server = tokio::spawn(mail_server(listener, certificate.acceptor(), tls));
    let smtp = Smtp::new(settings).unwrap();
    soon(smtp.deliver(&delivery())).await.unwrap();
    drop(smtp);
    let told = soon(server).await.unwrap();
    let has = |wanted: &str| told.iter().any(|line| line.contains(wanted));
    let login = format!("AUTH PLAIN {}", BASE64.encode(b"\0horizon\0open sesame"));
    for wanted in [
        login.as_str(),
        "MAIL FROM:<horizon@example.org>",
        "RCPT TO:<bob@example.org>",
        "Subject: Horizon: clone",
    ] {
        assert!(has(wanted), "{wanted} is missing: {told:#?}");
    }
    // A line with a dot alone does not end the message early.
    assert!(told.iter().any(|line| line == "..") && has("with a dot"), "{told:#?}");
}

#[tokio::test]
async fn an_e_mail_goes_over_tls_from_the_first_byte() {
    mail(SmtpTls::Implicit).await;
}

#[tokio::test]
async fn an_e_mail_changes_over_to_tls_before_anything_is_said() {
    mail(SmtpTls::Starttls).await;
}

#[tokio::test]
async fn a_mail_server_that_does_not_change_over_is_told_nothing() {
    let certificate = Certificate::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let settings = SmtpSettings {
        host: "localhost".into(),
        port: Some(listener.local_addr().unwrap().port()),
        tls: SmtpTls::Starttls,
        username: Some("horizon".into()),
        password_file: Some(certificate.file("password", "open sesame")),
        minimum_urgency: None,
        ca_file: Some(certificate.path()),
        from: "horizon@example.org".into(),
        to: vec!["ann@example.org".into()],
    };
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut told = Vec::new();
        greet_and_talk(stream, &mut told).await;
        told
    });
    let refused = soon(Smtp::new(settings).unwrap().deliver(&delivery())).await.unwrap_err();
    assert!(!refused.is_empty());
    let told = soon(server).await.unwrap();
    assert!(told.iter().all(|line| !line.starts_with("AUTH") && !line.starts_with("MAIL")), "{told:?}");
}

async fn store(dir: &Path) -> Store {
    let key = EnvelopeKey(horizon_model::Secret::new([1; 32]));
    Store::open(dir.join("horizon.db"), &key, Metrics::default()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_events_is_one_message_that_is_sent_until_it_arrives() {
    let certificate = Certificate::new();
    let store = store(certificate.dir.path()).await;
    let epoch = store.take_leadership(ReplicaId::random(), "one", Timestamp::now()).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let (router, mut received) = receiver(vec![StatusCode::SERVICE_UNAVAILABLE]);
    let server = tokio::spawn(async move { axum::serve(listener, router).await });
    for i in 0..300 {
        let event = NewEvent {
            kind: ["clone", "brute_force", "locked_out", "new_country", "wrong_hmac"][i % 5],
            severity: Severity::Medium,
            source: Source::System,
            address: None,
            description: format!("number {i}"),
            data: serde_json::Value::Null,
        };
        store.record_event(&event, Timestamp::now()).await.unwrap();
    }
    let webhook = WebhookSettings {
        url,
        secret_file: certificate.file("secret", "s"),
        minimum_urgency: None,
        ca_file: None,
        allow: Vec::new(),
    };
    let settings = NotifySettings { minimum_urgency: Urgency::Low, webhook: Some(webhook), smtp: None };
    let notify = Notify::new(settings).unwrap();
    let (stopper, stop) = stop::stop();
    let running = tokio::spawn(notify.clone().run(store.clone(), Leadership::always(epoch), stop));
    let first = soon(received.recv()).await.unwrap();
    // The receiver was not there: the same comes again.
    let again = soon(received.recv()).await.unwrap();
    assert_eq!(first.0["Horizon-Delivery"], again.0["Horizon-Delivery"]);
    let body: serde_json::Value = serde_json::from_slice(&again.1).unwrap();
    assert_eq!((body["occurrences"].as_u64(), body["attempt"].as_u64()), (Some(300), Some(2)));
    assert_eq!(store.list_notifications(10).await.unwrap().len(), 1);
    stopper.stop();
    soon(running).await.unwrap();
    server.abort();
}
