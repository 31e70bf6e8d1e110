-- Accounts of administrators: who they are, what they may do, where they are signed in, and what their tokens hang on.

CREATE TABLE admins (
    admin_id TEXT PRIMARY KEY,
    username TEXT NOT NULL,
    email TEXT,
    full_name TEXT NOT NULL DEFAULT '',
    password_hash {bytes} NOT NULL,
    password_salt {bytes} NOT NULL,
    status TEXT NOT NULL DEFAULT 'active',
    suspension_reason TEXT,
    failed_login_attempts BIGINT NOT NULL DEFAULT 0,
    lockouts BIGINT NOT NULL DEFAULT 0,
    lockout_until BIGINT,
    last_login BIGINT,
    created_date BIGINT NOT NULL,
    created_by TEXT NOT NULL,
    last_password_change BIGINT NOT NULL,
    require_password_change BOOLEAN NOT NULL DEFAULT FALSE,
    password_expiry BIGINT,
    mfa_enabled BOOLEAN NOT NULL DEFAULT TRUE,
    mfa_secret {bytes},
    mfa_confirmed BIGINT,
    mfa_last_step BIGINT NOT NULL DEFAULT 0,
    version BIGINT NOT NULL DEFAULT 1,
    CONSTRAINT admin_status_check CHECK (status IN ('active', 'inactive', 'locked', 'suspended')),
    CONSTRAINT admin_locked_check CHECK ((status = 'locked') = (lockout_until IS NOT NULL)),
    CONSTRAINT admin_mfa_check CHECK (mfa_confirmed IS NULL OR mfa_secret IS NOT NULL)
);
CREATE UNIQUE INDEX admins_username ON admins(username);
CREATE UNIQUE INDEX admins_email ON admins(email) WHERE email IS NOT NULL;

CREATE TABLE admin_recovery_codes (
    admin_id TEXT NOT NULL REFERENCES admins(admin_id) ON DELETE CASCADE,
    code_hash {bytes} NOT NULL,
    used_date BIGINT,
    PRIMARY KEY (admin_id, code_hash)
);

CREATE TABLE roles (
    role_name TEXT PRIMARY KEY,
    description TEXT NOT NULL,
    built_in BOOLEAN NOT NULL,
    created_date BIGINT NOT NULL
);

CREATE TABLE permissions (
    permission_name TEXT PRIMARY KEY,
    description TEXT NOT NULL
);

CREATE TABLE role_permissions (
    role_name TEXT NOT NULL REFERENCES roles(role_name) ON DELETE CASCADE,
    permission_name TEXT NOT NULL REFERENCES permissions(permission_name) ON DELETE CASCADE,
    created_date BIGINT NOT NULL,
    PRIMARY KEY (role_name, permission_name)
);

CREATE TABLE user_roles (
    admin_id TEXT NOT NULL REFERENCES admins(admin_id) ON DELETE CASCADE,
    role_name TEXT NOT NULL REFERENCES roles(role_name) ON DELETE CASCADE,
    created_date BIGINT NOT NULL,
    PRIMARY KEY (admin_id, role_name)
);

CREATE TABLE admin_sessions (
    session_id TEXT PRIMARY KEY,
    admin_id TEXT NOT NULL REFERENCES admins(admin_id) ON DELETE CASCADE,
    login_time BIGINT NOT NULL,
    expiry_time BIGINT NOT NULL,
    last_activity BIGINT NOT NULL,
    ip_address TEXT NOT NULL,
    user_agent TEXT NOT NULL,
    country TEXT,
    session_token {bytes} NOT NULL,
    previous_token {bytes},
    active BOOLEAN NOT NULL DEFAULT TRUE,
    logout_time BIGINT,
    logout_reason TEXT,
    CONSTRAINT logout_reason_check CHECK (logout_reason IN
        ('user_initiated', 'expired', 'admin_terminated', 'security_policy', 'session_hijacking_suspected')),
    CONSTRAINT admin_session_end_check CHECK (active = (logout_time IS NULL) AND active = (logout_reason IS NULL))
);
CREATE INDEX admin_sessions_active ON admin_sessions(admin_id) WHERE active;

-- The keys that sign tokens. The private half is sealed, and is gone once the key signs no more.
CREATE TABLE token_keys (
    key_id TEXT PRIMARY KEY,
    public_key {bytes} NOT NULL,
    private_key {bytes},
    created_date BIGINT NOT NULL,
    signs_until BIGINT NOT NULL,
    valid_until BIGINT NOT NULL
);

-- Tokens that are dead before their time.
CREATE TABLE token_blacklist (
    token_id TEXT PRIMARY KEY,
    expiry_time BIGINT NOT NULL
);

-- What a request with an idempotency key was answered; the answer is sealed, since it may hold a secret.
CREATE TABLE idempotency_keys (
    owner TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    request_digest {bytes} NOT NULL,
    status BIGINT,
    answer {bytes},
    created_date BIGINT NOT NULL,
    expiry_time BIGINT NOT NULL,
    PRIMARY KEY (owner, idempotency_key)
);
CREATE INDEX idempotency_keys_expiry ON idempotency_keys(expiry_time);

-- From where a change was made, where that is known.
ALTER TABLE audit_logs ADD COLUMN ip_address TEXT;
ALTER TABLE audit_logs ADD COLUMN user_agent TEXT;
