//! The first administrator of a new organisation.

use std::{io::Write, path::Path};

use horizon_controller_core::account::AccountPolicy;
use jiff::Timestamp;

use super::InitError;
use crate::{
    keys::Keys,
    metrics::Metrics,
    rest::{MakeAdmin, make_admin},
    store::{Actor, AdminError, Store},
};

/// The name of the first account.
const NAME: &str = "admin";

/// Makes the first administrator in the folder that [`super::init`] made, and shows the one-time password.
///
/// # Errors
/// When the database cannot be made, or nobody reads what is said.
pub async fn first_admin(directory: &Path, out: &mut dyn Write) -> Result<(), InitError> {
    let (data, now) = (directory.join("data"), Timestamp::now());
    let keys = Keys::open(&data.join("keys"), now)?;
    let store = Store::open(data.join("horizon.db"), keys.envelope_key()?, Metrics::default()).await;
    let store = store.map_err(AdminError::from)?;
    let made = async {
        store.ensure_roles(now).await?;
        let request = MakeAdmin {
            username: NAME.to_owned(),
            email: None,
            full_name: String::new(),
            roles: vec!["admin".to_owned()],
        };
        make_admin(&store, request, &AccountPolicy::default(), &Actor::System("init"), now).await
    };
    let made = made.await;
    store.close().await;
    let made = made?;
    writeln!(
        out,
        "\nThe first administrator is '{NAME}', for the REST API (rest_listen in config.toml; docs/api.md).\n\
         One-time password, until {}; it is shown once and must be changed with its first use:\n  {}",
        made.expires_at, made.password
    )
    .map_err(InitError::Output)
}
