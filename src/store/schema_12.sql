-- The versions that the first installation of an environment has decided. They stay when its packages are removed to make room.
ALTER TABLE environments ADD COLUMN lock TEXT;
-- The number of the first line of `log`.
ALTER TABLE environments ADD COLUMN log_first INTEGER NOT NULL DEFAULT 1;
