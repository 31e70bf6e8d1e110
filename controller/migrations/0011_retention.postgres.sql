-- Removes sessions that ended before a time, a few at once. Returns how many. A running controller removes none otherwise, and
-- none that ended within a day. Runs as its owner.
CREATE FUNCTION horizon_forget_sessions(before BIGINT, most BIGINT) RETURNS BIGINT
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    gone BIGINT;
BEGIN
    before := LEAST(before, (EXTRACT(EPOCH FROM clock_timestamp()) * 1000)::BIGINT - 86400000);
    DELETE FROM connections WHERE connection_id IN
        (SELECT connection_id FROM connections WHERE connection_start < before AND connection_end < before
         ORDER BY connection_start LIMIT LEAST(most, 10000));
    GET DIAGNOSTICS gone = ROW_COUNT;
    RETURN gone;
END
$$;
REVOKE ALL ON FUNCTION horizon_forget_sessions(BIGINT, BIGINT) FROM PUBLIC;
