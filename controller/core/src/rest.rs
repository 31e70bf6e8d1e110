//! Cursors of the REST API: opaque to whoever gets one, and read back from anybody.

use data_encoding::BASE64URL_NOPAD;

/// The longest cursor that is looked at, in characters.
const MAX_CURSOR: usize = 512;

/// The cursor of the place after `key` in `list`.
pub fn write_cursor(list: &str, key: &str) -> String {
    BASE64URL_NOPAD.encode(format!("1\n{list}\n{key}").as_bytes())
}

/// The place that a cursor of `list` names; `None` for whatever is none.
pub fn read_cursor(list: &str, cursor: &str) -> Option<String> {
    let bytes = (cursor.len() <= MAX_CURSOR).then(|| BASE64URL_NOPAD.decode(cursor.as_bytes()).ok())??;
    let text = String::from_utf8(bytes).ok()?;
    let key = text.strip_prefix("1\n")?.strip_prefix(list)?.strip_prefix('\n')?;
    (!key.contains(char::is_control)).then(|| key.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn cursors_of_one_list_are_none_of_another(key in "[^\\p{Cc}]{0,60}") {
            let cursor = write_cursor("events", &key);
            prop_assert_eq!(read_cursor("events", &cursor), Some(key));
            prop_assert_eq!(read_cursor("event", &cursor), None);
            prop_assert_eq!(read_cursor("audit", &cursor), None);
        }
    }
}
