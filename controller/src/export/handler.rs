//! The API's side: the documents, as JSON.

use std::{collections::HashMap, sync::Arc};

use axum::{Json, extract::State};
use horizon_controller_core::{ID_ANNOTATION, Stored};
use horizon_crds::Metadata;
use horizon_model::{PublicKey, ServerId};
use serde_json::{Value, json};

use super::PUBLIC_KEY;
use crate::api::{Api, ApiError, model::List};

/// Every resource in force as a document, whoever declared it, kind by kind.
pub(crate) async fn handle(State(api): State<Arc<Api>>) -> Result<Json<List<Value>>, ApiError> {
    let keys = api.store.public_keys().await;
    let keys = keys.map_err(|error| ApiError::internal("read the keys of appliances", error))?;
    let items = api.engine.index().iter().map(|stored| document(stored, &keys)).collect();
    Ok(Json(List { items }))
}

fn document(stored: &Stored, keys: &HashMap<ServerId, PublicKey>) -> Value {
    let mut annotations = stored.resource.metadata().annotations.clone();
    // A key of an appliance that is gone would be wrong.
    annotations.remove(PUBLIC_KEY);
    let key = keys.get(&stored.server_id()).map(|key| (PUBLIC_KEY, key.to_string()));
    for (name, value) in [(ID_ANNOTATION, stored.uid.to_string())].into_iter().chain(key) {
        // A document with more annotations than it may have could not be read.
        if annotations.len() < Metadata::MAX_ENTRIES || annotations.contains_key(name) {
            annotations.insert(name.to_owned(), value);
        }
    }
    let mut document = stored.resource.to_json();
    document["metadata"]["annotations"] = json!(annotations);
    document
}

#[cfg(test)]
mod tests {
    use horizon_controller_core::Origin;
    use horizon_crds::{document::from_json, parse};
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_document_names_its_identity_and_the_key() {
        let text = "apiVersion = 'horizon.dev/v1alpha1'\nkind = 'Server'\n[metadata]\nname = 'berlin'\n\
            annotations = { note = 'kept', 'horizon.dev/id' = 'old', 'horizon.dev/public-key' = 'old' }\n[spec]\n";
        let resource = parse("a.toml", text.as_bytes()).resources.remove(0).0;
        let uid = Uuid::from_u128(7);
        let stored = Stored {
            resource: Arc::new(resource),
            uid,
            generation: 3,
            origin: Origin::Api,
            number: None,
            created_at: jiff::Timestamp::UNIX_EPOCH,
        };
        let keys = HashMap::from([(ServerId(uid), PublicKey([5; 32]))]);
        let read = from_json(&document(&stored, &keys)).unwrap();
        let annotations = &read.metadata().annotations;
        assert_eq!(annotations[ID_ANNOTATION], uid.to_string());
        assert_eq!(annotations[PUBLIC_KEY], PublicKey([5; 32]).to_string());
        assert_eq!((annotations["note"].as_str(), annotations.len()), ("kept", 3));
        let read = from_json(&document(&stored, &HashMap::new())).unwrap();
        assert!(!read.metadata().annotations.contains_key(PUBLIC_KEY));
    }
}
