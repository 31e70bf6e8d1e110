//! Labelled traces: what ordinary subjects do, generated from seeds, and what attackers do. On the ordinary ones each
//! detector stays within its stated bound of false alarms; of the others it finds what it says it finds. The bounds are
//! those of docs/detection.md.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};

use super::{
    Detector, Feedback, Finding, Verdict, capability, country, force, heartbeat, judge, session,
    travel::{self, Place},
    volume,
};

/// The least confidence that is recorded by default.
const MINIMUM: u8 = 50;
/// Subjects of each kind of ordinary trace.
const SUBJECTS: u64 = 40;

/// SplitMix64: reproducible, and good enough for this.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn part(&mut self) -> f64 {
        self.below(1 << 20) as f64 / f64::from(1 << 20)
    }

    /// Roughly normal: the sum of twelve.
    fn normal(&mut self, middle: f64, spread: f64) -> f64 {
        middle + spread * ((0..12).map(|_| self.part()).sum::<f64>() - 6.0)
    }
}

fn start() -> Timestamp {
    // A Monday at midnight.
    "2026-01-05T00:00:00Z".parse().unwrap()
}

fn after(seconds: f64) -> Timestamp {
    start() + SignedDuration::from_millis((seconds * 1000.0) as i64)
}

fn reported(found: Option<Finding>) -> Option<Finding> {
    judge(found?, &Feedback::default(), MINIMUM)
}

/// What an administrator says of a finding.
fn said(finding: &Finding, false_positive: bool) -> Feedback {
    let verdict = Verdict { false_positive, magnitude: finding.magnitude };
    Feedback([(finding.feature.clone(), verdict)].into())
}

/// A finding of the same kind once a false positive changes nothing else, and is not reported again.
fn an_administrator_can_silence(found: &Finding) {
    assert_eq!(judge(found.clone(), &said(found, true), MINIMUM), None, "{found:?}");
    let confirmed = judge(found.clone(), &said(found, false), MINIMUM).unwrap();
    assert!(confirmed.confidence > found.confidence || confirmed.confidence == 99, "{found:?}");
    // What is said of one subject is not said of another: theirs has no feedback.
    assert!(judge(found.clone(), &Feedback::default(), MINIMUM).is_some());
}

const CITIES: [(&str, &str, f64, f64); 12] = [
    ("Berlin", "DE", 52.5, 13.4),
    ("Munich", "DE", 48.1, 11.6),
    ("Paris", "FR", 48.9, 2.4),
    ("London", "GB", 51.5, -0.1),
    ("Warsaw", "PL", 52.2, 21.0),
    ("Madrid", "ES", 40.4, -3.7),
    ("New York", "US", 40.7, -74.0),
    ("Seattle", "US", 47.6, -122.3),
    ("Tokyo", "JP", 35.7, 139.7),
    ("Sydney", "AU", -33.9, 151.2),
    ("Auckland", "NZ", -36.8, 174.8),
    ("Cape Town", "ZA", -33.9, 18.4),
];

fn place(city: usize, chance: &mut Chance) -> Place {
    let (name, _, latitude, longitude) = CITIES[city];
    Place {
        latitude: chance.normal(latitude, 0.15),
        longitude: chance.normal(longitude, 0.15),
        accuracy_km: Some(20 + u32::try_from(chance.below(80)).unwrap()),
        name: name.into(),
    }
}

/// A year of somebody: at home, at times elsewhere, reached as fast as airliners go.
fn itinerary(seed: u64) -> Vec<(Timestamp, usize)> {
    let mut chance = Chance(seed);
    let home = usize::try_from(chance.below(6)).unwrap();
    let travels = chance.below(20);
    let (mut at, mut here, mut visits) = (0.0, home, Vec::new());
    while at < 365.0 * 86_400.0 {
        visits.push((after(at), here));
        at += 3600.0 * chance.normal(12.0, 2.0).max(0.5);
        if chance.below(100) < travels {
            let there = if here == home { usize::try_from(chance.below(12)).unwrap() } else { home };
            let (from, to) = (place(here, &mut Chance(1)), place(there, &mut Chance(1)));
            at += travel::distance(&from, &to) / 880.0 * 3600.0;
            here = there;
        }
    }
    visits
}

#[test]
fn ordinary_travel_is_possible() {
    // Bound: none. Whoever goes no faster than an airliner is never told of.
    for seed in 0..SUBJECTS {
        let (mut baseline, mut chance) = (travel::Baseline::default(), Chance(seed));
        for (at, city) in itinerary(seed) {
            let found = travel::observe(&mut baseline, &place(city, &mut chance), at);
            assert_eq!(found, None, "subject {seed}");
        }
    }
}

#[test]
fn impossible_travel_is_found() {
    // Bound: every stolen key that is used beyond 1,500 km within an hour.
    for seed in 0..SUBJECTS {
        let (mut baseline, mut chance) = (travel::Baseline::default(), Chance(seed));
        let home = usize::try_from(chance.below(6)).unwrap();
        for day in 0..10 {
            let home = place(home, &mut chance);
            assert_eq!(travel::observe(&mut baseline, &home, after(f64::from(day) * 43_200.0)), None);
        }
        let away = 6 + usize::try_from(chance.below(6)).unwrap();
        let at = after(9.0 * 43_200.0 + 60.0 + chance.part() * 3540.0);
        let found = reported(travel::observe(&mut baseline, &place(away, &mut chance), at)).unwrap();
        assert_eq!(found.detector, Detector::ImpossibleTravel);
        an_administrator_can_silence(&found);
        // The way back is the same finding.
        let back = at + SignedDuration::from_mins(5);
        let back = travel::observe(&mut baseline, &place(home, &mut chance), back).unwrap();
        assert_eq!(back.feature, found.feature);
    }
}

#[test]
fn places_that_cannot_be_are_ignored() {
    let mut baseline = travel::Baseline::default();
    let nowhere = Place { latitude: f64::NAN, longitude: f64::INFINITY, accuracy_km: None, name: "?".into() };
    assert_eq!(travel::observe(&mut baseline, &nowhere, after(0.0)), None);
    assert_eq!(baseline, travel::Baseline::default());
}

#[test]
fn new_countries_are_told_once_each_and_seldom_of_those_who_travel() {
    // Bound: at most one for each country a person comes to, and fewer than 1 in 120 sightings.
    let (mut sightings, mut findings) = (0, 0);
    for seed in 0..SUBJECTS {
        let mut baseline = country::Baseline::default();
        let mut told = BTreeSet::new();
        for (at, city) in itinerary(seed) {
            sightings += 1;
            if let Some(found) = reported(country::observe(&mut baseline, CITIES[city].1, at)) {
                findings += 1;
                assert!(told.insert(found.feature.clone()), "{} was told twice", found.feature);
            }
        }
    }
    assert!(findings * 120 < sightings, "{findings} of {sightings}");
}

#[test]
fn a_country_of_an_attacker_is_found() {
    // Bound: every one, of people who were seen at least ten times in at most two countries.
    for seed in 0..SUBJECTS {
        let (mut baseline, mut chance) = (country::Baseline::default(), Chance(seed));
        let homes = ["DE", ["DE", "FR"][usize::try_from(chance.below(2)).unwrap()]];
        for day in 0..10 + chance.below(200) {
            let here = homes[usize::try_from(chance.below(2)).unwrap()];
            // The second one is itself new once.
            let _ = country::observe(&mut baseline, here, after(day as f64 * 86_400.0));
        }
        let at = after(300.0 * 86_400.0);
        let found = reported(country::observe(&mut baseline, "KP", at)).unwrap();
        an_administrator_can_silence(&found);
        assert_eq!(country::observe(&mut baseline, "KP", at), None, "from then on it is known");
    }
}

fn beats(seed: u64, count: u32, jitter: f64, lost: u64) -> impl Iterator<Item = heartbeat::Beat> {
    let mut chance = Chance(seed);
    let (mut at, skew) = (0.0, chance.normal(0.0, 5.0));
    (0..count).map(move |_| {
        at += if chance.below(1000) < lost { 60.0 } else { 30.0 };
        let late = chance.normal(0.3, jitter).abs();
        heartbeat::Beat { at: after(at + late), sender: after(at + skew + 1.0), interval: 30_000 }
    })
}

#[test]
fn ordinary_heartbeats_are_regular() {
    // Bound: fewer than 1 in 20,000 beats, on links that delay by seconds and lose one beat in fifty.
    let mut findings = 0;
    for seed in 0..SUBJECTS {
        let mut baseline = heartbeat::Baseline::default();
        for beat in beats(seed, 2_000, 0.2 + (seed % 10) as f64 / 3.0, seed % 20) {
            findings += u64::from(reported(heartbeat::observe(&mut baseline, beat)).is_some());
        }
    }
    assert!(findings * 20_000 < SUBJECTS * 2_000, "{findings} of {}", SUBJECTS * 2_000);
}

#[test]
fn irregular_heartbeats_and_clocks_that_jump_are_found() {
    // Bound: within twelve beats, every sender that turns to random times; every clock that jumps by a minute, at once.
    for seed in 0..SUBJECTS {
        let mut chance = Chance(seed);
        let mut baseline = heartbeat::Baseline::default();
        let mut last = start();
        for beat in beats(seed, 60, 0.3, 0) {
            assert_eq!(heartbeat::observe(&mut baseline, beat), None);
            last = beat.at;
        }
        let mut jumped = baseline.clone();
        let beat = |at: Timestamp, ahead| heartbeat::Beat {
            at,
            sender: at + SignedDuration::from_secs(ahead),
            interval: 30_000,
        };
        let found = reported(heartbeat::observe(
            &mut jumped,
            beat(last + SignedDuration::from_secs(30), if seed % 2 == 0 { 90 } else { -4000 }),
        ))
        .unwrap();
        assert_eq!(found.feature, "clock");
        an_administrator_can_silence(&found);
        let found = (0..12).find_map(|_| {
            let wait =
                if chance.below(2) == 0 { 2.0 + chance.part() * 8.0 } else { 50.0 + chance.part() * 90.0 };
            last += SignedDuration::from_millis((wait * 1000.0) as i64);
            reported(heartbeat::observe(&mut baseline, beat(last, 0)))
        });
        let found = found.unwrap_or_else(|| panic!("sender {seed} was not found"));
        assert_eq!(found.feature, "interval");
        an_administrator_can_silence(&found);
    }
}

fn report(capabilities: &[&str], version: &str) -> capability::Report {
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    capability::Report {
        capabilities: set(capabilities),
        declared: set(&["vpn", "lan_emulation"]),
        version: version.into(),
    }
}

#[test]
fn ordinary_appliances_keep_what_they_can_do() {
    // Bound: none of those that change what they can do only with a new version, as declared.
    for seed in 0..SUBJECTS {
        let mut chance = Chance(seed);
        let mut baseline = capability::Baseline::default();
        let (mut now, mut version) = (report(&["vpn"], "1"), 1);
        for day in 0..200 {
            if chance.below(30) == 0 {
                version += 1;
                let can: &[&str] = if chance.below(2) == 0 { &["vpn"] } else { &["vpn", "lan_emulation"] };
                now = report(can, &version.to_string());
            }
            let found = capability::observe(&mut baseline, &now, after(f64::from(day) * 86_400.0));
            assert_eq!(reported(found), None, "appliance {seed}");
        }
    }
}

#[test]
fn changed_capabilities_are_found() {
    // Bound: every one without a new version, every undeclared one, and every fifth change within a day.
    let before = report(&["vpn"], "1");
    let cases = [
        (report(&["vpn", "relay"], "1"), "+relay-", 90),
        (report(&["vpn", "relay"], "2"), "+relay-", 90),
        (report(&["vpn", "lan_emulation"], "1"), "+lan_emulation-", 60),
        (report(&[], "1"), "+-vpn", 55),
    ];
    for (now, feature, confidence) in cases {
        let mut baseline = capability::Baseline::default();
        assert_eq!(capability::observe(&mut baseline, &before, after(0.0)), None);
        let found = reported(capability::observe(&mut baseline, &now, after(60.0))).unwrap();
        assert_eq!((found.feature.as_str(), found.confidence), (feature, confidence));
        an_administrator_can_silence(&found);
    }
    let mut baseline = capability::Baseline::default();
    let found: Vec<_> = (0..6)
        .filter_map(|i| {
            let version = i.to_string();
            let now = if i % 2 == 0 { report(&["vpn"], &version) } else { report(&[], &version) };
            reported(capability::observe(&mut baseline, &now, after(f64::from(i) * 600.0)))
        })
        .collect();
    assert_eq!(found.iter().map(|f| f.feature.as_str()).collect::<Vec<_>>(), ["flapping"]);
    an_administrator_can_silence(&found[0]);
}

const THRESHOLD: force::Threshold = force::Threshold { failures: 20, window: 600_000 };

fn tries(count: u32, other: Option<u64>) -> force::Tries {
    force::Tries { count, other: other.map(|other| other.to_string()) }
}

#[test]
fn people_who_mistype_are_no_brute_force() {
    // Bound: none, of offices of 50 people behind one address who mistype up to thrice each in an hour of the morning.
    for seed in 0..SUBJECTS {
        let mut chance = Chance(seed);
        let mut baseline = force::Baseline::default();
        for day in 0..30 {
            let mut morning: Vec<f64> = (0..50)
                .flat_map(|_| {
                    let at = chance.part() * 3600.0;
                    // One in eight mistypes at all.
                    let times = if chance.below(8) == 0 { 1 + chance.below(3) } else { 0 };
                    (0..times).map(move |i| at + i as f64 * 15.0).collect::<Vec<_>>()
                })
                .collect();
            morning.sort_by(f64::total_cmp);
            for at in morning {
                let at = after(f64::from(day) * 86_400.0 + 28_800.0 + at);
                let found = force::observe(&mut baseline, "address", &tries(1, None), THRESHOLD, at);
                assert_eq!(found, None, "office {seed}");
            }
        }
    }
}

#[test]
fn brute_force_is_found() {
    // Bound: every address or key with more than 20 failures within five minutes, before the thirtieth.
    for seed in 0..SUBJECTS {
        let mut chance = Chance(seed);
        let mut baseline = force::Baseline::default();
        let (mut at, mut found) = (0.0, None);
        for n in 1..=30 {
            at += chance.part() * 10.0;
            let other = chance.below(100);
            found =
                reported(force::observe(&mut baseline, "key", &tries(1, Some(other)), THRESHOLD, after(at)));
            if found.is_some() {
                assert!(n >= 20);
                break;
            }
        }
        an_administrator_can_silence(&found.unwrap());
        // It is not told for every one that follows, but when there are many more.
        let more = force::observe(&mut baseline, "key", &tries(1, None), THRESHOLD, after(at));
        assert_eq!(more, None);
        let storm = force::observe(&mut baseline, "key", &tries(10_000, None), THRESHOLD, after(at)).unwrap();
        assert_eq!((storm.confidence, storm.magnitude > 10_000), (95, true));
        // It fades.
        let later = after(at + 86_400.0);
        assert_eq!(force::observe(&mut baseline, "key", &tries(1, None), THRESHOLD, later), None);
    }
}

/// Half a year of somebody's sessions: when each began, and for how many seconds it lasted.
fn days_of_work(seed: u64) -> Vec<(Timestamp, u64)> {
    let mut chance = Chance(seed);
    let morning = chance.normal(8.5, 1.5);
    let many = 1 + chance.below(4);
    let mut sessions = Vec::new();
    for day in 0..180_u64 {
        if day % 7 >= 5 && chance.below(10) > 0 {
            continue;
        }
        let count = (many + chance.below(3)).saturating_sub(1).max(1);
        for i in 0..count {
            // One in fifty at an hour of its own.
            let hour = if chance.below(50) == 0 {
                chance.part() * 24.0
            } else {
                chance.normal(morning + i as f64 * 8.0 / count as f64, 0.7)
            };
            let seconds = (chance.normal(7.5, 1.0).exp() + 60.0) as u64;
            sessions.push((after(day as f64 * 86_400.0 + hour.clamp(0.0, 23.99) * 3600.0), seconds));
        }
    }
    sessions.sort();
    sessions
}

#[test]
fn ordinary_sessions_are_usual() {
    // Bound: fewer than 1 in 400 sessions.
    let (mut sessions, mut findings) = (0_u64, 0_u64);
    for seed in 0..SUBJECTS {
        let mut baseline = session::Baseline::default();
        for (at, seconds) in days_of_work(seed) {
            sessions += 1;
            findings += u64::from(reported(session::began(&mut baseline, at)).is_some());
            findings += u64::from(reported(session::ended(&mut baseline, seconds)).is_some());
        }
    }
    assert!(findings * 400 < sessions, "{findings} of {sessions}");
}

#[test]
fn unusual_sessions_are_found() {
    // Bound: each night of at least 20 sessions of somebody who works by day, each session of three days, of at least 95 %.
    let (mut nights, mut long) = (0, 0);
    for seed in 0..SUBJECTS {
        let mut baseline = session::Baseline::default();
        for (at, seconds) in days_of_work(seed) {
            session::began(&mut baseline, at);
            session::ended(&mut baseline, seconds);
        }
        let midnight = 190.0 * 86_400.0;
        let mut longer = baseline.clone();
        let found = (0..20)
            .find_map(|i| reported(session::began(&mut baseline, after(midnight + f64::from(i) * 600.0))));
        if let Some(found) = found {
            an_administrator_can_silence(&found);
            nights += 1;
        }
        if let Some(found) = reported(session::ended(&mut longer, 3 * 86_400)) {
            an_administrator_can_silence(&found);
            long += 1;
        }
        // An hour alone is told of people of whom it was confirmed before, and of nobody else.
        let mut night = longer.clone();
        if let Some(found) = session::began(&mut night, after(midnight + 3.0 * 3600.0)) {
            assert_eq!(judge(found.clone(), &Feedback::default(), MINIMUM), None);
            assert!(judge(found.clone(), &said(&found, false), MINIMUM).is_some());
        }
    }
    assert!(nights * 100 >= SUBJECTS * 95, "{nights} nights");
    assert!(long * 100 >= SUBJECTS * 95, "{long} long sessions");
}

/// Two months of what somebody moves: mostly a little, at times a film or a backup.
fn windows(seed: u64) -> impl Iterator<Item = u64> {
    let mut chance = Chance(seed);
    let usual = chance.normal(16.5, 1.2);
    (0..500).map(move |_| {
        let octaves =
            if chance.below(40) == 0 { chance.normal(usual + 5.0, 1.0) } else { chance.normal(usual, 1.3) };
        octaves.clamp(8.0, 40.0).exp2() as u64 * 64
    })
}

#[test]
fn ordinary_traffic_is_usual() {
    // Bound: fewer than 1 in 2,000 windows of ten minutes.
    let (mut seen, mut findings) = (0_u64, 0_u64);
    for seed in 0..SUBJECTS {
        let mut baseline = volume::Baseline::default();
        for bytes in windows(seed) {
            seen += 1;
            findings += u64::from(reported(volume::observe(&mut baseline, bytes)).is_some());
        }
    }
    assert!(findings * 2_000 < seen, "{findings} of {seen}");
}

#[test]
fn exfiltration_is_found() {
    // Bound: at least 95 % of the windows in which somebody moves 64 GiB, and no second word about the same.
    let mut found_all = 0;
    for seed in 0..SUBJECTS {
        let mut baseline = volume::Baseline::default();
        for bytes in windows(seed) {
            volume::observe(&mut baseline, bytes);
        }
        let Some(found) = reported(volume::observe(&mut baseline, 64 << 30)) else { continue };
        found_all += 1;
        an_administrator_can_silence(&found);
        assert_eq!(volume::observe(&mut baseline, 64 << 30), None);
        // A false positive holds up to what was seen, not beyond.
        let mut beyond = volume::Baseline::default();
        windows(seed).for_each(|bytes| drop(volume::observe(&mut beyond, bytes)));
        let more = volume::observe(&mut beyond, 512 << 30).unwrap();
        assert!(judge(more, &said(&found, true), MINIMUM).is_some());
    }
    assert!(found_all * 100 >= SUBJECTS * 95, "{found_all} of {SUBJECTS}");
}
