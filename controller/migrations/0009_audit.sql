-- The chain over the audit trail. Nothing of it is ever changed: each link covers some rows and the link before it.
CREATE TABLE audit_links (
    link BIGINT PRIMARY KEY,
    previous {bytes} NOT NULL,
    digest {bytes} NOT NULL,
    row_ranges TEXT NOT NULL,
    rows_digest {bytes} NOT NULL,
    row_marks {bytes} NOT NULL,
    month BIGINT NOT NULL,
    dropped BIGINT NOT NULL,
    sealed_date BIGINT NOT NULL,
    -- For whoever makes the next link: the highest number that is sealed, how many rows are, and the numbers below it that
    -- were not there yet.
    last_row BIGINT NOT NULL,
    row_total BIGINT NOT NULL,
    gaps TEXT NOT NULL
);
CREATE INDEX audit_links_last_row ON audit_links(last_row);

-- How far the chain reached, signed.
CREATE TABLE audit_checkpoints (
    link BIGINT PRIMARY KEY,
    envelope {bytes} NOT NULL,
    made_date BIGINT NOT NULL
);
