-- Long JSON texts of a session: `sandbox` (its record), `resume` (the state that the driver needs to resume), `kernel_info` (the
-- kernel_info_reply). Rows of `sessions` change with each commit, and stay short without them.
CREATE TABLE documents (
    session TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    kind    TEXT NOT NULL,
    json    TEXT NOT NULL,
    UNIQUE (session, kind)
) STRICT;
INSERT INTO documents SELECT id, 'sandbox', sandbox FROM sessions WHERE sandbox IS NOT NULL;
INSERT INTO documents SELECT id, 'resume', resume FROM sessions WHERE resume IS NOT NULL;
INSERT INTO documents SELECT id, 'kernel_info', kernel_info FROM sessions WHERE kernel_info IS NOT NULL;
ALTER TABLE sessions DROP COLUMN sandbox;
ALTER TABLE sessions DROP COLUMN resume;
ALTER TABLE sessions DROP COLUMN kernel_info;
