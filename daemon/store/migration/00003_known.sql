-- +goose Up
-- The VPSes that were ever seen here: names for records whose VPS is gone.
CREATE TABLE vps (
    id        TEXT    PRIMARY KEY,
    name      TEXT    NOT NULL,
    last_seen INTEGER NOT NULL
) STRICT;
INSERT INTO vps (id, name, last_seen) SELECT vps, vps_name, max(created_at) FROM operation GROUP BY vps;

-- A broken snapshot that is available again when what it needs is back.
ALTER TABLE snapshot ADD COLUMN heals INTEGER NOT NULL DEFAULT 0;
UPDATE snapshot SET heals = 1 WHERE state = 'broken';
