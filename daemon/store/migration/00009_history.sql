-- +goose Up
-- What is asked for often is found without reading the history. SQLite uses a partial
-- index only for a query that has the terms of the index, written as they are here.
CREATE INDEX snapshot_open      ON snapshot (vps)           WHERE state <> 'gone';
CREATE INDEX snapshot_undo      ON snapshot (undo_until)    WHERE state <> 'gone' AND undo_until IS NOT NULL;
CREATE INDEX snapshot_disk_left ON snapshot_disk (snapshot) WHERE NOT pivoted;
CREATE INDEX operation_status   ON operation (status, id);
CREATE INDEX message_kind       ON message (kind, id);
CREATE INDEX message_at         ON message (at);
CREATE INDEX option_order       ON option (vps, order_ref, ordered_at);
CREATE INDEX download_snapshot  ON download (snapshot);

-- The history of a VPS is read page by page, whatever options it is of.
ALTER TABLE option_change ADD COLUMN vps TEXT NOT NULL DEFAULT '';
UPDATE option_change SET vps = (SELECT vps FROM option WHERE id = option_change.option);
CREATE INDEX option_change_vps ON option_change (vps, id);

-- What is over, by when it is pruned.
CREATE INDEX operation_ended  ON operation (ended_at)  WHERE ended_at IS NOT NULL;
CREATE INDEX snapshot_gone    ON snapshot (updated_at) WHERE state = 'gone';
CREATE INDEX option_released  ON option (updated_at)   WHERE state = 'released';
CREATE INDEX option_change_at ON option_change (at);
