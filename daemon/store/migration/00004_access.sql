-- +goose Up
-- Access tokens. Of the secret only its SHA-256 is kept. vps holds a JSON array of
-- ids; NULL: all. A token that another one made ends with it.
CREATE TABLE token (
    id           TEXT    PRIMARY KEY,
    name         TEXT    NOT NULL,
    parent       TEXT    REFERENCES token (id) ON DELETE CASCADE,
    hash         BLOB    NOT NULL,
    scopes       TEXT    NOT NULL,
    way          TEXT    NOT NULL CHECK (way IN ('panel', 'order')),
    vps          TEXT,
    created_at   INTEGER NOT NULL,
    expires_at   INTEGER,
    last_used_at INTEGER
) STRICT;
CREATE UNIQUE INDEX token_name ON token (name) WHERE parent IS NULL;
CREATE INDEX token_parent ON token (parent);
CREATE INDEX token_expires ON token (expires_at);

-- What calls with an Idempotency-Key were answered, written with what they changed.
CREATE TABLE answer (
    client TEXT    NOT NULL,
    key    TEXT    NOT NULL,
    sum    BLOB    NOT NULL,
    at     INTEGER NOT NULL,
    answer BLOB    NOT NULL,
    PRIMARY KEY (client, key)
) STRICT;
CREATE INDEX answer_at ON answer (at);
