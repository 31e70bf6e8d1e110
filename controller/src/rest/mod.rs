//! The REST API: HTTP/1.1 and JSON over TLS 1.3, for administrators and for programs elsewhere. What it does is what the
//! channel and the local socket do: it shares their operations, and adds who may do what, from where, and how often.
//!
//! Every route is in one table ([`routes`]), with who may use it; the document of the API (OpenAPI) and the test of permissions
//! follow from it. Whatever is refused is answered with problem details (RFC 9457).

mod account;
mod admins;
mod body;
mod doors;
mod guard;
mod idempotency;
mod lists;
mod openapi;
mod page;
mod problem;
mod routes;
mod schema;
mod serve;
mod stream;
#[cfg(test)]
mod tests;
mod tls;
mod token;

pub(crate) use admins::{make as make_admin, reset_password};
pub use openapi::document;
pub(crate) use schema::{MakeAdmin, OneTime};
pub use tls::TlsError;

use std::sync::Arc;

use axum::extract::FromRef;
use horizon_controller_core::account::AccountPolicy;
use horizon_crds::SecurityPolicySpec;
use jiff::Timestamp;
use tokio::net::TcpListener;

use crate::{
    api::Api,
    channel::accept,
    config::RestConfig,
    detect::{Blocks, Detect},
    geo::Geo,
    stop::Stop,
};
use problem::Problem;
use tls::Certificate;
use token::Keyring;

/// What the handlers work with. A clone is the same.
#[derive(Clone)]
pub(crate) struct Rest(Arc<Inner>);

pub(crate) struct Inner {
    api: Arc<Api>,
    tokens: Keyring,
    streams: stream::Streams,
    refusals_told: accept::Told,
    tls: bool,
    geo: Geo,
    blocks: Blocks,
    detect: Detect,
}

impl std::ops::Deref for Rest {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl FromRef<Rest> for Arc<Api> {
    fn from_ref(rest: &Rest) -> Self {
        rest.api.clone()
    }
}

impl Rest {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    /// The security policy that holds for who asks: accounts and addresses belong to no namespace of their own.
    fn policy(&self) -> SecurityPolicySpec {
        accept::policy(&self.api.engine.index())
    }

    /// What holds for accounts.
    fn accounts(&self) -> AccountPolicy {
        AccountPolicy::from(&self.policy().accounts)
    }
}

/// The certificate of the settings, if there is one.
pub struct Certified(Option<Certificate>);

impl Certified {
    /// Reads the files.
    ///
    /// # Errors
    /// Those of [`TlsError`].
    pub fn open(config: &RestConfig) -> Result<Self, TlsError> {
        let files = config.certificate.as_deref().zip(config.key.as_deref());
        Ok(Self(files.map(|(chain, key)| Certificate::open(chain, key)).transpose()?))
    }
}

/// What the REST API is made of.
pub struct RestParts {
    /// Where it listens.
    pub listener: TcpListener,
    /// The certificate.
    pub certified: Certified,
    /// The local interface, whose operations it shares.
    pub api: Arc<Api>,
    /// Where addresses are.
    pub geo: Geo,
    /// Which addresses are blocked.
    pub blocks: Blocks,
    /// What looks for patterns.
    pub detect: Detect,
}

/// Serves until it is to stop.
pub async fn serve(parts: RestParts, stop: Stop) {
    let RestParts { listener, certified, api, geo, blocks, detect } = parts;
    if certified.0.is_none() {
        tracing::warn!(
            "the REST API has no certificate: it answers in the clear, at a loopback address, and passwords can be read \
             on this machine; set rest_certificate and rest_key"
        );
    }
    if let Err(error) = api.store.ensure_roles(Timestamp::now()).await {
        tracing::error!(%error, "the roles of administrators could not be brought up to date");
    }
    let rest = Rest(Arc::new(Inner {
        tokens: Keyring::new(api.store.clone()),
        streams: stream::Streams::default(),
        refusals_told: accept::Told::default(),
        tls: certified.0.is_some(),
        geo,
        blocks,
        detect,
        api,
    }));
    let router = routes::router(rest);
    serve::serve(listener, certified.0, router, stop).await;
}
