-- Identity of servers: what was observed, weighed and approved.

-- What waits for an approval: the baseline once it is given.
ALTER TABLE server_identity_factors ADD COLUMN is_pending BOOLEAN NOT NULL DEFAULT FALSE;
-- How far the machine is from the approved one, in points, and where its public address is, in words.
ALTER TABLE servers ADD COLUMN identity_drift BIGINT NOT NULL DEFAULT 0;
ALTER TABLE servers ADD COLUMN location TEXT;
-- Whether the appliance once said that it answers every type of challenge: it is not asked for less since.
ALTER TABLE servers ADD COLUMN challenges_v2 BOOLEAN NOT NULL DEFAULT FALSE;
-- What a challenge found, in words.
ALTER TABLE verification_challenges ADD COLUMN detail TEXT;
-- The start of the appliance's process for whose wrong answer alone the server waits: the right answer of another one shows that
-- it was a copy.
ALTER TABLE servers ADD COLUMN doubted_incarnation TEXT;
