-- What a session moved in a minute.
CREATE TABLE connection_metrics (
    connection_id TEXT NOT NULL REFERENCES connections(connection_id),
    minute BIGINT NOT NULL,
    bytes_sent BIGINT NOT NULL,
    bytes_received BIGINT NOT NULL,
    rtt_micros BIGINT NOT NULL,
    PRIMARY KEY (connection_id, minute)
);
CREATE INDEX connection_metrics_minute ON connection_metrics(minute);

-- Users of Kubernetes join the actors. SQLite changes no constraint in place.
CREATE TABLE audit_logs_2 (
    log_id {serial},
    timestamp BIGINT NOT NULL,
    actor_type TEXT NOT NULL,
    actor_name TEXT NOT NULL,
    action TEXT NOT NULL,
    target_type TEXT NOT NULL,
    target_id TEXT,
    target_name TEXT NOT NULL,
    previous_state TEXT,
    new_state TEXT,
    notes TEXT,
    CONSTRAINT actor_check CHECK (actor_type IN ('admin', 'file', 'kubernetes', 'appliance', 'device', 'system'))
);
INSERT INTO audit_logs_2 SELECT * FROM audit_logs;
DROP TABLE audit_logs;
ALTER TABLE audit_logs_2 RENAME TO audit_logs;
CREATE INDEX audit_logs_time ON audit_logs(timestamp);
CREATE INDEX audit_logs_target ON audit_logs(target_id);
