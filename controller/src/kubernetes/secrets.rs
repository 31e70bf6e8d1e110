//! Delivery of secrets through Secrets that belong to the key's object: the garbage collector removes them with it.
//!
//! The controller may make, patch and delete Secrets, and asks for none: though the answer to a patch is the whole object, so
//! that its rights would let it read. A Secret of the wanted name that is somebody else's is never touched: a patch of one
//! that is there tests, in the same request, that it is one of ours for the very key.

use std::{collections::BTreeMap, io, time::Duration};

use futures_util::future::BoxFuture;
use horizon_controller_core::{Stored, status::SECRET_PREFIX};
use horizon_crds::{API_VERSION, KindName, Name, ResourceId};
use k8s_openapi::{
    ByteString,
    api::core::v1::Secret,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{
    Api,
    api::{DeleteParams, PostParams, Preconditions},
};
use serde_json::json;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::{
    Cluster, FIELD_MANAGER, Objects,
    failure::{Failure, words},
    objects::{Key, hash},
};
use crate::deliver::SecretSink;

/// The label of what the controller makes.
pub(super) const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "horizon-controller");
/// The annotation of a Secret that says for which key it is.
const DELIVERS: &str = "horizon.dev/delivers";
/// How long a request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest name of a Secret that a status can show, in bytes.
const MAX_NAME: usize = 63;

/// Delivers into Secrets. A clone does the same.
#[derive(Clone, Debug)]
pub struct Secrets {
    cluster: Cluster,
    objects: Objects,
}

/// What a Secret for a kind of key is like.
struct Form {
    suffix: &'static str,
    kind: &'static str,
    field: &'static str,
}

fn form(kind: KindName) -> Form {
    if kind == KindName::RegistrationKey {
        Form { suffix: "-token", kind: "horizon.dev/registration-token", field: "token" }
    } else {
        Form { suffix: "-key", kind: "horizon.dev/personal-key", field: "key" }
    }
}

/// The name of the Secret for a key; a long one is cut and told apart by a hash.
fn secret_name(key: &Name, suffix: &str) -> String {
    let key = key.as_str();
    if key.len() + suffix.len() <= MAX_NAME {
        return format!("{key}{suffix}");
    }
    let digest = format!("{:08x}", hash(key) >> 32);
    let room = MAX_NAME - suffix.len() - digest.len() - 1;
    format!("{}-{digest}{suffix}", key[..key.floor_char_boundary(room)].trim_end_matches('-'))
}

impl Secrets {
    /// Delivers for these objects.
    pub fn new(cluster: Cluster, objects: Objects) -> Self {
        Self { cluster, objects }
    }

    async fn put(&self, key: &Stored, text: &str) -> io::Result<String> {
        let id = key.id();
        let owner = self.objects.get(&Key::from(&id)).ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("{id} is no object of the API server any more"))
        })?;
        let form = form(id.kind);
        let name = secret_name(&id.name, form.suffix);
        let owner = OwnerReference {
            api_version: API_VERSION.to_owned(),
            kind: id.kind.as_str().to_owned(),
            name: id.name.to_string(),
            uid: owner.uid.to_string(),
            controller: Some(true),
            block_owner_deletion: Some(false),
        };
        let delivers = format!("{} {}", id.kind, id.name);
        let data = BTreeMap::from([(form.field.to_owned(), ByteString(text.as_bytes().to_vec()))]);
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(id.namespace.to_string()),
                labels: Some(BTreeMap::from([(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned())])),
                annotations: Some(BTreeMap::from([(DELIVERS.to_owned(), delivers.clone())])),
                owner_references: Some(vec![owner.clone()]),
                ..ObjectMeta::default()
            },
            type_: Some(form.kind.to_owned()),
            data: Some(data.clone()),
            ..Secret::default()
        };
        let api: Api<Secret> = Api::namespaced(self.cluster.client.clone(), id.namespace.as_str());
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let made = match in_time(api.create(&params, &secret)).await? {
            Err(error) if Failure::of(&error) == Failure::Conflict => {
                self.replace(&id, &name, (&form, &delivers), &owner, &data).await?
            }
            outcome => outcome.map_err(|error| failed(&name, &error))?,
        };
        Ok(format!("{SECRET_PREFIX}{name}/{}", made.metadata.uid.unwrap_or_default()))
    }

    /// Puts the string where an earlier key of the name left its own.
    async fn replace(
        &self,
        id: &ResourceId,
        name: &str,
        (form, delivers): (&Form, &str),
        owner: &OwnerReference,
        data: &BTreeMap<String, ByteString>,
    ) -> io::Result<Secret> {
        let patch = json!([
            { "op": "test", "path": "/type", "value": form.kind },
            { "op": "test", "path": format!("/metadata/annotations/{}", DELIVERS.replace('/', "~1")), "value": delivers },
            { "op": "add", "path": "/metadata/ownerReferences", "value": [owner] },
            { "op": "add", "path": "/data", "value": data },
        ]);
        let address = format!(
            "/api/v1/namespaces/{}/secrets/{name}?fieldManager={FIELD_MANAGER}&fieldValidation=Strict",
            id.namespace
        );
        let request = http::Request::patch(address)
            .header(http::header::CONTENT_TYPE, "application/json-patch+json")
            .body(patch.to_string().into_bytes())
            .map_err(io::Error::other)?;
        match in_time(self.cluster.client.request::<Secret>(request)).await? {
            Err(error) if Failure::of(&error) == Failure::Unfit => Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!(
                    "the Secret {}/{name} is somebody else's: delete it, or give the key another name",
                    id.namespace
                ),
            )),
            outcome => outcome.map_err(|error| failed(name, &error)),
        }
    }

    async fn remove(&self, key: &ResourceId, place: &str) -> io::Result<()> {
        let Some((name, uid)) = place.strip_prefix(SECRET_PREFIX).and_then(|place| place.split_once('/'))
        else {
            // A file of an earlier time, when the desired state was a directory.
            return Ok(());
        };
        let api: Api<Secret> = Api::namespaced(self.cluster.client.clone(), key.namespace.as_str());
        let uid = (!uid.is_empty()).then(|| uid.to_owned());
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid, resource_version: None }),
            ..DeleteParams::default()
        };
        match in_time(api.delete(name, &params)).await? {
            // Gone already, or another one.
            Err(error) if matches!(Failure::of(&error), Failure::Missing | Failure::Conflict) => Ok(()),
            outcome => outcome.map(drop).map_err(|error| failed(name, &error)),
        }
    }
}

async fn in_time<T>(request: impl Future<Output = T>) -> io::Result<T> {
    timeout(REQUEST_TIMEOUT, request)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the API server did not answer in time"))
}

fn failed(name: &str, error: &kube::Error) -> io::Error {
    io::Error::other(format!("the Secret {name}: {}", words(error)))
}

impl SecretSink for Secrets {
    fn deliver<'a>(
        &'a self,
        key: &'a Stored,
        text: &'a Zeroizing<String>,
    ) -> BoxFuture<'a, io::Result<String>> {
        Box::pin(self.put(key, text.trim_end()))
    }

    fn withdraw<'a>(&'a self, key: &'a ResourceId, place: &'a str) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(self.remove(key, place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_a_secret_of_its_own() {
        let name = |text: &str| text.parse::<Name>().unwrap();
        assert_eq!(secret_name(&name("paris-1"), "-token"), "paris-1-token");
        let (a, b) = ("a".repeat(62) + "b", "a".repeat(62) + "c");
        let names = [&a, &b].map(|long| secret_name(&name(long), "-token"));
        assert_ne!(names[0], names[1]);
        for secret in names {
            assert!(secret.len() <= MAX_NAME && secret.parse::<Name>().is_ok(), "{secret}");
        }
    }
}
