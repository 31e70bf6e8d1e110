//! Impossible travel: a subject in two places that are too far apart for the time between.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Detector, Finding};

/// Nothing that carries people goes faster, in km/h: an airliner with the wind behind it.
const FASTEST: f64 = 1_000.0;
/// Places nearer to each other than this are one, in km: databases of addresses are no better, and mobile networks route far.
const NEAR: f64 = 500.0;
/// How wrong a place may be when nothing is said of it, in km.
const USUAL_ERROR: f64 = 100.0;
/// The radius of the earth, in km.
const EARTH: f64 = 6_371.0;

/// Where an address is, as far as is known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Place {
    /// Degrees north.
    pub latitude: f64,
    /// Degrees east.
    pub longitude: f64,
    /// Within how many km of that.
    pub accuracy_km: Option<u32>,
    /// Its name for people: a city, or a country.
    pub name: String,
}

/// Where a subject was last.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    last: Option<(Timestamp, Place)>,
}

/// The distance of two places along the surface, in km (haversine).
pub fn distance(a: &Place, b: &Place) -> f64 {
    let (from, to) = (a.latitude.to_radians(), b.latitude.to_radians());
    let (north, east) = ((to - from) / 2.0, (b.longitude - a.longitude).to_radians() / 2.0);
    let chord = north.sin().powi(2) + from.cos() * to.cos() * east.sin().powi(2);
    2.0 * EARTH * chord.clamp(0.0, 1.0).sqrt().asin()
}

/// Takes in where a subject is.
pub fn observe(baseline: &mut Baseline, place: &Place, now: Timestamp) -> Option<Finding> {
    if !(place.latitude.is_finite() && place.longitude.is_finite()) {
        return None;
    }
    let before = baseline.last.replace((now, place.clone()));
    let (then, was) = before?;
    let error = |place: &Place| place.accuracy_km.map_or(USUAL_ERROR, f64::from);
    let away = distance(&was, place);
    let certain = away - error(&was) - error(place);
    if away < NEAR || certain < NEAR {
        return None;
    }
    let hours = now.duration_since(then).as_secs_f64().max(1.0) / 3600.0;
    let speed = certain / hours;
    if speed <= FASTEST {
        return None;
    }
    let confidence = match speed / FASTEST {
        ..1.5 => 60,
        1.5..3.0 => 80,
        3.0..6.0 => 90,
        _ => 95,
    };
    // The way back is the same way.
    let (here, there) = (was.name.as_str().min(&place.name), was.name.as_str().max(&place.name));
    Some(Finding {
        detector: Detector::ImpossibleTravel,
        confidence,
        feature: format!("{here} - {there}"),
        magnitude: 0,
        baseline: json!({ "place": was.name, "at": then }),
        observed: json!({ "place": place.name, "at": now, "km": away.round(), "kmPerHour": speed.round() }),
        words: format!(
            "was in {} and {} later in {}, {away:.0} km away",
            was.name,
            minutes(hours * 60.0),
            place.name
        ),
    })
}

fn minutes(minutes: f64) -> String {
    if minutes < 120.0 { format!("{minutes:.0} min") } else { format!("{:.0} h", minutes / 60.0) }
}
