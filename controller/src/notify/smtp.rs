//! E-mail: one message for each notification, over TLS.

use std::{path::PathBuf, time::Duration};

use lettre::{
    AsyncSmtpTransport, AsyncTransport as _, Message, Tokio1Executor,
    message::{Mailbox, header::ContentType},
    transport::smtp::{
        authentication::Credentials,
        client::{Certificate, Tls, TlsParameters},
    },
};

use super::{
    NotifyError,
    settings::{FileSecret, SmtpSettings, SmtpTls},
    tls,
};
use crate::store::{Delivery, Urgency};

/// How long the mail server may take for each answer.
const PATIENCE: Duration = Duration::from_secs(15);
/// Ports where the settings name none.
const SUBMISSION: u16 = 587;
const SUBMISSIONS: u16 = 465;

/// Where e-mails go.
pub(super) struct Smtp {
    host: String,
    port: u16,
    tls: Tls,
    login: Option<(String, PathBuf)>,
    /// From which urgency on it is used.
    pub(super) minimum: Urgency,
    from: Mailbox,
    to: Vec<Mailbox>,
}

impl Smtp {
    pub(super) fn new(settings: SmtpSettings) -> Result<Self, NotifyError> {
        let mailbox = |text: &String| {
            text.parse::<Mailbox>()
                .map_err(|error| NotifyError::Unusable(format!("'{text}' is no e-mail address: {error}")))
        };
        let unusable = |error: lettre::transport::smtp::Error| NotifyError::Unusable(error.to_string());
        let mut parameters = TlsParameters::builder(settings.host.clone());
        if let Some(path) = &settings.ca_file {
            for certificate in tls::certificates(path)? {
                let certificate = Certificate::from_der(certificate.to_vec()).map_err(unusable)?;
                parameters = parameters.add_root_certificate(certificate);
            }
        }
        let parameters = parameters.build_rustls().map_err(unusable)?;
        let (tls, port) = match settings.tls {
            // A server that does not change over is not told anything.
            SmtpTls::Starttls => (Tls::Required(parameters), SUBMISSION),
            SmtpTls::Implicit => (Tls::Wrapper(parameters), SUBMISSIONS),
        };
        if let Some(file) = &settings.password_file {
            FileSecret::read(file)?;
        }
        Ok(Self {
            port: settings.port.unwrap_or(port),
            tls,
            login: settings.username.zip(settings.password_file),
            minimum: settings.minimum_urgency.unwrap_or(Urgency::Low),
            from: mailbox(&settings.from)?,
            to: settings.to.iter().map(mailbox).collect::<Result<_, _>>()?,
            host: settings.host,
        })
    }

    /// Sends a notification.
    pub(super) async fn deliver(&self, delivery: &Delivery) -> Result<(), String> {
        let notification = &delivery.notification;
        let mut message = Message::builder()
            .from(self.from.clone())
            .subject(notification.subject.clone())
            .message_id(Some(format!(
                "<horizon-{}-{}@{}>",
                notification.id,
                notification.time.as_millisecond(),
                self.host
            )))
            .header(ContentType::TEXT_PLAIN);
        for to in &self.to {
            message = message.to(to.clone());
        }
        let act = if notification.action_required {
            format!(
                "\nSomebody has to do something about it. Then: horizon-controller notifications done {} --what …\n",
                notification.id
            )
        } else {
            String::new()
        };
        let text = format!(
            "{}\n{act}\nUrgency: {}. Notification {}.\n",
            notification.content, notification.urgency, notification.id
        );
        let message = message.body(text).map_err(|error| error.to_string())?;
        let mut transport = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(&self.host)
            .port(self.port)
            .tls(self.tls.clone())
            .timeout(Some(PATIENCE));
        if let Some((name, file)) = &self.login {
            let password = FileSecret::read(file).map_err(|error| error.to_string())?;
            transport = transport.credentials(Credentials::new(name.clone(), password.expose().to_owned()));
        }
        transport.build().send(message).await.map(drop).map_err(|error| {
            use std::error::Error as _;
            match error.source() {
                Some(source) => format!("{}: {error}: {source}", self.host),
                None => format!("{}: {error}", self.host),
            }
        })
    }
}
