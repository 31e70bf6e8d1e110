//! Sealing anew: every value that names a data key that is not in use is opened and sealed under the one that is, so many rows at
//! a time. A value that changes meanwhile is left to whoever changed it.

use uuid::Uuid;

use super::{
    LeaderEpoch, SealError, Store, StoreError,
    admin_idempotency::IdempotentRequest,
    dialect::{Builder, Connection, Row, query},
    registration::fence,
    row::Columns as _,
    seal::{Place, Sealer},
};

/// A column of sealed values.
struct Column {
    table: &'static str,
    /// What names a row.
    id: &'static str,
    /// More of it.
    more: Option<&'static str>,
    owner: Owner,
    value: &'static str,
    /// The number of the data key.
    key: &'static str,
    place: Place,
}

/// Whose a value is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// What `id` names, of which there is one row.
    Row,
    /// What `id` names, of which there may be several rows.
    Shared,
    /// A number.
    Number,
    /// Both parts of the id.
    Request,
}

const fn column(
    (table, id): (&'static str, &'static str),
    owner: Owner,
    (value, key): (&'static str, &'static str),
    place: Place,
) -> Column {
    Column { table, id, more: None, owner, value, key, place }
}

/// Every column of sealed values but those that are looked up.
static COLUMNS: [Column; 14] = [
    column(
        ("servers", "server_id"),
        Owner::Row,
        ("verification_secret", "verification_key"),
        Place::Verification,
    ),
    column(
        ("servers", "server_id"),
        Owner::Row,
        ("previous_secret", "previous_key"),
        Place::PreviousVerification,
    ),
    column(("connections", "connection_id"), Owner::Row, ("secret", "secret_key"), Place::Session),
    column(("keysets", "version"), Owner::Number, ("key_sealed", "sealing_key"), Place::KeySet),
    column(("admins", "admin_id"), Owner::Row, ("password_hash", "password_key"), Place::Password),
    column(("admins", "admin_id"), Owner::Row, ("mfa_secret", "mfa_key"), Place::Totp),
    column(
        ("admin_recovery_codes", "admin_id"),
        Owner::Shared,
        ("code_hash", "code_key"),
        Place::RecoveryCode,
    ),
    column(
        ("admin_sessions", "session_id"),
        Owner::Row,
        ("session_token", "session_token_key"),
        Place::SessionToken,
    ),
    column(
        ("admin_sessions", "session_id"),
        Owner::Row,
        ("previous_token", "previous_token_key"),
        Place::PreviousToken,
    ),
    column(("token_keys", "key_id"), Owner::Row, ("private_key", "sealing_key"), Place::TokenKey),
    Column {
        more: Some("idempotency_key"),
        ..column(
            ("idempotency_keys", "owner"),
            Owner::Request,
            ("request_digest", "digest_key"),
            Place::Request,
        )
    },
    Column {
        more: Some("idempotency_key"),
        ..column(("idempotency_keys", "owner"), Owner::Request, ("answer", "answer_key"), Place::Answer)
    },
    column(("key_handovers", "handover_id"), Owner::Row, ("secret_digest", "digest_key"), Place::Handover),
    column(("key_handovers", "handover_id"), Owner::Row, ("code_hash", "code_key"), Place::HandoverCode),
];

/// How far sealing anew is. It is kept in memory: whoever leads next begins anew and finds little left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResealCursor {
    /// Which column; the one after the last is what is looked up.
    column: usize,
    /// The last row that was looked at.
    after: Option<String>,
    /// Rows of this column that do not open.
    stuck: u32,
}

/// What a part of the work came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resealed {
    /// How many values were sealed anew.
    pub values: u64,
    /// How many do not open.
    pub stuck: u32,
    /// Where to go on; `None` at the end.
    pub next: Option<ResealCursor>,
}

fn owner_of(column: &Column, row: &Row) -> Result<[u8; 16], StoreError> {
    Ok(match column.owner {
        Owner::Row | Owner::Shared => *row.parsed::<Uuid>("id")?.as_bytes(),
        Owner::Number => u128::from(row.count("id")?).to_be_bytes(),
        Owner::Request => IdempotentRequest::place_of(&row.text("id")?, &row.text("more")?),
    })
}

fn select(column: &Column, cursor: &ResealCursor, sealing: i64, limit: u32) -> Builder {
    let mut select = Builder::new("SELECT ");
    select.push(column.id).push(" AS id, ");
    if let Some(more) = column.more {
        select.push(more).push(" AS more, ");
    }
    select.push(column.value).push(" AS value FROM ").push(column.table);
    select.push(" WHERE ").push(column.value).push(" IS NOT NULL AND (").push(column.key);
    select.push(" IS NULL OR ").push(column.key).push(" <> ").push_bind(sealing).push(")");
    if let Some(after) = cursor.after.as_ref().filter(|_| column.owner == Owner::Row) {
        select.push(" AND ").push(column.id).push(" > ").push_bind(after);
    }
    select.push(" ORDER BY ").push(column.id).push(" LIMIT ").push_bind(limit);
    if column.owner != Owner::Row {
        select.push(" OFFSET ").push_bind(cursor.stuck);
    }
    select
}

async fn replace(
    db: &mut Connection,
    column: &Column,
    row: &Row,
    old: Vec<u8>,
    sealer: &Sealer,
) -> Result<bool, StoreError> {
    let owner = owner_of(column, row)?;
    let plain = sealer.open_bytes(column.place, &owner, &old)?;
    let sealed = sealer.seal_bytes(column.place, &owner, &plain);
    let mut update = Builder::new("UPDATE ");
    update.push(column.table).push(" SET ").push(column.value).push(" = ").push_bind(sealed.bytes);
    update.push(", ").push(column.key).push(" = ").push_bind(sealed.key);
    update.push(" WHERE ").push(column.id).push(" = ");
    match column.owner {
        Owner::Number => update.push_bind(row.int("id")?),
        _ => update.push_bind(row.text("id")?),
    };
    if let Some(more) = column.more {
        update.push(" AND ").push(more).push(" = ").push_bind(row.text("more")?);
    }
    update.push(" AND ").push(column.value).push(" = ").push_bind(old);
    Ok(update.build().execute(db).await?.rows_affected() > 0)
}

/// What is looked up: hashed under the key in use, and its digest sealed under the key in use.
async fn replace_lookups(
    db: &mut Connection,
    sealer: &Sealer,
    cursor: &ResealCursor,
    limit: u32,
) -> Result<(u64, u32, Option<String>), StoreError> {
    let Some(lookup) = sealer.lookup(Place::Registration, &[0; 32]).map(|hash| hash.key) else {
        return Ok((0, 0, None));
    };
    let rows = query(
        "SELECT key_uid, secret_hash, secret_digest FROM registration_keys WHERE secret_hash IS NOT NULL AND (lookup_key IS NULL \
         OR lookup_key <> $1 OR digest_key IS NULL OR digest_key <> $2) AND ($3 IS NULL OR key_uid > $3) ORDER BY key_uid LIMIT $4",
    )
    .bind(lookup)
    .bind(sealer.sealing())
    .bind(&cursor.after)
    .bind(limit)
    .fetch_all(&mut *db)
    .await?;
    let (mut values, mut stuck, mut last) = (0, 0, None);
    for row in &rows {
        let (id, hash): (Uuid, _) = (row.parsed("key_uid")?, row.bytes("secret_hash")?);
        last = Some(id.to_string());
        let digest = match row.maybe_bytes("secret_digest")? {
            Some(sealed) => {
                sealer.open_bytes(Place::Registration, id.as_bytes(), &sealed).map(|d| d.to_vec())
            }
            None => Ok(hash.clone()),
        };
        let Some(digest) = digest.ok().and_then(|digest| <[u8; 32]>::try_from(digest).ok()) else {
            stuck += 1;
            continue;
        };
        let Some(new) = sealer.lookup(Place::Registration, &digest) else { continue };
        let sealed = sealer.seal_bytes(Place::Registration, id.as_bytes(), &digest);
        let done = query(
            "UPDATE registration_keys SET secret_hash = $1, lookup_key = $2, secret_digest = $3, digest_key = $4 \
             WHERE key_uid = $5 AND secret_hash = $6",
        )
        .bind(new.bytes)
        .bind(new.key)
        .bind(sealed.bytes)
        .bind(sealed.key)
        .bind(id.to_string())
        .bind(hash)
        .execute(&mut *db)
        .await?;
        values += done.rows_affected();
    }
    let full = rows.len() >= usize::try_from(limit).unwrap_or(usize::MAX);
    Ok((values, stuck, last.filter(|_| full)))
}

/// Whether any value names a data key that is not in use.
pub(super) async fn any_left(db: &mut Connection) -> Result<bool, StoreError> {
    for column in &COLUMNS {
        let mut select = Builder::new("SELECT 1 AS one FROM ");
        select.push(column.table).push(" WHERE ").push(column.value).push(" IS NOT NULL AND (");
        select.push(column.key).push(" IS NULL OR ").push(column.key);
        select.push(" IN (SELECT key_number FROM data_keys WHERE state = 'previous')) LIMIT 1");
        if select.build().fetch_optional(&mut *db).await?.is_some() {
            return Ok(true);
        }
    }
    let row = query(
        "SELECT 1 AS one FROM registration_keys WHERE secret_hash IS NOT NULL AND (lookup_key IS NULL OR digest_key IS NULL OR \
         lookup_key IN (SELECT key_number FROM data_keys WHERE state = 'previous') OR \
         digest_key IN (SELECT key_number FROM data_keys WHERE state = 'previous')) LIMIT 1",
    )
    .fetch_optional(&mut *db)
    .await?;
    Ok(row.is_some())
}

impl Store {
    /// Seals up to `limit` more values anew, in one transaction.
    pub async fn reseal(
        &self,
        cursor: &ResealCursor,
        limit: u32,
        leader: Option<LeaderEpoch>,
    ) -> Result<Resealed, StoreError> {
        self.retried("reseal", || async {
            let sealer = self.sealer();
            let mut tx = self.begin().await?;
            fence(&mut tx, leader).await?;
            let Some(column) = COLUMNS.get(cursor.column) else {
                let (values, stuck, last) = replace_lookups(&mut tx, &sealer, cursor, limit).await?;
                Self::note_resealed(&mut tx, values).await?;
                tx.commit().await?;
                let next = last.map(|after| ResealCursor { after: Some(after), ..cursor.clone() });
                return Ok(Resealed { values, stuck, next });
            };
            let rows = select(column, cursor, sealer.sealing(), limit).build().fetch_all(&mut *tx).await?;
            let (mut values, mut stuck) = (0, 0);
            for row in &rows {
                match replace(&mut tx, column, row, row.bytes("value")?, &sealer).await {
                    Ok(done) => values += u64::from(done),
                    Err(StoreError::Seal(SealError)) => stuck += 1,
                    Err(error) => return Err(error),
                }
            }
            Self::note_resealed(&mut tx, values).await?;
            tx.commit().await?;
            if stuck > 0 {
                tracing::error!(
                    table = column.table,
                    column = column.value,
                    rows = stuck,
                    "sealed values do not open"
                );
            }
            let full = rows.len() >= usize::try_from(limit).unwrap_or(usize::MAX);
            let next = match rows.last().filter(|_| full) {
                Some(last) => ResealCursor {
                    column: cursor.column,
                    after: if column.owner == Owner::Row { Some(last.text("id")?) } else { None },
                    stuck: cursor.stuck + stuck,
                },
                None => ResealCursor { column: cursor.column + 1, ..ResealCursor::default() },
            };
            Ok(Resealed { values, stuck, next: Some(next) })
        })
        .await
    }
}
