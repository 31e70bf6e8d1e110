-- Rotation of the keys of the organisation.

-- Every KeySet, as it was signed. What comes with it is the private half of the key that it brought in, sealed, until no
-- KeySet needs it any more: replicas that follow take it from here.
CREATE TABLE keysets (
    version BIGINT PRIMARY KEY,
    signed {bytes} NOT NULL,
    key_name TEXT,
    key_public {bytes},
    key_sealed {bytes},
    made_date BIGINT NOT NULL,
    CONSTRAINT keysets_key_check CHECK ((key_name IS NULL) = (key_public IS NULL)),
    CONSTRAINT keysets_sealed_check CHECK (key_sealed IS NULL OR key_name IS NOT NULL)
);

-- How far the rotation of each class is; one of a class at a time.
CREATE TABLE keyset_rotations (
    rotation_id {serial},
    class TEXT NOT NULL,
    rotation_type TEXT NOT NULL,
    reason TEXT NOT NULL,
    requested_by TEXT NOT NULL,
    requested_date BIGINT NOT NULL,
    run_uid TEXT,
    policy_uid TEXT,
    overlap BIGINT NOT NULL,
    phase TEXT NOT NULL,
    phase_date BIGINT NOT NULL,
    ended_date BIGINT,
    CONSTRAINT keyset_class_check CHECK (class IN ('tls', 'state', 'ticket', 'root')),
    CONSTRAINT keyset_type_check CHECK (rotation_type IN ('scheduled', 'manual', 'emergency', 'compromised')),
    CONSTRAINT keyset_phase_check CHECK (phase IN ('requested', 'published', 'in_use', 'done', 'overtaken')),
    CONSTRAINT keyset_ended_check CHECK ((ended_date IS NOT NULL) = (phase IN ('done', 'overtaken')))
);
CREATE UNIQUE INDEX keyset_rotations_open ON keyset_rotations(class) WHERE ended_date IS NULL;
CREATE INDEX keyset_rotations_run ON keyset_rotations(run_uid);

-- The rotation by which a server was last given a new verification secret.
ALTER TABLE servers ADD COLUMN secret_rotation TEXT;
ALTER TABLE servers ADD COLUMN secret_rotated_date BIGINT;

-- How many of those connected to a replica hold which KeySet; the replica itself is one of them.
CREATE TABLE keyset_holders (
    replica_id TEXT NOT NULL,
    role TEXT NOT NULL,
    version BIGINT NOT NULL,
    peers BIGINT NOT NULL,
    PRIMARY KEY (replica_id, role, version),
    CONSTRAINT keyset_role_check CHECK (role IN ('replica', 'appliance', 'device'))
);
