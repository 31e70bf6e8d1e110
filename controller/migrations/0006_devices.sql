-- Devices: what is known of them over time.

-- A revocation is final; a block is not. What was blocked so far was revoked.
ALTER TABLE devices ADD COLUMN revoked_date BIGINT;
UPDATE devices SET revoked_date = blocked_date WHERE blocked_date IS NOT NULL;
-- Why the device is doubted, and since when. Its status says whether it is.
ALTER TABLE devices ADD COLUMN suspicious_date BIGINT;
ALTER TABLE devices ADD COLUMN suspicious_reason TEXT;
-- The fingerprint of the machine its key was last used on, where that is not the one it was enrolled on.
ALTER TABLE devices ADD COLUMN other_fingerprint TEXT;
-- The name an administrator gave it; the device's own name does not replace it.
ALTER TABLE devices ADD COLUMN given_name TEXT;
-- What an appliance has not confirmed to have let go keeps the user's other devices waiting.
CREATE INDEX connections_unreleased_user ON connections(user_uid) WHERE released_date IS NULL;
CREATE INDEX connections_device_start ON connections(device_id, connection_start);

-- What administrators decided about devices, by the records that say so.
CREATE TABLE device_decisions (
    decision_uid TEXT PRIMARY KEY REFERENCES resources(uid),
    device_id TEXT NOT NULL,
    decision TEXT NOT NULL,
    reason TEXT NOT NULL,
    decided_at BIGINT NOT NULL,
    effective_at BIGINT,
    CONSTRAINT device_decision_check CHECK (decision IN ('block', 'allow', 'suspect', 'forget', 'rename'))
);
CREATE INDEX device_decisions_device ON device_decisions(device_id);

-- What both ends of a session counted, added up over their restarts: the appliance, and the client with its last figures and
-- what the appliance had counted by then.
ALTER TABLE connections ADD COLUMN total_sent BIGINT NOT NULL DEFAULT 0;
ALTER TABLE connections ADD COLUMN total_received BIGINT NOT NULL DEFAULT 0;
ALTER TABLE connections ADD COLUMN client_sent BIGINT NOT NULL DEFAULT 0;
ALTER TABLE connections ADD COLUMN client_received BIGINT NOT NULL DEFAULT 0;
ALTER TABLE connections ADD COLUMN client_last_sent BIGINT NOT NULL DEFAULT 0;
ALTER TABLE connections ADD COLUMN client_last_received BIGINT NOT NULL DEFAULT 0;
ALTER TABLE connections ADD COLUMN client_reported BIGINT;
ALTER TABLE connections ADD COLUMN total_sent_then BIGINT NOT NULL DEFAULT 0;
ALTER TABLE connections ADD COLUMN total_received_then BIGINT NOT NULL DEFAULT 0;
ALTER TABLE connections ADD COLUMN differs_since BIGINT;
-- When the appliance last said anything about the session.
ALTER TABLE connections ADD COLUMN server_reported BIGINT;

-- The settings that follow a user, sealed under a key that only their devices have.
CREATE TABLE user_settings (
    user_uid TEXT PRIMARY KEY REFERENCES resources(uid),
    version BIGINT NOT NULL,
    content {bytes} NOT NULL,
    device_id TEXT NOT NULL REFERENCES devices(device_id),
    modified_date BIGINT NOT NULL,
    CONSTRAINT user_settings_version_check CHECK (version >= 1)
);
-- That key, wrapped for each device by one that had it.
CREATE TABLE user_settings_keys (
    device_id TEXT PRIMARY KEY REFERENCES devices(device_id),
    user_uid TEXT NOT NULL REFERENCES resources(uid),
    key_id {bytes} NOT NULL,
    wrapped {bytes} NOT NULL,
    wrapped_by TEXT NOT NULL REFERENCES devices(device_id),
    modified_date BIGINT NOT NULL
);
CREATE INDEX user_settings_keys_user ON user_settings_keys(user_uid);
