//! Which passwords will do: long ones that nobody would try first (NIST SP 800-63B, section 5.1.1.2). There are no rules about
//! which characters they are made of.

use thiserror::Error;

/// The fewest characters.
pub const MIN_PASSWORD: usize = 12;
/// The most characters.
pub const MAX_PASSWORD: usize = 256;

/// What people choose when a password must be long, in lower case and without what stands behind it.
const COMMON: [&str; 44] = [
    "password",
    "passwort",
    "passw0rd",
    "motdepasse",
    "contraseña",
    "letmein",
    "welcome",
    "willkommen",
    "administrator",
    "adminadmin",
    "changeme",
    "changeit",
    "secret",
    "supersecret",
    "topsecret",
    "qwerty",
    "qwertyuiop",
    "qwertzuiop",
    "azertyuiop",
    "asdfghjkl",
    "1q2w3e4r",
    "1q2w3e4r5t",
    "1qaz2wsx",
    "1qaz2wsx3edc",
    "zaq12wsx",
    "iloveyou",
    "trustno",
    "sunshine",
    "princess",
    "football",
    "baseball",
    "superman",
    "batman",
    "starwars",
    "dragon",
    "monkey",
    "whatever",
    "correcthorsebatterystaple",
    "horizon",
    "horizonadmin",
    "gateway",
    "default",
    "internet",
    "computer",
];

/// Why a password will not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PasswordIssue {
    /// It has too few characters.
    #[error("the password has fewer than 12 characters: use a longer one, a few random words for example")]
    TooShort,
    /// It has too many characters.
    #[error("the password has more than 256 characters: use a shorter one")]
    TooLong,
    /// It is one of those that are tried first.
    #[error(
        "the password is one of those that are tried first: use a few random words, or a password manager"
    )]
    Common,
    /// It is made of the name of the account.
    #[error("the password is made of the name of the account: use another one")]
    Name,
}

/// Whether a password will do for an account.
///
/// # Errors
/// Why it will not.
pub fn check_password(password: &str, username: &str) -> Result<(), PasswordIssue> {
    let length = password.chars().count();
    if length < MIN_PASSWORD {
        return Err(PasswordIssue::TooShort);
    }
    if length > MAX_PASSWORD {
        return Err(PasswordIssue::TooLong);
    }
    let plain: String = password.to_lowercase().chars().filter(|c| c.is_alphanumeric()).collect();
    let stem = plain.trim_matches(|c: char| c.is_ascii_digit());
    let name: String = username.to_lowercase().chars().filter(|c| c.is_alphanumeric()).collect();
    if !name.is_empty() && is_made_of(stem, name.trim_matches(|c: char| c.is_ascii_digit())) {
        return Err(PasswordIssue::Name);
    }
    if stem.is_empty() && counts(&plain)
        || repeats(&plain)
        || COMMON.iter().any(|common| is_made_of(stem, common))
    {
        return Err(PasswordIssue::Common);
    }
    Ok(())
}

/// Whether a text is a word, once or several times.
fn is_made_of(text: &str, word: &str) -> bool {
    !word.is_empty() && !text.is_empty() && text.replace(word, "").is_empty()
}

/// Whether a text is the same few characters again and again.
fn repeats(text: &str) -> bool {
    let characters: std::collections::BTreeSet<char> = text.chars().collect();
    characters.len() <= 3
}

/// Whether digits count up or down.
fn counts(digits: &str) -> bool {
    let step = |by: i32| {
        digits
            .as_bytes()
            .windows(2)
            .all(|pair| (i32::from(pair[1]) - i32::from(pair[0]) - by).rem_euclid(10) == 0)
    };
    step(1) || step(-1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_ones_that_nobody_tries_first_will_do() {
        for good in
            ["rain tractor velvet", "x7#kQ!29vbLw", "ваше здоровье друг", "829104718365520", "aaaa bbbb ccdd"]
        {
            assert_eq!(check_password(good, "ann"), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("short", PasswordIssue::TooShort),
            ("elevenchars", PasswordIssue::TooShort),
            ("Password12345", PasswordIssue::Common),
            ("2024-Welcome!!", PasswordIssue::Common),
            ("passwordpassword", PasswordIssue::Common),
            ("123456789012", PasswordIssue::Common),
            ("987654321098", PasswordIssue::Common),
            ("aaaaaaaaaaaa", PasswordIssue::Common),
            ("abababababab", PasswordIssue::Common),
            ("annannannann1", PasswordIssue::Name),
        ] {
            assert_eq!(check_password(bad, "ann"), Err(why), "{bad}");
        }
        assert_eq!(check_password(&"é".repeat(257), "ann"), Err(PasswordIssue::TooLong));
    }
}
