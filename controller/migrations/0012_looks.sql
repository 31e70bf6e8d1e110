-- What a device said that does not use its session, and what the controller's own look at both ends of it came to.
ALTER TABLE connections ADD COLUMN client_absent BIGINT;
ALTER TABLE connections ADD COLUMN looked_date BIGINT;
ALTER TABLE connections ADD COLUMN look_result TEXT;
