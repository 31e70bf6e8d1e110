-- Rotation of keys: the versions of personal keys, who is to have the newest, what was rotated, and hand-over to people.

ALTER TABLE personal_keys ADD COLUMN last_rotation_date BIGINT;
ALTER TABLE personal_keys ADD COLUMN next_rotation_date BIGINT;
ALTER TABLE personal_keys ADD COLUMN manual_rotation_required BOOLEAN NOT NULL DEFAULT FALSE;
-- The next date that was announced last, and how many days ahead of its end its holder was last warned.
ALTER TABLE personal_keys ADD COLUMN announced_date BIGINT;
ALTER TABLE personal_keys ADD COLUMN expiry_warned BIGINT;
ALTER TABLE registration_keys ADD COLUMN expiry_warned BIGINT;

-- What a device signed to be sealed to, and since when it waits for its user to enter a key that was replaced at once.
ALTER TABLE devices ADD COLUMN wrapping_key {bytes};
ALTER TABLE devices ADD COLUMN wrapping_signature {bytes};
ALTER TABLE devices ADD COLUMN replaced_date BIGINT;
ALTER TABLE devices ADD COLUMN replaced_reason TEXT;

-- The versions of a key that was ever rotated. The first has the key's own identifier; what personal_keys says of its hash
-- holds as long as there are none.
CREATE TABLE personal_key_versions (
    version_id TEXT PRIMARY KEY,
    key_id TEXT NOT NULL REFERENCES personal_keys(key_id),
    number BIGINT NOT NULL,
    key_hash {bytes},
    key_salt {bytes},
    status TEXT NOT NULL,
    creation_date BIGINT NOT NULL,
    overlap_end BIGINT,
    ended_date BIGINT,
    UNIQUE (key_id, number),
    CONSTRAINT version_status_check
        CHECK (status IN ('pending', 'active', 'rotating', 'deactivated', 'compromised', 'expired')),
    CONSTRAINT version_hash_check CHECK ((key_hash IS NULL) = (key_salt IS NULL)),
    CONSTRAINT version_ended_check
        CHECK ((ended_date IS NOT NULL) = (status IN ('deactivated', 'compromised', 'expired')))
);
CREATE INDEX personal_key_versions_rotating ON personal_key_versions(key_id) WHERE status = 'rotating';

-- A version on its way to a device, sealed to it when it was made (HPKE, RFC 9180) and wiped when it has arrived.
CREATE TABLE key_deliveries (
    device_id TEXT NOT NULL REFERENCES devices(device_id),
    version_id TEXT NOT NULL REFERENCES personal_key_versions(version_id),
    encapsulated {bytes},
    ciphertext {bytes},
    proof_digest {bytes} NOT NULL,
    made_date BIGINT NOT NULL,
    delivered_date BIGINT,
    confirmed_date BIGINT,
    PRIMARY KEY (device_id, version_id)
);
CREATE INDEX key_deliveries_version ON key_deliveries(version_id);

CREATE TABLE key_rotation_history (
    rotation_id {serial},
    target TEXT NOT NULL,
    key_id TEXT NOT NULL,
    previous_key_id TEXT,
    new_key_id TEXT,
    rotation_type TEXT NOT NULL,
    rotation_date BIGINT NOT NULL,
    overlap_end BIGINT,
    completed_date BIGINT,
    unconfirmed BIGINT NOT NULL DEFAULT 0,
    initiated_by TEXT NOT NULL,
    reason TEXT NOT NULL,
    run_uid TEXT,
    policy_uid TEXT,
    CONSTRAINT rotation_type_check CHECK (rotation_type IN ('scheduled', 'manual', 'emergency', 'compromised')),
    CONSTRAINT rotation_target_check
        CHECK (target IN ('personalKeys', 'verificationSecrets', 'controllerKeys', 'relayKeys'))
);
CREATE INDEX key_rotation_history_key ON key_rotation_history(target, key_id, rotation_date);
CREATE INDEX key_rotation_history_run ON key_rotation_history(run_uid);
CREATE INDEX key_rotation_history_policy ON key_rotation_history(policy_uid);

-- How far a KeyRotation is.
CREATE TABLE rotation_runs (
    run_uid TEXT PRIMARY KEY REFERENCES resources(uid),
    target TEXT NOT NULL,
    decided_at BIGINT NOT NULL,
    decided_by TEXT NOT NULL,
    started_at BIGINT,
    completed_at BIGINT,
    overlap_end BIGINT,
    total BIGINT NOT NULL DEFAULT 0,
    completed BIGINT NOT NULL DEFAULT 0,
    receivers BIGINT NOT NULL DEFAULT 0,
    confirmed BIGINT NOT NULL DEFAULT 0,
    failures TEXT NOT NULL DEFAULT '[]'
);

-- What a RotationPolicy governs now.
CREATE TABLE rotation_policies (
    policy_uid TEXT PRIMARY KEY REFERENCES resources(uid),
    keys BIGINT NOT NULL,
    rotating BIGINT NOT NULL,
    next_run BIGINT
);

-- A key on its way to a person: a string and a code, each useless without the other.
CREATE TABLE key_handovers (
    handover_id TEXT PRIMARY KEY,
    key_id TEXT NOT NULL REFERENCES personal_keys(key_id),
    secret_digest {bytes} NOT NULL,
    code_hash {bytes} NOT NULL,
    code_salt {bytes} NOT NULL,
    creation_date BIGINT NOT NULL,
    expiration_date BIGINT NOT NULL,
    attempts BIGINT NOT NULL DEFAULT 0,
    claimed_date BIGINT,
    claimed_by {bytes},
    ended_date BIGINT,
    created_by TEXT NOT NULL
);
CREATE INDEX key_handovers_key ON key_handovers(key_id) WHERE ended_date IS NULL;
