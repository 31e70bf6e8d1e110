//! Reading columns into types, and writing times.

use std::{fmt::Display, str::FromStr};

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use sqlx::{Decode, Postgres, Row as _, Sqlite, Type};

use super::{StoreError, dialect::Row};

impl Row {
    fn get<T>(&self, column: &'static str) -> Result<T, StoreError>
    where
        T: for<'r> Decode<'r, Sqlite> + Type<Sqlite> + for<'r> Decode<'r, Postgres> + Type<Postgres>,
    {
        Ok(match self {
            Self::Sqlite(row) => row.try_get(column)?,
            Self::Postgres(row) => row.try_get(column)?,
        })
    }
}

/// A time as the database keeps it.
pub(super) fn millis(time: Timestamp) -> i64 {
    time.as_millisecond()
}

/// A count as the database keeps it; one that no database integer can hold becomes the largest.
pub(super) fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Typed access to the columns of a row. A value that breaks its type is an error that names the column.
pub(super) trait Columns {
    /// A value in its text form.
    fn parsed<T: FromStr<Err: Display>>(&self, column: &'static str) -> Result<T, StoreError>;
    /// A value in its text form, or NULL.
    fn maybe_parsed<T: FromStr<Err: Display>>(&self, column: &'static str) -> Result<Option<T>, StoreError>;
    /// A value in JSON.
    fn json<T: DeserializeOwned>(&self, column: &'static str) -> Result<T, StoreError>;
    /// A text.
    fn text(&self, column: &'static str) -> Result<String, StoreError>;
    /// A text or NULL.
    fn maybe_text(&self, column: &'static str) -> Result<Option<String>, StoreError>;
    /// A time.
    fn time(&self, column: &'static str) -> Result<Timestamp, StoreError>;
    /// A time or NULL.
    fn maybe_time(&self, column: &'static str) -> Result<Option<Timestamp>, StoreError>;
    /// An integer.
    fn int(&self, column: &'static str) -> Result<i64, StoreError>;
    /// An integer or NULL.
    fn maybe_int(&self, column: &'static str) -> Result<Option<i64>, StoreError>;
    /// A count.
    fn count(&self, column: &'static str) -> Result<u64, StoreError>;
    /// A truth.
    fn flag(&self, column: &'static str) -> Result<bool, StoreError>;
    /// A truth or NULL.
    fn maybe_flag(&self, column: &'static str) -> Result<Option<bool>, StoreError>;
    /// Bytes.
    fn bytes(&self, column: &'static str) -> Result<Vec<u8>, StoreError>;
    /// Bytes or NULL.
    fn maybe_bytes(&self, column: &'static str) -> Result<Option<Vec<u8>>, StoreError>;
    /// Exactly 32 bytes, or NULL.
    fn maybe_bytes32(&self, column: &'static str) -> Result<Option<[u8; 32]>, StoreError>;
}

fn corrupt(column: &'static str, why: impl Display) -> StoreError {
    StoreError::Corrupt { column, why: why.to_string() }
}

impl Columns for Row {
    fn parsed<T: FromStr<Err: Display>>(&self, column: &'static str) -> Result<T, StoreError> {
        self.text(column)?.parse().map_err(|e| corrupt(column, e))
    }

    fn maybe_parsed<T: FromStr<Err: Display>>(&self, column: &'static str) -> Result<Option<T>, StoreError> {
        self.maybe_text(column)?.map(|text| text.parse().map_err(|e| corrupt(column, e))).transpose()
    }

    fn json<T: DeserializeOwned>(&self, column: &'static str) -> Result<T, StoreError> {
        serde_json::from_str(&self.text(column)?).map_err(|e| corrupt(column, e))
    }

    fn text(&self, column: &'static str) -> Result<String, StoreError> {
        self.get(column)
    }

    fn maybe_text(&self, column: &'static str) -> Result<Option<String>, StoreError> {
        self.get(column)
    }

    fn time(&self, column: &'static str) -> Result<Timestamp, StoreError> {
        Timestamp::from_millisecond(self.int(column)?).map_err(|e| corrupt(column, e))
    }

    fn maybe_time(&self, column: &'static str) -> Result<Option<Timestamp>, StoreError> {
        self.maybe_int(column)?
            .map(|t| Timestamp::from_millisecond(t).map_err(|e| corrupt(column, e)))
            .transpose()
    }

    fn int(&self, column: &'static str) -> Result<i64, StoreError> {
        self.get(column)
    }

    fn maybe_int(&self, column: &'static str) -> Result<Option<i64>, StoreError> {
        self.get(column)
    }

    fn count(&self, column: &'static str) -> Result<u64, StoreError> {
        u64::try_from(self.int(column)?).map_err(|e| corrupt(column, e))
    }

    fn flag(&self, column: &'static str) -> Result<bool, StoreError> {
        self.get(column)
    }

    fn maybe_flag(&self, column: &'static str) -> Result<Option<bool>, StoreError> {
        self.get(column)
    }

    fn bytes(&self, column: &'static str) -> Result<Vec<u8>, StoreError> {
        self.get(column)
    }

    fn maybe_bytes(&self, column: &'static str) -> Result<Option<Vec<u8>>, StoreError> {
        self.get(column)
    }

    fn maybe_bytes32(&self, column: &'static str) -> Result<Option<[u8; 32]>, StoreError> {
        self.maybe_bytes(column)?
            .map(|bytes| bytes.try_into().map_err(|_| corrupt(column, "expected 32 bytes")))
            .transpose()
    }
}
