//! A place, and what of it is a factor of an identity.

use std::collections::BTreeMap;

use horizon_model::{Factor, FactorKind};
use serde::Deserialize;

/// The longest name that is taken from a database, in characters.
const MAX_NAME: usize = 96;

/// Where an address is. What is not known is `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Place {
    /// The country: two capital letters (ISO 3166-1).
    pub country: Option<String>,
    /// The city, in English.
    pub city: Option<String>,
    /// Degrees north, from -90 to 90.
    pub lat: Option<f64>,
    /// Degrees east, from -180 to 180.
    pub lon: Option<f64>,
    /// The number of the autonomous system that the address belongs to.
    pub asn: Option<u32>,
    /// Whose that is.
    pub organization: Option<String>,
}

/// What the files of MaxMind and of those who use its format say of an address.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Record {
    country: Country,
    city: City,
    location: Position,
    autonomous_system_number: Option<u32>,
    autonomous_system_organization: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Country {
    iso_code: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct City {
    names: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Position {
    latitude: Option<f64>,
    longitude: Option<f64>,
}

fn name(text: &str) -> Option<String> {
    let text: String = text.chars().filter(|c| !c.is_control()).take(MAX_NAME).collect();
    Some(text.trim().to_owned()).filter(|t| !t.is_empty())
}

impl Place {
    /// Takes what is not known yet from a record.
    pub(super) fn fill(&mut self, record: Record) {
        let code = |code: &String| code.len() == 2 && code.bytes().all(|b| b.is_ascii_uppercase());
        let degrees = |value: Option<f64>, most: f64| value.filter(|v| v.is_finite() && v.abs() <= most);
        if self.country.is_none() {
            self.country = record.country.iso_code.filter(code);
        }
        if self.city.is_none() {
            self.city = record
                .city
                .names
                .into_iter()
                .find(|(language, _)| language == "en")
                .and_then(|(_, n)| name(&n));
        }
        if self.lat.is_none() {
            let lat = degrees(record.location.latitude, 90.0);
            let lon = degrees(record.location.longitude, 180.0);
            // Half a position is none.
            (self.lat, self.lon) = lat.zip(lon).unzip();
        }
        if self.asn.is_none() {
            self.asn = record.autonomous_system_number;
            self.organization = record.autonomous_system_organization.and_then(|text| name(&text));
        }
    }

    /// What of it is part of an identity.
    pub fn factors(&self) -> Vec<Factor> {
        let asn = self.asn.map(|asn| match &self.organization {
            Some(organization) => format!("AS{asn} {organization}"),
            None => format!("AS{asn}"),
        });
        let all = [("country", self.country.clone()), ("city", self.city.clone()), ("asn", asn)];
        let factor = |(name, value): (&str, Option<String>)| {
            Some(Factor { kind: FactorKind::Geolocation, name: name.to_owned(), value: value? })
        };
        all.into_iter().filter_map(factor).collect()
    }
}
