-- Who may do what, stated anew by every run of `migrate`. The role that runs it owns the tables.
--
-- horizon_run     what a running controller may do: no change of tables, and of the audit trail nothing but to read and to add.
-- horizon_reader  reads, for reports, what holds no secret, and of that only the rows of namespaces it was given: whoever is a
--                 member of horizon_reader_NAMESPACE too. Membership is not for the member to change.
--
-- horizon_backup  reads all rows and changes nothing: for copies, in which what is secret stays sealed.
--
-- A role that does not exist is made if the migrating role may make roles, and left out otherwise. Both are for others to
-- log in as members of.
DO $$
DECLARE
    wanted TEXT;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['horizon_run', 'horizon_reader', 'horizon_backup'] LOOP
        IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = wanted) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
            EXCEPTION WHEN insufficient_privilege OR duplicate_object OR unique_violation THEN
                NULL;
            END;
        END IF;
    END LOOP;
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO PUBLIC', current_schema());

    IF EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'horizon_run') THEN
        GRANT SELECT ON schema_migrations TO horizon_run;
        GRANT SELECT, UPDATE ON counters, leadership TO horizon_run;
        GRANT SELECT, INSERT, UPDATE ON resources, resource_status, servers, server_capabilities, registration_keys,
            personal_keys, devices, connections, address_leases, approvals, revocations,
            connection_metrics TO horizon_run;
        GRANT SELECT, INSERT, UPDATE ON personal_key_versions, key_deliveries, key_rotation_history, rotation_runs,
            rotation_policies, key_handovers TO horizon_run;
        GRANT SELECT, INSERT, UPDATE ON device_decisions, user_settings, user_settings_keys TO horizon_run;
        GRANT SELECT, INSERT, UPDATE, DELETE ON system_settings, server_identity_factors, verification_challenges, replicas,
            device_channels TO horizon_run;
        GRANT SELECT, INSERT, UPDATE ON admins, roles, permissions TO horizon_run;
        GRANT SELECT, INSERT, UPDATE, DELETE ON admin_recovery_codes, role_permissions, user_roles, admin_sessions,
            token_keys, token_blacklist, idempotency_keys TO horizon_run;
        GRANT SELECT, INSERT, UPDATE ON keysets, keyset_rotations TO horizon_run;
        GRANT SELECT, INSERT, UPDATE, DELETE ON data_keys, envelope_keys, data_key_wraps, envelope_holders TO horizon_run;
        GRANT SELECT, INSERT, UPDATE ON envelope_rotations TO horizon_run;
        GRANT SELECT, INSERT, DELETE ON keyset_holders TO horizon_run;
        GRANT SELECT, INSERT ON audit_logs, audit_links, audit_checkpoints, heartbeats TO horizon_run;
        GRANT SELECT, INSERT, DELETE ON security_events TO horizon_run;
        GRANT UPDATE (handled_at, handled_by, resolution_notes, noticed, source_ip) ON security_events TO horizon_run;
        GRANT SELECT, INSERT, UPDATE, DELETE ON detector_baselines, anomaly_detection, anomaly_feedback, blocked_ips,
            notifications, notification_deliveries, scheduled_tasks, reports, service_status TO horizon_run;
        GRANT SELECT, INSERT, UPDATE ON flags TO horizon_run;
        GRANT EXECUTE ON FUNCTION horizon_make_partitions(), horizon_drop_partitions(TEXT, BIGINT),
            horizon_forget_sessions(BIGINT, BIGINT) TO horizon_run;
    END IF;

    IF EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'horizon_run')
        AND EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'horizon_reader') THEN
        GRANT SELECT ON resources, resource_status TO horizon_reader;
        GRANT SELECT (server_id, namespace, name, status, maintenance_mode, hostname, public_ip, version,
            registration_date, last_heartbeat, last_verified, verified, requires_verification, verification_reason,
            addresses, unreachable, location, identity_drift, state_generation, applied_generation, problems, decommission_date,
            decommission_reason, revoked_date, compromised) ON servers TO horizon_reader;
        GRANT SELECT (connection_id, kind, server_id, device_id, key_id, user_uid, status, connection_type,
            connection_start, activated_date, connection_end, termination_reason, initiated_by, connected,
            last_connected, bytes_sent, bytes_received, rtt_micros) ON connections TO horizon_reader;
        GRANT SELECT ON connection_metrics TO horizon_reader;
        -- The owner is not subject to these policies; whoever is neither owner nor named in one sees no row.
        FOREACH wanted IN ARRAY ARRAY['resources', 'resource_status', 'servers', 'connections', 'connection_metrics'] LOOP
            EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', wanted);
            EXECUTE format('DROP POLICY IF EXISTS running ON %I', wanted);
            EXECUTE format('CREATE POLICY running ON %I TO horizon_run USING (true) WITH CHECK (true)', wanted);
            EXECUTE format('DROP POLICY IF EXISTS reading ON %I', wanted);
        END LOOP;
        CREATE POLICY reading ON resources FOR SELECT TO horizon_reader USING (horizon_reads(namespace));
        CREATE POLICY reading ON servers FOR SELECT TO horizon_reader USING (horizon_reads(namespace));
        -- What these name is read under the policies above.
        CREATE POLICY reading ON resource_status FOR SELECT TO horizon_reader
            USING (EXISTS (SELECT 1 FROM resources r WHERE r.uid = resource_status.uid));
        CREATE POLICY reading ON connections FOR SELECT TO horizon_reader
            USING (EXISTS (SELECT 1 FROM servers s WHERE s.server_id = connections.server_id));
        CREATE POLICY reading ON connection_metrics FOR SELECT TO horizon_reader
            USING (EXISTS (SELECT 1 FROM connections c WHERE c.connection_id = connection_metrics.connection_id));
    END IF;

    IF EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'horizon_backup') THEN
        EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA %I TO horizon_backup', current_schema());
        FOREACH wanted IN ARRAY ARRAY['resources', 'resource_status', 'servers', 'connections', 'connection_metrics'] LOOP
            EXECUTE format('DROP POLICY IF EXISTS backing_up ON %I', wanted);
            EXECUTE format('CREATE POLICY backing_up ON %I FOR SELECT TO horizon_backup USING (true)', wanted);
        END LOOP;
    END IF;
END
$$;
