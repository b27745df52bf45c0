-- +goose Up
-- How a disk was before its pivot was asked for. It lasts until the pivot is on
-- record: a daemon that dies in between must know that one was under way.
CREATE TABLE pivot (
    vps           TEXT    PRIMARY KEY,
    target        TEXT    NOT NULL,
    base_modified INTEGER
) STRICT;
