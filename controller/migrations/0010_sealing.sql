-- Envelope encryption: what seals the secrets of this database is numbered, lies here wrapped under a key that does not, and can
-- be replaced.

-- Keys of data. A value sealed under one names it in a column beside it, so that none goes while a row needs it. Format 1 is
-- that of before there were numbers, when everything hung on the envelope key itself.
CREATE TABLE data_keys (
    key_number BIGINT PRIMARY KEY,
    purpose TEXT NOT NULL,
    format BIGINT NOT NULL,
    state TEXT NOT NULL,
    made_date BIGINT NOT NULL,
    CONSTRAINT data_key_purpose_check CHECK (purpose IN ('seal', 'lookup', 'shared', 'tag')),
    CONSTRAINT data_key_state_check CHECK (state IN ('published', 'current', 'previous'))
);
CREATE UNIQUE INDEX data_keys_current ON data_keys(purpose) WHERE state = 'current';

-- Keys that wrap keys of data: the one in use, and while it is replaced its successor. A successor that is no hardware's travels
-- to the other replicas wrapped under the one before it, until all of them keep it.
CREATE TABLE envelope_keys (
    envelope_id TEXT PRIMARY KEY,
    provider TEXT NOT NULL,
    state TEXT NOT NULL,
    handed {bytes},
    made_date BIGINT NOT NULL,
    CONSTRAINT envelope_provider_check CHECK (provider IN ('file', 'pkcs11')),
    CONSTRAINT envelope_state_check CHECK (state IN ('current', 'next'))
);
CREATE UNIQUE INDEX envelope_keys_state ON envelope_keys(state);

CREATE TABLE data_key_wraps (
    key_number BIGINT NOT NULL REFERENCES data_keys(key_number) ON DELETE CASCADE,
    envelope_id TEXT NOT NULL REFERENCES envelope_keys(envelope_id) ON DELETE CASCADE,
    wrapped {bytes} NOT NULL,
    PRIMARY KEY (key_number, envelope_id)
);

-- How far the rotation of the envelope is; one at a time.
CREATE TABLE envelope_rotations (
    rotation_id {serial},
    class TEXT NOT NULL,
    rotation_type TEXT NOT NULL,
    reason TEXT NOT NULL,
    requested_by TEXT NOT NULL,
    requested_date BIGINT NOT NULL,
    run_uid TEXT,
    policy_uid TEXT,
    new_envelope BOOLEAN NOT NULL,
    phase TEXT NOT NULL,
    phase_date BIGINT NOT NULL,
    resealed BIGINT NOT NULL DEFAULT 0,
    ended_date BIGINT,
    CONSTRAINT envelope_class_check CHECK (class = 'envelope'),
    CONSTRAINT envelope_type_check CHECK (rotation_type IN ('scheduled', 'manual', 'emergency', 'compromised')),
    CONSTRAINT envelope_phase_check CHECK (phase IN ('requested', 'published', 'in_use', 'done')),
    CONSTRAINT envelope_ended_check CHECK ((ended_date IS NOT NULL) = (phase = 'done'))
);
CREATE UNIQUE INDEX envelope_rotations_open ON envelope_rotations(class) WHERE ended_date IS NULL;
CREATE INDEX envelope_rotations_run ON envelope_rotations(run_uid);

-- Which keys each replica has and uses.
CREATE TABLE envelope_holders (
    replica_id TEXT PRIMARY KEY,
    envelope_id TEXT NOT NULL,
    newest BIGINT NOT NULL,
    sealing BIGINT NOT NULL
);

-- The numbers beside the values. NULL is format 1.
ALTER TABLE servers ADD COLUMN verification_key BIGINT REFERENCES data_keys(key_number);
ALTER TABLE servers ADD COLUMN previous_key BIGINT REFERENCES data_keys(key_number);
ALTER TABLE connections ADD COLUMN secret_key BIGINT REFERENCES data_keys(key_number);
ALTER TABLE keysets ADD COLUMN sealing_key BIGINT REFERENCES data_keys(key_number);
ALTER TABLE admins ADD COLUMN password_key BIGINT REFERENCES data_keys(key_number);
ALTER TABLE admins ADD COLUMN mfa_key BIGINT REFERENCES data_keys(key_number);
ALTER TABLE admin_recovery_codes ADD COLUMN code_key BIGINT REFERENCES data_keys(key_number);
ALTER TABLE admin_sessions ADD COLUMN session_token_key BIGINT REFERENCES data_keys(key_number);
ALTER TABLE admin_sessions ADD COLUMN previous_token_key BIGINT REFERENCES data_keys(key_number);
ALTER TABLE token_keys ADD COLUMN sealing_key BIGINT REFERENCES data_keys(key_number);
ALTER TABLE idempotency_keys ADD COLUMN digest_key BIGINT REFERENCES data_keys(key_number);
ALTER TABLE idempotency_keys ADD COLUMN answer_key BIGINT REFERENCES data_keys(key_number);
ALTER TABLE key_handovers ADD COLUMN digest_key BIGINT REFERENCES data_keys(key_number);
ALTER TABLE key_handovers ADD COLUMN code_key BIGINT REFERENCES data_keys(key_number);

-- A registration key is looked up by a keyed hash. What is hashed is kept sealed, so that it can be hashed anew under another key.
ALTER TABLE registration_keys ADD COLUMN lookup_key BIGINT REFERENCES data_keys(key_number);
ALTER TABLE registration_keys ADD COLUMN secret_digest {bytes};
ALTER TABLE registration_keys ADD COLUMN digest_key BIGINT REFERENCES data_keys(key_number);
