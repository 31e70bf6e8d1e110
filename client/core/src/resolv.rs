//! The resolver's file, `/etc/resolv.conf`: what it says while a session names resolvers, and how it comes back.

use std::{fmt::Write, net::IpAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

/// The first line of a file that Horizon wrote: how a leftover is told from somebody else's file.
pub const HEADER: &str =
    "# Written by Horizon for the duration of a session; the file before it returns afterwards.";
/// The most name servers the system's resolver looks at (MAXNS of resolv.h).
pub const MAX_SERVERS: usize = 3;
/// The largest file that is kept to be put back, in bytes.
pub const MAX_BYTES: usize = 256 * 1024;

/// The file as it was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "was", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Original {
    /// There was none.
    Absent,
    /// A symbolic link.
    Link {
        /// Where to, as the link says.
        target: PathBuf,
    },
    /// A file.
    File {
        /// Its permission bits.
        mode: u32,
        /// Its owner.
        uid: u32,
        /// Its group.
        gid: u32,
        /// Its bytes; as a list, because nothing promises that they are text.
        content: Vec<u8>,
    },
}

/// The file while the session lasts: the session's resolvers, and the search list and options of the original.
pub fn rewrite(original: &str, servers: &[IpAddr]) -> String {
    let mut out = format!("{HEADER}\n");
    for server in servers.iter().take(MAX_SERVERS) {
        let _ = writeln!(out, "nameserver {server}");
    }
    for line in original.lines() {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some(word @ ("search" | "domain" | "sortlist")) => {
                let _ = writeln!(out, "{}", words.fold(word.to_owned(), |line, w| line + " " + w));
            }
            Some("options") => {
                // The original resolver was trusted to say what is authentic; that says nothing about another.
                let kept: Vec<_> = words.filter(|w| *w != "trust-ad").collect();
                if !kept.is_empty() {
                    let _ = writeln!(out, "options {}", kept.join(" "));
                }
            }
            _ => {}
        }
    }
    out
}

/// Whether a file is one that [`rewrite`] made, perhaps cut short, even to nothing.
pub fn is_ours(content: &[u8]) -> bool {
    content.starts_with(HEADER.as_bytes()) || HEADER.as_bytes().starts_with(content)
}

/// The name servers that a file names, as far as they can be read.
pub fn servers(content: &str) -> Vec<IpAddr> {
    content
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|rest| rest.trim().parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn servers_are_replaced_and_the_rest_of_meaning_is_kept() {
        let original = "# a comment\nnameserver 192.0.2.53\nsearch  example.org corp.example\n\
                        options edns0 trust-ad\nnonsense\n";
        let servers: Vec<IpAddr> = ["9.9.9.9", "2620:fe::fe"].map(|t| t.parse().unwrap()).to_vec();
        let written = rewrite(original, &servers);
        assert_eq!(
            written,
            format!(
                "{HEADER}\nnameserver 9.9.9.9\nnameserver 2620:fe::fe\n\
                 search example.org corp.example\noptions edns0\n"
            )
        );
        assert!(is_ours(written.as_bytes()));
        assert!(is_ours(&written.as_bytes()[..20]));
        assert!(!is_ours(original.as_bytes()));
        assert!(is_ours(b""));
        assert_eq!(self::servers(original), ["192.0.2.53".parse::<IpAddr>().unwrap()]);
    }

    proptest! {
        #[test]
        fn only_the_sessions_servers_are_asked(original in "(nameserver|search|options|[ \ta-z0-9.:\n])*",
                                               count in 1usize..6) {
            let wanted: Vec<IpAddr> = (0..count).map(|n| IpAddr::from([9, 9, 9, n as u8])).collect();
            let written = rewrite(&original, &wanted);
            prop_assert_eq!(servers(&written), &wanted[..count.min(MAX_SERVERS)]);
            prop_assert!(is_ours(written.as_bytes()));
            // Writing it again changes nothing.
            prop_assert_eq!(rewrite(&written, &wanted), written);
        }
    }
}
