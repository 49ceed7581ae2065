-- The orders of lists that are read in pages.
CREATE INDEX sessions_by_creation ON sessions (created_at, id);
CREATE INDEX sessions_by_principal ON sessions (principal, created_at, id);
CREATE INDEX cells_by_place ON cells (session, place, number);
