-- Links to a port that were made until a time and open nothing any more.
CREATE TABLE preview_revoked (
    sandbox_id TEXT NOT NULL,
    port BIGINT NOT NULL,
    made_until BIGINT NOT NULL,
    PRIMARY KEY (sandbox_id, port)
);
