-- What is kept for a while only: sessions that ended, and from where people connected.

-- Whose address is still there ('0.0.0.0' is in the place of one that was forgotten).
CREATE INDEX connections_located ON connections(connection_end) WHERE client_ip <> '0.0.0.0';
CREATE INDEX security_events_located ON security_events(timestamp) WHERE source_ip IS NOT NULL;
