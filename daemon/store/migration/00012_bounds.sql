-- +goose Up
-- A link ends with the token that made it, and with that token's parent. NULL: an operator
-- on the host made it, or it is older than this column.
ALTER TABLE download ADD COLUMN token TEXT REFERENCES token (id) ON DELETE CASCADE;
CREATE INDEX download_token ON download (token) WHERE token IS NOT NULL;

-- Whose answers are counted together, of what VPS, and by which operation one may still be
-- asked for. Those from before go by their age.
ALTER TABLE answer ADD COLUMN owner     TEXT    NOT NULL DEFAULT '';
ALTER TABLE answer ADD COLUMN vps       TEXT    NOT NULL DEFAULT '';
ALTER TABLE answer ADD COLUMN operation TEXT    NOT NULL DEFAULT '';
ALTER TABLE answer ADD COLUMN bytes     INTEGER NOT NULL DEFAULT 0;
CREATE INDEX answer_owner ON answer (owner, vps, at, operation, bytes);

-- The records of deleted snapshots of one VPS, by age.
CREATE INDEX snapshot_gone_vps ON snapshot (vps, updated_at) WHERE state = 'gone';

-- What waits for a target of one VPS.
CREATE INDEX delivery_vps ON delivery (vps, kind, target) WHERE ended_at IS NULL;
