//! What is taken from strangers, and what is refused before anything reads it: too large, too deep, too many values, texts that
//! are too long, control characters, and patterns. One pass over a text, whatever it is.

use std::{cell::RefCell, fmt};

use horizon_crds::PayloadRules;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use thiserror::Error;

/// Why something is not taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Hit {
    /// Values lie too deeply in one another.
    #[error("values lie in one another more than {0} deep")]
    TooDeep(u8),
    /// There are too many values.
    #[error("there are more than {0} values")]
    TooMany(u32),
    /// A text is too long.
    #[error("a text has more than {0} characters")]
    TooLong(u32),
    /// A text has control characters.
    #[error("a text has control characters")]
    Control,
    /// A text matches a pattern, which is for the eyes of administrators alone.
    #[error("a text matches a pattern that is refused")]
    Pattern(String),
}

impl Hit {
    /// A word for programs.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::TooDeep(_) => "too_deep",
            Self::TooMany(_) => "too_many_values",
            Self::TooLong(_) => "too_long",
            Self::Control => "control_characters",
            Self::Pattern(_) => "pattern",
        }
    }

    /// The pattern, where it is one.
    pub fn pattern(&self) -> Option<&str> {
        if let Self::Pattern(pattern) = self { Some(pattern) } else { None }
    }
}

/// The rules, ready for use.
#[derive(Clone, Debug)]
pub struct Rules {
    depth: u8,
    values: u32,
    text: u32,
    control: bool,
    /// Each pattern with the parts between its `*`, in lower case.
    patterns: Vec<(String, Vec<String>)>,
}

impl From<&PayloadRules> for Rules {
    fn from(rules: &PayloadRules) -> Self {
        let parts = |pattern: &str| {
            pattern.to_ascii_lowercase().split('*').filter(|p| !p.is_empty()).map(str::to_owned).collect()
        };
        Self {
            depth: rules.max_depth,
            values: rules.max_values,
            text: rules.max_text,
            control: rules.refuse_control_characters,
            patterns: rules.patterns.iter().map(|p| (p.to_string(), parts(p.as_str()))).collect(),
        }
    }
}

/// Whether a character has no place in a text: control characters but tabs and line breaks, and what changes the direction of
/// writing (Unicode Standard Annex 9), so that a text looks like another.
fn is_control(c: char) -> bool {
    (c.is_control() && !matches!(c, '\t' | '\n' | '\r'))
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Whether the parts stand in a text one after the other. The first place of each leaves the most room for the rest.
fn matches(parts: &[String], text: &str) -> bool {
    let mut rest = text;
    !parts.is_empty()
        && parts.iter().all(|part| match rest.find(part.as_str()) {
            Some(at) => {
                rest = &rest[at + part.len()..];
                true
            }
            None => false,
        })
}

impl Rules {
    /// Looks at a text.
    ///
    /// # Errors
    /// Why it is not taken.
    pub fn text(&self, text: &str) -> Result<(), Hit> {
        // A text has at least as many bytes as characters.
        let limit = usize::try_from(self.text).unwrap_or(usize::MAX);
        if text.len() > limit && text.chars().count() > limit {
            return Err(Hit::TooLong(self.text));
        }
        if self.control && text.chars().any(is_control) {
            return Err(Hit::Control);
        }
        let lower = text.to_ascii_lowercase();
        match self.patterns.iter().find(|(_, parts)| matches(parts, &lower)) {
            Some((pattern, _)) => Err(Hit::Pattern(pattern.clone())),
            None => Ok(()),
        }
    }

    /// Looks at a JSON text: at every value, and at every name of a field. What is no JSON is for its parser to refuse.
    ///
    /// # Errors
    /// Why it is not taken.
    pub fn json(&self, text: &[u8]) -> Result<(), Hit> {
        let found = RefCell::new(Found { values: 0, hit: None });
        let mut parser = serde_json::Deserializer::from_slice(text);
        // An error of the parser ends the look, also that which says that there is a hit.
        let _ = Look { rules: self, depth: 0, found: &found }.deserialize(&mut parser);
        found.into_inner().hit.map_or(Ok(()), Err)
    }
}

struct Found {
    values: u32,
    hit: Option<Hit>,
}

/// Looks at one value.
#[derive(Clone, Copy)]
struct Look<'a> {
    rules: &'a Rules,
    depth: u8,
    found: &'a RefCell<Found>,
}

impl<'a> Look<'a> {
    fn stop<E: Error>(self, hit: Hit) -> E {
        self.found.borrow_mut().hit = Some(hit);
        E::custom("a rule is broken")
    }

    fn one<E: Error>(self) -> Result<(), E> {
        let mut found = self.found.borrow_mut();
        found.values = found.values.saturating_add(1);
        if found.values <= self.rules.values {
            return Ok(());
        }
        drop(found);
        Err(self.stop(Hit::TooMany(self.rules.values)))
    }

    fn deeper<E: Error>(self) -> Result<Look<'a>, E> {
        self.one()?;
        if self.depth >= self.rules.depth {
            return Err(self.stop(Hit::TooDeep(self.rules.depth)));
        }
        Ok(Look { depth: self.depth + 1, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Look<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Look<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.one()
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        self.one()
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        self.one()
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        self.one()
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        self.one()
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.one()?;
        self.rules.text(text).map_err(|hit| self.stop(hit))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let inner = self.deeper()?;
        while list.next_element_seed(inner)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let inner = self.deeper()?;
        while map.next_key_seed(inner)?.is_some() {
            map.next_value_seed(inner)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "payload_tests.rs"]
mod tests;
