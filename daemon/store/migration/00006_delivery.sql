-- +goose Up
-- What is to be sent, written with what it reports. What has ended is kept for a
-- while without its payload.
CREATE TABLE delivery (
    id         TEXT    PRIMARY KEY,
    kind       TEXT    NOT NULL CHECK (kind IN ('webhook', 'mail')),
    target     TEXT    NOT NULL,
    vps        TEXT    NOT NULL,
    payload    BLOB    NOT NULL,
    created_at INTEGER NOT NULL,
    attempts   INTEGER NOT NULL DEFAULT 0,
    next_at    INTEGER NOT NULL,
    last_error TEXT    NOT NULL DEFAULT '',
    outcome    TEXT    NOT NULL DEFAULT '' CHECK (outcome IN ('', 'delivered', 'given_up')),
    ended_at   INTEGER
) STRICT;
CREATE INDEX delivery_waiting ON delivery (kind, target, next_at) WHERE ended_at IS NULL;
CREATE INDEX delivery_ended   ON delivery (ended_at) WHERE ended_at IS NOT NULL;

-- Who is told of events over HTTP. The secret signs, so it is kept as it is. types
-- holds a JSON array of event types; NULL: all that webhooks are told of.
CREATE TABLE webhook (
    id           TEXT    PRIMARY KEY,
    url          TEXT    NOT NULL,
    secret       TEXT    NOT NULL,
    types        TEXT,
    created_at   INTEGER NOT NULL,
    disabled_at  INTEGER,
    delivered_at INTEGER,
    failed_at    INTEGER,
    last_error   TEXT    NOT NULL DEFAULT ''
) STRICT;
