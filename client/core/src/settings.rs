//! Settings that follow the user from device to device.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The longest name of a server or an alias, in bytes, as the schema has it.
const MAX_NAME: usize = 63;
/// The most aliases.
const MAX_ALIASES: usize = 32;

/// What the user chose.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Settings {
    /// The server that `horizon connect` means without a name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preferred_server: Option<String>,
    /// Whether another server is used when one stays away.
    pub failover: bool,
    /// The user's own names for servers.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub aliases: BTreeMap<String, String>,
}

/// A setting that cannot be set so.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SettingError {
    /// There is none of that name.
    #[error("there is no setting '{0}': use preferred-server, failover, or alias.NAME")]
    Unknown(String),
    /// It does not take that value.
    #[error("'{value}' is not what {name} takes: {wanted}")]
    Value {
        /// Which setting.
        name: String,
        /// What was given.
        value: String,
        /// What it takes.
        wanted: &'static str,
    },
}

impl Settings {
    /// Sets one setting from words; an empty value takes it back.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), SettingError> {
        let wrong = |wanted| SettingError::Value { name: name.into(), value: value.into(), wanted };
        const NAME: &str = "a name of 1 to 63 letters, digits, '-' or '.'";
        match name {
            "preferred-server" => {
                if !value.is_empty() && !is_name(value) {
                    return Err(wrong(NAME));
                }
                self.preferred_server = Some(value.to_owned()).filter(|v| !v.is_empty());
            }
            "failover" => {
                self.failover = match value {
                    "on" => true,
                    "off" | "" => false,
                    _ => return Err(wrong("on or off")),
                }
            }
            _ => {
                let alias =
                    name.strip_prefix("alias.").ok_or_else(|| SettingError::Unknown(name.to_owned()))?;
                if !is_name(alias) || !(value.is_empty() || is_name(value)) {
                    return Err(wrong(NAME));
                }
                if value.is_empty() {
                    self.aliases.remove(alias);
                } else if self.aliases.len() < MAX_ALIASES || self.aliases.contains_key(alias) {
                    self.aliases.insert(alias.to_owned(), value.to_owned());
                } else {
                    return Err(wrong("one of at most 32 aliases"));
                }
            }
        }
        Ok(())
    }

    /// The server a word means: an alias of it, or its name.
    pub fn server<'a>(&'a self, word: &'a str) -> &'a str {
        self.aliases.get(word).map_or(word, String::as_str)
    }

    /// Whether they keep to the bounds, wherever they come from.
    pub fn is_sound(&self) -> bool {
        self.preferred_server.as_deref().is_none_or(is_name)
            && self.aliases.len() <= MAX_ALIASES
            && self.aliases.iter().all(|(alias, server)| is_name(alias) && is_name(server))
    }

    /// The settings as a person reads them.
    pub fn text(&self) -> String {
        let mut lines = vec![
            format!("preferred-server  {}", self.preferred_server.as_deref().unwrap_or("-")),
            format!("failover          {}", if self.failover { "on" } else { "off" }),
        ];
        lines.extend(self.aliases.iter().map(|(alias, server)| format!("alias.{alias}  {server}")));
        lines.join("\n")
    }
}

fn is_name(text: &str) -> bool {
    (1..=MAX_NAME).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_set_taken_back_and_bounded() {
        let mut settings = Settings::default();
        settings.set("preferred-server", "paris-1").unwrap();
        settings.set("failover", "on").unwrap();
        settings.set("alias.home", "paris-1").unwrap();
        assert_eq!((settings.server("home"), settings.server("rome")), ("paris-1", "rome"));
        let json = serde_json::to_string(&settings).unwrap();
        assert_eq!(serde_json::from_str::<Settings>(&json).unwrap(), settings);
        assert!(settings.is_sound() && settings.text().contains("alias.home"));
        for name in ["preferred-server", "failover", "alias.home"] {
            settings.set(name, "").unwrap();
        }
        assert_eq!(settings, Settings::default());
        for (name, value) in
            [("colour", "red"), ("failover", "maybe"), ("alias.a b", "x"), ("alias.x", "a/b")]
        {
            assert!(settings.set(name, value).is_err(), "{name}");
        }
        settings.aliases.insert("x".repeat(64), "y".into());
        assert!(!settings.is_sound());
    }
}
