//! The organisation's keys in a Secret: read at the start, made by the first replica of an organisation.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{Api, api::PostParams};
use thiserror::Error;
use tokio::time::{sleep, timeout};
use zeroize::Zeroizing;

use super::{
    Cluster, FIELD_MANAGER,
    backoff::Backoff,
    failure::{Failure, words},
    secrets::MANAGED_BY,
};
use crate::{config::SecretName, keys::KeyFiles};

/// The type of the Secret.
const TYPE: &str = "horizon.dev/keys";
/// How often the API server is asked before the start fails.
const ATTEMPTS: usize = 8;
/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the keys could not be had from their Secret.
#[derive(Debug, Error)]
pub enum KeysSecretError {
    /// The Secret holds nothing.
    #[error("the Secret {0} holds no keys: delete it to have new ones made, or restore it from a backup")]
    Empty(SecretName),
    /// The API server gives no usable answer.
    #[error("the Secret {secret} cannot be {verb}: {why}")]
    Api {
        /// Which.
        secret: SecretName,
        /// What was tried.
        verb: &'static str,
        /// The API server's words.
        why: String,
    },
}

/// The files in the Secret. When there is no such Secret, those that `make` makes, which then are in it; of several
/// replicas that find none at once, one makes them and all have the same.
///
/// # Errors
/// When the Secret can be neither read nor made, or holds nothing.
pub async fn keys_secret(
    cluster: &Cluster,
    name: &SecretName,
    make: impl FnOnce() -> KeyFiles,
) -> Result<KeyFiles, KeysSecretError> {
    let api: Api<Secret> = Api::namespaced(cluster.client.clone(), name.namespace.as_str());
    let mut make = Some(make);
    let mut made: Option<KeyFiles> = None;
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    let mut attempt = 1;
    loop {
        let failed = |verb, why| KeysSecretError::Api { secret: name.clone(), verb, why };
        let (verb, error) = match timeout(REQUEST_TIMEOUT, api.get_opt(name.name.as_str())).await {
            Ok(Ok(Some(secret))) => return files(secret).ok_or_else(|| KeysSecretError::Empty(name.clone())),
            Ok(Ok(None)) => {
                if let Some(make) = make.take() {
                    made = Some(make());
                }
                let secret = secret(name, made.as_ref().into_iter().flatten());
                let params =
                    PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
                match timeout(REQUEST_TIMEOUT, api.create(&params, &secret)).await {
                    // What is there is read back: if it is not what was made, somebody else was first.
                    Ok(Ok(_)) => continue,
                    Ok(Err(error)) if Failure::of(&error) == Failure::Conflict => continue,
                    Ok(Err(error)) => ("made", Some(error)),
                    Err(_) => ("made", None),
                }
            }
            Ok(Err(error)) => ("read", Some(error)),
            Err(_) => ("read", None),
        };
        let passing = error.as_ref().is_none_or(|error| Failure::of(error) == Failure::Passing);
        let why = error.as_ref().map_or_else(|| "no answer in time".to_owned(), words);
        if !passing || attempt == ATTEMPTS {
            return Err(failed(verb, why));
        }
        tracing::warn!(secret = %name, %why, "the keys cannot be {verb} yet; trying again");
        attempt += 1;
        sleep(backoff.wait()).await;
    }
}

/// The files in the Secret; `None` when there is no such Secret.
///
/// # Errors
/// When the Secret cannot be read, or holds nothing.
pub async fn find_keys_secret(
    cluster: &Cluster,
    name: &SecretName,
) -> Result<Option<KeyFiles>, KeysSecretError> {
    let api: Api<Secret> = Api::namespaced(cluster.client.clone(), name.namespace.as_str());
    let failed = |why| KeysSecretError::Api { secret: name.clone(), verb: "read", why };
    match timeout(REQUEST_TIMEOUT, api.get_opt(name.name.as_str())).await {
        Ok(Ok(Some(secret))) => files(secret).map(Some).ok_or_else(|| KeysSecretError::Empty(name.clone())),
        Ok(Ok(None)) => Ok(None),
        Ok(Err(error)) => Err(failed(words(&error))),
        Err(_) => Err(failed("no answer in time".to_owned())),
    }
}

/// Changes the files in the Secret, when `change` gives others than it is shown. Nobody else's change is lost: it is shown
/// again what it would overwrite.
///
/// # Errors
/// When the Secret can be neither read nor written, or is gone.
pub async fn replace_keys_secret(
    cluster: &Cluster,
    name: &SecretName,
    change: impl Fn(&KeyFiles) -> Option<KeyFiles>,
) -> Result<(), KeysSecretError> {
    let api: Api<Secret> = Api::namespaced(cluster.client.clone(), name.namespace.as_str());
    let failed = |verb, error: Option<&kube::Error>| KeysSecretError::Api {
        secret: name.clone(),
        verb,
        why: error.map_or_else(|| "no answer in time".to_owned(), words),
    };
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
    for _ in 0..ATTEMPTS {
        let found = match timeout(REQUEST_TIMEOUT, api.get(name.name.as_str())).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => return Err(failed("read", Some(&error))),
            Err(_) => return Err(failed("read", None)),
        };
        let known = files(found.clone()).ok_or_else(|| KeysSecretError::Empty(name.clone()))?;
        let Some(wanted) = change(&known) else { return Ok(()) };
        // The version of what was read goes along: the API server refuses to overwrite what came since.
        let secret = Secret { data: secret(name, wanted.iter()).data, ..found };
        let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
        match timeout(REQUEST_TIMEOUT, api.replace(name.name.as_str(), &params, &secret)).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) if Failure::of(&error) == Failure::Conflict => sleep(backoff.wait()).await,
            Ok(Err(error)) => return Err(failed("written", Some(&error))),
            Err(_) => return Err(failed("written", None)),
        }
    }
    Err(failed("written", None))
}

fn secret<'a>(name: &SecretName, made: impl Iterator<Item = (&'a String, &'a Zeroizing<Vec<u8>>)>) -> Secret {
    Secret {
        metadata: ObjectMeta {
            name: Some(name.name.to_string()),
            namespace: Some(name.namespace.to_string()),
            labels: Some(BTreeMap::from([(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned())])),
            ..ObjectMeta::default()
        },
        type_: Some(TYPE.to_owned()),
        data: Some(made.map(|(name, content)| (name.clone(), ByteString(content.to_vec()))).collect()),
        ..Secret::default()
    }
}

fn files(secret: Secret) -> Option<KeyFiles> {
    let data = secret.data.filter(|data| !data.is_empty())?;
    Some(data.into_iter().map(|(name, content)| (name, Zeroizing::new(content.0))).collect())
}
