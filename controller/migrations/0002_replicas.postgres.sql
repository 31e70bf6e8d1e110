-- Postgres alone: tables that grow are partitioned by time, so that what is old goes at once. Postgres never ran without this
-- migration: the tables made by the first are empty here.

-- Every heartbeat updates a server's row: room for the next version on the same page spares the indexes.
ALTER TABLE servers SET (fillfactor = 70);

DROP TABLE heartbeats;
CREATE TABLE heartbeats (
    heartbeat_id BIGINT GENERATED ALWAYS AS IDENTITY,
    server_id TEXT NOT NULL,
    received_time BIGINT NOT NULL,
    server_time BIGINT NOT NULL,
    counter BIGINT NOT NULL,
    applied_generation BIGINT NOT NULL,
    active_connections BIGINT NOT NULL,
    system_metrics TEXT NOT NULL
) PARTITION BY RANGE (received_time);
CREATE INDEX heartbeats_server_time ON heartbeats(server_id, received_time);
CREATE TABLE heartbeats_rest PARTITION OF heartbeats DEFAULT;

-- What a session moved in a minute.
CREATE TABLE connection_metrics (
    connection_id TEXT NOT NULL,
    minute BIGINT NOT NULL,
    bytes_sent BIGINT NOT NULL,
    bytes_received BIGINT NOT NULL,
    rtt_micros BIGINT NOT NULL,
    PRIMARY KEY (connection_id, minute)
) PARTITION BY RANGE (minute);
CREATE TABLE connection_metrics_rest PARTITION OF connection_metrics DEFAULT;

DROP TABLE audit_logs;
CREATE TABLE audit_logs (
    log_id BIGINT GENERATED ALWAYS AS IDENTITY,
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
    PRIMARY KEY (log_id, timestamp),
    CONSTRAINT actor_check CHECK (actor_type IN ('admin', 'file', 'kubernetes', 'appliance', 'device', 'system'))
) PARTITION BY RANGE (timestamp);
CREATE INDEX audit_logs_target ON audit_logs(target_id);
CREATE TABLE audit_logs_rest PARTITION OF audit_logs DEFAULT;

-- How the partitioned tables are cut: how long a partition is, and for how long rows must be kept whatever is asked, in
-- milliseconds.
CREATE FUNCTION horizon_partition_rules(OUT parent TEXT, OUT span BIGINT, OUT keep BIGINT) RETURNS SETOF RECORD
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    VALUES ('heartbeats', 3600000::BIGINT, 3600000::BIGINT),
        ('connection_metrics', 86400000, 86400000),
        ('audit_logs', 2592000000, 7776000000)
$$;

-- Makes the partition of now and the next ones. Returns how many it made. Rows that came before their partition stay among
-- the rest. Runs as its owner: who calls it makes no tables of their own.
CREATE FUNCTION horizon_make_partitions() RETURNS BIGINT
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    rule RECORD;
    now_ms BIGINT := EXTRACT(EPOCH FROM clock_timestamp()) * 1000;
    first BIGINT;
    part TEXT;
    made BIGINT := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('horizon partitions', 0));
    FOR rule IN SELECT * FROM horizon_partition_rules() LOOP
        FOR ahead IN 0..2 LOOP
            first := (now_ms / rule.span + ahead) * rule.span;
            part := rule.parent || '_' || (first / rule.span);
            IF to_regclass(part) IS NULL THEN
                BEGIN
                    EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', part, rule.parent);
                    EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%s) TO (%s)',
                        rule.parent, part, first, first + rule.span);
                    made := made + 1;
                EXCEPTION WHEN check_violation THEN
                    NULL;
                END;
            END IF;
        END LOOP;
    END LOOP;
    RETURN made;
END
$$;

-- Drops partitions that hold nothing younger than a time, and deletes such rows from the rest. Returns how many partitions
-- went. What must be kept is kept whatever the time says.
CREATE FUNCTION horizon_drop_partitions(which TEXT, before BIGINT) RETURNS BIGINT
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    rule RECORD;
    now_ms BIGINT := EXTRACT(EPOCH FROM clock_timestamp()) * 1000;
    time_column TEXT;
    part RECORD;
    dropped BIGINT := 0;
BEGIN
    SELECT * INTO rule FROM horizon_partition_rules() WHERE parent = which;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no table % is cut by time', which USING ERRCODE = 'invalid_parameter_value';
    END IF;
    before := LEAST(before, now_ms - rule.keep);
    time_column := CASE which WHEN 'heartbeats' THEN 'received_time' WHEN 'connection_metrics' THEN 'minute' ELSE 'timestamp' END;
    PERFORM pg_advisory_xact_lock(hashtextextended('horizon partitions', 0));
    FOR part IN
        SELECT c.relname, (regexp_match(c.relname, '_([0-9]+)$'))[1]::BIGINT AS number
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = which::regclass AND c.relname ~ '_[0-9]+$'
    LOOP
        IF (part.number + 1) * rule.span <= before THEN
            EXECUTE format('DROP TABLE %I', part.relname);
            dropped := dropped + 1;
        END IF;
    END LOOP;
    EXECUTE format('DELETE FROM %I WHERE %I < $1', which || '_rest', time_column) USING before;
    RETURN dropped;
END
$$;

-- Whether the current user may read a namespace for reports: a member of the role horizon_reader_NAMESPACE may.
CREATE FUNCTION horizon_reads(wanted TEXT) RETURNS BOOLEAN
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (SELECT 1 FROM pg_roles r WHERE r.rolname = 'horizon_reader_' || wanted
        AND pg_has_role(current_user, r.oid, 'MEMBER'))
$$;

REVOKE ALL ON FUNCTION horizon_make_partitions() FROM PUBLIC;
REVOKE ALL ON FUNCTION horizon_drop_partitions(TEXT, BIGINT) FROM PUBLIC;
SELECT horizon_make_partitions();
