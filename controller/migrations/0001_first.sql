-- One text for every engine: {bytes} is its type of byte strings and {serial} its numbering of rows (src/store/dialect.rs).
-- Times are milliseconds since the Unix epoch, identifiers are UUIDs as text, structured values are JSON as text.
-- A fact that is final (revoked, used, decommissioned, effective) has a column that is NULL until it holds and is only ever
-- written where it is NULL.

CREATE TABLE resources (
    uid TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    namespace TEXT NOT NULL,
    name TEXT NOT NULL,
    generation BIGINT NOT NULL,
    spec_digest {bytes} NOT NULL,
    origin TEXT NOT NULL,
    origin_path TEXT,
    document TEXT NOT NULL,
    number BIGINT,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    deleted_at BIGINT,
    CONSTRAINT resource_origin_check CHECK (origin IN ('file', 'api')),
    CONSTRAINT resource_generation_check CHECK (generation >= 1),
    CONSTRAINT resource_number_check CHECK (number BETWEEN 1 AND 65535)
);
CREATE UNIQUE INDEX resources_living ON resources(kind, namespace, name) WHERE deleted_at IS NULL;
CREATE UNIQUE INDEX resources_number ON resources(number) WHERE number IS NOT NULL AND deleted_at IS NULL;

CREATE TABLE resource_status (
    uid TEXT PRIMARY KEY REFERENCES resources(uid) ON DELETE CASCADE,
    status TEXT NOT NULL,
    updated_at BIGINT NOT NULL
);

CREATE TABLE servers (
    server_id TEXT PRIMARY KEY REFERENCES resources(uid),
    namespace TEXT NOT NULL,
    name TEXT NOT NULL,
    status TEXT NOT NULL DEFAULT 'pending',
    maintenance_mode BOOLEAN NOT NULL DEFAULT FALSE,
    hostname TEXT,
    public_ip TEXT,
    public_key {bytes},
    verification_secret {bytes},
    previous_secret {bytes},
    version TEXT,
    registration_date BIGINT,
    last_heartbeat BIGINT,
    last_verified BIGINT,
    verified BOOLEAN,
    requires_verification BOOLEAN NOT NULL DEFAULT FALSE,
    verification_reason TEXT,
    identity_digest {bytes},
    pending_digest {bytes},
    identity_changes TEXT NOT NULL DEFAULT '[]',
    incarnation TEXT,
    heartbeat_counter BIGINT NOT NULL DEFAULT 0,
    addresses TEXT NOT NULL DEFAULT '[]',
    unreachable TEXT,
    state_generation BIGINT NOT NULL DEFAULT 0,
    state_digest {bytes},
    applied_epoch BIGINT NOT NULL DEFAULT 0,
    applied_generation BIGINT NOT NULL DEFAULT 0,
    applied_digest {bytes},
    problems TEXT NOT NULL DEFAULT '[]',
    decommission_date BIGINT,
    decommission_reason TEXT,
    revoked_date BIGINT,
    compromised BOOLEAN NOT NULL DEFAULT FALSE,
    reissue_secret BOOLEAN NOT NULL DEFAULT FALSE,
    CONSTRAINT server_status_check
        CHECK (status IN ('pending', 'active', 'unavailable', 'maintenance', 'decommissioned', 'compromised')),
    CONSTRAINT server_registered_check CHECK (registration_date IS NULL OR (public_key IS NOT NULL
        AND verification_secret IS NOT NULL AND hostname IS NOT NULL AND version IS NOT NULL AND public_ip IS NOT NULL)),
    CONSTRAINT server_decommissioned_check CHECK (decommission_date IS NULL OR decommission_reason IS NOT NULL)
);
CREATE INDEX servers_public_key ON servers(public_key);

CREATE TABLE server_capabilities (
    server_id TEXT NOT NULL REFERENCES servers(server_id) ON DELETE CASCADE,
    capability_type TEXT NOT NULL,
    added_date BIGINT NOT NULL,
    last_updated BIGINT NOT NULL,
    enabled BOOLEAN NOT NULL DEFAULT TRUE,
    PRIMARY KEY (server_id, capability_type),
    CONSTRAINT capability_types CHECK (capability_type IN
        ('vpn', 'lan_emulation', 'geo_location', 'traffic_routing', 'nat_traversal', 'relay'))
);

CREATE TABLE server_identity_factors (
    factor_id {serial},
    server_id TEXT NOT NULL REFERENCES servers(server_id) ON DELETE CASCADE,
    factor_type TEXT NOT NULL,
    factor_name TEXT NOT NULL,
    factor_value TEXT NOT NULL,
    first_seen BIGINT NOT NULL,
    last_seen BIGINT NOT NULL,
    confidence BIGINT NOT NULL,
    is_current BOOLEAN NOT NULL,
    is_approved BOOLEAN NOT NULL,
    CONSTRAINT factor_types CHECK (factor_type IN ('hardware_fingerprint', 'network_signature', 'geolocation',
        'cryptographic_attestation', 'runtime_environment')),
    CONSTRAINT factor_confidence_check CHECK (confidence BETWEEN 0 AND 100),
    UNIQUE (server_id, factor_type, factor_name, factor_value)
);

CREATE TABLE registration_keys (
    key_uid TEXT PRIMARY KEY REFERENCES resources(uid),
    namespace TEXT NOT NULL,
    name TEXT NOT NULL,
    server_name TEXT NOT NULL,
    secret_hash {bytes},
    creation_date BIGINT NOT NULL,
    expiration_date BIGINT NOT NULL,
    secret_file TEXT,
    used_date BIGINT,
    used_by_server_id TEXT REFERENCES servers(server_id),
    used_by_public_key {bytes},
    revoked_date BIGINT,
    revocation_reason TEXT,
    CONSTRAINT registration_used_check CHECK ((used_date IS NULL) = (used_by_server_id IS NULL)
        AND (used_date IS NULL) = (used_by_public_key IS NULL))
);
CREATE UNIQUE INDEX registration_keys_secret ON registration_keys(secret_hash) WHERE secret_hash IS NOT NULL;

CREATE TABLE personal_keys (
    key_id TEXT PRIMARY KEY REFERENCES resources(uid),
    namespace TEXT NOT NULL,
    name TEXT NOT NULL,
    user_name TEXT NOT NULL,
    user_uid TEXT REFERENCES resources(uid),
    key_hash {bytes},
    key_salt {bytes},
    status TEXT NOT NULL DEFAULT 'pending',
    creation_date BIGINT NOT NULL,
    activation_date BIGINT,
    expiration_date BIGINT,
    deactivation_date BIGINT,
    deactivation_reason TEXT,
    secret_file TEXT,
    CONSTRAINT key_status_check
        CHECK (status IN ('pending', 'active', 'rotating', 'deactivated', 'compromised', 'expired')),
    CONSTRAINT key_hash_check CHECK ((key_hash IS NULL) = (key_salt IS NULL)),
    CONSTRAINT key_deactivated_check
        CHECK ((deactivation_date IS NOT NULL) = (status IN ('deactivated', 'compromised')))
);
CREATE INDEX personal_keys_user ON personal_keys(user_uid);

CREATE TABLE devices (
    device_id TEXT PRIMARY KEY,
    key_id TEXT NOT NULL REFERENCES personal_keys(key_id),
    user_uid TEXT NOT NULL REFERENCES resources(uid),
    public_key {bytes} NOT NULL,
    hardware_fingerprint TEXT NOT NULL,
    device_name TEXT NOT NULL,
    platform TEXT NOT NULL,
    os_version TEXT NOT NULL,
    app_version TEXT NOT NULL,
    first_seen BIGINT NOT NULL,
    last_seen BIGINT NOT NULL,
    status TEXT NOT NULL DEFAULT 'active',
    blocked_date BIGINT,
    blocked_reason TEXT,
    CONSTRAINT device_status_check CHECK (status IN ('active', 'inactive', 'suspicious', 'blocked')),
    CONSTRAINT device_blocked_check CHECK ((blocked_date IS NOT NULL) = (status = 'blocked'))
);
CREATE UNIQUE INDEX devices_public_key ON devices(public_key) WHERE status <> 'inactive';
CREATE INDEX devices_user ON devices(user_uid);
CREATE INDEX devices_key ON devices(key_id);

CREATE TABLE connections (
    connection_id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    server_id TEXT NOT NULL REFERENCES servers(server_id),
    device_id TEXT NOT NULL REFERENCES devices(device_id),
    key_id TEXT NOT NULL REFERENCES personal_keys(key_id),
    user_uid TEXT NOT NULL REFERENCES resources(uid),
    status TEXT NOT NULL,
    connection_type TEXT NOT NULL,
    connection_start BIGINT NOT NULL,
    activated_date BIGINT,
    connection_end BIGINT,
    client_ip TEXT NOT NULL,
    allocated_resources TEXT NOT NULL,
    secret {bytes} NOT NULL,
    termination_reason TEXT,
    initiated_by TEXT,
    connected BOOLEAN NOT NULL DEFAULT FALSE,
    last_connected BIGINT,
    bytes_sent BIGINT NOT NULL DEFAULT 0,
    bytes_received BIGINT NOT NULL DEFAULT 0,
    rtt_micros BIGINT NOT NULL DEFAULT 0,
    CONSTRAINT conn_kind_check CHECK (kind IN ('access', 'trunk')),
    CONSTRAINT conn_status_check
        CHECK (status IN ('requested', 'active', 'terminated', 'failed', 'timeout', 'interrupted')),
    CONSTRAINT conn_type_check CHECK (connection_type IN ('vpn', 'lan_emulation', 'both')),
    CONSTRAINT init_check CHECK (initiated_by IN ('client', 'server', 'broker', 'system', 'admin')),
    CONSTRAINT conn_end_check CHECK ((connection_end IS NULL) = (status IN ('requested', 'active')))
);
CREATE UNIQUE INDEX connections_one_access ON connections(user_uid)
    WHERE kind = 'access' AND status IN ('requested', 'active');
CREATE INDEX connections_live_server ON connections(server_id) WHERE status IN ('requested', 'active');
CREATE INDEX connections_live_status ON connections(status) WHERE status IN ('requested', 'active');
CREATE INDEX connections_device ON connections(device_id);
CREATE INDEX connections_start ON connections(connection_start);

CREATE TABLE address_leases (
    scope TEXT NOT NULL,
    address TEXT NOT NULL,
    device_id TEXT NOT NULL REFERENCES devices(device_id),
    last_used BIGINT NOT NULL,
    PRIMARY KEY (scope, address)
);
CREATE INDEX address_leases_device ON address_leases(device_id);

CREATE TABLE heartbeats (
    heartbeat_id {serial},
    server_id TEXT NOT NULL REFERENCES servers(server_id) ON DELETE CASCADE,
    received_time BIGINT NOT NULL,
    server_time BIGINT NOT NULL,
    counter BIGINT NOT NULL,
    applied_generation BIGINT NOT NULL,
    active_connections BIGINT NOT NULL,
    system_metrics TEXT NOT NULL
);
CREATE INDEX heartbeats_server_time ON heartbeats(server_id, received_time);
CREATE INDEX heartbeats_time ON heartbeats(received_time);

CREATE TABLE security_events (
    event_id {serial},
    timestamp BIGINT NOT NULL,
    event_type TEXT NOT NULL,
    severity TEXT NOT NULL,
    component TEXT NOT NULL,
    source_id TEXT,
    source_ip TEXT,
    description TEXT NOT NULL,
    raw_data TEXT NOT NULL,
    CONSTRAINT severity_check CHECK (severity IN ('info', 'low', 'medium', 'high', 'critical')),
    CONSTRAINT component_check CHECK (component IN ('broker', 'server', 'client', 'system'))
);
CREATE INDEX security_events_time ON security_events(timestamp);
CREATE INDEX security_events_source ON security_events(source_id);

CREATE TABLE verification_challenges (
    challenge_id TEXT PRIMARY KEY,
    server_id TEXT NOT NULL REFERENCES servers(server_id) ON DELETE CASCADE,
    challenge_time BIGINT NOT NULL,
    challenge_type TEXT NOT NULL,
    response_time BIGINT,
    verification_success BOOLEAN,
    CONSTRAINT challenge_type_check CHECK (challenge_type IN
        ('hmac', 'public_key', 'identity_verification', 'capability_check', 'behavior_verification')),
    CONSTRAINT challenge_answer_check CHECK ((response_time IS NULL) = (verification_success IS NULL))
);
CREATE INDEX verification_challenges_server ON verification_challenges(server_id, challenge_time);

CREATE TABLE approvals (
    approval_uid TEXT PRIMARY KEY REFERENCES resources(uid),
    server_id TEXT NOT NULL REFERENCES servers(server_id),
    identity_digest {bytes} NOT NULL,
    decided_at BIGINT NOT NULL,
    effective_at BIGINT
);
CREATE INDEX approvals_server ON approvals(server_id);

CREATE TABLE revocations (
    revocation_uid TEXT PRIMARY KEY REFERENCES resources(uid),
    target_kind TEXT NOT NULL,
    target_namespace TEXT NOT NULL,
    target_name TEXT NOT NULL,
    target_id TEXT,
    reason TEXT NOT NULL,
    compromised BOOLEAN NOT NULL,
    decided_at BIGINT NOT NULL,
    effective_at BIGINT NOT NULL
);

CREATE TABLE audit_logs (
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
    CONSTRAINT actor_check CHECK (actor_type IN ('admin', 'file', 'appliance', 'device', 'system'))
);
CREATE INDEX audit_logs_time ON audit_logs(timestamp);
CREATE INDEX audit_logs_target ON audit_logs(target_id);

CREATE TABLE system_settings (
    setting_name TEXT PRIMARY KEY,
    setting_value TEXT NOT NULL,
    modified_date BIGINT NOT NULL
);
