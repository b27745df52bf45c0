-- +goose Up
-- For which end of an option each kind of reminder was last sent.
CREATE TABLE reminder (
    option  TEXT    NOT NULL REFERENCES option (id),
    kind    TEXT    NOT NULL,
    ends_at INTEGER NOT NULL,
    PRIMARY KEY (option, kind)
) STRICT;
