//! Logins over SSH, which a new default route must not cut off.

use std::net::IpAddr;

/// The far end of the login that a value of `SSH_CONNECTION` describes (client address, client port, server address,
/// server port); `None` when it is anything else.
pub fn peer(ssh_connection: &str) -> Option<IpAddr> {
    let mut words = ssh_connection.split_ascii_whitespace();
    let address = words.next()?;
    // An IPv6 link-local address carries its zone, as in fe80::1%eth0.
    let peer: IpAddr = address.split('%').next()?.parse().ok()?;
    let port = |word: Option<&str>| word.and_then(|w| w.parse::<u16>().ok());
    port(words.next())?;
    words.next()?;
    port(words.next())?;
    words.next().is_none().then(|| peer.to_canonical())
}

/// The far ends of established TCP connections to a local port, from the text of `/proc/net/tcp` or `/proc/net/tcp6`.
pub fn established(table: &str, local_port: u16) -> Vec<IpAddr> {
    const ESTABLISHED: &str = "01";
    let mut peers: Vec<IpAddr> = table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace().skip(1);
            let (local, remote, state) = (words.next()?, words.next()?, words.next()?);
            let port = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
            (port == local_port && state == ESTABLISHED).then_some(())?;
            hex_address(remote.rsplit_once(':')?.0)
        })
        .collect();
    peers.sort();
    peers.dedup();
    peers
}

/// An address as the kernel prints it: 32-bit words in the byte order of the machine.
fn hex_address(text: &str) -> Option<IpAddr> {
    let word = |i: usize| u32::from_str_radix(text.get(i * 8..i * 8 + 8)?, 16).ok().map(u32::to_ne_bytes);
    match text.len() {
        8 => Some(IpAddr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?];
            let bytes: [u8; 16] = words.concat().try_into().ok()?;
            Some(IpAddr::from(bytes).to_canonical())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_far_end_is_found() {
        for (text, expected) in [
            ("192.0.2.7 50122 198.51.100.1 22", Some("192.0.2.7")),
            ("2001:db8::7 50122 2001:db8::1 22", Some("2001:db8::7")),
            ("::ffff:192.0.2.7 50122 ::ffff:198.51.100.1 22", Some("192.0.2.7")),
            ("fe80::1%eth0 50122 fe80::2%eth0 22", Some("fe80::1")),
            ("", None),
            ("192.0.2.7", None),
            ("192.0.2.7 x 198.51.100.1 22", None),
            ("host 50122 198.51.100.1 22", None),
            ("192.0.2.7 50122 198.51.100.1 22 more", None),
        ] {
            assert_eq!(peer(text), expected.map(|e| e.parse().unwrap()), "{text}");
        }
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn established_logins_are_found_in_the_kernels_tables() {
        let tcp = "  sl  local_address rem_address   st tx_queue rx_queue\n\
                   0: 0100007F:0016 00000000:0000 0A 00000000:00000000\n\
                   1: 016433C6:0016 070200C0:C3CA 01 00000000:00000000\n\
                   2: 016433C6:0050 080200C0:C3CA 01 00000000:00000000\n";
        assert_eq!(established(tcp, 22), ["192.0.2.7".parse::<IpAddr>().unwrap()]);
        let tcp6 = "header\n0: B80D0120000000000000000001000000:0016 B80D0120000000000000000007000000:C3CA 01 0\n\
                    1: 0000000000000000FFFF0000016433C6:0016 0000000000000000FFFF0000070200C0:C3CA 01 0\n";
        let expected: Vec<IpAddr> = ["192.0.2.7", "2001:db8::7"].map(|t| t.parse().unwrap()).to_vec();
        assert_eq!(established(tcp6, 22), expected);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,80}", port in any::<u16>()) {
            let _ = peer(&text);
            let _ = established(&text, port);
            let _ = established(&format!("x\n0: {text} {text} 01"), port);
        }
    }
}
