-- +goose Up
-- Links to disks of snapshots. What makes a link of an id is signed with the key,
-- which is made once; revoking one removes its row.
CREATE TABLE download (
    id         TEXT    PRIMARY KEY,
    vps        TEXT    NOT NULL,
    snapshot   TEXT    NOT NULL,
    disk       TEXT    NOT NULL,
    format     TEXT    NOT NULL CHECK (format IN ('qcow2', 'raw')),
    file_name  TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;

CREATE TABLE download_key (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    key BLOB    NOT NULL
) STRICT;

-- What is known of a disk of a snapshot as an image. The map is kept, so that the
-- image always has the same bytes.
CREATE TABLE image (
    snapshot   TEXT    NOT NULL,
    disk       TEXT    NOT NULL,
    format     TEXT    NOT NULL CHECK (format IN ('qcow2', 'raw')),
    size_bytes INTEGER NOT NULL,
    map        BLOB,
    map_name   TEXT    NOT NULL,
    sha256     BLOB,
    PRIMARY KEY (snapshot, disk, format)
) STRICT;
