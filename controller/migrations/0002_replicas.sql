-- Several replicas on one database: versions of the resources, leadership, channels, what changed.

-- The oldest schema that a program must know to work with this one.
ALTER TABLE schema_migrations ADD COLUMN compatible_from BIGINT NOT NULL DEFAULT 1;

-- 'resources': the version of the resources. 'changed': SQLite's position in the sequence of changed servers.
CREATE TABLE counters (
    name TEXT PRIMARY KEY,
    value BIGINT NOT NULL
);
INSERT INTO counters (name, value) VALUES ('resources', 0), ('changed', 0);

-- The version with which a resource became what it is, or was removed.
ALTER TABLE resources ADD COLUMN revision BIGINT NOT NULL DEFAULT 0;
CREATE INDEX resources_revision ON resources(revision);

-- One row: who leads, and the epoch that fences those before.
CREATE TABLE leadership (
    singleton BIGINT PRIMARY KEY,
    epoch BIGINT NOT NULL,
    replica_id TEXT,
    replica_name TEXT,
    since BIGINT,
    held_until BIGINT,
    renewals BIGINT NOT NULL DEFAULT 0,
    CONSTRAINT leadership_one_row CHECK (singleton = 1)
);
INSERT INTO leadership (singleton, epoch) VALUES (1, 0);

CREATE TABLE replicas (
    replica_id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    addresses TEXT NOT NULL,
    draining BOOLEAN NOT NULL,
    version TEXT NOT NULL,
    started BIGINT NOT NULL,
    last_beat BIGINT NOT NULL
);

-- Devices whose channel a replica has.
CREATE TABLE device_channels (
    device_id TEXT NOT NULL,
    replica_id TEXT NOT NULL REFERENCES replicas(replica_id) ON DELETE CASCADE,
    PRIMARY KEY (device_id, replica_id)
);
CREATE INDEX device_channels_replica ON device_channels(replica_id);

-- The channel of a server's appliance: a number that moves on with each taking, and who has it.
ALTER TABLE servers ADD COLUMN channel_lease BIGINT NOT NULL DEFAULT 0;
ALTER TABLE servers ADD COLUMN channel_replica TEXT;
ALTER TABLE servers ADD COLUMN channel_incarnation TEXT;
ALTER TABLE servers ADD COLUMN channel_since BIGINT;
-- The version of the resources that the newest state was made from.
ALTER TABLE servers ADD COLUMN state_revision BIGINT NOT NULL DEFAULT 0;
-- When what a server's state is made of last changed, in the order that sweeps read (src/store/changed.rs).
ALTER TABLE servers ADD COLUMN changed BIGINT NOT NULL DEFAULT 0;
CREATE INDEX servers_changed ON servers(changed);

-- When the appliance confirmed that it admits an ended session no more.
ALTER TABLE connections ADD COLUMN released_date BIGINT;
UPDATE connections SET released_date = connection_end WHERE connection_end IS NOT NULL;
CREATE INDEX connections_unreleased ON connections(server_id) WHERE released_date IS NULL;
