-- What is out of the ordinary: how events were handled, anomalies with what administrators said of them, flags, blocked
-- addresses, notifications, scheduled tasks, and how the parts of the system do.

ALTER TABLE security_events ADD COLUMN handled_at BIGINT;
ALTER TABLE security_events ADD COLUMN handled_by TEXT;
ALTER TABLE security_events ADD COLUMN resolution_notes TEXT;
-- Whether administrators were told, or need not be. What was before is not told again.
ALTER TABLE security_events ADD COLUMN noticed BOOLEAN NOT NULL DEFAULT FALSE;
UPDATE security_events SET noticed = TRUE;
CREATE INDEX security_events_unnoticed ON security_events(event_id) WHERE noticed = FALSE;
CREATE INDEX security_events_unhandled ON security_events(event_id) WHERE handled_at IS NULL;

-- What a detector knows of a subject: what is usual for it. Its form is the detector's.
CREATE TABLE detector_baselines (
    detector TEXT NOT NULL,
    subject_type TEXT NOT NULL,
    subject_id TEXT NOT NULL,
    baseline TEXT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (detector, subject_type, subject_id)
);
CREATE INDEX detector_baselines_updated ON detector_baselines(updated_at);

CREATE TABLE anomaly_detection (
    anomaly_id {serial},
    detection_time BIGINT NOT NULL,
    anomaly_type TEXT NOT NULL,
    component TEXT NOT NULL,
    subject_type TEXT NOT NULL,
    subject_id TEXT NOT NULL,
    subject_name TEXT NOT NULL,
    feature TEXT NOT NULL,
    magnitude BIGINT NOT NULL,
    confidence_score BIGINT NOT NULL,
    baseline_data TEXT NOT NULL,
    anomalous_data TEXT NOT NULL,
    description TEXT NOT NULL,
    false_positive BOOLEAN,
    addressed_time BIGINT,
    addressed_by TEXT,
    resolution_action TEXT,
    CONSTRAINT anomaly_component_check CHECK (component IN ('broker', 'server', 'client', 'connection', 'authentication')),
    CONSTRAINT anomaly_subject_check CHECK (subject_type IN ('server', 'user', 'device', 'address', 'key')),
    CONSTRAINT anomaly_confidence_check CHECK (confidence_score BETWEEN 0 AND 100),
    CONSTRAINT anomaly_addressed_check CHECK ((addressed_time IS NULL) = (addressed_by IS NULL)
        AND (addressed_time IS NULL) = (false_positive IS NULL))
);
CREATE INDEX anomaly_detection_subject ON anomaly_detection(subject_id, anomaly_type);
CREATE INDEX anomaly_detection_time ON anomaly_detection(detection_time);

-- What administrators said of what a detector found: the same, up to the same magnitude, is judged by it from then on.
CREATE TABLE anomaly_feedback (
    anomaly_type TEXT NOT NULL,
    subject_type TEXT NOT NULL,
    subject_id TEXT NOT NULL,
    feature TEXT NOT NULL,
    false_positive BOOLEAN NOT NULL,
    magnitude BIGINT NOT NULL,
    times BIGINT NOT NULL,
    decided_at BIGINT NOT NULL,
    decided_by TEXT NOT NULL,
    PRIMARY KEY (anomaly_type, subject_type, subject_id, feature)
);

-- Servers and users that somebody should look at. One that was cleared is history.
CREATE TABLE flags (
    flag_id {serial},
    subject_type TEXT NOT NULL,
    subject_id TEXT NOT NULL,
    subject_name TEXT NOT NULL,
    reason TEXT NOT NULL,
    flagged_at BIGINT NOT NULL,
    flagged_by TEXT NOT NULL,
    cleared_at BIGINT,
    cleared_by TEXT,
    notes TEXT,
    CONSTRAINT flag_subject_check CHECK (subject_type IN ('server', 'user')),
    CONSTRAINT flag_cleared_check CHECK ((cleared_at IS NULL) = (cleared_by IS NULL))
);
CREATE UNIQUE INDEX flags_standing ON flags(subject_type, subject_id) WHERE cleared_at IS NULL;

-- An address is a range of one. One that was lifted, or is past its time, is history.
CREATE TABLE blocked_ips (
    block_id {serial},
    ip_range TEXT NOT NULL,
    reason TEXT NOT NULL,
    severity TEXT NOT NULL,
    block_source TEXT NOT NULL,
    block_date BIGINT NOT NULL,
    expiration_date BIGINT,
    blocked_by TEXT NOT NULL,
    hits BIGINT NOT NULL DEFAULT 0,
    lifted_date BIGINT,
    lifted_by TEXT,
    notes TEXT,
    CONSTRAINT block_severity_check CHECK (severity IN ('temporary', 'suspicious', 'malicious', 'persistent')),
    CONSTRAINT block_source_check CHECK (block_source IN ('manual', 'automatic', 'system', 'threshold')),
    CONSTRAINT block_lifted_check CHECK ((lifted_date IS NULL) = (lifted_by IS NULL))
);
CREATE UNIQUE INDEX blocked_ips_standing ON blocked_ips(ip_range) WHERE lifted_date IS NULL;

CREATE TABLE notifications (
    notification_id {serial},
    timestamp BIGINT NOT NULL,
    notification_type TEXT NOT NULL,
    urgency TEXT NOT NULL,
    dedup_key TEXT NOT NULL,
    subject TEXT NOT NULL,
    content TEXT NOT NULL,
    occurrences BIGINT NOT NULL,
    related_entity_type TEXT,
    related_entity_id TEXT,
    read_time BIGINT,
    read_by TEXT,
    action_required BOOLEAN NOT NULL,
    action_time BIGINT,
    action_by TEXT,
    action_details TEXT,
    CONSTRAINT urgency_check CHECK (urgency IN ('low', 'normal', 'high', 'critical')),
    CONSTRAINT notification_type_check
        CHECK (notification_type IN ('security', 'system', 'update', 'maintenance', 'policy', 'user', 'server')),
    CONSTRAINT notification_read_check CHECK ((read_time IS NULL) = (read_by IS NULL)),
    CONSTRAINT notification_action_check CHECK ((action_time IS NULL) = (action_by IS NULL))
);
CREATE INDEX notifications_unread ON notifications(notification_id) WHERE read_time IS NULL;
CREATE INDEX notifications_time ON notifications(timestamp);

-- What is to be sent, and where it got to.
CREATE TABLE notification_deliveries (
    notification_id BIGINT NOT NULL REFERENCES notifications(notification_id) ON DELETE CASCADE,
    channel TEXT NOT NULL,
    state TEXT NOT NULL,
    attempts BIGINT NOT NULL DEFAULT 0,
    next_attempt BIGINT NOT NULL,
    last_error TEXT,
    delivered_at BIGINT,
    PRIMARY KEY (notification_id, channel),
    CONSTRAINT delivery_channel_check CHECK (channel IN ('webhook', 'smtp')),
    CONSTRAINT delivery_state_check CHECK (state IN ('waiting', 'delivered', 'failed')),
    CONSTRAINT delivery_done_check CHECK ((delivered_at IS NOT NULL) = (state = 'delivered'))
);
CREATE INDEX notification_deliveries_waiting ON notification_deliveries(next_attempt) WHERE state = 'waiting';

CREATE TABLE scheduled_tasks (
    task_name TEXT PRIMARY KEY,
    task_type TEXT NOT NULL,
    schedule TEXT NOT NULL,
    description TEXT NOT NULL,
    next_run BIGINT NOT NULL,
    last_run BIGINT,
    last_status TEXT,
    last_output TEXT,
    retry_count BIGINT NOT NULL DEFAULT 0,
    max_retries BIGINT NOT NULL,
    CONSTRAINT task_type_check CHECK (task_type IN
        ('key_rotation', 'maintenance', 'backup', 'cleanup', 'security_scan', 'report_generation', 'server_update')),
    CONSTRAINT task_status_check CHECK (last_status IN ('running', 'succeeded', 'failed'))
);

CREATE TABLE reports (
    report_id {serial},
    report_name TEXT NOT NULL,
    report_type TEXT NOT NULL,
    generation_time BIGINT NOT NULL,
    period_start BIGINT NOT NULL,
    period_end BIGINT NOT NULL,
    content TEXT NOT NULL,
    CONSTRAINT report_type_check CHECK (report_type IN
        ('security', 'connection', 'performance', 'audit', 'system_health', 'user_activity', 'server_status'))
);
CREATE INDEX reports_time ON reports(generation_time);

CREATE TABLE service_status (
    service_name TEXT PRIMARY KEY,
    component TEXT NOT NULL,
    status TEXT NOT NULL,
    since BIGINT NOT NULL,
    last_check BIGINT NOT NULL,
    last_operational BIGINT,
    incident_details TEXT,
    CONSTRAINT service_component_check CHECK (component IN ('broker', 'server', 'client', 'system')),
    CONSTRAINT service_status_check CHECK (status IN ('operational', 'degraded', 'outage', 'maintenance'))
);
