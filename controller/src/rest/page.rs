//! Lists in pages: an opaque cursor says where the next page begins.

use horizon_controller_core::rest::{read_cursor, write_cursor};
use serde::{Deserialize, Serialize};

use super::Problem;

/// How many entries a page has unless another number is asked for.
const DEFAULT_LIMIT: u32 = 50;
/// The most entries of a page.
pub(super) const MAX_LIMIT: u32 = 500;

/// A page of a list.
#[derive(Debug, Serialize)]
pub(super) struct Page<T> {
    /// The entries.
    pub(super) items: Vec<T>,
    /// What to send as `cursor` for the next page; absent on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next: Option<String>,
}

/// What a list is asked for.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Paging {
    /// The most entries.
    pub(super) limit: Option<u32>,
    /// Where to go on, from the page before.
    pub(super) cursor: Option<String>,
}

impl Paging {
    pub(super) fn limit(&self) -> Result<u32, Problem> {
        match self.limit {
            None => Ok(DEFAULT_LIMIT),
            Some(limit) if (1..=MAX_LIMIT).contains(&limit) => Ok(limit),
            Some(limit) => Err(Problem::bad_request(format!("limit is {limit}"))
                .remedy(format!("ask for 1 to {MAX_LIMIT} entries"))),
        }
    }

    /// The place after which the page begins, in `list`.
    pub(super) fn after(&self, list: &str) -> Result<Option<String>, Problem> {
        let wrong = || {
            Problem::bad_request("the cursor is none of this list")
                .remedy("send what `next` of the page before says, or none for the first page")
        };
        self.cursor.as_deref().map(|cursor| read_cursor(list, cursor).ok_or_else(wrong)).transpose()
    }

    /// [`after`](Self::after), as what a place in the list is.
    pub(super) fn place<T: std::str::FromStr>(&self, list: &str) -> Result<Option<T>, Problem> {
        let wrong = |_| Problem::bad_request("the cursor is none of this list");
        self.after(list)?.map(|text| text.parse().map_err(wrong)).transpose()
    }
}

/// Makes a page of entries of which one more was asked for than there are to be.
pub(super) fn page<T>(list: &str, mut items: Vec<T>, limit: u32, key: impl Fn(&T) -> String) -> Page<T> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| more).map(|last| write_cursor(list, &key(last)));
    Page { items, next }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn asked(cursor: &str) -> Result<Option<String>, Problem> {
        Paging { limit: None, cursor: Some(cursor.to_owned()) }.after("events")
    }

    #[test]
    fn pages_follow_each_other() {
        let first = page("events", vec![9, 8, 7], 2, ToString::to_string);
        assert_eq!(first.items, [9, 8]);
        assert_eq!(asked(&first.next.unwrap()).unwrap().as_deref(), Some("8"));
        assert!(page("events", vec![9, 8], 2, ToString::to_string).next.is_none());
        assert!(asked(&write_cursor("audit", "8")).is_err(), "of another list");
        assert!(Paging { limit: Some(0), cursor: None }.limit().is_err());
        assert!(Paging { limit: Some(501), cursor: None }.limit().is_err());
    }

    proptest! {
        #[test]
        fn cursors_return(key in "[^\\p{Cc}]{0,60}") {
            prop_assert_eq!(asked(&write_cursor("events", &key)).unwrap(), Some(key));
        }

        #[test]
        fn what_is_no_cursor_is_refused_and_never_panics(text in "\\PC{0,600}") {
            if let Ok(Some(key)) = asked(&text) {
                prop_assert_eq!(write_cursor("events", &key), text);
            }
        }
    }
}
