-- +goose Up
-- What each row that decides was when it was last written: its VPS, whether it was open,
-- and a sum of its columns. A row with another sum is neither served nor acted on.
-- (kind 'schema' tells for which version of the schema the sums are.)
CREATE TABLE checksum (
    kind TEXT    NOT NULL,
    id   TEXT    NOT NULL,
    vps  TEXT    NOT NULL,
    open INTEGER NOT NULL,
    sum  BLOB    NOT NULL,
    PRIMARY KEY (kind, id)
) STRICT, WITHOUT ROWID;

-- Rows whose sum was another, as they were found. They are here instead of in their table.
CREATE TABLE damaged (
    kind    TEXT    NOT NULL,
    id      TEXT    NOT NULL,
    vps     TEXT    NOT NULL,
    open    INTEGER NOT NULL,
    at      INTEGER NOT NULL,
    content TEXT    NOT NULL,
    PRIMARY KEY (kind, id, vps)
) STRICT;
CREATE INDEX damaged_vps ON damaged (vps);
