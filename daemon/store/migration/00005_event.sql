-- +goose Up
-- What has happened, for those who listen. An id is never given twice, and there
-- is no gap between two: so a listener can tell that something was pruned.
CREATE TABLE event (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    at       INTEGER NOT NULL,
    type     TEXT    NOT NULL,
    vps      TEXT    NOT NULL,
    vps_name TEXT    NOT NULL,
    data     TEXT    NOT NULL
) STRICT;
CREATE INDEX event_at ON event (at);

-- What a message says, apart from the language that it is said in. Messages from
-- before have their English text only.
ALTER TABLE message ADD COLUMN phrase TEXT NOT NULL DEFAULT '';
ALTER TABLE message ADD COLUMN params TEXT NOT NULL DEFAULT '';
