//! Writes small database files in MaxMind's format (<https://maxmind.github.io/MaxMind-DB/>), for tests.

/// What is said of a network.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Entry {
    /// The country's code.
    pub(crate) country: Option<&'static str>,
    /// The city's English name.
    pub(crate) city: Option<&'static str>,
    /// Latitude and longitude.
    pub(crate) position: Option<(f64, f64)>,
    /// Number and name of the autonomous system.
    pub(crate) asn: Option<(u32, &'static str)>,
}

/// Where a branch of the tree leads.
#[derive(Clone, Copy)]
enum Branch {
    Nothing,
    Node(usize),
    Data(usize),
}

/// A file that knows these networks. IPv4 is below `::/96`, as in real files.
pub(crate) fn write(networks: &[(&str, Entry)]) -> Vec<u8> {
    let (mut nodes, mut data) = (vec![[Branch::Nothing; 2]], Vec::new());
    for (network, entry) in networks {
        let (bits, length) = parse(network);
        let offset = data.len();
        encode(entry, &mut data);
        let mut node = 0;
        for i in 0..length {
            let side = usize::from(bits[i / 8] >> (7 - i % 8) & 1);
            if i + 1 == length {
                nodes[node][side] = Branch::Data(offset);
                break;
            }
            node = match nodes[node][side] {
                Branch::Node(next) => next,
                _ => {
                    nodes.push([Branch::Nothing; 2]);
                    let next = nodes.len() - 1;
                    nodes[node][side] = Branch::Node(next);
                    next
                }
            };
        }
    }
    let count = nodes.len();
    let mut file = Vec::new();
    for branch in nodes.into_iter().flatten() {
        let value = match branch {
            Branch::Nothing => count,
            Branch::Node(node) => node,
            Branch::Data(offset) => count + 16 + offset,
        };
        file.extend_from_slice(&u32::try_from(value).unwrap().to_be_bytes()[1..]);
    }
    file.extend_from_slice(&[0; 16]);
    file.extend_from_slice(&data);
    file.extend_from_slice(b"\xab\xcd\xefMaxMind.com");
    map(9, &mut file);
    for (key, value) in [("binary_format_major_version", 2), ("binary_format_minor_version", 0)] {
        string(key, &mut file);
        number(5, value, &mut file);
    }
    string("build_epoch", &mut file);
    file.extend_from_slice(&[1, 2, 1]);
    string("database_type", &mut file);
    string("Test-City", &mut file);
    string("description", &mut file);
    map(0, &mut file);
    string("ip_version", &mut file);
    number(5, 6, &mut file);
    string("languages", &mut file);
    file.extend_from_slice(&[0, 4]);
    string("node_count", &mut file);
    number(6, u32::try_from(count).unwrap(), &mut file);
    string("record_size", &mut file);
    number(5, 24, &mut file);
    file
}

/// The bits of a network as IPv6, and how many of them count.
fn parse(network: &str) -> ([u8; 16], usize) {
    let (address, length) = network.split_once('/').unwrap();
    let length: usize = length.parse().unwrap();
    match address.parse().unwrap() {
        std::net::IpAddr::V6(v6) => (v6.octets(), length),
        std::net::IpAddr::V4(v4) => {
            let mut bits = [0; 16];
            bits[12..].copy_from_slice(&v4.octets());
            (bits, 96 + length)
        }
    }
}

fn encode(entry: &Entry, out: &mut Vec<u8>) {
    let parts = [entry.country.is_some(), entry.city.is_some(), entry.position.is_some()];
    map(parts.iter().filter(|p| **p).count() + 2 * usize::from(entry.asn.is_some()), out);
    if let Some(code) = entry.country {
        string("country", out);
        map(1, out);
        string("iso_code", out);
        string(code, out);
    }
    if let Some(city) = entry.city {
        string("city", out);
        map(1, out);
        string("names", out);
        map(1, out);
        string("en", out);
        string(city, out);
    }
    if let Some((latitude, longitude)) = entry.position {
        string("location", out);
        map(2, out);
        for (name, value) in [("latitude", latitude), ("longitude", longitude)] {
            string(name, out);
            out.push(3 << 5 | 8);
            out.extend_from_slice(&f64::to_be_bytes(value));
        }
    }
    if let Some((asn, organization)) = entry.asn {
        string("autonomous_system_number", out);
        number(6, asn, out);
        string("autonomous_system_organization", out);
        string(organization, out);
    }
}

fn map(pairs: usize, out: &mut Vec<u8>) {
    out.push(7 << 5 | u8::try_from(pairs).unwrap());
}

fn string(text: &str, out: &mut Vec<u8>) {
    match text.len() {
        short @ 0..29 => out.push(2 << 5 | u8::try_from(short).unwrap()),
        long => out.extend_from_slice(&[2 << 5 | 29, u8::try_from(long - 29).unwrap()]),
    }
    out.extend_from_slice(text.as_bytes());
}

fn number(kind: u8, value: u32, out: &mut Vec<u8>) {
    let bytes = value.to_be_bytes();
    let from = bytes.iter().position(|b| *b != 0).unwrap_or(bytes.len());
    out.push(kind << 5 | u8::try_from(bytes.len() - from).unwrap());
    out.extend_from_slice(&bytes[from..]);
}
