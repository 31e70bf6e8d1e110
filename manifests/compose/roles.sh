#!/bin/bash
# The database, the role that owns its tables, the role that the controller runs as, one whose members may read reports, and one whose
# members may read everything, for backups.
# Run once, when the data directory is made; `horizon-controller migrate` makes the tables and gives the others what they need.
set -euo pipefail
psql --quiet --set ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" --dbname postgres \
    --set migrate="$HORIZON_MIGRATE_PASSWORD" --set run="$HORIZON_RUN_PASSWORD" <<'END'
CREATE ROLE horizon_migrate LOGIN PASSWORD :'migrate';
CREATE ROLE horizon_run LOGIN PASSWORD :'run' CONNECTION LIMIT 100;
CREATE ROLE horizon_reader NOLOGIN;
CREATE ROLE horizon_backup NOLOGIN;
CREATE DATABASE horizon OWNER horizon_migrate ENCODING 'UTF8' TEMPLATE template0;
REVOKE ALL ON DATABASE horizon FROM PUBLIC;
GRANT CONNECT ON DATABASE horizon TO horizon_run, horizon_backup;
END
