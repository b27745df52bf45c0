-- +goose Up
-- How long an operation has had the guest suspended at a time, at most.
ALTER TABLE operation ADD COLUMN longest_pause_ms INTEGER NOT NULL DEFAULT 0;
