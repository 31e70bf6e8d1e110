//! Free text of bounded length.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use super::InvalidValue;

/// One line of free text: at most `MAX` Unicode characters, none of them a control character.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Text<const MAX: usize>(Box<str>);

impl<const MAX: usize> Text<MAX> {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether nothing is written.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Makes a text of whatever is given: control characters become spaces, what is too long is cut.
    pub fn lossy(text: &str) -> Self {
        Self(text.chars().take(MAX).map(|c| if c.is_control() { ' ' } else { c }).collect())
    }
}

impl<const MAX: usize> fmt::Display for Text<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Refuses control characters, which have no place in one line shown to people.
pub(super) fn check_characters(text: &str) -> Result<(), InvalidValue> {
    match text.chars().find(|c| c.is_control()) {
        Some(c) => Err(InvalidValue::new(
            format!("the text contains the control character {c:?}"),
            "write one line of plain text, without line breaks and tabs",
        )),
        None => Ok(()),
    }
}

impl<const MAX: usize> FromStr for Text<MAX> {
    type Err = InvalidValue;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        check_characters(text)?;
        let length = text.chars().count();
        if length > MAX {
            let message = format!("the text has {length} characters");
            return Err(InvalidValue::new(message, format!("shorten it to {MAX}")));
        }
        Ok(Self(text.into()))
    }
}

impl<const MAX: usize> Serialize for Text<MAX> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de, const MAX: usize> Deserialize<'de> for Text<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl<const MAX: usize> JsonSchema for Text<MAX> {
    fn schema_name() -> Cow<'static, str> {
        format!("Text{MAX}").into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": MAX,
            "pattern": "^[^\\x00-\\x1f\\x7f-\\x{9f}]*$",
            "x-horizon-format": "text",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_counted_not_bytes() {
        assert!("äöüß".parse::<Text<4>>().is_ok());
        assert!("äöüß!".parse::<Text<4>>().is_err());
        assert!("a\nb".parse::<Text<4>>().is_err());
        assert_eq!(Text::<4>::lossy("a\nbcde").as_str(), "a bc");
    }
}
