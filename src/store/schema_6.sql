-- What later output of a cell goes on from, JSON, by the cell's number or that of an Output widget. It stood in one text for all cells,
-- which was written again with each message; what a file still has of that is not taken over: what runs just then ends as lost.
CREATE TABLE folds (
    session TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    number  INTEGER NOT NULL,
    json    TEXT NOT NULL,
    PRIMARY KEY (session, number)
) STRICT, WITHOUT ROWID;
DELETE FROM documents WHERE kind = 'resume';
