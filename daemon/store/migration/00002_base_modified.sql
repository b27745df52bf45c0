-- +goose Up
-- When a base was last written to, as it was frozen: nanoseconds since 1970, as
-- file systems tell it. NULL: not known.
ALTER TABLE snapshot_disk ADD COLUMN base_modified INTEGER;
