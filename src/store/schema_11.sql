-- Environments: the package sets that principals have asked for. `id` depends on the principal and the request. `state` is building, ready or
-- failed.
CREATE TABLE environments (
    id TEXT PRIMARY KEY,
    principal TEXT NOT NULL,
    kernel TEXT NOT NULL,
    request TEXT NOT NULL,
    state TEXT NOT NULL,
    package_set TEXT,
    error TEXT,
    log TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    ended_at INTEGER
) WITHOUT ROWID;
