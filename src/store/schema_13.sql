-- Keys that clients choose, so that a retry gets what was created before: `kind` is session, run or sandbox, `id` what was created, and
-- `digest` what was asked for.
CREATE TABLE creation_keys (
    principal TEXT NOT NULL,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    id TEXT NOT NULL,
    digest TEXT NOT NULL,
    PRIMARY KEY (principal, kind, name)
) WITHOUT ROWID;
CREATE INDEX creation_keys_by_id ON creation_keys (id);
CREATE TRIGGER session_frees_key AFTER DELETE ON sessions BEGIN
    DELETE FROM creation_keys WHERE id = OLD.id AND kind <> 'sandbox';
END;
CREATE TRIGGER sandbox_frees_key AFTER DELETE ON sandboxes BEGIN
    DELETE FROM creation_keys WHERE id = OLD.id AND kind = 'sandbox';
END;
