//! Anomalies: what detectors found, on what ground, and what administrators said of it. A fact is taken in by one
//! transaction: the baseline it changes, and all that follows from what is found.

use std::net::IpAddr;

use horizon_controller_core::detect::{
    Detector, Feedback, Finding, Grade, Response, Verdict, judge, respond,
};
use horizon_crds::DetectionSpec;
use horizon_model::{DeviceId, ServerId};
use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    Actor, Store, StoreError,
    audit::{self, Record},
    block::{self, BlockSeverity, BlockSource, NewBlock},
    dialect::{Connection, Row, query},
    event::{self, NewEvent, Severity, Source},
    flag,
    row::{Columns as _, millis},
};
use crate::live::party;

/// The most verdicts of a subject that are looked at.
const MOST_VERDICTS: u32 = 256;
/// For how long baselines of addresses are kept that nothing more is heard of.
const ADDRESSES: SignedDuration = SignedDuration::from_hours(7 * 24);
/// The same of everything else.
const BASELINES: SignedDuration = SignedDuration::from_hours(400 * 24);

/// What a subject is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the words say it all")]
pub enum SubjectKind {
    Server,
    User,
    Device,
    Address,
    Key,
}

impl SubjectKind {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::User => "user",
            Self::Device => "device",
            Self::Address => "address",
            Self::Key => "key",
        }
    }

    /// As the audit trail names it.
    pub(super) fn resource(self) -> &'static str {
        match self {
            Self::Server => "Server",
            Self::User => "User",
            Self::Device => "Device",
            Self::Address => "Address",
            Self::Key => "PersonalKey",
        }
    }

    fn component(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::User | Self::Device => "client",
            Self::Address | Self::Key => "authentication",
        }
    }
}

/// What a fact is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Subject {
    /// What it is.
    pub kind: SubjectKind,
    /// Its identifier; of an address, its text.
    pub id: String,
    /// Its name for people.
    pub name: String,
}

impl Subject {
    /// A server.
    pub fn server(id: ServerId, name: impl Into<String>) -> Self {
        Self { kind: SubjectKind::Server, id: id.to_string(), name: name.into() }
    }

    /// A user.
    pub fn user(id: Uuid, name: impl Into<String>) -> Self {
        Self { kind: SubjectKind::User, id: id.to_string(), name: name.into() }
    }

    /// What one party holds of the addresses.
    pub fn address(address: IpAddr) -> Self {
        let party = party(address).to_string();
        Self { kind: SubjectKind::Address, id: party.clone(), name: party }
    }

    /// A key, by its identifier.
    pub fn key(id: Uuid) -> Self {
        Self { kind: SubjectKind::Key, id: id.to_string(), name: id.to_string() }
    }

    fn source(&self) -> Source {
        match (self.kind, self.id.parse::<Uuid>()) {
            (SubjectKind::Server, Ok(id)) => Source::Server(ServerId(id)),
            (SubjectKind::Device, Ok(id)) => Source::Device(DeviceId(id)),
            (SubjectKind::User | SubjectKind::Key, Ok(id)) => Source::Resource(id),
            _ => Source::Unknown,
        }
    }
}

/// A fact to be taken in.
#[derive(Clone, Copy, Debug)]
pub struct Look<'a> {
    /// By which detector.
    pub detector: Detector,
    /// About what.
    pub subject: &'a Subject,
    /// From where it came, where that is known.
    pub address: Option<IpAddr>,
    /// What is told, flagged and blocked.
    pub policy: &'a DetectionSpec,
}

/// What was found and done.
#[derive(Clone, Debug, PartialEq)]
pub struct Noted {
    /// The number of the anomaly.
    pub id: i64,
    /// What was found.
    pub finding: Finding,
    /// Whether the subject was flagged by it.
    pub flagged: bool,
    /// The range that was blocked by it.
    pub blocked: Option<IpNet>,
}

/// A recorded anomaly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Anomaly {
    /// Its number.
    pub id: i64,
    /// When it was found.
    #[schema(value_type = String)]
    pub time: Timestamp,
    /// By which detector.
    #[serde(rename = "type")]
    pub kind: String,
    /// `server`, `client` or `authentication`.
    pub component: String,
    /// `server`, `user`, `device`, `address` or `key`.
    pub subject_type: String,
    /// The identifier of what it is about.
    pub subject_id: String,
    /// Its name.
    pub subject: String,
    /// What exactly is unusual.
    pub feature: String,
    /// How sure the detector was, in percent.
    pub confidence: u8,
    /// What is usual.
    #[schema(value_type = Object)]
    pub baseline: Value,
    /// What was seen.
    #[schema(value_type = Object)]
    pub observed: Value,
    /// The same in words.
    pub description: String,
    /// What was said of it: `false positive` or `confirmed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
    /// When.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub addressed_at: Option<Timestamp>,
    /// By whom.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub addressed_by: Option<String>,
    /// What was done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolution: Option<String>,
}

impl Store {
    /// Takes a fact in: `look` changes the baseline, and says what of the fact is out of the ordinary. What administrators said
    /// before is heeded; what remains is recorded with its event, flag and block.
    pub async fn take_in<B: Default + Serialize + DeserializeOwned>(
        &self,
        about: Look<'_>,
        look: impl Fn(&mut B) -> Option<Finding>,
        now: Timestamp,
    ) -> Result<Option<Noted>, StoreError> {
        let noted = self.retried("take_in", || self.take_in_once(about, &look, now)).await?;
        if noted.is_some() {
            self.inner.metrics.security_event(about.detector.as_str());
        }
        Ok(noted)
    }

    async fn take_in_once<B: Default + Serialize + DeserializeOwned>(
        &self,
        about: Look<'_>,
        look: impl Fn(&mut B) -> Option<Finding>,
        now: Timestamp,
    ) -> Result<Option<Noted>, StoreError> {
        let Look { detector, subject, .. } = about;
        let mut tx = self.begin().await?;
        tx.serialise(&format!("{detector} {}", subject.id)).await?;
        let row = query(
            "SELECT baseline FROM detector_baselines WHERE detector = $1 AND subject_type = $2 AND subject_id = $3",
        )
        .bind(detector.as_str())
        .bind(subject.kind.as_str())
        .bind(&subject.id)
        .fetch_optional(&mut *tx)
        .await?;
        // One that another version wrote and this one cannot read is learned anew.
        let mut baseline: B = row.and_then(|row| row.json("baseline").ok()).unwrap_or_default();
        let found = look(&mut baseline);
        query(
            "INSERT INTO detector_baselines (detector, subject_type, subject_id, baseline, updated_at) \
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT (detector, subject_type, subject_id) DO UPDATE SET \
             baseline = excluded.baseline, updated_at = excluded.updated_at",
        )
        .bind(detector.as_str())
        .bind(subject.kind.as_str())
        .bind(&subject.id)
        .bind(serde_json::to_string(&baseline).unwrap_or_default())
        .bind(millis(now))
        .execute(&mut *tx)
        .await?;
        let noted = match found {
            Some(finding) => note(&mut tx, about, finding, now).await?,
            None => None,
        };
        tx.commit().await?;
        Ok(noted)
    }

    /// Records what a detector found that keeps its baseline elsewhere.
    pub async fn note_finding(
        &self,
        about: Look<'_>,
        finding: &Finding,
        now: Timestamp,
    ) -> Result<Option<Noted>, StoreError> {
        let noted = self
            .retried("note_finding", || async {
                let mut tx = self.begin().await?;
                let noted = note(&mut tx, about, finding.clone(), now).await?;
                tx.commit().await?;
                Ok::<_, StoreError>(noted)
            })
            .await?;
        if noted.is_some() {
            self.inner.metrics.security_event(about.detector.as_str());
        }
        Ok(noted)
    }

    /// Recorded anomalies, the newest first.
    pub async fn list_anomalies(&self, limit: u32) -> Result<Vec<Anomaly>, StoreError> {
        self.page_anomalies(None, limit).await
    }

    /// A page of them: those before one, the newest first.
    pub async fn page_anomalies(&self, before: Option<i64>, limit: u32) -> Result<Vec<Anomaly>, StoreError> {
        let rows =
            query("SELECT * FROM anomaly_detection WHERE anomaly_id < $1 ORDER BY anomaly_id DESC LIMIT $2")
                .bind(before.unwrap_or(i64::MAX))
                .bind(limit)
                .fetch_all(self.readers())
                .await?;
        rows.iter().map(read).collect()
    }

    /// Notes what an administrator says of an anomaly. It decides what becomes of findings like it, of this subject. Returns
    /// the anomaly, if there is one.
    pub async fn judge_anomaly(
        &self,
        id: i64,
        false_positive: bool,
        resolution: &str,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<Option<Anomaly>, StoreError> {
        self.repeatable("judge_anomaly", || async {
            let mut tx = self.begin().await?;
            let row = query("SELECT * FROM anomaly_detection WHERE anomaly_id = $1 {lock}")
                .bind(id)
                .fetch_optional(&mut *tx)
                .await?;
            let Some(row) = row else { return Ok(None) };
            query(
                "UPDATE anomaly_detection SET false_positive = $1, addressed_time = $2, addressed_by = $3, \
                 resolution_action = $4 WHERE anomaly_id = $5",
            )
            .bind(false_positive)
            .bind(millis(now))
            .bind(actor.name())
            .bind(resolution)
            .bind(id)
            .execute(&mut *tx)
            .await?;
            // The newest word holds, for the largest it was said of.
            query(
                "INSERT INTO anomaly_feedback (anomaly_type, subject_type, subject_id, feature, false_positive, magnitude, \
                 times, decided_at, decided_by) VALUES ($1, $2, $3, $4, $5, $6, 1, $7, $8) \
                 ON CONFLICT (anomaly_type, subject_type, subject_id, feature) DO UPDATE SET \
                 magnitude = CASE WHEN anomaly_feedback.false_positive = excluded.false_positive \
                 AND anomaly_feedback.magnitude > excluded.magnitude THEN anomaly_feedback.magnitude \
                 ELSE excluded.magnitude END, times = anomaly_feedback.times + 1, \
                 false_positive = excluded.false_positive, decided_at = excluded.decided_at, \
                 decided_by = excluded.decided_by",
            )
            .bind(row.text("anomaly_type")?)
            .bind(row.text("subject_type")?)
            .bind(row.text("subject_id")?)
            .bind(row.text("feature")?)
            .bind(false_positive)
            .bind(row.int("magnitude")?)
            .bind(millis(now))
            .bind(actor.name())
            .execute(&mut *tx)
            .await?;
            let verdict = if false_positive { "false positive" } else { "confirmed" };
            let notes = match resolution {
                "" => verdict.to_owned(),
                more => format!("{verdict}: {more}"),
            };
            let record = Record::new("judge_anomaly", "Anomaly", id, row.text("anomaly_type")?).notes(notes);
            audit::write(&mut tx, actor, now, &[record]).await?;
            let after = query("SELECT * FROM anomaly_detection WHERE anomaly_id = $1")
                .bind(id)
                .fetch_one(&mut *tx)
                .await?;
            tx.commit().await?;
            Ok(Some(read(&after)?))
        })
        .await
    }
}

/// Records what remains of a finding, with all that follows from it.
async fn note(
    db: &mut Connection,
    about: Look<'_>,
    finding: Finding,
    now: Timestamp,
) -> Result<Option<Noted>, StoreError> {
    let Look { detector, subject, address, policy } = about;
    let feedback = feedback(db, detector, subject).await?;
    let Some(finding) = judge(finding, &feedback, policy.minimum_confidence) else { return Ok(None) };
    let response = respond(&finding, policy);
    let description = format!("{} {}: {}", subject.kind.as_str(), subject.name, finding.words);
    let row = query(
        "INSERT INTO anomaly_detection (detection_time, anomaly_type, component, subject_type, subject_id, subject_name, \
         feature, magnitude, confidence_score, baseline_data, anomalous_data, description) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) RETURNING anomaly_id",
    )
    .bind(millis(now))
    .bind(detector.as_str())
    .bind(subject.kind.component())
    .bind(subject.kind.as_str())
    .bind(&subject.id)
    .bind(&subject.name)
    .bind(&finding.feature)
    .bind(i64::from(finding.magnitude))
    .bind(i64::from(finding.confidence))
    .bind(finding.baseline.to_string())
    .bind(finding.observed.to_string())
    .bind(&description)
    .fetch_one(&mut *db)
    .await?;
    let id = row.int("anomaly_id")?;
    let actor = Actor::System(detector.as_str());
    let flags = response.flag && matches!(subject.kind, SubjectKind::Server | SubjectKind::User);
    let flagged = flags && flag::write(db, subject, &finding.words, &actor, now).await?;
    let blocked = match response.block.then_some(subject).filter(|s| s.kind == SubjectKind::Address) {
        Some(subject) => block_for(db, subject, &finding, policy, &actor, now).await?,
        None => Err("it is not for blocking"),
    };
    let data = json!({
        "anomaly": id,
        "confidence": finding.confidence,
        "flagged": flagged,
        "blocked": blocked.as_ref().ok().map(ToString::to_string),
        "notBlocked": response.block.then(|| blocked.as_ref().err().copied()).flatten(),
    });
    event::write(db, &event(about, &response, address, description, data), now).await?;
    Ok(Some(Noted { id, finding, flagged, blocked: blocked.ok() }))
}

fn event(
    about: Look<'_>,
    response: &Response,
    address: Option<IpAddr>,
    description: String,
    data: Value,
) -> NewEvent {
    NewEvent {
        kind: about.detector.as_str(),
        severity: match response.grade {
            Grade::Low => Severity::Low,
            Grade::Medium => Severity::Medium,
            Grade::High => Severity::High,
        },
        source: about.subject.source(),
        address,
        description,
        data,
    }
}

/// Blocks an address for a while, unless that would shut out somebody who proved who they are, or says why not.
async fn block_for(
    db: &mut Connection,
    subject: &Subject,
    finding: &Finding,
    policy: &DetectionSpec,
    actor: &Actor,
    now: Timestamp,
) -> Result<Result<IpNet, &'static str>, StoreError> {
    let Ok(address) = subject.id.parse::<IpAddr>() else { return Ok(Err("it is no address")) };
    if policy.blocking.spared.iter().any(|range| range.get().contains(&address)) {
        return Ok(Err("the policy spares it"));
    }
    if block::is_known(db, address).await? {
        return Ok(Err("an appliance or a device with a session is there"));
    }
    // What one party holds: subjects are that already.
    let length = if address.is_ipv4() { 32 } else { 64 };
    let Ok(range) = IpNet::new(address, length) else { return Ok(Err("it is no address")) };
    let wanted = NewBlock {
        range,
        reason: finding.words.clone(),
        severity: BlockSeverity::Temporary,
        source: BlockSource::Threshold,
        until: now.checked_add(policy.blocking.duration.get()).ok(),
    };
    match block::write(db, &wanted, actor, now).await? {
        true => Ok(Ok(range)),
        false => Ok(Err("too many addresses are blocked already")),
    }
}

async fn feedback(
    db: &mut Connection,
    detector: Detector,
    subject: &Subject,
) -> Result<Feedback, StoreError> {
    let rows = query(
        "SELECT feature, false_positive, magnitude FROM anomaly_feedback WHERE anomaly_type = $1 \
         AND subject_type = $2 AND subject_id = $3 ORDER BY decided_at DESC LIMIT $4",
    )
    .bind(detector.as_str())
    .bind(subject.kind.as_str())
    .bind(&subject.id)
    .bind(MOST_VERDICTS)
    .fetch_all(&mut *db)
    .await?;
    let mut feedback = Feedback::default();
    for row in rows {
        let magnitude = u32::try_from(row.int("magnitude")?).unwrap_or(u32::MAX);
        let verdict = Verdict { false_positive: row.flag("false_positive")?, magnitude };
        feedback.0.insert(row.text("feature")?, verdict);
    }
    Ok(feedback)
}

/// Forgets what is old: anomalies before a time, and baselines of what was not heard of for long.
pub(super) async fn prune(db: &mut Connection, now: Timestamp, before: i64) -> Result<u64, StoreError> {
    let ago = |span: SignedDuration| millis(now.checked_sub(span).unwrap_or(Timestamp::MIN));
    let mut gone = query("DELETE FROM anomaly_detection WHERE detection_time < $1")
        .bind(before)
        .execute(&mut *db)
        .await?
        .rows_affected();
    gone += query("DELETE FROM detector_baselines WHERE updated_at < $1 AND (subject_type IN ('address', 'key') OR updated_at < $2)")
        .bind(ago(ADDRESSES))
        .bind(ago(BASELINES))
        .execute(&mut *db)
        .await?
        .rows_affected();
    Ok(gone)
}

fn read(row: &Row) -> Result<Anomaly, StoreError> {
    let verdict = row.maybe_flag("false_positive")?;
    Ok(Anomaly {
        id: row.int("anomaly_id")?,
        time: row.time("detection_time")?,
        kind: row.text("anomaly_type")?,
        component: row.text("component")?,
        subject_type: row.text("subject_type")?,
        subject_id: row.text("subject_id")?,
        subject: row.text("subject_name")?,
        feature: row.text("feature")?,
        confidence: u8::try_from(row.int("confidence_score")?).unwrap_or(100),
        baseline: row.json("baseline_data")?,
        observed: row.json("anomalous_data")?,
        description: row.text("description")?,
        verdict: verdict.map(|wrong| if wrong { "false positive" } else { "confirmed" }.to_owned()),
        addressed_at: row.maybe_time("addressed_time")?,
        addressed_by: row.maybe_text("addressed_by")?,
        resolution: row.maybe_text("resolution_action")?,
    })
}
