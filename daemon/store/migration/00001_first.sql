-- +goose Up
-- Times are microseconds since 1970, UTC. Sizes are bytes. Absent times are NULL.

CREATE TABLE option (
    id            TEXT    PRIMARY KEY,
    vps           TEXT    NOT NULL,
    state         TEXT    NOT NULL CHECK (state IN ('ordered', 'active', 'grace', 'released')),
    order_ref     TEXT    NOT NULL,
    amount        INTEGER NOT NULL,
    currency      TEXT    NOT NULL,
    period        TEXT    NOT NULL,
    contact_email TEXT    NOT NULL,
    locale        TEXT    NOT NULL,
    ordered_at    INTEGER NOT NULL,
    activated_at  INTEGER,
    ends_at       INTEGER,
    cancelled_at  INTEGER,
    grace_until   INTEGER,
    released_at   INTEGER,
    updated_at    INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX option_one_open ON option (vps) WHERE state <> 'released';

CREATE TABLE option_change (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    option     TEXT    NOT NULL REFERENCES option (id),
    at         INTEGER NOT NULL,
    state      TEXT    NOT NULL,
    actor_name TEXT    NOT NULL,
    actor_way  TEXT    NOT NULL,
    note       TEXT    NOT NULL
) STRICT;
CREATE INDEX option_change_option ON option_change (option, id);

CREATE TABLE snapshot (
    id          TEXT    PRIMARY KEY,
    vps         TEXT    NOT NULL,
    state       TEXT    NOT NULL CHECK (state IN ('creating', 'available', 'restoring', 'deleting', 'gone', 'broken')),
    reason      TEXT    NOT NULL,
    description TEXT    NOT NULL,
    created_at  INTEGER NOT NULL,
    consistency TEXT    NOT NULL,
    freeze_ms   INTEGER NOT NULL,
    size_bytes  INTEGER NOT NULL,
    restored_at INTEGER,
    undo_until  INTEGER,
    nvram       TEXT    NOT NULL,
    nvram_saved TEXT    NOT NULL,
    nvram_undo  TEXT    NOT NULL,
    updated_at  INTEGER NOT NULL
) STRICT;
-- One snapshot per VPS. While it is replaced the new one is creating beside the
-- old one, and then the old one is deleting beside the new one.
CREATE UNIQUE INDEX snapshot_one_usable   ON snapshot (vps) WHERE state IN ('available', 'restoring', 'broken');
CREATE UNIQUE INDEX snapshot_one_creating ON snapshot (vps) WHERE state = 'creating';
CREATE UNIQUE INDEX snapshot_one_deleting ON snapshot (vps) WHERE state = 'deleting';

CREATE TABLE snapshot_disk (
    snapshot      TEXT    NOT NULL REFERENCES snapshot (id),
    target        TEXT    NOT NULL,
    base          TEXT    NOT NULL,
    base_format   TEXT    NOT NULL,
    base_inode    INTEGER NOT NULL,
    size_bytes    INTEGER NOT NULL,
    overlay       TEXT    NOT NULL,
    overlay_inode INTEGER NOT NULL,
    undo          TEXT    NOT NULL,
    undo_inode    INTEGER NOT NULL,
    pivoted       INTEGER NOT NULL,
    PRIMARY KEY (snapshot, target)
) STRICT;

CREATE TABLE operation (
    id               TEXT    PRIMARY KEY,
    vps              TEXT    NOT NULL,
    vps_name         TEXT    NOT NULL,
    kind             TEXT    NOT NULL,
    status           TEXT    NOT NULL CHECK (status IN ('pending', 'running', 'succeeded', 'failed', 'cancelled', 'needs_attention')),
    step             TEXT    NOT NULL,
    irrevocable      INTEGER NOT NULL,
    cancel_requested INTEGER NOT NULL,
    actor_name       TEXT    NOT NULL,
    actor_way        TEXT    NOT NULL,
    snapshot         TEXT    NOT NULL,
    created_at       INTEGER NOT NULL,
    started_at       INTEGER,
    ended_at         INTEGER,
    error_code       TEXT    NOT NULL,
    error_detail     TEXT    NOT NULL,
    error_remedy     TEXT    NOT NULL,
    result           TEXT    NOT NULL,
    request          BLOB,
    plan             BLOB
) STRICT;
CREATE UNIQUE INDEX operation_one_active ON operation (vps) WHERE status IN ('pending', 'running', 'needs_attention');
CREATE INDEX operation_vps ON operation (vps, id);

-- What the daemon owes a guest that it froze or suspended. Written before the
-- guest is touched, removed when the guest is known to run again.
CREATE TABLE promise (
    vps   TEXT    NOT NULL,
    kind  TEXT    NOT NULL CHECK (kind IN ('thaw', 'resume')),
    since INTEGER NOT NULL,
    PRIMARY KEY (vps, kind)
) STRICT;

CREATE TABLE message (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    at         INTEGER NOT NULL,
    vps        TEXT    NOT NULL,
    vps_name   TEXT    NOT NULL,
    kind       TEXT    NOT NULL,
    actor_name TEXT    NOT NULL,
    actor_way  TEXT    NOT NULL,
    operation  TEXT    NOT NULL,
    text       TEXT    NOT NULL,
    detail     TEXT    NOT NULL
) STRICT;
CREATE INDEX message_vps ON message (vps, id);
